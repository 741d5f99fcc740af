"""Rate limits and response cache for Starlette, Flask and Django, over Upstash Redis.

The middleware classes are in the modules of their frameworks: ``upstash_middleware.starlette`` (and
``.asgi`` for any ASGI application), ``.flask`` (and ``.wsgi``), ``.django``. This module has the
names that they share, each imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upstash_middleware.core.cache import CacheRule, Purge
    from upstash_middleware.core.identify import (
        Identifier,
        client_ip,
        combine,
        cookie,
        first_of,
        form,
        hashed,
        header,
        json_field,
        jwt_claim,
        query,
    )
    from upstash_middleware.core.ratelimit import (
        GCRA,
        UNLIMITED,
        Concurrency,
        Decision,
        FixedWindow,
        Lease,
        PolicyState,
        RateLimitRule,
        SlidingLog,
        SlidingWindow,
        TokenBucket,
        as_upstash_limiter,
    )
    from upstash_middleware.core.sessions import Session, SessionSettings
    from upstash_middleware.data import Data, SyncData
    from upstash_middleware.errors import (
        CircuitOpen,
        CommandError,
        ConfigurationError,
        ConnectionLost,
        DeadlineExceeded,
        MissingCredentials,
        NotConnected,
        NotStorable,
        PurgeNotPassedOn,
        Refused,
        UnexpectedAnswer,
        UpstashError,
        UpstashMiddlewareError,
    )
    from upstash_middleware.limiter import Limiter, RateLimited, SyncLimiter
    from upstash_middleware.messages import Headers, HTTPRequest
    from upstash_middleware.redis import AsyncRedis, Redis
    from upstash_middleware.warming import Warmed, awarm, warm

# The modules that define the names; modules that are fast to import come first.
_DEFINING_MODULES = (
    *("errors", "messages", "core.identify", "core.ratelimit", "core.cache"),
    *("limiter", "core.sessions", "data", "redis", "warming"),
)

__all__ = [
    "GCRA",
    "UNLIMITED",
    "AsyncRedis",
    "CacheRule",
    "CircuitOpen",
    "CommandError",
    "Concurrency",
    "ConfigurationError",
    "ConnectionLost",
    "Data",
    "DeadlineExceeded",
    "Decision",
    "FixedWindow",
    "HTTPRequest",
    "Headers",
    "Identifier",
    "Lease",
    "Limiter",
    "MissingCredentials",
    "NotConnected",
    "NotStorable",
    "PolicyState",
    "Purge",
    "PurgeNotPassedOn",
    "RateLimitRule",
    "RateLimited",
    "Redis",
    "Refused",
    "Session",
    "SessionSettings",
    "SlidingLog",
    "SlidingWindow",
    "SyncData",
    "SyncLimiter",
    "TokenBucket",
    "UnexpectedAnswer",
    "UpstashError",
    "UpstashMiddlewareError",
    "Warmed",
    "as_upstash_limiter",
    "awarm",
    "client_ip",
    "combine",
    "cookie",
    "first_of",
    "form",
    "hashed",
    "header",
    "json_field",
    "jwt_claim",
    "query",
    "warm",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    for home in _DEFINING_MODULES if name in __all__ else ():
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            found = globals()[name] = getattr(module, name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
