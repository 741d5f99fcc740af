"""Freshness (RFC 9111 §4.2): how long a response is fresh, and how old it is; arithmetic only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.dates import parse_date
from upstash_middleware.core.cache.fields import delta_seconds
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.cache.directives import Control
    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import Headers, ResponseHead

# RFC 9110 §15.1: final statuses whose definition allows heuristic freshness.
HEURISTICALLY_CACHEABLE = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})

_HEURISTIC_FRACTION = 0.1
_LONGEST_HEURISTIC = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A freshness lifetime."""

    seconds: float
    explicit: bool
    """Whether the response itself states it (§4.2.1), else a rule or a heuristic does."""


@dataclass(frozen=True, slots=True)
class Staleness:
    """How a response may be used after it has become stale."""

    while_revalidate: float = 0.0
    """Seconds of staleness in which it may be used while a fresh one is fetched."""
    if_error: float = 0.0
    """Seconds of staleness in which it may stand in for an error."""
    forbidden: bool = False
    """Whether it must never be used stale, whatever the client accepts (§4.2.4)."""


_NEVER_STALE = Staleness(forbidden=True)


def staleness(control: Control, rule: CacheRule, profile: Profile) -> Staleness:
    """Return how a response may be used stale (§4.2.4, RFC 5861).

    Its own directives outweigh the rule's.
    """
    directives = control.directives
    forbidden = directives.unqualified("no-cache") or any(
        name in directives for name in ("must-revalidate", "proxy-revalidate")
    )
    if forbidden or (profile.s_maxage_revalidates and "s-maxage" in directives):
        return _NEVER_STALE
    stated = directives.seconds("stale-while-revalidate"), directives.seconds("stale-if-error")
    while_revalidate, if_error = stated
    return Staleness(
        rule.stale_while_revalidate if while_revalidate is None else float(while_revalidate),
        rule.stale_if_error if if_error is None else float(if_error),
    )


def explicit_lifetime(head: ResponseHead, control: Control, now: float) -> Lifetime | None:
    """Return the freshness lifetime that a response states to a shared cache (§4.2.1).

    ``now`` is when it was received, for one without a Date. An invalid statement means stale,
    and so does ``no-cache``: never to be used without validation (§5.2.2.4).
    """
    directives = control.directives
    if directives.unqualified("no-cache"):
        return Lifetime(0.0, explicit=True)
    for name in ("s-maxage", "max-age"):
        if (seconds := directives.seconds(name)) is not None:
            return Lifetime(float(seconds), explicit=True)
    if control.targeted or (expires := head.headers.get("expires")) is None:
        return None
    at = parse_date(expires, now)
    return Lifetime(0.0 if at is None else max(0.0, at - date_of(head.headers, now)), explicit=True)


def heuristic_lifetime(head: ResponseHead, control: Control, now: float) -> Lifetime | None:
    """Return a tenth of the time since Last-Modified, a day at most (§4.2.2).

    Only for statuses defined as heuristically cacheable, or a response marked as public.
    """
    if head.status not in HEURISTICALLY_CACHEABLE and "public" not in control.directives:
        return None
    modified = parse_date(head.headers.get("last-modified") or "", now)
    if modified is None:
        return None
    since = max(0.0, date_of(head.headers, now) - modified)
    return Lifetime(min(since * _HEURISTIC_FRACTION, _LONGEST_HEURISTIC), explicit=False)


def date_of(headers: Headers, now: float) -> float:
    """Return a response's Date; ``now``, when it was received, where there is no valid one."""
    date = parse_date(headers.get("date") or "", now)
    return now if date is None else date


def age_value(headers: Headers) -> int:
    """Return the Age that upstream states, 0 where it states none (§5.1).

    Of several members the first counts; one that is not delta-seconds is ignored.
    """
    first = (headers.get("age") or "").split(",")[0].strip(" \t")
    return delta_seconds(first) or 0


def initial_age(headers: Headers, asked_at: float, received_at: float) -> float:
    """Return a response's corrected initial age in seconds (§4.2.3).

    ``asked_at`` is when the application was called, ``received_at`` when its head came. A Date
    tells whole seconds, so the part of one that has passed since is no age.
    """
    apparent = max(0.0, received_at // 1 - date_of(headers, received_at))
    return max(apparent, age_value(headers) + max(0.0, received_at - asked_at))
