"""The response fields that tell a client how its limits stand.

``RateLimit`` and ``RateLimit-Policy`` follow draft-ietf-httpapi-ratelimit-headers-10, a list of
strings with parameters each (RFC 9651); ``X-RateLimit-*`` are what most APIs send, of the
tightest limit. Which responses may carry them is decided in ``shared``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.decision import Decision, PolicyState
    from upstash_middleware.messages import Headers

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines as they are sent."""

_MAY_BE_THE_APPLICATIONS = frozenset(
    {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
)


def limit_fields(decision: Decision, now: float) -> Fields:
    """Return the fields for a decision, none where Upstash could not be asked.

    ``now`` is the time in seconds since 1970 by the clock that the decision was made with.
    """
    if decision.limit is None or decision.remaining is None or decision.reset is None:
        return ()
    policies = decision.policies
    told = b", ".join([_policy(policy.name, policy.limit, policy.window) for policy in policies])
    standing = b", ".join([_standing(policy, decision, now) for policy in policies])
    return (
        (b"X-RateLimit-Limit", b"%d" % decision.limit),
        (b"X-RateLimit-Remaining", b"%d" % decision.remaining),
        (b"X-RateLimit-Reset", b"%d" % math.ceil(decision.reset)),
        (b"RateLimit-Policy", told),
        (b"RateLimit", standing),
    )


def seconds_to_wait(decision: Decision) -> int | None:
    """Return what Retry-After says, in seconds rounded up; None where no wait would help."""
    return None if decision.retry_after is None else _whole_seconds(decision.retry_after)


def with_fields(headers: Headers, fields: Fields) -> Headers:
    """Return headers with these fields, leaving ``X-RateLimit-*`` of the application's own.

    The draft's two are lists, so lines of several origins add up (RFC 9110 §5.3).
    """
    if own := _MAY_BE_THE_APPLICATIONS.intersection(headers.names()):
        fields = tuple([field for field in fields if field[0].decode("ascii").lower() not in own])
    return headers.adding(*fields)


@lru_cache(maxsize=256)
def _policy(name: str, limit: int, window: int | None) -> bytes:
    return b"%b;q=%d" % (_string(name), limit) + (b"" if window is None else b";w=%d" % window)


def _standing(policy: PolicyState, decision: Decision, now: float) -> bytes:
    wait = policy.retry_after if policy.retry_after is not None else policy.reset - now
    seconds = max(0, _whole_seconds(wait))
    # The draft, §5: Retry-After should not be earlier than a `t` beside it; it may be left out.
    denied_until = None if decision.allowed else decision.retry_after
    too_late = denied_until is not None and seconds > _whole_seconds(denied_until)
    never = not policy.allowed and policy.retry_after is None
    until = b"" if too_late or never or not seconds else b";t=%d" % seconds
    return b"%b;r=%d%b" % (_string(policy.name), policy.remaining, until)


def _whole_seconds(seconds: float) -> int:
    # Times are whole milliseconds; without rounding to them, 3.0000000001 would become 4.
    return -(-round(seconds * 1000) // 1000)


@lru_cache(maxsize=256)
def _string(text: str) -> bytes:
    """Write a String of RFC 9651 §3.3.3; names are printable ASCII by construction."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.encode("ascii")
