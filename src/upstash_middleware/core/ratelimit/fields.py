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

_MAY_BE_THE_APPLICATIONS = {
    name: name.decode("ascii").lower()
    for name in (b"X-RateLimit-Limit", b"X-RateLimit-Remaining", b"X-RateLimit-Reset")
}


def limit_fields(decision: Decision, now: float) -> Fields:
    """Return the fields for a decision, none where Upstash could not be asked.

    ``now`` is the time in seconds since 1970 by the clock that the decision was made with.
    """
    if decision.limit is None or decision.remaining is None or decision.reset is None:
        return ()
    policies = decision.policies
    told = ", ".join([_policy(policy.name, policy.limit, policy.window) for policy in policies])
    standing = ", ".join([_standing(policy, decision, now) for policy in policies])
    return (
        (b"X-RateLimit-Limit", b"%d" % decision.limit),
        (b"X-RateLimit-Remaining", b"%d" % decision.remaining),
        (b"X-RateLimit-Reset", b"%d" % math.ceil(decision.reset)),
        (b"RateLimit-Policy", told.encode("ascii")),
        (b"RateLimit", standing.encode("ascii")),
    )


def seconds_to_wait(decision: Decision) -> int | None:
    """Return what Retry-After says, in seconds rounded up; None where no wait would help."""
    return None if decision.retry_after is None else _whole_seconds(decision.retry_after)


def with_fields(headers: Headers, fields: Fields) -> Headers:
    """Return headers with these fields, leaving ``X-RateLimit-*`` of the application's own.

    The draft's two are lists, so lines of several origins add up (RFC 9110 §5.3).
    """
    taken = [name for name, lower in _MAY_BE_THE_APPLICATIONS.items() if lower in headers]
    if taken:
        fields = tuple([field for field in fields if field[0] not in taken])
    return headers.adding(*fields)


@lru_cache(maxsize=256)
def _policy(name: str, limit: int, window: int | None) -> str:
    return f"{_string(name)};q={limit}" + ("" if window is None else f";w={window}")


def _standing(policy: PolicyState, decision: Decision, now: float) -> str:
    wait = policy.retry_after if policy.retry_after is not None else policy.reset - now
    seconds = max(0, _whole_seconds(wait))
    # The draft, §5: Retry-After should not be earlier than a `t` beside it; it may be left out.
    denied_until = None if decision.allowed else decision.retry_after
    too_late = denied_until is not None and seconds > _whole_seconds(denied_until)
    never = not policy.allowed and policy.retry_after is None
    until = "" if too_late or never or not seconds else f";t={seconds}"
    return f"{_string(policy.name)};r={policy.remaining}{until}"


def _whole_seconds(seconds: float) -> int:
    # Times are whole milliseconds; without rounding to them, 3.0000000001 would become 4.
    return -(-round(seconds * 1000) // 1000)


@lru_cache(maxsize=256)
def _string(text: str) -> str:
    """Write a String of RFC 9651 §3.3.3; names are printable ASCII by construction."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
