"""Rate limits and response cache for Django: the public names for a project.

``MIDDLEWARE`` contains ``upstash_middleware.django.UpstashMiddleware``, or one of
``RateLimitMiddleware`` and ``CacheMiddleware``. With ``SESSION_ENGINE =
"upstash_middleware.django.sessions"``, ``SessionMiddleware`` replaces Django's. The setting
``UPSTASH_MIDDLEWARE`` configures them, with the keys of
``upstash_middleware.settings.Arguments``. ``purge`` and ``apurge`` invalidate stored responses.
``data`` and ``async_data`` cache the project's own values. ``limit``, ``cached``, ``cache_page``
and ``exempt`` decorate views. With ``upstash_middleware.django`` in ``INSTALLED_APPS``, system
checks verify this configuration. Importing this module does not require configured settings.
"""

from typing import TYPE_CHECKING, Any

from upstash_middleware.decorators import exempt
from upstash_middleware.django.conf import apurge, aredis, purge, redis
from upstash_middleware.django.decorators import cache_page, cached, limit, never_cached
from upstash_middleware.django.middleware import (
    CacheMiddleware,
    RateLimitedRequest,
    RateLimitMiddleware,
    UpstashMiddleware,
)
from upstash_middleware.django.requests import user

if TYPE_CHECKING:
    from upstash_middleware.data import Data, SyncData
    from upstash_middleware.django.sessions import SessionMiddleware

    data: SyncData
    async_data: Data

__all__ = [
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RateLimitedRequest",
    "SessionMiddleware",
    "UpstashMiddleware",
    "apurge",
    "aredis",
    "async_data",
    "cache_page",
    "cached",
    "data",
    "exempt",
    "limit",
    "never_cached",
    "purge",
    "redis",
    "user",
]


def __getattr__(name: str) -> Any:
    """Import or create optional names on first use."""
    if name == "SessionMiddleware":
        from upstash_middleware.django.sessions import SessionMiddleware  # noqa: PLC0415

        globals()[name] = SessionMiddleware
        return SessionMiddleware
    if name not in {"data", "async_data"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from upstash_middleware.data import Data, SyncData  # noqa: PLC0415 - only if used
    from upstash_middleware.django.conf import runtime_for_data  # noqa: PLC0415

    made = (SyncData if name == "data" else Data).over(runtime_for_data)
    globals()[name] = made
    return made
