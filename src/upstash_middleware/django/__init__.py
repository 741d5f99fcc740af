"""Rate limiting and response caching for Django: the names that a project uses.

In ``MIDDLEWARE`` stands ``upstash_middleware.django.UpstashMiddleware``, or one of its halves,
``RateLimitMiddleware`` and ``CacheMiddleware``; what they do stands in the setting
``UPSTASH_MIDDLEWARE``, whose keys are those of ``upstash_middleware.settings.Arguments``.
``purge`` and ``apurge`` make stored responses unusable; ``limit`` and ``exempt`` decorate views.
With ``upstash_middleware.django`` in ``INSTALLED_APPS`` the system checks look at all of that.
Nothing but names may live here: importing this needs no configured settings.
"""

from upstash_middleware.django.caching import cached, never_cached
from upstash_middleware.django.configuration import apurge, purge
from upstash_middleware.django.identify import user
from upstash_middleware.django.limiting import limit
from upstash_middleware.django.middleware import (
    CacheMiddleware,
    RateLimitedRequest,
    RateLimitMiddleware,
    UpstashMiddleware,
)
from upstash_middleware.handlers import exempt

__all__ = [
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RateLimitedRequest",
    "UpstashMiddleware",
    "apurge",
    "cached",
    "exempt",
    "limit",
    "never_cached",
    "purge",
    "user",
]
