"""Rate limiting: rules, limits, and the flow that decides about one request.

The public names of this half; what they are made of is in the modules beside this one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.ratelimit.decision import Decision, PolicyState
from upstash_middleware.core.ratelimit.exchange import RateLimitExchange
from upstash_middleware.core.ratelimit.limiter import RateLimiter
from upstash_middleware.core.ratelimit.limits import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.core.ratelimit.mapping import rule_from_mapping
from upstash_middleware.core.ratelimit.rules import UNLIMITED, RateLimitRule
from upstash_middleware.core.ratelimit.text import parse_limits

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.as_sdk import as_upstash_limiter
    from upstash_middleware.core.ratelimit.inspecting import Explanation

# What few applications use, and where it is: imported when it is asked for.
_ELSEWHERE = {
    "Explanation": "inspecting",
    "as_upstash_limiter": "as_sdk",
}

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
    """Import what a public name stands for."""
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)
