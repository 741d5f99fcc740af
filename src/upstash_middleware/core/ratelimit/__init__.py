"""Rate limiting. The names that other parts of the package use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upstash_middleware.core.ratelimit.algorithms import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    parse_limits,
)
from upstash_middleware.core.ratelimit.decision import Decision, PolicyState
from upstash_middleware.core.ratelimit.limiter import Explanation, RateLimiter, RateLimitExchange
from upstash_middleware.core.ratelimit.rules import UNLIMITED, RateLimitRule, rule_from_mapping

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.sdk import as_upstash_limiter

__all__ = [
    "GCRA",
    "UNLIMITED",
    "Concurrency",
    "Decision",
    "Explanation",
    "FixedWindow",
    "Limit",
    "PolicyState",
    "RateLimitExchange",
    "RateLimitRule",
    "RateLimiter",
    "SlidingLog",
    "SlidingWindow",
    "TokenBucket",
    "as_upstash_limiter",
    "parse_limits",
    "rule_from_mapping",
]


def __getattr__(name: str) -> Any:
    if name != "as_upstash_limiter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from upstash_middleware.core.ratelimit.sdk import as_upstash_limiter  # noqa: PLC0415

    return as_upstash_limiter
