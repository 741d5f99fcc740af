"""What is Starlette's own: ``app.add_middleware(UpstashMiddleware, …)``, and ``@limit``.

The classes are those of ``upstash_middleware.asgi``, which here know the application: its
exception handlers answer denials, and its endpoints can be exempt. For FastAPI there is
``upstash_middleware.fastapi``. Nothing but names may live here.
"""

from __future__ import annotations

from upstash_middleware.asgi import CacheHandle, CacheMiddleware
from upstash_middleware.handlers import exempt
from upstash_middleware.starlette.caching import cached, never_cached
from upstash_middleware.starlette.denying import RequestDenied
from upstash_middleware.starlette.identify import user
from upstash_middleware.starlette.limiting import limit
from upstash_middleware.starlette.middleware import RateLimitMiddleware, UpstashMiddleware

__all__ = [
    "CacheHandle",
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RequestDenied",
    "UpstashMiddleware",
    "cached",
    "exempt",
    "limit",
    "never_cached",
    "user",
]
