"""``@cached`` and ``@never_cached``: what a Starlette endpoint says to the cache outside."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from starlette.requests import Request as HTTPRequest

from upstash_middleware.asgi.middleware import GATEWAY, PASSAGE
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.handler_caching import CachedAs, Marking, tell_if_in_vain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import Scope

    from upstash_middleware.asgi import CacheHandle

E = TypeVar("E", bound="Callable[..., Any]")


def cached(
    ttl: int,
    *,
    tags: Iterable[str] = (),
    stale_while_revalidate: int = 0,
    stale_if_error: int = 0,
) -> Callable[[E], E]:
    """Have an endpoint's successful responses stored for ``ttl`` seconds, as a CacheRule has.

    ``tags`` may name parts of the route's path, ``product:{id}``. The cache is that of the
    middleware outside, whose rules decide which requests are looked up:
    ``cache=[CacheRule("/{rest:path}")]`` looks all up and stores what says so itself. A response
    with a freshness of its own keeps that. Raises ConfigurationError.
    """
    return functools.partial(_around, CachedAs(ttl, tags, stale_while_revalidate, stale_if_error))


def never_cached(endpoint: E) -> E:
    """Have an endpoint's responses stored nowhere: ``Cache-Control: no-store``."""
    return _around(None, endpoint)


def mark(scope: Scope, cached_as: CachedAs | None, endpoint: object) -> None:
    """Have the middleware outside see what is said of the response, if there is one."""
    passage = scope.get(PASSAGE)
    if passage is not None:
        passage.join(scope[GATEWAY], Marking(cached_as, scope.get("path_params", {})))
    if cached_as is not None and scope["method"] in {"GET", "HEAD"}:
        handle: CacheHandle | None = scope.get("state", {}).get("cache")
        gateway = scope.get(GATEWAY) if handle is None else handle.gateway
        tell_if_in_vain(gateway, scope["path"], endpoint)


def _around(cached_as: CachedAs | None, endpoint: E) -> E:
    if inspect.isclass(endpoint) or not callable(endpoint):
        raise ConfigurationError(f"{endpoint!r} should be an endpoint's function or method")

    @functools.wraps(endpoint)
    def marked(*args: Any, **kwargs: Any) -> Any:
        if not args or not isinstance(args[-1], HTTPRequest):
            raise ConfigurationError(
                f"{endpoint!r} was not called with a request, as Starlette calls an endpoint; in "
                "FastAPI, write Depends(cached(...)) with that of upstash_middleware.fastapi"
            )
        mark(args[-1].scope, cached_as, endpoint)
        return endpoint(*args, **kwargs)

    if inspect.iscoroutinefunction(endpoint):

        @functools.wraps(endpoint)
        async def marked_async(*args: Any, **kwargs: Any) -> Any:
            return await marked(*args, **kwargs)

        return cast("E", marked_async)
    return cast("E", marked)
