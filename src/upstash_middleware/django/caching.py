"""``@cached`` and ``@never_cached``: what a Django view says to the cache outside."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from upstash_middleware.django.configuration import gateway_for_purging
from upstash_middleware.django.translation import change_head, head_from
from upstash_middleware.django.views import called, is_async_view
from upstash_middleware.handler_caching import CachedAs, marked, tell_if_in_vain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.http.response import HttpResponseBase

V = TypeVar("V", bound="Callable[..., Any]")


def cached(
    ttl: int,
    *,
    tags: Iterable[str] = (),
    stale_while_revalidate: int = 0,
    stale_if_error: int = 0,
) -> Callable[[V], V]:
    """Have a view's successful responses stored for ``ttl`` seconds, as a CacheRule has.

    ``tags`` may name parts of the URL pattern, ``product:{id}``. The cache is that of the
    middleware, whose rules decide which requests are looked up: ``"cache": [{"path":
    "/{rest:path}"}]`` looks all up and stores what says so itself. A response with a freshness of
    its own keeps that. Raises ConfigurationError.
    """
    return functools.partial(_around, CachedAs(ttl, tags, stale_while_revalidate, stale_if_error))


def never_cached(view: V) -> V:
    """Have a view's responses stored nowhere: ``Cache-Control: no-store``."""
    return _around(None, view)


def _around(cached_as: CachedAs | None, view: V) -> V:
    if is_async_view(view):

        @functools.wraps(view)
        async def marked_async(*args: Any, **kwargs: Any) -> Any:
            return _marked(cached_as, view, args, kwargs, await view(*args, **kwargs))

        return cast("V", marked_async)

    @functools.wraps(view)
    def marked_sync(*args: Any, **kwargs: Any) -> Any:
        return _marked(cached_as, view, args, kwargs, view(*args, **kwargs))

    return cast("V", marked_sync)


def _marked(
    cached_as: CachedAs | None,
    view: Callable[..., Any],
    args: tuple[Any, ...],
    parts: dict[str, Any],
    response: HttpResponseBase,
) -> HttpResponseBase:
    request, _ = called(view, args)
    if cached_as is not None and request.method in {"GET", "HEAD"}:
        tell_if_in_vain(gateway_for_purging(), request.path, view)
    head = head_from(response)
    change_head(response, head, marked(head, cached_as, parts))
    return response
