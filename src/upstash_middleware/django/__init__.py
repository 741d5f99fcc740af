"""Rate limiting and response caching for Django: the names that a project uses.

``MIDDLEWARE`` contains ``upstash_middleware.django.UpstashMiddleware``, or one of its halves,
``RateLimitMiddleware`` and ``CacheMiddleware``; the setting ``UPSTASH_MIDDLEWARE`` configures them,
with the keys of ``upstash_middleware.settings.Arguments``. ``purge`` and ``apurge`` invalidate
stored responses; ``limit``, ``cached`` and ``exempt`` decorate views. With
``upstash_middleware.django`` in ``INSTALLED_APPS``, system checks check all of this. Importing
this module needs no configured settings.
"""

from upstash_middleware.decorators import exempt
from upstash_middleware.django.conf import apurge, aredis, purge, redis
from upstash_middleware.django.decorators import cached, limit, never_cached
from upstash_middleware.django.middleware import (
    CacheMiddleware,
    RateLimitedRequest,
    RateLimitMiddleware,
    UpstashMiddleware,
)
from upstash_middleware.django.requests import user

__all__ = [
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RateLimitedRequest",
    "UpstashMiddleware",
    "apurge",
    "aredis",
    "cached",
    "exempt",
    "limit",
    "never_cached",
    "purge",
    "redis",
    "user",
]
