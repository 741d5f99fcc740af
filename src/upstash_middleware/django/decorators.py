"""``@limit``, ``@cached``, ``@cache_page`` and ``@never_cached`` for views, sync or async."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.utils.cache import get_max_age, has_vary_header, patch_response_headers

from upstash_middleware.core.ratelimit.decision import UNCHECKED
from upstash_middleware.decorators import (
    Attached,
    CachedDecorator,
    Decorator,
    HandlerCall,
    LimitDecorator,
    NeverCached,
    PendingExchange,
    exempt_types,
    is_exempt_class,
    is_tag,
    owner_of,
    warn_if_not_looked_up,
    with_fields,
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
from upstash_middleware.runtime import BACKGROUND_REQUEST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from django.http.response import HttpResponseBase

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.django.middleware import RateLimitedRequest
    from upstash_middleware.messages import HTTPRequest, RequestBody
    from upstash_middleware.runtime import Runtime

F = TypeVar("F", bound="Callable[..., Any]")

_STATUS_BY_EXCEPTION: dict[type[Exception], int] = {
    Http404: 404,
    PermissionDenied: 403,
    RequestDataTooBig: 413,
    SuspiciousOperation: 400,
    BadRequest: 400,
}
"""Statuses that Django's exception handler sends, the most specific first; otherwise 500."""


class ViewCall(HandlerCall):
    """One call of a Django view: a function, or a method of a class."""

    __slots__ = ("native", "view_class")

    expected = "a view function; of a class, decorate with @method_decorator(…, name='dispatch')"

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The first argument, or a method's second; a Django REST framework request wraps it.
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
        # django-ninja's ``decorate_view`` decorates the ``run`` method of an operation.
        operation: Any = getattr(inspect.unwrap(self.handler), "__self__", None)
        if type(operation).__module__ == "ninja.operation":
            self.handler: Any = operation.view_func
            self.owner = None
        self.method: str = native.method or ""
        self.path: str = native.path_info
        self.path_params: Mapping[str, Any] = kwargs

    @staticmethod
    def is_async(handler: Any) -> bool:
        """Whether calling a view returns an awaitable, as an async class's ``dispatch`` does."""
        if iscoroutinefunction(handler):
            return True
        method = handler.func if isinstance(handler, functools.partial) else handler
        return bool(getattr(getattr(method, "__self__", None), "view_is_async", False))

    @staticmethod
    def decorated(wrapper: Any, decorator: Decorator) -> None:
        """Make django-ninja reject the wrapper when it is registered as an operation.

        An operation's result becomes a response only later, so no field can be added to it.
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

    def is_uncounted(self) -> bool:
        request = self.native
        if BACKGROUND_REQUEST in request.META or BACKGROUND_REQUEST in getattr(
            request, "scope", ()
        ):
            return True
        if not exempt_types:
            return False
        if is_exempt_view(self.wrapper, self.method):
            return True
        if is_exempt_class(self.view_class, self.method):
            return True
        # Check the resolved view too: a wrapper or ``as_view`` has the exempt mark.
        return is_exempt_view(getattr(request.resolver_match, "func", None), self.method)

    def deny(self, pending: PendingExchange) -> Any:
        return ready_response(self.native, pending.exchange, pending.runtime)

    async def adeny(self, pending: PendingExchange) -> Any:
        """Do the same as ``deny`` in a thread, because the project's code may use the database."""
        return await sync_to_async(self.deny)(pending)

    def enter(self, attached: Attached) -> None:
        """Finish the exchange when the request ends."""
        if isinstance(attached, PendingExchange):
            attached.finished_elsewhere = True
            at_end(self.native, attached.finish)

    def attach(self, attached: Attached, response: HttpResponseBase) -> HttpResponseBase:
        head = head_from(self.native, response)
        change_head(response, head, attached.head(head))
        if attached.holding and isinstance(response, StreamingHttpResponse):
            content: Any = response.streaming_content
            response.streaming_content = (
                _arenewing(attached, content) if response.is_async else _renewing(attached, content)
            )
        return guarded(self.native, response) if attached.finished_elsewhere else response

    def failed(self, attached: Attached, error: BaseException) -> None:
        """Pass the limit the head of the response that Django makes from an exception."""
        if isinstance(error, Exception):
            statuses = (
                status for kind, status in _STATUS_BY_EXCEPTION.items() if isinstance(error, kind)
            )
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


def cache_page(
    timeout: int | None, *, cache: str | None = None, key_prefix: str | None = None
) -> Callable[[F], F]:
    """Store a view's pages like ``django.views.decorators.cache.cache_page``, in this cache.

    A rule of the middleware must cover the path: ``{"path": "/{rest:path}"}``. As in Django,
    responses to GET and HEAD with status 200 are stored, and ``timeout`` overrides the response's
    own max-age. A response with ``private``, ``no-cache`` or ``no-store`` is not stored. Browsers
    get Expires and max-age.

    For a stored page, decorators above this one are not called, and neither is the middleware below
    this package's.

    Args:
        timeout: Seconds for which a page is stored; 0 stores nothing. None for the response's own
            max-age, or else the setting CACHE_MIDDLEWARE_SECONDS.
        cache: ``"default"`` or None: pages are stored in the database of UPSTASH_MIDDLEWARE.
        key_prefix: A tag of the pages, which ``purge(tags=[…])`` invalidates together. Pages of
            different sites have different hosts anyway.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    return _CachePage(timeout, cache, key_prefix)


class _PageCall(ViewCall):
    """A call of a view whose streamed responses are not stored, as in Django."""

    __slots__ = ()

    def attach(self, attached: Attached, response: HttpResponseBase) -> HttpResponseBase:
        return response if response.streaming else super().attach(attached, response)


class _CachePage(Decorator):
    name = "cache_page"

    def __init__(self, timeout: int | None, cache: str | None, key_prefix: str | None) -> None:
        super().__init__(_PageCall)
        if timeout is not None and (type(timeout) is not int or not 0 <= timeout < 2**31):
            raise ConfigurationError(
                f"cache_page: timeout={timeout!r} should be a whole number of seconds, "
                "such as 60 * 15, or None"
            )
        if cache not in {None, "default"}:
            raise ConfigurationError(
                f"cache_page: cache={cache!r}: pages are on the database of the setting "
                "UPSTASH_MIDDLEWARE; leave it out"
            )
        if key_prefix and not is_tag(key_prefix):
            raise ConfigurationError(
                f"cache_page: key_prefix={key_prefix!r} should be ASCII text without commas"
            )
        self._timeout = timeout
        self._key_prefix = key_prefix

    def begin(self, call: HandlerCall) -> Attached | None:
        if call.method not in {"GET", "HEAD"}:
            return None
        warn_if_not_looked_up(self.name, call)
        return Attached(self._mark)

    def _mark(self, head: ResponseHead) -> ResponseHead:
        """Return a response's head with the fields that Django adds, and the cache's fields."""
        from upstash_middleware.core.cache.http.directives import FROM_HANDLERS  # noqa: PLC0415

        response = HttpResponse()
        for name in ("Cache-Control", "Expires", "Vary"):
            if (value := head.headers.combined(name.lower())) is not None:
                response.headers[name] = value
        control = response.get("Cache-Control", "").lower()
        if (
            head.status != 200
            or any(each in control for each in ("private", "no-cache", "no-store"))
            or has_vary_header(response, "*")
            or ("set-cookie" in head.headers and has_vary_header(response, "Cookie"))
        ):
            return head
        if (timeout := self._timeout) is None:
            timeout = get_max_age(response)
            if timeout == 0:
                return head
            if timeout is None:
                timeout = settings.CACHE_MIDDLEWARE_SECONDS
        patch_response_headers(response, timeout)
        fields = [
            ("Cache-Control", response.headers["Cache-Control"]),
            ("Expires", response.headers["Expires"]),
            (FROM_HANDLERS, f"max-age={timeout}" if timeout else "no-store"),
        ]
        if self._key_prefix:
            fields.append(("Cache-Tag", self._key_prefix))
        rest = head.headers.without("cache-control", "expires")
        return with_fields(ResponseHead(head.status, rest), tuple(fields))
