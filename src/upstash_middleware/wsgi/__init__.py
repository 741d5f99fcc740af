"""The three middleware classes for any WSGI application (PEP 3333); nothing else is public here."""

from __future__ import annotations

from upstash_middleware.wsgi.middleware import (
    CacheMiddleware,
    RateLimitMiddleware,
    UpstashMiddleware,
)

__all__ = ["CacheMiddleware", "RateLimitMiddleware", "UpstashMiddleware"]
