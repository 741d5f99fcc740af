"""What is Flask's own: the middleware classes as extensions, ``purge``, and ``@limit``.

Nothing but names may live here; see ``extension`` and ``limiting``.
"""

from __future__ import annotations

from upstash_middleware.flask.caching import cached, never_cached
from upstash_middleware.flask.denying import RateLimitExceeded
from upstash_middleware.flask.extension import (
    CONFIG,
    EXTENSION,
    CacheMiddleware,
    RateLimitMiddleware,
    UpstashMiddleware,
    purge,
)
from upstash_middleware.flask.limiting import limit
from upstash_middleware.flask.signals import rate_limited
from upstash_middleware.handlers import exempt

__all__ = [
    "CONFIG",
    "EXTENSION",
    "CacheMiddleware",
    "RateLimitExceeded",
    "RateLimitMiddleware",
    "UpstashMiddleware",
    "cached",
    "exempt",
    "limit",
    "never_cached",
    "purge",
    "rate_limited",
]
