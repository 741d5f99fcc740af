"""Fetching anew, in nobody's name, what was sent stale (RFC 5861 §3): after its request closed.

Only where nothing but a rate limit of ours stands outside: views below would miss what other
middleware adds to a request, and a page rendered without that would be stored for everybody.
"""

from __future__ import annotations

import inspect
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.utils.module_loading import import_string

from upstash_middleware.asgi.protocol import refresh_scope
from upstash_middleware.django.passage import Passage
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.wsgi.environ import refresh_environ

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, StreamingHttpResponse
    from django.http.response import HttpResponseBase

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Request


def is_outermost(middleware: type, limit: type) -> bool:
    """Whether nothing but our own ``limit`` stands above a middleware in ``MIDDLEWARE``."""
    for path in settings.MIDDLEWARE:
        entry = import_string(path)
        if entry is middleware:
            return True
        if not (inspect.isclass(entry) and issubclass(entry, limit)):
            return False
    return False


def refresh(
    gateway: Gateway, get_response: Callable[[HttpRequest], Any], stale: HttpRequest, new: Exchange
) -> None:
    """Ask the application anew, in this thread, and show the exchange what it answers."""
    request = _request(stale, new.request)
    passage = Passage(request, new.request, gateway, new)
    try:
        if isinstance(request, ASGIRequest):
            async_to_sync(_aconsume)(get_response, request, passage)
        else:
            _consume(passage.answer(get_response(request)))
    except Exception as error:  # noqa: BLE001 - the client has its response
        gateway.observe(UserCodeFailed("background refresh", error))
    finally:
        request.close()
        passage.finish()


def _request(stale: HttpRequest, request: Request) -> HttpRequest:
    if isinstance(stale, ASGIRequest):
        scope = cast("dict[str, Any]", stale.scope)
        return ASGIRequest(dict(refresh_scope(scope, request, {})), BytesIO())
    return WSGIRequest(refresh_environ(stale.META, request))


def _consume(response: HttpResponseBase) -> None:
    if response.streaming:
        for _piece in cast("StreamingHttpResponse", response):
            pass


async def _aconsume(
    get_response: Callable[[HttpRequest], Any], request: HttpRequest, passage: Passage
) -> None:
    response = passage.answer(await get_response(request))
    if response.streaming:
        async for _piece in cast("StreamingHttpResponse", response):
            pass
