"""``@limit``, ``@cached`` and ``@never_cached`` for views: functions, sync or async, or methods."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, StreamingHttpResponse

from upstash_middleware.core.ratelimit.decision import UNCHECKED
from upstash_middleware.decorators import (
    CachedDecorator,
    HandlerCall,
    LimitDecorator,
    NeverCached,
    PendingExchange,
    exempt_types,
    is_exempt_class,
    owner_of,
)
from upstash_middleware.django.conf import runtime_for_handlers, runtime_for_purging
from upstash_middleware.django.middleware import at_end, guarded, ready_response
from upstash_middleware.django.requests import (
    DjangoBody,
    change_head,
    head_from,
    is_exempt_view,
    request_from,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import NO_HEADERS, ResponseHead
from upstash_middleware.runtime import OF_NO_VISITOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from django.http.response import HttpResponseBase

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.decorators import (
        Attached,
        Decorator,
    )
    from upstash_middleware.django.middleware import RateLimitedRequest
    from upstash_middleware.messages import HTTPRequest, RequestBody
    from upstash_middleware.runtime import Runtime

_STATUS_OF: dict[type[Exception], int] = {
    Http404: 404,
    PermissionDenied: 403,
    RequestDataTooBig: 413,
    SuspiciousOperation: 400,
    BadRequest: 400,
}
"""The statuses of Django's handler for exceptions, the more special first; all others are a 500."""


class ViewCall(HandlerCall):
    """One call of a Django view: a function, or a method of a class."""

    __slots__ = ("native", "view_class")

    expected = "a view function; of a class, decorate with @method_decorator(…, name='dispatch')"

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The first argument, or the second of a method; one of Django REST framework contains it.
        natives = [getattr(given, "_request", given) for given in args[:2]]
        found = [index for index, each in enumerate(natives) if isinstance(each, HttpRequest)]
        if not found:
            raise ConfigurationError(
                f"{self.handler!r} was not called with a request, as Django calls a view"
            )
        native = cast("RateLimitedRequest", natives[found[0]])
        self.native: RateLimitedRequest = native
        self.view_class: type | None = owner_of(self.handler, args) if found[0] else None
        self.owner: type | None = self.view_class
        # django-ninja's ``decorate_view`` decorates the ``run`` of an operation.
        operation: Any = getattr(inspect.unwrap(self.handler), "__self__", None)
        if type(operation).__module__ == "ninja.operation":
            self.handler: Any = operation.view_func
            self.owner = None
        self.method: str = native.method or ""
        self.path: str = native.path_info
        self.path_params: Mapping[str, Any] = kwargs

    @staticmethod
    def is_async(handler: Any) -> bool:
        """Whether calling a view returns an awaitable; ``dispatch`` of an async class does."""
        if iscoroutinefunction(handler):
            return True
        method = handler.func if isinstance(handler, functools.partial) else handler
        return bool(getattr(getattr(method, "__self__", None), "view_is_async", False))

    @staticmethod
    def decorated(wrapper: Any, decorator: Decorator) -> None:
        """Have django-ninja refuse the wrapper as an operation, when that is registered.

        An operation returns what becomes a response later, to which no field can be added.
        """

        def refuse(_operation: object) -> None:
            raise ConfigurationError(
                f"@{decorator.name}: it decorates views that return an HttpResponse, which an "
                "operation of django-ninja does not; write "
                f"@decorate_view({decorator.name}), from ninja.decorators, below @api.get(...)"
            )

        wrapper._ninja_contribute_to_operation = [refuse]  # noqa: SLF001 - its name for such hooks

    def runtime(self) -> Runtime:
        return runtime_for_handlers()

    def cache_runtime(self) -> Runtime | None:
        return runtime_for_purging()

    def request(self) -> HTTPRequest:
        return request_from(self.native)

    def body(self) -> RequestBody:
        return DjangoBody(self.native)

    def decision(self) -> Decision:
        return getattr(self.native, "rate_limit", UNCHECKED)

    def show(self, decision: Decision) -> None:
        self.native.rate_limit = decision

    def is_free(self) -> bool:
        request = self.native
        if OF_NO_VISITOR in request.META or OF_NO_VISITOR in getattr(request, "scope", ()):
            return True
        if not exempt_types:
            return False
        if is_exempt_view(self.wrapper, self.method):
            return True
        if is_exempt_class(self.view_class, self.method):
            return True
        # A view that is decorated further, or made of a class, is marked itself.
        return is_exempt_view(getattr(request.resolver_match, "func", None), self.method)

    def deny(self, pending: PendingExchange) -> Any:
        return ready_response(self.native, pending.exchange, pending.runtime)

    async def adeny(self, pending: PendingExchange) -> Any:
        """Do the same as ``deny``, in a thread: the project's code may use the database."""
        return await sync_to_async(self.deny)(pending)

    def enter(self, attached: Attached) -> None:
        """Finish it when the request ends."""
        if isinstance(attached, PendingExchange):
            attached.handed_over = True
            at_end(self.native, attached.finish)

    def attach(self, attached: Attached, response: HttpResponseBase) -> HttpResponseBase:
        head = head_from(self.native, response)
        change_head(response, head, attached.head(head))
        if attached.holding and isinstance(response, StreamingHttpResponse):
            content: Any = response.streaming_content
            response.streaming_content = (
                _arenewing(attached, content) if response.is_async else _renewing(attached, content)
            )
        return guarded(self.native, response) if attached.handed_over else response

    def failed(self, attached: Attached, error: BaseException) -> None:
        """Show it the head of the response that Django makes of an exception."""
        if isinstance(error, Exception):
            statuses = (status for kind, status in _STATUS_OF.items() if isinstance(error, kind))
            attached.head(ResponseHead(next(statuses, 500), NO_HEADERS))


def _renewing(attached: Attached, content: Iterator[bytes]) -> Iterator[bytes]:
    for piece in content:
        yield piece
        attached.renew()


async def _arenewing(attached: Attached, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for piece in content:
        yield piece
        await attached.arenew()


limit: LimitDecorator = LimitDecorator(ViewCall)
cached: CachedDecorator = CachedDecorator(ViewCall)
never_cached: NeverCached = NeverCached(ViewCall)
