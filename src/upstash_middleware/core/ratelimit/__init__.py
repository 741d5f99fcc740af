"""Rate limiting: the names that other parts of the package use, with all algorithms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upstash_middleware.core.ratelimit import algorithms
from upstash_middleware.core.ratelimit.algorithms import *  # noqa: F403 - the names in its __all__
from upstash_middleware.core.ratelimit.decision import Decision, PolicyState
from upstash_middleware.core.ratelimit.limiter import Explanation, RateLimiter, RateLimitExchange
from upstash_middleware.core.ratelimit.rules import (
    UNLIMITED,
    Lease,
    RateLimitRule,
    rule_from_mapping,
)

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.sdk import as_upstash_limiter

__all__ = [
    "UNLIMITED",
    "Decision",
    "Explanation",
    "Lease",
    "PolicyState",
    "RateLimitExchange",
    "RateLimitRule",
    "RateLimiter",
    "as_upstash_limiter",
    "rule_from_mapping",
]
__all__ += algorithms.__all__


def __getattr__(name: str) -> Any:
    if name != "as_upstash_limiter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from upstash_middleware.core.ratelimit.sdk import as_upstash_limiter  # noqa: PLC0415

    return as_upstash_limiter
