"""Storing responses (RFC 9111 §3): whether one may be stored, and what of it; rules only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.directives import FROM_HANDLERS
from upstash_middleware.core.cache.fields import cache_control, field_names, members
from upstash_middleware.core.cache.freshness import (
    Lifetime,
    explicit_lifetime,
    heuristic_lifetime,
)
from upstash_middleware.core.cache.ranges import part_held
from upstash_middleware.core.cache.reflection import reflected
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.cache.directives import Control
    from upstash_middleware.core.cache.fields import Directives
    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import Headers, Request, ResponseHead

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
# How the limits of the client stand whose request was rendered; a limit inside has said it.
_OF_ONE_CLIENT = (
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)
# The statuses that RFC 9110 §15 defines, and so those whose caching is understood.
UNDERSTOOD = frozenset(
    {*range(200, 207), *range(300, 306), 307, 308, *range(400, 418), 421, 422, 426}
    | {*range(500, 506)}
)
# Answers to conditions and ranges, which select no stored response (RFC 9110 §15.4.5, §15.5.13,
# §15.5.17), and those that RFC 6585 keeps out of every cache.
_NEVER_STORED = frozenset({304, 412, 416, 428, 429, 431, 511})
MAX_VARY_FIELDS = 8
# RFC 9111 §3.5: what lets a shared cache keep the response to a request with Authorization.
_SHARED_DESPITE_AUTHORIZATION = ("public", "s-maxage", "must-revalidate")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response that may be stored or not, with all that decides about it."""

    request: Request
    rule: CacheRule
    profile: Profile
    head: ResponseHead
    control: Control
    vary: tuple[str, ...]
    """The fields that its Vary names, in lower case."""
    received_at: float
    """Seconds since 1970."""
    private: bool = False
    """Whether only the user who asks will ever get it."""

    @property
    def headers(self) -> Headers:
        """The response's header fields."""
        return self.head.headers

    @property
    def selecting(self) -> tuple[str, ...]:
        """The request's fields that select the response."""
        return (*self.vary, *self.rule.vary_headers)


def vary_fields(headers: Headers) -> tuple[str, ...]:
    """Return the fields that a response's Vary names, in lower case, each once."""
    return tuple(dict.fromkeys(member.lower() for member in members(headers.lines("vary"))))


def refusal(candidate: Candidate) -> str | None:
    """Return in words why a response must not or shall not be stored; None if it may be."""
    for check in _CHECKS:
        if (reason := check(candidate)) is not None:
            return reason
    return None


def lifetime(candidate: Candidate) -> Lifetime | None:
    """Return its freshness lifetime: its own, else the rule's, else a heuristic; None for none."""
    stated = explicit_lifetime(candidate.head, candidate.control, candidate.received_at)
    if stated is not None:
        return stated
    if (ttl := candidate.rule.ttl_for(candidate.head.status)) is not None:
        return Lifetime(ttl, explicit=False)
    if candidate.profile.uses_heuristics:
        return heuristic_lifetime(candidate.head, candidate.control, candidate.received_at)
    return None


def _method(candidate: Candidate) -> str | None:
    return None if candidate.request.method == "GET" else "only responses to GET are stored"


def _status(candidate: Candidate) -> str | None:
    status = candidate.head.status
    if status == 206 and not (candidate.profile.stores_parts and part_held(candidate.headers)):
        return "partial content"
    return f"status {status}" if status < 200 or status in _NEVER_STORED else None


def _no_store(candidate: Candidate) -> str | None:
    directives = candidate.control.directives
    if "must-understand" in directives:  # §5.2.2.3: then no-store is for others
        understood = candidate.head.status in UNDERSTOOD
        return None if understood else f"status {candidate.head.status} is not understood"
    return "no-store" if "no-store" in directives else None


def _no_store_asked(candidate: Candidate) -> str | None:
    # §5.2.1.5: not to keep its response is a client's right under either profile.
    asked = "no-store" in cache_control(candidate.request.headers)
    return "no-store in the request" if asked else None


def _private(candidate: Candidate) -> str | None:
    private = candidate.control.directives.unqualified("private")
    return "private" if private and not candidate.private else None


def _authorization(candidate: Candidate) -> str | None:
    if candidate.private or "authorization" not in candidate.request.headers:
        return None
    if any(name in candidate.control.directives for name in _SHARED_DESPITE_AUTHORIZATION):
        return None
    return "request with Authorization"


def _vary_star(candidate: Candidate) -> str | None:
    return "Vary: *" if "*" in candidate.vary else None


def _vary_many(candidate: Candidate) -> str | None:
    return "Vary names too many fields" if len(candidate.vary) > MAX_VARY_FIELDS else None


def _set_cookie(candidate: Candidate) -> str | None:
    if candidate.profile.stores_set_cookie or "set-cookie" not in candidate.headers:
        return None
    return "Set-Cookie"


def _cookies(candidate: Candidate) -> str | None:
    accounted_for = (
        candidate.private
        or candidate.profile.stores_for_cookies
        or candidate.rule.vary_cookies is not None
        or "cookie" in candidate.vary
    )
    if accounted_for or "cookie" not in candidate.request.headers:
        return None
    return "request with cookies, and no Vary: Cookie"


def _reflection(candidate: Candidate) -> str | None:
    if candidate.profile.stores_reflections:
        return None
    return reflection(candidate, b"")


def reflection(candidate: Candidate, body: bytes) -> str | None:
    """Return in words what a response reflects that does not select it, None if nothing."""
    name = reflected(candidate.request, candidate.selecting, candidate.headers, body)
    return f"reflects {name}" if name else None


def _event_stream(candidate: Candidate) -> str | None:
    kind = (candidate.headers.get("content-type") or "").partition(";")[0].strip().lower()
    return "event stream" if kind == "text/event-stream" else None


_CHECKS: tuple[Callable[[Candidate], str | None], ...] = (
    _method,
    _status,
    _no_store,
    _no_store_asked,
    _private,
    _authorization,
    _vary_star,
    _vary_many,
    _set_cookie,
    _cookies,
    _reflection,
    _event_stream,
)


def storable_headers(headers: Headers, control: Directives) -> Headers:
    """Return the header fields to store, whole and in order (§3.1).

    Without those of the connection, those that ``no-cache`` or ``private`` name (§5.2.2.4,
    §5.2.2.7), those of one client's limits, and Age, which is told anew with every use.
    """
    gone = {*_HOP_BY_HOP, *_OF_ONE_CLIENT, FROM_HANDLERS, "age"}
    for line in headers.lines("connection"):
        gone.update(field_names(line))
    for directive in ("no-cache", "private"):
        gone.update(control.named_fields(directive) or ())
    return headers.without(*gone)
