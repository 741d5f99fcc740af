"""The cache as a part of the engine: what a request is looked up by, purging, and explanations."""

from __future__ import annotations

import hmac
import json
import re
from hashlib import sha256
from os import urandom
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qsl, quote
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.cache.answers import Use, current_age, is_for_the_origin, use
from upstash_middleware.core.cache.directives import CDN_CACHE_CONTROL
from upstash_middleware.core.cache.entries import (
    Decoded,
    Epochs,
    Sealing,
    StoredResponse,
    Validity,
    VariantIndex,
    decode,
    validity,
    with_ancestors,
)
from upstash_middleware.core.cache.exchanges import (
    SAFE_METHODS,
    Answered,
    Bypassed,
    CacheExchange,
    Context,
    Found,
    Invalidation,
    PostInvalidation,
    choose,
    from_memory,
    share_render,
)
from upstash_middleware.core.cache.in_flight import (
    PendingInvalidations,
    Revalidations,
    SingleFlight,
)
from upstash_middleware.core.cache.keys import (
    Names,
    keyed,
    origin_as_sent,
    origin_of,
    selected_cookies,
    selected_values,
    url_of,
)
from upstash_middleware.core.cache.known_fields import known_fields
from upstash_middleware.core.cache.profiles import profile_named
from upstash_middleware.core.cache.reflection import reflected_fields as url_fields
from upstash_middleware.core.cache.reflection import reflected_key
from upstash_middleware.core.cache.store import L1, Purge, Store, Target, read_scripts
from upstash_middleware.core.engine import Part
from upstash_middleware.core.flow import call
from upstash_middleware.core.lru import LRU
from upstash_middleware.core.patterns import Unmatched, other_readings
from upstash_middleware.errors import ConfigurationError, UpstashError
from upstash_middleware.events import (
    CacheLookedUp,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    hears,
)
from upstash_middleware.messages import LONGEST_VALUE, Headers, Response, ResponseHead, has_body

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest

_DAY = 24 * 3600.0
_RESOURCES = 512
_LONGEST_REMEMBERED = 512
"""Characters of a request for whose resource is remembered, so that all take about a megabyte."""
# What may occur in a query, and what browsers leave unescaped there. How other bytes are read
# differs between frameworks (RFC 3986 §3.4).
_QUERY = re.compile(r'[!"$-~]*+')
# Fields that may make a request bypass the cache; nearly none has one.
_INSPECTED = frozenset(
    {"content-length", "content-type", "if-match", "if-unmodified-since", "transfer-encoding"}
)
_IGNORED = CacheExchange()
_ANSWERED = UpstashAnswered("cache lookup")


class _Resource(Struct, frozen=True):
    """What the cache knows about a URL, the same for all clients."""

    rule: CacheRule
    """The first that covers it."""
    context: Context
    url: str
    """Path and query, as in the name of its epoch."""
    key: str
    previous: str
    """Its key in the application's previous version, if there is one."""
    tags: tuple[str, ...]
    """Those of its rule, with ancestors."""
    epochs: tuple[str, ...]
    """The keys of its epochs."""
    narrows: bool
    """Whether cookies or fields named by its rule narrow its key."""
    refused: str = ""
    """Why requests for it bypass the cache, if they do."""


class Cache(Part):
    """A shared cache (RFC 9111) over stored responses on Redis."""

    def __init__(  # noqa: PLR0913 - keyword arguments, each a setting
        self,
        rules: Sequence[CacheRule],
        *,
        prefix: str,
        secret: Callable[[], bytes],
        clock: Clock,
        observe: Observer,
        deadline: float = 0.25,
        profile: str = "safe",
        max_body: int = 1024 * 1024,
        max_variants: int = 100,
        grace: float = 3600.0,
        targets: tuple[str, ...] = (CDN_CACHE_CONTROL,),
        background_refresh: bool = False,
        collapse: float = 5.0,
        lock: bool = False,
        max_keep: float = 7 * _DAY,
        remember: int = 10_000,
        l1_bytes: int = 0,
        l1_seconds: float = 5.0,
        version: str = "",
        previous_version: str = "",
        shows_keys: bool = False,
        keys: Sequence[str] = (),
        encrypt: bool = False,
        selects: Callable[[HTTPRequest], str | None] | None = None,
        credential_fields: Sequence[str] = (),
        reflected_fields: Sequence[str] = (),
        randomness: Callable[[int], bytes] = urandom,
    ) -> None:
        """Make a cache; nothing is sent to Upstash, and ``secret`` is not called, before a request.

        Most arguments are the settings of the same names (``cache_grace``). Besides: ``secret``
        returns the key for hashes of what selects responses, ``selects`` what else of a request
        selects its response (None if that is unknown), and with ``background_refresh`` the caller
        carries out the ``refresh`` of exchanges. ``remember`` is the number of resources whose Vary
        and tags are remembered; ``max_keep`` is the longest lifetime of an entry in seconds.
        """
        read_scripts()
        self._rules = tuple(rules)
        self._emit = observe
        self._selects = selects
        self._emits_lookups = hears(observe, CacheLookedUp)
        self._versions = version, previous_version
        self._has_l1 = l1_bytes > 0
        self._store = Store(
            Names(prefix),
            secret,
            clock,
            randomness,
            observe,
            Sealing(keys, encrypt=encrypt, randomness=randomness) if keys else None,
            deadline,
            max_keep,
            profile_named(profile),
            max_variants,
            lock,
            Decoded(),
            L1(l1_bytes, l1_seconds, clock),
            guesses=LRU(remember),
            used=LRU(remember),
            unlisted=LRU(remember),
        )
        self._context = Context(
            self._rules,
            self._store,
            observe,
            max_body,
            grace,
            tuple(name.lower() for name in targets),
            background_refresh,
            SingleFlight(clock),
            Revalidations(clock),
            PendingInvalidations(clock),
            collapse,
            shows_keys,
            known_fields(credential_fields, reflected_fields),
        )
        paths = {f"cache[{index}]": rule.path for index, rule in enumerate(self._rules)}
        self._unmatched = Unmatched(paths, observe)
        self._covering = [(rule, self._context_of(rule)) for rule in self._rules]
        self._resources: dict[tuple[str, ...], _Resource] = {}

    def prepare(self, request: HTTPRequest) -> Flow[CacheExchange]:
        """Return the flow of ``begin``."""
        return self.begin(request)

    async def begin(self, request: HTTPRequest) -> CacheExchange:
        """Look a request up, if a rule covers it. Never raises an UpstashError."""
        if self._unmatched.left:
            self._unmatched.count()
        if request.method not in SAFE_METHODS:
            return await self._begin_unsafe(request) if self._rules else _IGNORED
        resource = self._resource_to_look_up(request)
        if isinstance(resource, CacheExchange):
            return resource
        if resource.rule.bypass is None and resource.rule.user is None:
            target = self._target(resource, request)
        else:
            target = await self._target_by_user_code(resource, request)
        if isinstance(target, str):
            return Bypassed(detail=target)
        found = None
        exchange = self._from_memory(resource, request, target) if self._has_l1 else None
        if exchange is None:
            found = await self._look_up(resource, request, target)
            if found is not None:
                exchange = choose(found)
            else:
                exchange = self._from_memory(resource, request, target, unreachable=True)
                exchange = exchange or Bypassed(detail="the store did not answer")
        if self._emits_lookups:
            self._emit(CacheLookedUp(target.url, exchange.outcome, request))
        if found is None or (exchange.response is not None and exchange.refresh is None):
            return exchange
        return await share_render(found, exchange)

    def _resource_to_look_up(self, request: HTTPRequest) -> _Resource | CacheExchange:
        resource = self._resource(request, request.method)
        if resource is None:
            return _IGNORED
        if self._unmatched.left:
            self._unmatched.waiting.pop(self._setting(resource), None)
        why = _bypass_reason(resource, request, self._store.profile)
        return Bypassed(detail=why) if why else resource

    async def _begin_unsafe(self, request: HTTPRequest) -> CacheExchange:
        stores = request.method == "POST" and self._store.profile.stores_posts
        resource = self._resource(request, "GET") if stores else None
        if resource is not None and not resource.refused:
            target = await self._target_by_user_code(resource, request)
            if not isinstance(target, str):
                if (found := await self._look_up(resource, request, target)) is not None:
                    return PostInvalidation(context=found.context, request=request, found=found)
                if self._emits_lookups:
                    self._emit(CacheLookedUp(target.url, "bypass", request))
        return Invalidation(context=self._context, request=request)

    def _from_memory(
        self,
        resource: _Resource,
        request: HTTPRequest,
        target: Target,
        *,
        unreachable: bool = False,
    ) -> CacheExchange | None:
        lookup = self._store.from_memory(target)
        if lookup is None or target.url in self._context.pending:
            return None
        found = Found(resource.context, resource.rule, request, target, lookup, "uri-miss")
        return from_memory(found, unreachable=unreachable)

    async def _look_up(
        self, resource: _Resource, request: HTTPRequest, target: Target
    ) -> Found | None:
        """Return a request with the result of its lookup, None if Upstash is unreachable."""
        context = resource.context
        store, changes = context.store, context.store.l1.changes
        try:
            lookup = await store.look_up(target)
            if self._has_l1:
                store.l1.put(target, lookup, changes)
            if target.previous:
                lookup = await store.look_up_previous(target, lookup)
        except UpstashError as error:
            self._emit(UpstashFailed("cache lookup", error))
            return None
        self._emit(_ANSWERED)
        if target.url in context.pending:
            lookup = replace(lookup, entry=None)
        fwd = "uri-miss" if lookup.index is None else "vary-miss"
        return Found(context, resource.rule, request, target, lookup, fwd)

    # --- What a request is looked up by ---------------------------------------------------------

    def _resource(self, request: HTTPRequest, method: str) -> _Resource | None:
        """Return the resource of a request, taken as one of this method; None without a rule."""
        described = url_fields(request.headers, self._context.fields.reflected)
        known_by = (
            method,
            request.path,
            request.sent_path,
            request.root_path,
            request.query,
            request.scheme,
            request.host,
            *(text for name, _, value in described for text in (name, value)),
        )
        resource = self._resources.get(known_by)
        if resource is not None:
            return resource
        for rule, context in self._covering:
            if method in {"GET", "HEAD"} and rule.covers(request.path):
                resource = self._make_resource(rule, context, request)
                if sum(map(len, known_by)) <= _LONGEST_REMEMBERED:
                    if len(self._resources) >= _RESOURCES:
                        self._resources.clear()
                    self._resources[known_by] = resource
                return resource
        return None

    def _make_resource(self, rule: CacheRule, context: Context, request: HTTPRequest) -> _Resource:
        names, url, (version, previous) = self._store.names, url_of(request, rule), self._versions
        origin_by = origin_of if context.store.profile.normalises else origin_as_sent
        origin = origin_by(request.scheme, request.host)
        keys = [names.resource(origin, url, version, request.root_path)]
        keys += [names.resource(origin, url, previous, request.root_path)] if previous else []
        differing, refused = reflected_key(request, rule, url, context.fields.reflected)
        if differing:  # hashed without the secret that the values of Vary are hashed with
            keys = [keyed(key, differing, b"") for key in keys]
        expanded = with_ancestors(rule.tags_for(request.path))
        tags = () if isinstance(expanded, str) else expanded
        if refused:
            pass
        elif other_readings(request.path):
            refused = "the path can be read in several ways"
        elif not _QUERY.fullmatch(request.query):
            refused = "its query has characters that no URL has"
        elif isinstance(expanded, str):
            refused = expanded
        return _Resource(
            rule,
            context,
            url,
            keys[0],
            keys[1] if previous else "",
            tags,
            names.epochs(url, tags),
            bool(rule.vary_cookies or rule.vary_headers),
            refused,
        )

    async def _target_by_user_code(self, resource: _Resource, request: HTTPRequest) -> Target | str:
        """Return what a request is for, or why it bypasses the cache by the rule's functions."""
        try:
            return await self._call_user_code(resource, request)
        except ConfigurationError:  # credentials are missing
            raise
        except Exception as error:  # noqa: BLE001 - it is the application's code
            self._emit(UserCodeFailed(self._setting(resource), error))
            return "a function of the rule failed"

    async def _call_user_code(self, resource: _Resource, request: HTTPRequest) -> Target | str:
        rule = resource.rule
        if rule.bypass is not None and await call(rule.bypass, request):
            return "bypass of the rule"
        return self._target(resource, request, await _user(rule, request))

    def _target(
        self, resource: _Resource, request: HTTPRequest, user: str | None = None
    ) -> Target | str:
        """Return what a request is for, or why that is not clear."""
        key, previous, rule = resource.key, resource.previous, resource.rule
        besides = "" if self._selects is None else self._selects(request)
        if besides is None:
            return "its language or time zone is not known yet"
        if besides or user is not None or resource.narrows:
            selecting = [] if user is None else [f"user={quote(user)}"]
            if rule.vary_cookies:
                cookies = selected_cookies(rule.vary_cookies, request.headers)
                if cookies is None:
                    return "its cookies can be read in two ways"
                selecting.append(cookies)
            if rule.vary_headers:
                profile = self._store.profile
                selecting.append(selected_values(rule.vary_headers, request.headers, profile))
            selected = "\n\n".join(selecting)
            if besides:
                selected = f"{besides}\n\n{selected}"
            secret = self._store.secret()
            key = keyed(key, selected, secret)
            previous = previous and keyed(previous, selected, secret)
        return Target(
            key,
            resource.url,
            request.headers,
            resource.tags,
            resource.epochs,
            previous,
            user is not None,
        )

    def _setting(self, resource: _Resource) -> str:
        return f"cache[{self._rules.index(resource.rule)}]"

    def _context_of(self, rule: CacheRule) -> Context:
        if rule.deadline is None:
            return self._context
        deadline = cast("float", rule.deadline)
        return replace(self._context, store=replace(self._store, deadline=deadline))

    # --- Purging and explaining -----------------------------------------------------------------

    async def purge(self, what: Purge) -> None:
        """Make stored responses unusable, at once and for all processes.

        Raises UpstashError if it is not certain that all of it was done, ValueError for an invalid
        URL.
        """
        await self._store.purge(what, self._rules)

    def forget(self) -> None:
        """Clear what this process remembers; what is on Redis stays."""
        self._store.forget()
        self._context.flights.clear()
        self._context.revalidations.clear()

    async def explain(self, request: HTTPRequest) -> CacheExplanation:
        """Return what a lookup would find for a request, and why it would not answer it.

        A flow. Nothing is learned, served or stored. Raises UpstashError.
        """
        resource = self._resource(request, request.method)
        if resource is None:
            return CacheExplanation("bypass", "no rule of the cache covers it")
        setting = self._setting(resource)
        if why := _bypass_reason(resource, request, self._store.profile):
            return CacheExplanation("bypass", why, setting)
        try:
            target = await self._call_user_code(resource, request)
        except ConfigurationError:  # credentials are missing
            raise
        except Exception as error:  # noqa: BLE001 - it is the application's code
            target = f"a function of the rule raised {type(error).__name__}: {error}"
        if isinstance(target, str):
            return CacheExplanation("bypass", target, setting)
        explanation = await _explain(self._store, target, can_refresh=self._context.can_refresh)
        return replace(explanation, rule=setting)


def _bypass_reason(resource: _Resource, request: HTTPRequest, profile: Profile) -> str:
    """Return why a request is neither answered from the cache nor stored; empty if it may be."""
    headers = request.headers
    if headers.repeats("host"):
        return "it has several Host fields"
    host = headers.get("host") or ""
    if not profile.normalises and host != host.lower():
        return "its Host has capital letters"
    if resource.refused or headers.names().isdisjoint(_INSPECTED):
        return resource.refused
    if is_for_the_origin(headers):
        return "it carries a condition for the application"
    if not profile.ignores_bodies and has_body(headers):
        return "it has a body"
    is_other = _in_another_charset(headers.combined("content-type") or "")
    return "its Content-Type names another charset than UTF-8" if is_other else ""


def _in_another_charset(content_type: str) -> bool:
    """Whether a Content-Type names another charset than UTF-8: Django decodes the query by it."""
    if len(content_type) > LONGEST_VALUE:
        return True
    pairs = [parameter.partition("=") for parameter in content_type.split(";")]
    charsets = [value for name, _, value in pairs if "charset" in name.lower()]
    return any(charset.strip(" \t\"'").lower() not in {"utf-8", "utf8"} for charset in charsets)


async def _user(rule: CacheRule, request: HTTPRequest) -> str | None:
    """Return the id of the request's user by the rule's function; None if there is none.

    Raises TypeError for a value that may be the same for two users, such as an object's text.
    """
    user = None if rule.user is None else await call(rule.user, request)
    # Frameworks have an object for an anonymous user.
    if user is None or user is False or getattr(user, "is_authenticated", True) is False:
        return None
    kind, identifier = "", user
    if hasattr(user, "is_authenticated"):  # Django's pk, Flask-Login's get_id()
        kind = f"{user.__class__.__module__}.{user.__class__.__qualname__} "
        identifier = user.get_id() if hasattr(user, "get_id") else getattr(user, "pk", None)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | UUID):
        raise TypeError(
            f"CacheRule.user: it returned {user!r}; it should be the user's id as text, a whole "
            "number or a UUID, a user of Django or Flask-Login, or None for no user"
        )
    return f"{kind}{identifier}" if str(identifier) else None


# --- Explanations -------------------------------------------------------------------------------


class CacheExplanation(Struct, frozen=True):
    """What the cache would do with a request, and what is stored for it."""

    outcome: str
    """``hit``, or why the request would be forwarded: an RFC 9211 ``fwd`` reason."""
    why: str
    """The reason, as text for people."""
    rule: str | None = None
    """The rule that covers the request, ``cache[0]``."""
    url: str = ""
    """Path and query as a purge names them."""
    key: str = ""
    """The resource's key on Redis, of its stored response or the index of its variants."""
    vary: tuple[str, ...] = ()
    """The fields that select among its variants."""
    variant: str | None = None
    """The key of the variant that this request selects."""
    tags: tuple[str, ...] = ()
    """What it is purged by, with ancestors; those of its rule if nothing is stored."""
    status: int | None = None
    age: float | None = None
    """Current age in seconds (RFC 9111 §4.2.3)."""
    lifetime: float | None = None
    """Freshness lifetime in seconds."""
    while_revalidate: float = 0.0
    """Seconds of staleness during which it may be used while it is revalidated."""
    if_error: float = 0.0
    """Seconds of staleness during which it may be used in place of an error."""
    length: int | None = None
    """Bytes of its body."""


_USES = {
    Use.FRESH: ("hit", "it is fresh"),
    Use.STALE: ("hit", "it is stale, and the client accepts it"),
    Use.STALE_WHILE_REVALIDATE: ("hit", "it is stale, and may be used while it is revalidated"),
    Use.FORWARD_STALE: ("stale", "it is stale, and has to be validated first"),
    Use.FORWARD_REQUESTED: ("request", "it is fresh, but the client asks for a fresher one"),
}


async def _explain(store: Store, target: Target, *, can_refresh: bool) -> CacheExplanation:
    """Explain the stored response of a target. A flow of up to three reads."""
    (data,) = await store.read([target.key])
    entry = decode(target.key, data, store.sealing)
    index = entry if isinstance(entry, VariantIndex) else None
    variant = None
    if index is not None:
        variant = store.variant(target, index.vary)
        (data,) = await store.read([variant])
        entry = decode(variant, data, store.sealing)
    stored = entry if isinstance(entry, StoredResponse) else None
    tags = stored.tags if stored is not None else target.tags
    all_tags = tuple(sorted({*tags, *(index.tags if index is not None else ())}))
    values = await store.read(store.names.epochs(target.url, all_tags))
    current = Epochs.parse(tuple(values), all_tags)
    vary = index.vary if index is not None else ()
    # After a purge of tags it is still known that there are variants.
    outcome, why = "uri-miss", "nothing is stored for this URL"
    if index is not None and validity(index.epochs, current) is not Validity.INVALID:
        outcome = "vary-miss"
        why = f"it is stored for other values of {', '.join(vary)} than this request's"
    elif index is not None:
        why = f"{_purged(index.epochs, current)} has been purged since"
    if stored is None:
        if data is not None:
            damage = "is no entry of this version, is damaged, or was sealed under other cache_keys"
            why = f"what is at its key {damage}"
        return CacheExplanation(
            outcome, why, url=target.url, key=target.key, vary=vary, variant=variant, tags=tags
        )
    state, age = validity(stored.epochs, current), current_age(stored, store.clock.wall())
    if state is Validity.INVALID:
        why = f"{_purged(stored.epochs, current)} has been purged since it was stored"
    else:
        softly = state is Validity.STALE
        outcome, why = _USES[use(stored, age, purged_softly=softly, can_refresh=can_refresh)]
        if softly:
            why = f"{_purged(stored.epochs, current)} has been purged softly; {why}"
    return CacheExplanation(
        outcome,
        why,
        None,
        target.url,
        target.key,
        vary,
        variant,
        tags,
        stored.status,
        age,
        stored.lifetime,
        stored.stale.while_revalidate,
        stored.stale.if_error,
        stored.length,
    )


def _purged(recorded: Epochs, current: Epochs) -> str:
    """Return, as text for people, which purge invalidated a stored response."""
    if recorded.everything != current.everything:
        return "everything"
    if recorded.url != current.url:
        return "this URL"
    tags = [tag for tag, epoch in recorded.tags.items() if current.tags[tag] != epoch]
    return "the tag " + ", ".join(map(repr, tags))


# --- Purging over HTTP: the endpoint of the settings purge_path and purge_token -------------------
#
# ``POST /PATH?url=/products/7&tag=product:7&soft=1`` with ``Authorization: Bearer TOKEN``; ``url``
# and ``tag`` any number of times, or ``everything=1``.

_PARAMETERS = ("url", "tag", "everything", "soft")
_YES = frozenset({"1", "true", "yes", "on"})


class PurgeEndpoint(Part):
    """Answers the requests for one path; implements ``core.engine.Part``."""

    __slots__ = ("_emit", "_purge", "_token", "path")

    def __init__(
        self, path: str, token: str, purge: Callable[[Purge], Flow[None]], emit: Observer
    ) -> None:
        self.path: str = path
        self._token = token
        self._purge = purge
        self._emit = emit

    def covers(self, request: HTTPRequest) -> bool:
        """Whether a request is for the endpoint."""
        return request.path == self.path

    async def prepare(self, request: HTTPRequest) -> Answered:
        """Answer a request: 200, or why nothing was purged."""
        return Answered(response=await self._answer(request))

    async def _answer(self, request: HTTPRequest) -> Response:
        # First, because limits may not count such requests, and they must reveal no token.
        if request.method != "POST":
            return _response(405, "Purge with POST.", allow="POST")
        if not self._is_authorized(request):
            return _response(401, "A bearer token is missing or wrong.", www_authenticate="Bearer")
        what = _parse_purge(request.query)
        if isinstance(what, str):
            return _response(400, what)
        try:
            await self._purge(what)
        except ValueError as error:
            return _response(400, str(error))
        except UpstashError as error:
            self._emit(UpstashFailed("purge", error))
            return _response(503, "It is not certain that all was purged; try again.")
        return _response(200, "Purged.")

    def _is_authorized(self, request: HTTPRequest) -> bool:
        """Compare tokens in a time that reveals nothing, not even their length."""
        scheme, _, given = (request.headers.get("authorization") or "").partition(" ")
        ours, theirs = (
            sha256(text.encode("utf-8", "surrogateescape")).digest()
            for text in (self._token, given.strip())
        )
        return hmac.compare_digest(ours, theirs) and scheme.lower() == "bearer"


def _parse_purge(query: str) -> Purge | str:
    """Return what a query asks to purge, or what is wrong with it."""
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, text in pairs:
        if name not in _PARAMETERS:
            return f"There is no parameter {name!r}; there are {', '.join(_PARAMETERS)}."
        if not text:
            return f"The parameter {name!r} is empty."
    flags = {name for name, text in pairs if text.lower() in _YES}
    what = Purge(
        urls=tuple(text for name, text in pairs if name == "url"),
        tags=tuple(text for name, text in pairs if name == "tag"),
        everything="everything" in flags,
        soft="soft" in flags,
    )
    if not (what.urls or what.tags or what.everything):
        return "Nothing to purge: give url=, tag= or everything=1."
    return what


def _response(status: int, detail: str, **fields: str) -> Response:
    body = json.dumps({"status": status, "detail": detail}).encode()
    headers = Headers.of(
        content_type="application/json",
        content_length=str(len(body)),
        cache_control="no-store",
        **fields,
    )
    return Response(ResponseHead(status, headers), body)
