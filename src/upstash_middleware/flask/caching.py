"""``@cached`` and ``@never_cached``: what a Flask view says to the cache outside."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

from flask import after_this_request, current_app, request

from upstash_middleware.flask.extension import EXTENSION
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.handler_caching import CachedAs, marked, tell_if_in_vain
from upstash_middleware.wsgi.environ import fields_of, head_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flask.wrappers import Response

V = TypeVar("V", bound="Callable[..., Any]")


def cached(
    ttl: int,
    *,
    tags: Iterable[str] = (),
    stale_while_revalidate: int = 0,
    stale_if_error: int = 0,
) -> Callable[[V], V]:
    """Have a view's successful responses stored for ``ttl`` seconds, as a CacheRule has.

    Below ``@app.route``. ``tags`` may name parts of the route, ``product:{id}``. The cache is
    that of the application's middleware, whose rules decide which requests are looked up:
    ``cache=[CacheRule("/{rest:path}")]`` looks all up and stores what says so itself. A response
    with a freshness of its own keeps that. Raises ConfigurationError.
    """
    return functools.partial(_around, CachedAs(ttl, tags, stale_while_revalidate, stale_if_error))


def never_cached(view: V) -> V:
    """Have a view's responses stored nowhere: ``Cache-Control: no-store``."""
    return _around(None, view)


def _around(cached_as: CachedAs | None, view: V) -> V:
    @functools.wraps(view)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if cached_as is not None and request.method in {"GET", "HEAD"}:
            tell_if_in_vain(_gateway_with_cache(), request.path, view)
        after_this_request(functools.partial(_mark, cached_as))
        return current_app.ensure_sync(view)(*args, **kwargs)

    return cast("V", watched)


def _mark(cached_as: CachedAs | None, response: Response) -> Response:
    head = head_of(response.status, response.headers.to_wsgi_list())
    sent = marked(head, cached_as, request.view_args or {})
    if sent is not head:
        response.headers.clear()
        response.headers.extend(fields_of(sent.headers))
    return response


def _gateway_with_cache() -> Gateway | None:
    gateways = [each.gateway for each in current_app.extensions.get(EXTENSION, {}).values()]
    return max(gateways, key=lambda gateway: Halves.CACHE in gateway.halves, default=None)
