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
"""A list of tags with more separators is not split, because it has too many or empty tags."""

# RFC 9110 §7.6.1 and RFC 9111 §3.1: fields of a connection, and fields of proxies.
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
# Fields of a rate limit inside the cache, which are about the client of this request.
_RATE_LIMIT_FIELDS = (
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)
# The statuses defined in RFC 9110 §15, whose caching is therefore understood.
_UNDERSTOOD_STATUSES = frozenset(
    {*range(200, 207), *range(300, 306), 307, 308, *range(400, 418), 421, 422, 426}
    | {*range(500, 506)}
)
# RFC 9111 §3.5: directives that allow a shared cache to store the response to Authorization.
_SHARED_DESPITE_AUTHORIZATION = ("public", "s-maxage", "must-revalidate")


class Candidate(Struct, frozen=True):
    """A response, with everything that decides whether it may be stored."""

    request: HTTPRequest
    rule: CacheRule
    profile: Profile
    head: ResponseHead
    control: Directives
    vary: tuple[str, ...]
    """The fields named by Vary, in lower case."""
    received_at: float
    """The time of receipt in seconds since 1970."""
    fields: KnownFields
    private: bool = False
    """Whether the key contains the user, so that only this user gets the response."""
    has_groups: bool = True
    """Whether Cache-Groups is obeyed."""

    @property
    def selecting(self) -> tuple[str, ...]:
        """The request fields that select the response."""
        return (*self.vary, *self.rule.vary_headers)


class Plan(Struct, frozen=True):
    """A response to be stored, as known from its head."""

    stored: StoredResponse
    """The response without its body, and with all its tags, their ancestors, and its groups."""
    vary: tuple[str, ...]
    """The fields that select the response."""
    keep: float
    """Seconds for which the response is useful."""
    addresses: frozenset[str] = frozenset()
    """The addresses of client and proxies. A body that contains one of them is not stored."""

    def with_body(self, body: bytes) -> Plan:
        """Return the plan with the complete body."""
        return replace(self, stored=replace(self.stored, packed=body, length=len(body)))

    def with_etag(self) -> Plan:
        """Return the plan with a strong ETag computed from the body, if there is no ETag."""
        stored = self.stored
        if stored.status != 200 or "etag" in stored.headers:
            return self
        etag = f'"{blake2b(stored.packed, digest_size=12).hexdigest()}"'
        return replace(self, stored=replace(stored, headers=stored.headers.setting("etag", etag)))


def plan(  # noqa: PLR0911 - one for each reason
    candidate: Candidate, requested_at: float, grace: float, tags: tuple[str, ...] = ()
) -> Plan | str:
    """Return the plan for storing a response, or the reason why it is not stored.

    Args:
        candidate: The response.
        requested_at: When the application was called, in seconds since 1970.
        grace: Seconds for which a response with a validator is kept after all other use has ended.
        tags: The tags of the rule, with their ancestors.
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
    """Return why a response must not be stored; None if it may be stored."""
    request, head, control = candidate.request, candidate.head, candidate.control
    headers, profile, private = head.headers, candidate.profile, candidate.private
    if request.method != "GET":
        return "only responses to GET are stored"
    if head.status == 206 and not (profile.stores_parts and parse_part(headers)):
        return "partial content"
    if head.status < 200 or head.status in NEVER_STORED:
        return f"status {head.status}"
    # Frameworks may copy the query into a redirect, for instance to add a slash to the path.
    is_redirect = 300 <= head.status < 400 and "location" in headers
    if is_redirect and drops_parameters(request.query, candidate.rule):
        return "a redirect, and the request has parameters that do not select the response"
    if "must-understand" in control:  # §5.2.2.3: no-store is then ignored
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
        return "Connection is too long"  # the fields that may be stored are unknown (§3.1)
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

    These are not stored: fields of the connection, fields named by ``no-cache`` or ``private``
    (§5.2.2.4, §5.2.2.7), a client's limits, and Age, which is computed for each use.
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
        selectors.remove("cookie")  # its cookies are part of the resource's key
    if "accept-encoding" in selectors and not candidate.profile.normalises:
        selectors.remove("accept-encoding")
        coding = candidate.head.headers.combined("content-encoding") or ""
        selectors.append(selector_of_codings(candidate.request.headers, coding))
    return tuple(selectors)


def _tags_with_groups(candidate: Candidate, of_rule: tuple[str, ...]) -> tuple[str, ...] | str:
    """Return a response's tags with their ancestors and groups, or why there are too many.

    Tags are in Cache-Tag, separated by commas, and in Surrogate-Key, separated by spaces.
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
# A group is stored as a tag that applications cannot use. It has no ancestors, and one origin.

CACHE_GROUPS: Final = "Cache-Groups"
"""The response field that names the response's groups (§2)."""
CACHE_GROUP_INVALIDATION: Final = "Cache-Group-Invalidation"
"""The field that names the groups to invalidate, in the response to an unsafe request (§3)."""
MAX_GROUPS: Final = 128
"""The maximum in one field; RFC 9875 requires at least 32. Each lookup of a member reads the
epochs of its groups, and an invalidation costs one command for each group."""


def groups_in(field: str, headers: Headers, request: HTTPRequest) -> tuple[str, ...] | str:
    """Return the groups that a response field names, as tags, or why there are too many.

    Invalid fields and parameters are ignored (§2, §3).
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
