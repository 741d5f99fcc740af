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


_NAMES = {
    name: name.encode("ascii")
    for name in (
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
        "RateLimit-Policy",
        "RateLimit",
        "Retry-After",
    )
}
_MAY_BE_THE_APPLICATIONS = {name: name.lower() for name in _NAMES if name.startswith("X-")}


def limit_fields(decision: Decision, now: float) -> tuple[tuple[str, str], ...]:
    """Return the fields for a decision, none where Upstash could not be asked.

    ``now`` is the time in seconds since 1970 by the clock that the decision was made with.
    """
    if decision.limit is None or decision.remaining is None or decision.reset is None:
        return ()
    policies = decision.policies
    return (
        ("X-RateLimit-Limit", str(decision.limit)),
        ("X-RateLimit-Remaining", str(decision.remaining)),
        ("X-RateLimit-Reset", str(math.ceil(decision.reset))),
        ("RateLimit-Policy", ", ".join([_policy(p.name, p.limit, p.window) for p in policies])),
        ("RateLimit", ", ".join([_standing(policy, decision, now) for policy in policies])),
    )


def retry_after(decision: Decision) -> tuple[tuple[str, str], ...]:
    """Return Retry-After in whole seconds, rounded up; nothing where no wait would help."""
    if decision.retry_after is None:
        return ()
    return (("Retry-After", str(_whole_seconds(decision.retry_after))),)


def with_fields(headers: Headers, fields: tuple[tuple[str, str], ...]) -> Headers:
    """Return headers with these fields, leaving ``X-RateLimit-*`` of the application's own.

    The draft's two are lists, so lines of several origins add up (RFC 9110 §5.3).
    """
    added = [
        (_NAMES[name], value.encode("ascii"))
        for name, value in fields
        if name not in _MAY_BE_THE_APPLICATIONS or _MAY_BE_THE_APPLICATIONS[name] not in headers
    ]
    return headers.adding(*added)


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
