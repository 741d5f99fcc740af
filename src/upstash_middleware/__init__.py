"""Rate limiting and response caching for Starlette, Flask and Django, over Upstash Redis.

The middleware classes live with their frameworks: ``upstash_middleware.starlette`` (and
``.asgi`` for any ASGI application), ``.flask`` (and ``.wsgi``), ``.django``. Here are the names
that they share; importing them imports no framework and no HTTP client.
"""

from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.identify import (
    Identifier,
    client_ip,
    combine,
    cookie,
    first_of,
    hashed,
    header,
    jwt_claim,
    query,
)
from upstash_middleware.core.ratelimit import (
    GCRA,
    UNLIMITED,
    Concurrency,
    Decision,
    FixedWindow,
    PolicyState,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    as_upstash_limiter,
)
from upstash_middleware.errors import (
    CircuitOpen,
    CommandError,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    MissingCredentials,
    NotConnected,
    Refused,
    UnexpectedAnswer,
    UpstashError,
    UpstashMiddlewareError,
)
from upstash_middleware.messages import Headers, Request

__all__ = [
    "GCRA",
    "UNLIMITED",
    "CacheRule",
    "CircuitOpen",
    "CommandError",
    "Concurrency",
    "ConfigurationError",
    "ConnectionLost",
    "DeadlineExceeded",
    "Decision",
    "FixedWindow",
    "Headers",
    "Identifier",
    "MissingCredentials",
    "NotConnected",
    "PolicyState",
    "RateLimitRule",
    "Refused",
    "Request",
    "SlidingLog",
    "SlidingWindow",
    "TokenBucket",
    "UnexpectedAnswer",
    "UpstashError",
    "UpstashMiddlewareError",
    "as_upstash_limiter",
    "client_ip",
    "combine",
    "cookie",
    "first_of",
    "hashed",
    "header",
    "jwt_claim",
    "query",
]
