"""The cache as a part of the engine: finds the stored response for a request, or forwards it.

``Cache.prepare`` returns the commands that look up a request, ``Cache.receive`` interprets the
replies, and ``choose`` decides whether the stored response is used (RFC 9111 §4). Of concurrent
requests for the same response, only one is forwarded: ``SingleFlight`` ensures it within a process,
and a lock on Redis between processes.
"""

from __future__ import annotations

import re
from hmac import compare_digest
from math import floor
from os import urandom
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import quote
from uuid import UUID

from msgspec import Struct
from msgspec.structs import asdict, replace

from upstash_middleware.core.cache import keys
from upstash_middleware.core.cache.cdn import CDNS
from upstash_middleware.core.cache.entries import (
    Damaged,
    Epoch,
    Sealing,
    Validity,
    opened,
    validity,
    with_ancestors,
)
from upstash_middleware.core.cache.exchanges import (
    DEBUG_FIELD,
    SAFE_METHODS,
    Answered,
    Bypassed,
    CacheExchange,
    Context,
    Debugged,
    Invalidation,
    LookedUpRequest,
    Miss,
    NotShared,
    PendingInvalidations,
    PostInvalidation,
    Refresh,
    Revalidation,
    Revalidations,
    RuleContext,
    Shared,
    SingleFlight,
    StoredErrors,
    Variations,
    purge,
)
from upstash_middleware.core.cache.explanation import NOTHING_STORED, CacheExplanation, explain
from upstash_middleware.core.cache.http import reuse, vary
from upstash_middleware.core.cache.http.cookies import (
    ignored_cookie_pattern,
    ignored_cookies,
    without_cookies,
)
from upstash_middleware.core.cache.http.directives import (
    CDN_CACHE_CONTROL,
    NO_DIRECTIVES,
    client_control,
)
from upstash_middleware.core.cache.http.fields import (
    forwarded_of_url,
    known_fields,
    reflected_fields,
    reflected_key,
)
from upstash_middleware.core.cache.http.no_vary_search import Variation, variation_of
from upstash_middleware.core.cache.http.reuse import Use, current_age
from upstash_middleware.core.cache.http.storing import Plan, plan
from upstash_middleware.core.cache.keys import Names, variant_key
from upstash_middleware.core.cache.reasons import Reasons, cookie_advice, reason_of
from upstash_middleware.core.cache.redis_store import read_scripts
from upstash_middleware.core.cache.rules import profile_named
from upstash_middleware.core.cache.store import L1, REMEMBERED_BYTES, Purge, Record, Store, Target
from upstash_middleware.core.engine import Part, Prepared
from upstash_middleware.core.flow import Sleep, Wait, call
from upstash_middleware.core.lru import LRU
from upstash_middleware.core.patterns import Unmatched, other_readings
from upstash_middleware.errors import ConfigurationError, UpstashError
from upstash_middleware.events import (
    CacheEntryRefused,
    CacheLookedUp,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    hears,
    ignored_by,
)
from upstash_middleware.messages import LONGEST_VALUE, Headers, Response, ResponseHead, has_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.http.directives import Directives
    from upstash_middleware.core.cache.rules import CacheRule, Profile
    from upstash_middleware.core.cache.store import Lookup, Reading
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Flow, Reply
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest

_DAY = 24 * 3600.0
_MAX_RESOURCES = 512
_MAX_REMEMBERED_LENGTH = 512
"""The maximum length of a remembered request; all of them use about a megabyte."""
# The characters that a query may contain, and those that browsers do not escape. Frameworks decode
# other bytes differently (RFC 3986 §3.4).
_QUERY = re.compile(r'[!"$-~]*+')
# Fields that may make a request bypass the cache. Most requests have none of them.
_BYPASS_FIELDS = frozenset(
    {"content-length", "content-type", "if-match", "if-unmodified-since", "transfer-encoding"}
)
_FIRST_PAUSE, _MAX_PAUSE = 0.05, 0.5
_IGNORED = CacheExchange()
_UPSTASH_ANSWERED = UpstashAnswered("cache lookup")


class _Resource(Struct, frozen=True):
    """The data of a URL that does not depend on the client."""

    context: RuleContext
    """The context of the first rule that covers the URL."""
    url: str
    """The path and query, as they occur in the key of the URL's epoch."""
    key: str
    previous: str
    """The key in the application's previous version; empty if there is none."""
    tags: tuple[str, ...]
    """The tags from the rule, with their ancestors."""
    scopes: tuple[str, ...]
    """The directories and the rule, if purging by these is enabled."""
    epochs: tuple[str, ...]
    """The keys of the URL's epochs."""
    refused: str
    """Why requests for the URL bypass the cache; empty if they do not."""


class PreparedLookup(Prepared, eq=False):
    """A request and the commands that look it up."""

    request: HTTPRequest
    resource: _Resource
    reading: Reading
    changes: int
    """The number of changes of L1 before the lookup."""


Step: TypeAlias = "CacheExchange | PreparedLookup | Flow[CacheExchange]"
Received: TypeAlias = "CacheExchange | Flow[CacheExchange]"


class Cache(Part):
    """A shared cache (RFC 9111) that stores responses on Redis."""

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
        groups: bool = True,
        cdn: str | None = None,
        ignore_cookies: Sequence[str] | None = None,
        debug: str | None = None,
        directories: bool = False,
        kept_cookies: Mapping[str, str] | None = None,
        randomness: Callable[[int], bytes] = urandom,
    ) -> None:
        """Create a cache. Upstash and ``secret`` are not called before the first request.

        Most arguments are the settings with the same names, some of them without ``cache_``.
        ``secret`` returns the key for hashes of selecting values. ``selects`` returns another value
        of a request that selects its response, or None if the value is unknown. With
        ``background_refresh``, the caller must run the ``refresh`` of exchanges. ``remember`` is
        the number of resources whose Vary and tags are remembered, ``max_keep`` the maximum
        lifetime of an entry in seconds. ``directories`` enables purges of directories and rules.
        ``kept_cookies`` are cookies that no rule may ignore, each with the setting that defines its
        name.
        """
        read_scripts("lock", "soften", "store", "supersede")
        self._rules = tuple(rules)
        self._emit = observe
        self._selects = selects
        self._debug = (debug or "").encode()
        self._emits_lookups = hears(observe, CacheLookedUp)
        self._ignored = ignored_by(observe)
        self._versions = version, previous_version
        self._has_l1 = l1_bytes > 0
        self._reads_scopes = directories
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
            LRU(REMEMBERED_BYTES),
            L1(l1_bytes, l1_seconds, clock),
            guesses=LRU(remember),
            last_uses=LRU(remember),
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
            known_fields(tuple(credential_fields), tuple(reflected_fields)),
            groups,
            None if cdn is None else CDNS[cdn],
            StoredErrors(clock),
            Reasons(self._rules, {} if kept_cookies is None else kept_cookies, observe, clock),
            Variations(),
            self._canonical_target,
        )
        paths = {f"cache[{index}]": rule.path for index, rule in enumerate(self._rules)}
        self._unmatched = Unmatched(paths, observe)
        self._contexts = [
            self._context_for(rule, setting, ignore_cookies)
            for rule, setting in zip(self._rules, paths, strict=True)
        ]
        self._resources: dict[tuple[str, ...], _Resource] = {}
        self._reflected = frozenset(self._context.fields.reflected.keys() - {"host"})

    async def begin(self, request: HTTPRequest) -> CacheExchange:
        """Look up a request in the cache alone, without other parts. A flow."""
        return cast("CacheExchange", await self.finish_step(self.prepare(request)))

    def prepare(self, request: HTTPRequest) -> Step:  # noqa: PLR0911 - one for each kind
        """Return the lookup of a request, its exchange if no lookup is needed, or a flow."""
        if self._debug and DEBUG_FIELD in request.headers:
            sent = [line.encode("latin-1") for line in request.headers.lines(DEBUG_FIELD)]
            if len(sent) == 1 and compare_digest(sent[0], self._debug):
                return self._begin_debugged(request)
        if self._unmatched.left:
            self._unmatched.count()
        if request.method not in SAFE_METHODS:
            if request.method == "POST" and self._store.profile.stores_posts:
                return self._begin_post(request)
            return Invalidation(context=self._context, request=request) if self._rules else _IGNORED
        resource = self._resource(request, request.method)
        if resource is None:
            return _IGNORED
        context, why = resource.context, resource.refused
        if self._unmatched.left:
            self._unmatched.waiting.pop(context.setting, None)
        if not why and not _BYPASS_FIELDS.isdisjoint(request.headers.names()):
            why = _bypass_reason(request, self._store.profile)
        if why or (context.rule.bypassed_by and (why := _bypassing_value(context.rule, request))):
            return Bypassed(detail=why)
        if context.calls_user_code:
            return self._prepare_by_user_code(resource, request)
        if context.ignored is not None and "cookie" in request.headers:
            request = _without_ignored_cookies(context, request)
        return self._prepare(resource, request, self._target(resource, request))

    def receive(self, prepared: PreparedLookup, replies: list[Reply] | UpstashError) -> Received:
        """Return the exchange of a request, or a flow if more must be read first."""
        if isinstance(replies, UpstashError):
            return self._after_failure(prepared, replies)
        lookup = prepared.resource.context.store.receive(prepared.reading, replies)
        if lookup is None:
            return self._finish_lookup(prepared, replies)
        return self._choose(prepared, lookup, prepared.reading.target)

    async def _prepare_by_user_code(
        self, resource: _Resource, request: HTTPRequest
    ) -> CacheExchange:
        target = await self._target_by_user_code(resource, request)
        request = _without_ignored_cookies(resource.context, request)
        exchange = await self.finish_step(self._prepare(resource, request, target))
        return cast("CacheExchange", exchange)

    def _prepare(
        self, resource: _Resource, request: HTTPRequest, target: Target | str
    ) -> CacheExchange | PreparedLookup:
        if isinstance(target, str):
            return Bypassed(detail=target)
        store, variations = resource.context.store, self._context.variations
        if variations.by_rule:
            variation = variations.of(resource.context.rule, resource.url)
            if variation is not None:
                target = self._canonical(resource, request, target, variation)
        reading = store.prepare(target)
        changes = store.l1.changes
        prepared = PreparedLookup(reading.pipeline, request, resource, reading, changes)
        if self._has_l1 and (exchange := self._answer_from_l1(prepared)) is not None:
            return self._emit_lookup(prepared, exchange)
        return prepared

    async def _finish_lookup(self, prepared: PreparedLookup, replies: list[Reply]) -> CacheExchange:
        store, target = prepared.resource.context.store, prepared.reading.target
        try:
            lookup = await store.read_on(prepared.reading, replies)
            if (other := self._learn_variation(prepared, lookup)) is not None:
                target = other
                lookup = await store.look_up(target)
            target = lookup.exact or target
            lookup = await store.look_up_previous(target, lookup)
        except UpstashError as error:
            return self._after_failure(prepared, error)
        chosen = self._choose(prepared, lookup, target)
        return chosen if isinstance(chosen, CacheExchange) else await chosen

    def _learn_variation(self, prepared: PreparedLookup, lookup: Lookup) -> Target | None:
        """Record which query parameters select a response; return the target to look up, if any."""
        target, variations = prepared.reading.target, self._context.variations
        variations.informed = True
        rule, url = prepared.resource.context.rule, target.url
        if target.variation is None or not lookup.record:
            if lookup.entry is not None:
                variations.learn(rule, url, variation_of(lookup.entry.headers))
            return None
        variation = Record.parse(lookup.record).variation
        if variation == target.variation:
            return None
        variations.learn(rule, url, variation)
        exact = target.exact or target
        return self._canonical(prepared.resource, prepared.request, exact, variation)

    def _choose(self, prepared: PreparedLookup, lookup: Lookup, target: Target) -> Received:
        context = prepared.resource.context
        if self._has_l1:
            context.store.l1.put(target, lookup, prepared.changes)
        if UpstashAnswered not in self._ignored:
            self._emit(_UPSTASH_ANSWERED)
        entry, pending = lookup.entry, context.pending
        if pending.until and entry is not None and pending.concern(*target.urls, *entry.tags):
            lookup = replace(lookup, entry=None)
        found = self._looked_up_request(prepared, lookup, target)
        exchange = choose(found)
        if self._emits_lookups:
            self._emit_lookup(prepared, exchange)
        lock = lookup.lock
        if exchange.response is not None and (
            exchange.refresh is None or lock is None or lock.unshared
        ):
            return exchange
        return wait_for_render(found, exchange)

    def _after_failure(self, prepared: PreparedLookup, error: UpstashError) -> CacheExchange:
        self._emit(UpstashFailed("cache lookup", error))
        exchange = self._answer_from_l1(prepared, unreachable=True)
        return self._emit_lookup(prepared, exchange or Bypassed(detail="the store did not answer"))

    def _looked_up_request(
        self, prepared: PreparedLookup, lookup: Lookup, target: Target
    ) -> LookedUpRequest:
        context, request = prepared.resource.context, prepared.request
        fwd = "uri-miss" if lookup.index is None else "vary-miss"
        obeys = self._store.profile.obeys_clients
        requested = client_control(request.headers) if obeys else NO_DIRECTIVES
        return LookedUpRequest(context, request, target, lookup, fwd, requested)

    def _emit_lookup(self, prepared: PreparedLookup, exchange: CacheExchange) -> CacheExchange:
        if self._emits_lookups:
            url = prepared.reading.target.url
            self._emit(CacheLookedUp(url, exchange.outcome, prepared.request))
        return exchange

    async def _begin_debugged(self, request: HTTPRequest) -> CacheExchange:
        request = replace(request, headers=request.headers.without(DEBUG_FIELD))
        if request.method not in SAFE_METHODS:
            explained = CacheExplanation("method", "unsafe requests invalidate what is stored")
        else:
            try:
                explained = await self.explain(request)
            except UpstashError as error:
                explained = CacheExplanation("bypass", f"the store did not answer: {error}")
        exchange = await self.finish_step(self.prepare(request))
        return Debugged(within=cast("CacheExchange", exchange), explained=explained)

    async def _begin_post(self, request: HTTPRequest) -> CacheExchange:
        """Look up the target of a POST, whose response may be stored as the target's state."""
        resource = self._resource(request, "GET")
        target: Target | str = ""
        if resource is not None and not resource.refused:
            target = await self._target_by_user_code(resource, request)
        if resource is None or isinstance(target, str):
            return Invalidation(context=self._context, request=request)
        context = resource.context
        if _bypassing_value(context.rule, request):
            return Invalidation(context=self._context, request=request)
        try:
            lookup = await context.store.look_up(target)
        except UpstashError as error:
            self._emit(UpstashFailed("cache lookup", error))
            if self._emits_lookups:
                self._emit(CacheLookedUp(target.url, "bypass", request))
            return Invalidation(context=context, request=request)
        if UpstashAnswered not in self._ignored:
            self._emit(_UPSTASH_ANSWERED)
        found = LookedUpRequest(context, request, target, lookup, "method")
        return PostInvalidation(context=context, request=request, found=found)

    def _answer_from_l1(
        self, prepared: PreparedLookup, *, unreachable: bool = False
    ) -> Answered | None:
        """Return an answer from L1 without a lookup; None if a lookup is needed.

        The stored response must be fresh. If Upstash is ``unreachable``, it may be used for longer.
        A response that must be validated, refreshed or forwarded needs the current epochs.
        """
        reading, l1 = prepared.reading, self._store.l1
        target, lookup = reading.target, l1.find(reading.entries[-1])
        if lookup is None or lookup.entry is None or target.exact is not None:
            return None  # a purge of the exact URL is not recorded in L1
        if self._context.pending.concern(target.url, *lookup.entry.tags):
            return None
        found, stored = self._looked_up_request(prepared, lookup, target), lookup.entry
        if not reuse.satisfies(found.request, stored):
            return None
        now, unverified_for = found.now, l1.unverified_for(lookup)
        age = current_age(stored, now)
        if unreachable:
            usable = reuse.usable_unverified(stored, now, unverified_for, found.requested)
        else:
            chosen = reuse.use(stored, age, found.requested, immutable=found.is_immutable(stored))
            usable = unverified_for < 0 and chosen is Use.FRESH
        detail = "the store did not answer" if unreachable else ""
        response = _response_from_stored(found, stored, age, detail) if usable else None
        return None if response is None else Answered(response=response)

    # --- Keys of requests -----------------------------------------------------------------------

    def _resource(self, request: HTTPRequest, method: str) -> _Resource | None:
        """Return a request's resource as if its method was ``method``; None if it has no rule."""
        headers, reflected = request.headers, self._context.fields.reflected
        names = headers.names()
        memo_key: tuple[str, ...] = (
            method,
            request.path,
            request.sent_path,
            request.root_path,
            request.query,
            request.scheme,
            request.host,
            "\n".join(headers.lines("host")),
        )
        if not self._reflected.isdisjoint(names) or "_" in "".join(names):
            for name, _, value in reflected_fields(headers, reflected):
                memo_key += (name, value)
        resource = self._resources.get(memo_key)
        if resource is not None:
            return resource
        for context in self._contexts:
            if method in {"GET", "HEAD"} and context.rule.covers(request.path):
                resource = self._make_resource(context, request)
                if sum(map(len, memo_key)) <= _MAX_REMEMBERED_LENGTH:
                    if len(self._resources) >= _MAX_RESOURCES:
                        self._resources.clear()
                    self._resources[memo_key] = resource
                return resource
        return None

    def _make_resource(self, context: RuleContext, request: HTTPRequest) -> _Resource:
        names, rule = self._store.names, context.rule
        url = keys.url_of(request, rule)
        (version, previous), profile = self._versions, context.store.profile
        origin_by = keys.origin_of if profile.normalises else keys.origin_as_sent
        origin = origin_by(request.scheme, request.host)
        own = [names.resource(origin, url, version, request.root_path)]
        own += [names.resource(origin, url, previous, request.root_path)] if previous else []
        differing, refused = reflected_key(request, rule, url, context.fields.reflected)
        if differing:  # hashed without a secret, unlike the values of Vary
            own = [variant_key(key, differing, b"") for key in own]
        expanded = with_ancestors(rule.tags_for(request.path))
        tags = () if isinstance(expanded, str) else expanded
        scopes = keys.scopes_of(url, rule) if self._reads_scopes else ()
        hosts = request.headers.lines("host")
        if len(hosts) > 1:
            refused = "it has several Host fields"
        elif not profile.normalises and any(host != host.lower() for host in hosts):
            refused = "its Host has capital letters"
        elif refused:
            pass
        elif other_readings(request.path):
            refused = "the path can be read in several ways"
        elif not _QUERY.fullmatch(request.query):
            refused = "its query has characters that no URL has"
        elif isinstance(expanded, str):
            refused = expanded
        previously = own[1] if previous else ""
        epochs = names.epochs(url, scopes, tags)
        return _Resource(context, url, own[0], previously, tags, scopes, epochs, refused)

    async def _target_by_user_code(self, resource: _Resource, request: HTTPRequest) -> Target | str:
        """Return a request's target, or why it bypasses the cache. Emits errors of functions."""
        try:
            return await self._call_user_code(resource, request)
        except ConfigurationError:  # credentials are missing
            raise
        except Exception as error:  # noqa: BLE001 - it is the application's code
            rule, setting = resource.context.rule, resource.context.setting
            functions = [name for name in ("bypass", "user") if callable(getattr(rule, name))]
            names = " or ".join(f"{setting}.{name}" for name in functions)
            self._emit(UserCodeFailed(names, error))
            return "a function of the rule failed"

    async def _call_user_code(self, resource: _Resource, request: HTTPRequest) -> Target | str:
        rule = resource.context.rule
        if callable(rule.bypass) and await call(rule.bypass, request):
            return "bypass of the rule"
        user = await _user_id(rule, request)
        return self._target(resource, _without_ignored_cookies(resource.context, request), user)

    def _canonical(
        self, resource: _Resource, request: HTTPRequest, target: Target, variation: Variation
    ) -> Target:
        """Return the target of the canonical form of a request's URL (No-Vary-Search)."""
        target = replace(target, variation=variation)
        query = variation.canonical(request.query)
        if query == request.query:
            return target
        canonical = self._resource(replace(request, query=query), request.method)
        if canonical is None or canonical.url == target.url:
            return target
        if canonical.context is not resource.context:
            return target
        key, previous = canonical.key, canonical.previous
        if target.selected:
            secret = self._store.secret()
            key = variant_key(key, target.selected, secret)
            previous = previous and variant_key(previous, target.selected, secret)
        return replace(
            target,
            key=key,
            previous=previous,
            url=canonical.url,
            epochs=canonical.epochs,
            exact=replace(target, variation=None),
        )

    def _canonical_target(
        self, request: HTTPRequest, target: Target, variation: Variation
    ) -> Target:
        resource = self._resource(request, "GET")
        return target if resource is None else self._canonical(resource, request, target, variation)

    def _target(
        self, resource: _Resource, request: HTTPRequest, user: str | None = None
    ) -> Target | str:
        """Return a request's target, or why it cannot be determined."""
        key, previous, rule = resource.key, resource.previous, resource.context.rule
        selected = ""
        besides = "" if self._selects is None else self._selects(request)
        if besides is None:
            return "its language or time zone is not known yet"
        if besides or user is not None or rule.vary_cookies or rule.vary_headers:
            selecting = [] if user is None else [f"user={quote(user)}"]
            if rule.vary_cookies:
                cookies = vary.selected_cookies(rule.vary_cookies, request.headers)
                if cookies is None:
                    return "its cookies can be read in two ways"
                selecting.append(cookies)
            if rule.vary_headers:
                profile = self._store.profile
                selecting.append(vary.selected_values(rule.vary_headers, request.headers, profile))
            selected = "\n\n".join(selecting)
            if besides:
                selected = f"{besides}\n\n{selected}"
            secret = self._store.secret()
            key = variant_key(key, selected, secret)
            previous = previous and variant_key(previous, selected, secret)
        return Target(
            key,
            resource.url,
            request.headers,
            resource.tags,
            resource.scopes,
            resource.epochs,
            previous,
            user is not None,
            selected,
        )

    def _context_for(
        self, rule: CacheRule, setting: str, ignore_cookies: Sequence[str] | None
    ) -> RuleContext:
        store = self._store
        if rule.deadline is not None:
            store = replace(store, deadline=cast("float", rule.deadline))
        max_body = self._context.max_body if rule.max_body is None else rule.max_body
        shared = {**asdict(self._context), "store": store, "max_body": max_body}
        ignored = ignored_cookies(rule, ignore_cookies, store.profile)
        return RuleContext(
            **shared,
            rule=rule,
            setting=setting,
            ignored=ignored_cookie_pattern(ignored, rule.vary_cookies or ()),
            calls_user_code=callable(rule.bypass) or rule.user is not None,
        )

    # --- Purging and explaining -----------------------------------------------------------------

    async def purge(self, what: Purge) -> None:
        """Invalidate stored responses immediately, in all processes.

        Raises UpstashError if the purge may be incomplete, and ValueError for an invalid URL or
        directory or a path without a rule.
        """
        if (what.directories or what.rules) and self._rules and not self._reads_scopes:
            raise ConfigurationError(
                "purge_directories: it is False, so stored responses do not record purges of "
                "directories and rules; set it to True in every process, or purge by tags"
            )
        await purge(self._context, what)

    def for_cdn(self, what: Purge) -> Purge:
        """Return a purge with all the tags that purge the same responses from the CDN."""
        cdn, rules = self._context.cdn, self._rules
        if cdn is None:
            return what
        names = keys.urls_to_purge(what.urls, rules)
        canonical = self._context.variations.canonical(names, rules)
        whole = replace(what, urls=(*what.urls, *canonical))
        return replace(what, cdn_tags=cdn.tags_of_purge(whole, rules))

    def forget(self) -> None:
        """Clear this process's memory. Nothing on Redis is deleted."""
        self._store.forget()
        self._context.flights.clear()
        self._context.variations.clear()
        self._context.revalidations.clear()

    async def explain(self, request: HTTPRequest) -> CacheExplanation:
        """Return the result of a lookup of a request, and why it would not be a hit.

        A flow. Nothing is stored or remembered. Raises UpstashError.
        """
        resource = self._resource(request, request.method)
        if resource is None:
            return CacheExplanation("bypass", "no rule of the cache covers it")
        rule, setting = resource.context.rule, resource.context.setting
        why = resource.refused or _bypass_reason(request, self._store.profile)
        if why := why or _bypassing_value(rule, request):
            return CacheExplanation("bypass", why, setting)
        try:
            target = await self._call_user_code(resource, request)
        except ConfigurationError:  # credentials are missing
            raise
        except Exception as error:  # noqa: BLE001 - it is the application's code
            target = f"a function of the rule raised {type(error).__name__}: {error}"
            if request.native is None:
                target += (
                    "; request.native, the framework's own request, is None here, so a function "
                    "that reads it works only in the application: see cache_debug"
                )
        if isinstance(target, str):
            return CacheExplanation("bypass", target, setting)
        request = _without_ignored_cookies(resource.context, request)
        explanation = await self._explain(resource, request, target)
        explanation = self._with_advice(explanation, resource.context, request, target)
        cdn, varies = self._context.cdn, {name.partition("=")[0] for name in explanation.vary}
        varies |= {*rule.vary_headers, *(["cookie"] if rule.vary_cookies else [])}
        if cdn is not None and rule.user is None and cdn.distinguishes(varies):
            cdn_tags = cdn.tags_of(target, rule, explanation.tags)
            explanation = replace(explanation, cdn_tags=cdn_tags)
        return replace(explanation, rule=setting)

    async def _explain(
        self, resource: _Resource, request: HTTPRequest, target: Target
    ) -> CacheExplanation:
        """Explain a target, or the canonical form of its URL if that has a usable response."""
        store, can_refresh = self._store, self._context.can_refresh
        explanation = await explain(store, target, can_refresh=can_refresh)
        if not request.query or explanation.outcome == "hit":
            return explanation
        record, purged = await store.read(
            (store.names.record(target.url), store.names.url(target.url))
        )
        variation = Record.parse((record or b"").decode("latin-1")).variation
        canonical = self._canonical(resource, request, target, variation)
        if canonical.exact is not None and purged is None:
            other = await explain(store, canonical, can_refresh=can_refresh)
            if other.no_vary_search == str(variation):
                return other
        if explanation.status is None:  # another response of the path may explain the miss
            without_query = self._canonical(resource, request, target, Variation(are_kept=True))
            other = await explain(store, without_query, can_refresh=can_refresh)
            explanation = replace(explanation, no_vary_search=other.no_vary_search)
        return explanation

    def _with_advice(
        self,
        explanation: CacheExplanation,
        context: RuleContext,
        request: HTTPRequest,
        target: Target,
    ) -> CacheExplanation:
        """Add advice on how to turn the miss into a hit, if the request shows it."""
        rule, why, advice = context.rule, explanation.why, ""
        no_user = rule.user is not None and not target.private
        varies = explanation.outcome == "vary-miss"
        if explanation.status is not None or not (varies or why == NOTHING_STORED):
            return explanation
        case = self._context.reasons.case(rule, 200, request.headers)
        if varies and "cookie" in explanation.vary and "cookie" in request.headers:
            each = cookie_advice(case, each_has_its_own=True)
            advice = f"each value of the Cookie field has its own response: {each}"
        # Why a response without special fields would not be stored for this request.
        named = tuple(name.partition("=")[0] for name in explanation.vary)
        head = ResponseHead(200, Headers())
        candidate = context.candidate(request, head, NO_DIRECTIVES, named, private=target.private)
        planned = plan(candidate, candidate.received_at, context.grace, target.tags)
        detail = planned if isinstance(planned, str) else ""
        reason = reason_of(detail, case, no_user=no_user)
        if reason.kind == "lifetime":
            why += "; the rule has no ttl, so responses are stored only if they state a lifetime"
            advice = advice or (
                "set ttl=60, or send Cache-Control: max-age=60; neither has an effect on responses "
                "with private or no-store"
            )
        elif reason.kind == "cookies":
            why += (
                f"; the response to this request is not stored without Vary: Cookie: {reason.why}"
            )
            advice = reason.advice
        elif detail:
            why += f"; the response to this request is not stored: {reason.why}"
            advice = reason.advice
        elif not varies:
            advice = (
                "if it was requested, see detail in its Cache-Status and the log's line about this "
                "rule, or render it with upstash-middleware cache warm"
            )
        if no_user and "user=" not in why:
            why += "; the function of user= returned no user for this request"
        return replace(explanation, why=why, advice=advice)


def _without_ignored_cookies(context: RuleContext, request: HTTPRequest) -> HTTPRequest:
    """Return the request that the application gets, without the ignored cookies."""
    if context.ignored is None or "cookie" not in request.headers:
        return request
    headers = without_cookies(request.headers, context.ignored)
    return request if headers is request.headers else replace(request, headers=headers)


def _bypassing_value(rule: CacheRule, request: HTTPRequest) -> str:
    """Return the request's first value that a rule's ``bypass`` names; empty if there is none."""
    for sent in rule.bypassed_by:
        if sent.read(request, sent.name):
            return f"bypass of the rule: {sent.kind}:{sent.name}"
    return ""


def _bypass_reason(request: HTTPRequest, profile: Profile) -> str:
    """Return why the header fields make a request bypass the cache; empty if they do not."""
    headers = request.headers
    if "if-match" in headers or "if-unmodified-since" in headers:  # RFC 9111 §4.3.2
        return "it carries a condition for the application"
    if not profile.ignores_bodies and has_body(headers):
        return "it has a body"
    is_other = _names_other_charset(headers.combined("content-type") or "")
    return "its Content-Type names another charset than UTF-8" if is_other else ""


def _names_other_charset(content_type: str) -> bool:
    """Whether a Content-Type names a charset other than UTF-8. Django decodes the query by it."""
    if len(content_type) > LONGEST_VALUE:
        return True
    pairs = [parameter.partition("=") for parameter in content_type.split(";")]
    charsets = [value for name, _, value in pairs if "charset" in name.lower()]
    return any(charset.strip(" \t\"'").lower() not in {"utf-8", "utf8"} for charset in charsets)


async def _user_id(rule: CacheRule, request: HTTPRequest) -> str | None:
    """Return the user's id from the rule's function; None if there is no user.

    Raises TypeError for an object without an id, whose text may be the same for two users.
    """
    user = None if rule.user is None else await call(rule.user, request)
    # Frameworks represent an anonymous user by an object.
    if user is None or user is False or getattr(user, "is_authenticated", True) is False:
        return None
    kind, identifier = "", user
    if hasattr(user, "is_authenticated"):  # Django's pk, Flask-Login's get_id()
        kind = f"{user.__class__.__module__}.{user.__class__.__qualname__} "
        identifier = user.get_id() if hasattr(user, "get_id") else getattr(user, "pk", None)
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | UUID):
        raise TypeError(
            f"CacheRule.user: it returned {user!r}; it should return the user's id as text, an "
            "integer or a UUID, a user of Django or Flask-Login, or None for no user"
        )
    return f"{kind}{identifier}" if str(identifier) else None


# --- Constructing responses from caches (RFC 9111 §4) -------------------------------------------


def choose(found: LookedUpRequest) -> CacheExchange:
    """Return the exchange of a request for the result of its lookup."""
    context, lookup, requested = found.context, found.lookup, found.requested
    stored = lookup.entry
    if stored is not None and stored.status == 206 and not reuse.satisfies(found.request, stored):
        part = None if lookup.outdated else stored
        lookup = replace(lookup, entry=None)
        found, stored = replace(found, lookup=lookup, fwd="partial", part=part), None
    if stored is None:
        return _forward(found, requested)
    now = context.store.clock.wall()
    age = current_age(stored, now)
    softly, outdated = lookup.purged_softly, lookup.outdated
    immutable = bool(requested.arguments) and found.is_immutable(stored)
    chosen = reuse.use(
        stored, age, requested, purged_softly=softly, outdated=outdated, immutable=immutable
    )
    detail = "of the previous version" if outdated else ""
    if chosen is not Use.FRESH:
        if _is_refreshable(found, stored):
            chosen = reuse.use(
                stored, age, requested, purged_softly=softly, outdated=outdated, can_refresh=True
            )
        if chosen is Use.FORWARD_STALE and reuse.usable_for_error(stored, now, requested):
            failed = lookup.lock is not None and lookup.lock.failed
            if failed or context.revalidations.failing(lookup.key):
                chosen, detail = Use.STALE, "stale-if-error"
        if chosen is Use.FORWARD_STALE:
            return _forward(replace(found, fwd="stale"), requested)
        if chosen is Use.FORWARD_REQUESTED:
            return _forward(replace(found, fwd="request"), requested)
    response = _response_from_stored(found, stored, age, detail)
    if response is None:
        return _forward(replace(found, lookup=replace(lookup, entry=None)), requested)
    refresh = _refresh(found, stored) if chosen is Use.STALE_WHILE_REVALIDATE else None
    return Answered(response=response, refresh=refresh)


def _response_from_stored(
    found: LookedUpRequest, stored: StoredResponse, age: float, detail: str
) -> Response | None:
    """Return the response made from a stored one; None if the stored one is damaged."""
    # Age and Cache-Status have whole seconds, so the head is reused within a second.
    rule, exact = found.context.rule, found.target.exact
    sent = rule.downstream, rule.downstream_cdn, exact and exact.url
    made_of = floor(age), floor(stored.lifetime - age), detail, sent
    last_made_of, head = found.lookup.last_head[0]
    if last_made_of != made_of:
        head = found.head_of(stored, age, hit=True, detail=detail)
        found.lookup.last_head[0] = made_of, head
    try:
        return reuse.answer(found.request, stored, head)
    except Damaged:
        _emit_damaged(found)
        return None


def _emit_damaged(found: LookedUpRequest) -> None:
    found.context.emit(CacheEntryRefused(found.lookup.key, "its body does not open"))


def _forward(found: LookedUpRequest, requested: Directives) -> CacheExchange:
    if "only-if-cached" in requested:
        # Without Cache-Status, because it is not based on a stored response (RFC 9211 §2).
        head = ResponseHead(504, Headers.of(content_length="0"))  # §5.2.1.7
        return Answered(response=Response(head), outcome=found.fwd)
    try:
        if (entry := found.lookup.entry) is not None:
            return Revalidation(found=found, stored=opened(entry), outcome=found.fwd)
    except Damaged:
        _emit_damaged(found)
    return Miss(found=found, outcome=found.fwd)


def _is_refreshable(found: LookedUpRequest, stored: StoredResponse) -> bool:
    """Whether a request without the user's credentials would get the same response (RFC 5861 §3).

    If credentials or the whole Cookie field select it, only the user's own requests can fetch it.
    """
    if not found.context.can_refresh or found.target.private:
        return False
    personal = {"authorization", "cookie", *found.context.fields.credentials}
    return found.selecting_fields(stored).isdisjoint(personal)


def _refresh(found: LookedUpRequest, stored: StoredResponse) -> Refresh | None:
    """Return the background revalidation of a stored response; None if none should begin now."""
    context, key = found.context, found.lookup.key
    if not context.revalidations.begin(key):
        return None
    request = _request_of_no_user(found, stored)
    target = replace(found.target, headers=request.headers)
    found = replace(found, request=request, target=target, fwd="stale")
    try:
        exchange = Revalidation(found=found, stored=opened(stored), in_background=True)
    except Damaged:
        context.revalidations.end(key, failed=True)
        return None
    flight, leads = context.flights.join(key)
    if leads:
        exchange.flight = flight
    elif flight is not None:
        context.revalidations.end(key, failed=False)
        return None  # a request that is already forwarded will replace the stored response
    return Refresh(request, exchange)


def _request_of_no_user(found: LookedUpRequest, stored: StoredResponse) -> HTTPRequest:
    """Return a request with only the client's fields that select the stored response."""
    headers, rule = found.request.headers, found.context.rule
    carried, reflected = found.selecting_fields(stored), found.context.fields.reflected
    pairs = [
        (name, value)
        for name, value in headers.raw
        if (lower := name.decode("latin-1").lower()) in carried
        or (lower != "forwarded" and lower.replace("_", "-") in reflected)
    ]
    if rule.vary_cookies and (cookies := vary.chosen_cookies(rule.vary_cookies, headers)):
        pairs.append((b"cookie", cookies.encode("latin-1")))
    if "forwarded" not in carried and (text := headers.combined("forwarded")):
        of_url = forwarded_of_url(text)
        pairs += [(b"forwarded", of_url.encode("latin-1"))] if of_url else []
    query, target = keys.normal_query(found.request.query, rule), found.target
    if target.exact is not None:
        query = target.url.partition("?")[2]
    headers = Headers(pairs)
    return replace(
        found.request, method="GET", headers=headers, query=query, peer=None, native=None
    )


# --- Request collapsing (RFC 9111 §4) -----------------------------------------------------------
#
# The first request is the leader and is forwarded. The others are followers: they wait for the
# response that the leader stores. A follower does its own lookup first, so it knows all earlier
# purges. It does not use a response whose request was forwarded before such a purge.
#
# Followers wait only while a response that can answer them is expected. They stop waiting when the
# response turns out not to be storable, or to be a stream, whose duration depends on the leader's
# client.


async def wait_for_render(found: LookedUpRequest, exchange: CacheExchange) -> CacheExchange:
    """Forward only one of several concurrent requests for the same response."""
    if isinstance(exchange, Answered):
        try:
            return await _lock_refresh(found, exchange)
        except BaseException:  # the exchange will not be finished
            exchange.drop()
            raise
    if not isinstance(exchange, Miss):
        return exchange
    if found.context.collapse <= 0 or not found.may_be_stored():
        return exchange
    try:
        chosen = await _join_or_wait(found, exchange)
        if chosen is exchange and exchange.flight is not None:
            return await _acquire_lock_or_wait(found, exchange)
    except BaseException:  # the exchange will not be finished, so no request may wait for it
        exchange.resolve(NotShared.INTERRUPTED)
        raise
    return chosen


async def _join_or_wait(found: LookedUpRequest, exchange: Miss) -> CacheExchange:
    """Make a request the leader, or wait for its leader's response.

    After ``collapse`` seconds without a response, the request is forwarded.
    """
    context, clock = found.context, found.context.store.clock
    until = clock.monotonic() + context.collapse
    key, expected = found.lookup.key, found.is_expected
    # For these fields, the response may lack parts that other requests need.
    for_less = reuse.RANGE_FIELDS if exchange.withholds_conditions else reuse.RANGE_AND_CONDITIONS
    may_lead = found.request.headers.names().isdisjoint(for_less)
    while (left := until - clock.monotonic()) > 0:
        flight, leads = context.flights.join(key, expected=expected, may_lead=may_lead)
        if flight is None:
            break
        if leads:
            exchange.flight = flight
            break
        if not await Wait(flight.latch, left):
            context.flights.forget(flight)
            break
        if flight.result is NotShared.FAILED:
            return choose(found)  # the failure may allow a stale response
        if not isinstance(flight.result, Shared):
            if flight.result is NotShared.INTERRUPTED:
                continue
            break
        if (answered := _response_from_leader(found, flight.result)) is not None:
            return answered
        # Vary is now known, so each variant has its own leader.
        expected, key = True, context.store.variant(found.target, flight.result.plan.vary)
        if key == flight.key:
            context.flights.forget(flight)
    return exchange


def _response_from_leader(found: LookedUpRequest, shared: Shared) -> Answered | None:
    """Return the response for a follower; None if it cannot use the leader's response."""
    stored, fields, profile = shared.plan.stored, shared.plan.vary, found.context.store.profile
    age = current_age(stored, found.now)
    theirs = vary.selected_values(fields, shared.found.request.headers, profile)
    if age >= stored.lifetime or not found.target.may_share(shared.found.target, stored):
        return None
    if theirs != vary.selected_values(fields, found.request.headers, profile):
        return None
    # If the epoch of a tag was not read, a purge of that tag is assumed if any tag was purged.
    before, tags = shared.found.lookup.epochs, (*found.target.tags, *stored.tags)
    recorded = {tag: before.tags.get(tag, _EPOCH_NOT_READ) for tag in tags}
    current = found.lookup.epochs
    if validity(replace(before, tags=recorded), current) is not Validity.VALID:
        return None
    head = found.head_of(stored, age, fwd=found.fwd, collapsed=True)
    return Answered(response=reuse.answer(found.request, stored, head))


# A value that no epoch on Redis has.
_EPOCH_NOT_READ = Epoch("not read", "")


async def _acquire_lock_or_wait(found: LookedUpRequest, exchange: Miss) -> CacheExchange:
    """Acquire the lock to forward a request, or wait for the process that holds the lock.

    Each read of the lock is a billed command, so the pauses between reads grow. After ``collapse``
    seconds, or if the response cannot be shared, the request is forwarded without the lock. A lock
    expires after half of that time, so that a crashed holder is replaced while others still wait.
    """
    context, clock, pause = found.context, found.context.store.clock, _FIRST_PAUSE
    until = clock.monotonic() + context.collapse
    try:
        while (lock := found.lookup.lock) is not None and not lock.unshared:
            if not lock.held:
                token = await context.store.acquire(lock, context.collapse / 2)
                if token is not None:
                    exchange.lock = lock.key, token
                    break
            if (left := until - clock.monotonic()) <= 0:
                break
            await Sleep(min(pause, left))
            pause = min(pause * 1.5, _MAX_PAUSE)
            lookup = await context.store.look_up(found.target)
            found = replace(found, lookup=lookup, target=lookup.exact or found.target)
            chosen = choose(found)
            if not isinstance(chosen, Miss):
                _answer_followers(found, exchange)
                return chosen
            chosen.flight = exchange.flight
            exchange = chosen
        if lock is not None and lock.unshared:
            exchange.resolve(NotShared.UNSHAREABLE)
    except UpstashError as error:
        context.emit(UpstashFailed("cache lookup", error))
    except BaseException:  # the exchange will not be finished; the lock expires
        exchange.resolve(NotShared.INTERRUPTED)
        raise
    return exchange


def _answer_followers(found: LookedUpRequest, exchange: Miss) -> None:
    """Answer the followers in this process with the response that another process stored."""
    stored, index = found.lookup.entry, found.lookup.index
    if stored is None:
        return
    if current_age(stored, found.now) < stored.lifetime:
        vary = index.vary if index is not None else ()
        exchange.resolve(Shared(Plan(opened(stored), vary, 0.0), found))
    else:
        exchange.resolve(NotShared.FAILED)


async def _lock_refresh(found: LookedUpRequest, answered: Answered) -> Answered:
    """Acquire the lock for a background revalidation, or cancel it if another process has it."""
    context, refresh, lock = found.context, answered.refresh, found.lookup.lock
    if refresh is None or lock is None or lock.unshared:
        return answered
    token = None
    if not (lock.held or lock.failed):
        try:
            token = await context.store.acquire(lock, context.collapse / 2 or _MAX_PAUSE)
        except UpstashError as error:
            context.emit(UpstashFailed("cache lookup", error))
            return answered
    if token is not None:
        refresh.exchange.lock = lock.key, token
        return answered
    refresh.exchange.resolve(NotShared.INTERRUPTED)
    context.revalidations.end(found.lookup.key, failed=lock.failed)
    return Answered(response=answered.response)
