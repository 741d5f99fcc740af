"""The Django rows: settings, URLs and views in one module; ``wsgi`` and ``asgi`` are the row's."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import re_path

from benchmarks.apps import common

_WHAT = common.ROW.partition(": ")[2]
_OURS = ["upstash_middleware.django.UpstashMiddleware"]
_CACHE = [
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
]
_MIDDLEWARE = {
    "bare": [],
    "upstash_ratelimit": [],
    "cache.get": [],
    "RedisCache": [],
    "cache middleware": _CACHE,
}
_REDIS_CACHE = {
    "BACKEND": "django.core.cache.backends.redis.RedisCache",
    "LOCATION": common.REDIS_URL,
}
_UPSTASH_CACHE = {
    "BACKEND": "upstash_middleware.django.cache.UpstashCache",
    "LOCATION": common.UPSTASH["url"],
    "OPTIONS": {"token": common.UPSTASH["token"]},
}

settings.configure(
    SECRET_KEY="benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    LOGGING_CONFIG=None,
    MIDDLEWARE=_MIDDLEWARE.get(_WHAT, _OURS),
    CACHE_MIDDLEWARE_SECONDS=3600,
    CACHES={"default": _UPSTASH_CACHE if _WHAT == "cache.get" else _REDIS_CACHE},
    UPSTASH_MIDDLEWARE={} if _WHAT in _MIDDLEWARE else common.ours(),
)


def answer(request: HttpRequest) -> HttpResponse:
    """Return the body that the path stands for."""
    body = common.BODIES.get(request.path, common.KILOBYTE)
    return HttpResponse(body, content_type="text/plain")


async def answer_async(request: HttpRequest) -> HttpResponse:
    """Do the same in an async view."""
    return answer(request)


def _cached(_request: HttpRequest) -> HttpResponse:
    """Return a value of Django's cache."""
    body = cache.get("benchmark")
    if body is None:
        body = common.KILOBYTE.decode()
        cache.set("benchmark", body, 3600)
    return HttpResponse(body, content_type="text/plain")


def _limited() -> Any:
    from upstash_ratelimit import Ratelimit, SlidingWindow  # noqa: PLC0415
    from upstash_redis import Redis  # noqa: PLC0415

    limiter = Ratelimit(
        redis=Redis(**common.UPSTASH),
        limiter=SlidingWindow(max_requests=common.QUOTA, window=common.WINDOW),
    )

    def limited(request: HttpRequest) -> HttpResponse:
        response = limiter.limit(request.META["REMOTE_ADDR"])
        return answer(request) if response.allowed else HttpResponse(status=429)

    return limited


_ASYNC = common.ROW.startswith("Django ASGI")
_PLAIN = answer_async if _ASYNC else answer
if _WHAT == "upstash_ratelimit":
    _PLAIN = _limited()
elif _WHAT in {"cache.get", "RedisCache"}:
    _PLAIN = _cached

urlpatterns = [re_path("", _PLAIN)]
wsgi = None if _ASYNC else get_wsgi_application()
asgi = get_asgi_application() if _ASYNC else None
