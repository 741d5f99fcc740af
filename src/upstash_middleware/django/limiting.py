"""``@limit`` in front of a Django view: a function, sync or async, or a class's method."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asgiref.sync import sync_to_async
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, StreamingHttpResponse

from upstash_middleware.django.configuration import gateway_for_handlers
from upstash_middleware.django.denying import denied_or_ready
from upstash_middleware.django.routing import is_exempt_view
from upstash_middleware.django.translation import change_head, head_from, request_from
from upstash_middleware.django.views import called, is_async_view
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.handler_limits import HandlerLimit, Place
from upstash_middleware.handlers import REFRESH, is_exempt
from upstash_middleware.messages import NO_HEADERS, ResponseHead

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Unpack

    from django.http.response import HttpResponseBase

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.handler_limits import LimitArguments

V = TypeVar("V", bound="Callable[..., Any]")

_STATUS_OF: dict[type[Exception], int] = {
    Http404: 404,
    PermissionDenied: 403,
    RequestDataTooBig: 413,
    SuspiciousOperation: 400,
    BadRequest: 400,
}
"""What Django's handler makes of exceptions, the more special ones first; of all others a 500."""


class Limit(HandlerLimit):
    """A limit that decorates views; made by ``limit``."""

    def __call__(self, view: V) -> V:
        """Put the limit in front of a view."""
        if inspect.isclass(view) or not callable(view):
            raise ConfigurationError(
                f"{self.rule.setting}: {view!r} should be a view function; of a class, decorate "
                "with @method_decorator(limit(...), name='dispatch')"
            )
        make = _around_async if is_async_view(view) else _around_sync
        return cast("V", make(self, view))


def limit(limits: Any, **arguments: Unpack[LimitArguments]) -> Limit:
    """Limit the requests for a view: ``@limit("5/minute", by=user)``.

    For a class: ``@method_decorator(limit("5/minute"), name="dispatch")``. ``limits`` and the
    arguments are those of RateLimitRule. The limit stands behind routing and all middleware, and
    takes a round trip of its own. Each view counts by itself, under its qualified name; one limit
    object with a ``name`` before several counts them together. What is above the quota gets a
    429, or what the view says that UPSTASH_MIDDLEWARE_DENIED_VIEW names; the view reads
    ``request.rate_limit``. Raises ConfigurationError.
    """
    return Limit(limits, arguments)


def _around_sync(limit: Limit, view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    def limited(*args: Any, **kwargs: Any) -> Any:
        request, place = called(view, args)
        gateway = gateway_for_handlers()
        prior = request.rate_limit = getattr(request, "rate_limit", None)
        if not gateway.enabled or is_free(limited, place, request):
            return view(*args, **kwargs)
        begun = limit.begin(gateway, place, request_from(request), prior)
        request.rate_limit = begun.decision
        if begun.exchange.response is not None:
            return denied_or_ready(request, begun.exchange, gateway)
        finish_when_closed(request, gateway, begun.exchange)
        try:
            response = view(*args, **kwargs)
        except Exception as error:
            _show_failure(begun.exchange, error)
            raise
        return shown(gateway, begun.exchange, response)

    return limited


def _around_async(limit: Limit, view: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(view)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        request, place = called(view, args)
        gateway = gateway_for_handlers()
        prior = request.rate_limit = getattr(request, "rate_limit", None)
        if not gateway.enabled or is_free(limited, place, request):
            return await view(*args, **kwargs)
        begun = await limit.abegin(gateway, place, request_from(request), prior)
        request.rate_limit = begun.decision
        if begun.exchange.response is not None:
            return await sync_to_async(denied_or_ready)(request, begun.exchange, gateway)
        finish_when_closed(request, gateway, begun.exchange)
        try:
            response = await view(*args, **kwargs)
        except Exception as error:
            _show_failure(begun.exchange, error)
            raise
        return shown(gateway, begun.exchange, response)

    return limited


def is_free(view: object, place: Place, request: HttpRequest) -> bool:
    """Whether a request is the cache's own, or for a view that is exempt."""
    if REFRESH in request.META or REFRESH in getattr(request, "scope", ()):
        return True
    return is_exempt_view(view) or is_exempt(place.owner)


def _show_failure(exchange: Exchange, error: Exception) -> None:
    """Show an exchange the head of the response that Django makes of an exception."""
    for kind, status in _STATUS_OF.items():
        if isinstance(error, kind):
            exchange.head(ResponseHead(status, NO_HEADERS))
            return


def shown(gateway: Gateway, exchange: Exchange, response: HttpResponseBase) -> HttpResponseBase:
    """Show an exchange a view's response, which gets the limit's fields."""
    head = head_from(response)
    sent = exchange.head(head)
    if isinstance(sent, ResponseHead):  # a limit replaces no response
        change_head(response, head, sent)
    if exchange.holding and isinstance(response, StreamingHttpResponse):
        content: Any = response.streaming_content
        renewing = _renewing_async if response.is_async else _renewing
        response.streaming_content = renewing(gateway, exchange, content)
    return response


def _renewing(gateway: Gateway, exchange: Exchange, content: Iterator[bytes]) -> Iterator[bytes]:
    for piece in content:
        yield piece
        gateway.renew(exchange)


async def _renewing_async(
    gateway: Gateway, exchange: Exchange, content: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    async for piece in content:
        yield piece
        await gateway.arenew(exchange)


def finish_when_closed(request: HttpRequest, gateway: Gateway, exchange: Exchange) -> None:
    """Finish after the last byte, on every way out: Django closes each request it has answered."""
    close = request.close

    def finish_and_close() -> None:
        try:
            gateway.finish(exchange, complete=True)
        finally:
            close()

    request.close = finish_and_close  # type: ignore[method-assign]  # Django has no other hook
