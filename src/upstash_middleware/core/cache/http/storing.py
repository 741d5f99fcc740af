"""Storing responses (RFC 9111 §3): whether a response may be stored, and which fields of it.

Pure functions of a request, its response, a rule and a profile.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final, cast

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.cache.entries import (
    MAX_TAGS,
    Epochs,
    StoredResponse,
    tag_of_group,
    with_ancestors,
)
from upstash_middleware.core.cache.http.directives import (
    FROM_HANDLERS,
    cache_control,
    explicit_lifetime,
    field_names,
    heuristic_lifetime,
    initial_age,
    members,
    staleness,
)
from upstash_middleware.core.cache.http.fields import client_addresses, shows_any
from upstash_middleware.core.cache.http.reuse import has_validator, parse_part
from upstash_middleware.core.cache.http.structured import parse_strings
from upstash_middleware.core.cache.http.vary import selector_of_codings
from upstash_middleware.core.cache.keys import drops_parameters, origin_of
from upstash_middleware.core.cache.rules import NEVER_STORED
from upstash_middleware.messages import LONGEST_VALUE

if TYPE_CHECKING:
    from upstash_middleware.core.cache.http.directives import Directives
    from upstash_middleware.core.cache.http.fields import KnownFields
    from upstash_middleware.core.cache.rules import CacheRule, Profile
    from upstash_middleware.messages import Headers, HTTPRequest, ResponseHead

MAX_VARY_FIELDS = 8
_MAX_SEPARATORS = 64 * MAX_TAGS
"""A list of tags with more separators is not split: it has too many, or they are empty."""

# RFC 9110 §7.6.1 and RFC 9111 §3.1: fields about one connection, and those of proxies.
_HOP_BY_HOP = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
)
# Fields of a rate limit inside the cache, about the client whose request was rendered.
_RATE_LIMIT_FIELDS = (
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)
# The statuses defined by RFC 9110 §15, and so those whose caching is understood.
_UNDERSTOOD_STATUSES = frozenset(
    {*range(200, 207), *range(300, 306), 307, 308, *range(400, 418), 421, 422, 426}
    | {*range(500, 506)}
)
# RFC 9111 §3.5: what lets a shared cache store the response to a request with Authorization.
_SHARED_DESPITE_AUTHORIZATION = ("public", "s-maxage", "must-revalidate")


class Candidate(Struct, frozen=True):
    """A response that may be stored, with everything that decides whether it is."""

    request: HTTPRequest
    rule: CacheRule
    profile: Profile
    head: ResponseHead
    control: Directives
    vary: tuple[str, ...]
    """The fields named by its Vary, in lower case."""
    received_at: float
    """Seconds since 1970."""
    fields: KnownFields
    private: bool = False
    """Whether only the requesting user can ever get it."""
    has_groups: bool = True
    """Whether Cache-Groups counts."""

    @property
    def selecting(self) -> tuple[str, ...]:
        """The request fields that select the response."""
        return (*self.vary, *self.rule.vary_headers)


class Plan(Struct, frozen=True):
    """A response to be stored, as far as it is known from its head."""

    stored: StoredResponse
    """Without its body; with the tags of its rule and its own, their ancestors, and its groups."""
    vary: tuple[str, ...]
    """The fields that select it."""
    keep: float
    """Seconds for which it is of use."""
    addresses: frozenset[str] = frozenset()
    """The addresses of the client and proxies: a body that contains one may not be stored."""

    def with_body(self, body: bytes) -> Plan:
        """Return the plan with the whole body."""
        return replace(self, stored=replace(self.stored, packed=body, length=len(body)))

    def with_etag(self) -> Plan:
        """Return the plan with a strong ETag made from its body, if it has none."""
        stored = self.stored
        if stored.status != 200 or "etag" in stored.headers:
            return self
        etag = f'"{blake2b(stored.packed, digest_size=12).hexdigest()}"'
        return replace(self, stored=replace(stored, headers=stored.headers.setting("etag", etag)))


def plan(  # noqa: PLR0911 - one for each reason
    candidate: Candidate, requested_at: float, grace: float, tags: tuple[str, ...] = ()
) -> Plan | str:
    """Return what to store of a response, or the reason why nothing is stored.

    Args:
        candidate: the response.
        requested_at: when the application was called, in seconds since 1970.
        grace: seconds for which a response that can be validated is kept beyond all other use.
        tags: those that the rule gives it, ancestors included.
    """
    if (reason := _refusal(candidate)) is not None:
        return reason
    head, control, rule = candidate.head, candidate.control, candidate.rule
    addresses: frozenset[str] | str = frozenset()
    if not candidate.profile.stores_reflections:
        fields, selecting = candidate.request.headers, candidate.selecting
        addresses = client_addresses(fields, selecting, candidate.fields.clients)
    if isinstance(addresses, str):
        return addresses
    if (shown := shows_any(addresses, head.headers, b"")) is not None:
        return shown
    lifetime = explicit_lifetime(head, control, candidate.received_at)
    if lifetime is None:
        lifetime = rule.ttl_for(head.status)
    if lifetime is None and candidate.profile.uses_heuristics:
        lifetime = heuristic_lifetime(head, control, candidate.received_at)
    if lifetime is None:
        return "no freshness lifetime"
    stale = staleness(control, rule, candidate.profile)
    age = initial_age(head.headers, requested_at, candidate.received_at)
    if not (has_validator(head.headers) or candidate.profile.obeys_clients):
        grace = 0.0
    elif rule.grace is not None:
        grace = cast("float", rule.grace)
    keep = lifetime + max(stale.while_revalidate, stale.if_error, grace) - age
    useful_stale = (
        stale.while_revalidate
        or stale.if_error
        or (candidate.profile.stores_to_validate and has_validator(head.headers))
    )
    if keep <= 0 or (lifetime <= age and not useful_stale):
        return "stale already"
    all_tags = _tags_with_groups(candidate, tags)
    if isinstance(all_tags, str):
        return all_tags
    stored = StoredResponse(
        status=head.status,
        headers=storable_headers(head.headers, control),
        stored_at=candidate.received_at,
        initial_age=age,
        lifetime=lifetime,
        stale=stale,
        packed=b"",
        length=0,
        tags=all_tags,
        epochs=Epochs(),
    )
    return Plan(stored, _selectors(candidate), keep, addresses)


def _refusal(candidate: Candidate) -> str | None:  # noqa: C901, PLR0911, PLR0912 - one rule each
    """Return why a response must not be stored, None if it may be."""
    request, head, control = candidate.request, candidate.head, candidate.control
    headers, profile, private = head.headers, candidate.profile, candidate.private
    if request.method != "GET":
        return "only responses to GET are stored"
    if head.status == 206 and not (profile.stores_parts and parse_part(headers)):
        return "partial content"
    if head.status < 200 or head.status in NEVER_STORED:
        return f"status {head.status}"
    # Frameworks redirect with the query as it was sent, for instance to add a slash to the path.
    is_redirect = 300 <= head.status < 400 and "location" in headers
    if is_redirect and drops_parameters(request.query, candidate.rule):
        return "a redirect, and the request has parameters that do not select the response"
    if "must-understand" in control:  # §5.2.2.3: then no-store is for other caches
        if head.status not in _UNDERSTOOD_STATUSES:
            return f"status {head.status} is not understood"
    elif "no-store" in control:  # §5.2.2.5
        return "no-store"
    if "no-store" in cache_control(request.headers):  # §5.2.1.5
        return "no-store in the request"
    if control.unqualified("private") and not private:  # §5.2.2.7
        return "private"
    shared = any(name in control for name in _SHARED_DESPITE_AUTHORIZATION)
    if not private and not shared:  # §3.5
        if "authorization" in request.headers:
            return "request with Authorization"
        if not profile.stores_for_credentials and (
            name := candidate.fields.credential_of(request.headers, candidate.selecting)
        ):
            return f"request with {name}"
    if sum(map(len, headers.lines("connection"))) > LONGEST_VALUE:
        return "Connection is too long"  # so it is unknown which fields may be stored (§3.1)
    if "*" in candidate.vary:  # §4.1
        return "Vary: *"
    if len(candidate.vary) > MAX_VARY_FIELDS:
        return "Vary names too many fields"
    if "set-cookie" in headers and not profile.stores_set_cookie:
        return "Set-Cookie"
    accounted_for = candidate.rule.vary_cookies is not None or "cookie" in candidate.vary
    if not (private or profile.stores_for_cookies or accounted_for) and "cookie" in request.headers:
        return "request with cookies, and no Vary: Cookie"
    kind = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    return "event stream" if kind == "text/event-stream" else None


def states_freshness(candidate: Candidate) -> bool:
    """Whether a response has explicit freshness (§4.2.1)."""
    control, received_at = candidate.control, candidate.received_at
    return explicit_lifetime(candidate.head, control, received_at) is not None


def storable_headers(headers: Headers, control: Directives) -> Headers:
    """Return the header fields to store, in order (§3.1).

    Without those of the connection, those named by ``no-cache`` or ``private`` (§5.2.2.4,
    §5.2.2.7), those of one client's limits, and Age, which each use adds.
    """
    excluded = {*_HOP_BY_HOP, *_RATE_LIMIT_FIELDS, FROM_HANDLERS, "age"}
    for line in headers.lines("connection"):
        excluded.update(field_names(line))
    for directive in ("no-cache", "private"):
        excluded.update(control.named_fields(directive) or ())
    return headers.without(*excluded)


def _selectors(candidate: Candidate) -> tuple[str, ...]:
    selectors = list(candidate.vary)
    if candidate.rule.narrow_vary_cookie and "cookie" in selectors:
        selectors.remove("cookie")  # the cookies that it means are part of the resource's key
    if "accept-encoding" in selectors and not candidate.profile.normalises:
        selectors.remove("accept-encoding")
        coding = candidate.head.headers.combined("content-encoding") or ""
        selectors.append(selector_of_codings(candidate.request.headers, coding))
    return tuple(selectors)


def _tags_with_groups(candidate: Candidate, of_rule: tuple[str, ...]) -> tuple[str, ...] | str:
    """Return a response's tags with their ancestors and its groups, or why it has too many.

    Its own tags are in Cache-Tag, separated by commas, and in Surrogate-Key, separated by spaces.
    """
    headers, tags = candidate.head.headers, of_rule
    by_commas, by_spaces = headers.lines("cache-tag"), headers.lines("surrogate-key")
    keys = [key for line in by_spaces for key in line.split(None, _MAX_SEPARATORS)]
    if sum(line.count(",") for line in by_commas) + len(keys) > _MAX_SEPARATORS:
        return f"more than {MAX_TAGS} tags"
    if named := members(by_commas) + keys:
        own = with_ancestors(tuple(dict.fromkeys(named)))
        if isinstance(own, str):
            return own
        tags = tuple(dict.fromkeys((*of_rule, *own)))
        if len(tags) > MAX_TAGS:
            return f"more than {MAX_TAGS} tags"
    groups = groups_in(CACHE_GROUPS, headers, candidate.request) if candidate.has_groups else ()
    return groups if isinstance(groups, str) else tags + groups


# --- Cache groups (RFC 9875) --------------------------------------------------------------------
#
# A group is a tag that no application can name: it has no ancestors, and belongs to one origin.

CACHE_GROUPS: Final = "Cache-Groups"
"""The field of a response that names its groups (§2)."""
CACHE_GROUP_INVALIDATION: Final = "Cache-Group-Invalidation"
"""The field of a response to an unsafe request that names the groups it invalidates (§3)."""
MAX_GROUPS: Final = 128
"""In one field; at least 32 have to be supported. Each costs the read of its epoch with every
lookup of its members, and one command to invalidate."""


def groups_in(field: str, headers: Headers, request: HTTPRequest) -> tuple[str, ...] | str:
    """Return the groups that a field of a response names, as tags; a reason if it names too many.

    An invalid field is ignored, and so are parameters (§2, §3).
    """
    value = headers.combined(field.lower())
    if value is None:
        return ()
    if len(value) > LONGEST_VALUE:
        return f"{field} has more than {LONGEST_VALUE} characters"
    names = dict.fromkeys(parse_strings(value) or ())
    if len(names) > MAX_GROUPS:
        return f"{field} names more than {MAX_GROUPS} groups"
    origin = origin_of(request.scheme, request.host)
    return tuple(tag_of_group(origin, name) for name in names)
