"""The three middleware classes for any ASGI 3 application; nothing else is public here."""

from __future__ import annotations

from upstash_middleware.asgi.middleware import (
    CacheHandle,
    CacheMiddleware,
    RateLimitMiddleware,
    UpstashMiddleware,
)

__all__ = ["CacheHandle", "CacheMiddleware", "RateLimitMiddleware", "UpstashMiddleware"]
