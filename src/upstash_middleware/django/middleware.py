"""The middleware classes for ``MIDDLEWARE``, sync and async, and the responses to denials."""

from __future__ import annotations

import inspect
import weakref
from asyncio import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context
from functools import partial
from io import SEEK_END, BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

from asgiref.sync import (
    SyncToAsync,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.core.signals import request_finished, request_started
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import get_script_prefix, set_script_prefix
from django.utils.module_loading import import_string
from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.asgi import refresh_scope
from upstash_middleware.core.ratelimit.decision import UNCHECKED, completing
from upstash_middleware.decorators import PendingExchange
from upstash_middleware.django.conf import DENIED_VIEW, Configured, share
from upstash_middleware.django.requests import (
    REQUEST_END,
    DjangoBody,
    active_localization,
    change_head,
    check_route,
    forwarding,
    head_from,
    replacement,
    request_from,
    response_from,
    select_as,
    unexpected_localization,
)
from upstash_middleware.django.signals import rate_limited
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import (
    UNANNOUNCED_BODY,
    WITHOUT_BODY,
    Response,
    ResponseHead,
    announces_no_body,
    content_length,
)
from upstash_middleware.runtime import Features, run_soon
from upstash_middleware.wsgi import refresh_environ

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from threading import Event

    from django.http import HttpResponse, StreamingHttpResponse

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.messages import HTTPRequest
    from upstash_middleware.runtime import Runtime

R = TypeVar("R", bound=HttpResponseBase)

_INNER = "upstash_middleware.handed"
"""The ``META`` key in which a rate limit leaves its exchange for the cache directly inside."""


class RateLimitedRequest(HttpRequest):
    """The type of a request below a rate limit, for annotations in views."""

    rate_limit: Decision
    """The decision; if no limit was checked, a decision that allows, without figures."""


class Middleware:
    """The base class of the three middleware classes, which enable different features."""

    sync_capable = True
    async_capable = True
    features: ClassVar[Features]

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        """Create the middleware; Django calls this for each entry of ``MIDDLEWARE``.

        Args:
            get_response: The next middleware or view, from Django.

        Raises:
            ImproperlyConfigured: The setting UPSTASH_MIDDLEWARE is wrong.
        """
        self._get_response = get_response
        self._refreshes = self._is_outermost()
        self.configured: Configured = Configured(
            self.features, refreshes=self._refreshes, joins_sessions=self._joins_sessions()
        )
        try:
            self.configured.runtime()
        except ConfigurationError as error:
            raise ImproperlyConfigured(str(error)) from error
        share(self.configured, self.features)
        self._limits = Features.RATE_LIMIT in self.features
        # Django wraps each middleware in convert_exception_to_response. No other pair is joined:
        # after a denial or a cache hit, inner middleware must charge nothing.
        inside = getattr(get_response, "__wrapped__", get_response)
        self._inside: CacheMiddleware | None = None
        if self.features is Features.RATE_LIMIT and isinstance(inside, CacheMiddleware):
            self._inside = inside
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(cast("Any", self))

    def _is_outermost(self) -> bool:
        """Whether no middleware above this one in ``MIDDLEWARE`` changes requests.

        Only then may it revalidate in the background. Otherwise views would miss the additions of
        other middleware to a request, and the page without them would be stored for all users.
        """
        for path in settings.MIDDLEWARE:
            entry = import_string(path)
            if entry is type(self):
                return True
            if not adds_nothing(entry):
                return False
        return False

    def _joins_sessions(self) -> bool:
        """Whether this is this package's outermost middleware above its SessionMiddleware."""
        found = False
        for path in settings.MIDDLEWARE:
            entry = import_string(path)
            if not inspect.isclass(entry):
                continue
            if issubclass(entry, Middleware):
                if entry is not type(self) and not found:
                    return False
                found = True
            elif getattr(entry, "reads_session", False):
                return found
        return False

    def __call__(self, request: HttpRequest) -> Any:
        """Respond to the request, or pass it on; on an event loop, return an awaitable."""
        if self._is_async:
            return self._acall(request)
        runtime = self.configured.runtime()
        _show_decision(request)
        if not runtime.enabled:
            return self._get_response(request)
        begun = _exchange_from_outer(request, runtime) if _INNER in request.META else None
        if begun is None:
            inner = None if self._inside is None else self._inside.configured.runtime()
            parsed = request_from(request)
            if runtime.reads_body:
                parsed = replace(parsed, body=DjangoBody(request))
            begun = parsed, runtime.begin(parsed, inner)
        parsed, exchange = begun
        if exchange.response and not (exchange.decision or exchange.refresh):
            runtime.finish(exchange, complete=True)  # a cache hit needs nothing else
            return response_from(exchange.response, without_body=parsed.method == "HEAD")
        stream = self._stream(request, runtime, parsed, exchange)
        if exchange.response is not None:
            return stream.ready()
        try:
            with stream.forwarding():
                response = self._get_response(request)
            if self._limits:
                check_route(request, runtime.observe)
        except BaseException:
            stream.finish()
            raise
        response = stream.answer(response)
        if exchange.locking is not None:
            runtime.perform(exchange.release())
        if stream.ends_here:
            stream.finish()
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        runtime = self.configured.runtime()
        _show_decision(request)
        if not runtime.enabled:
            return cast("HttpResponseBase", await self._get_response(request))
        begun = _exchange_from_outer(request, runtime) if _INNER in request.META else None
        if begun is None:
            inner = None if self._inside is None else self._inside.configured.runtime()
            parsed = request_from(request)
            if runtime.reads_body:
                parsed = replace(parsed, body=DjangoBody(request))
            begun = parsed, await runtime.abegin(parsed, inner)
        parsed, exchange = begun
        if exchange.response and not (exchange.decision or exchange.refresh):
            await runtime.afinish(exchange, complete=True)  # a cache hit needs nothing else
            return response_from(exchange.response, without_body=parsed.method == "HEAD")
        stream = self._stream(request, runtime, parsed, exchange)
        if exchange.response is not None:
            if _has_denied(exchange) and (_denied_view() or rate_limited.has_listeners()):
                # The project's code must not run on the event loop.
                return await sync_to_async(stream.ready)()
            return stream.ready()
        try:
            with stream.forwarding():
                response = await self._get_response(request)
            if self._limits:
                check_route(request, runtime.observe)
        except CancelledError:  # the exchange ends later: a thread may still serve the request
            raise
        except BaseException:
            await stream.afinish()
            raise
        response = stream.answer(response)
        if exchange.locking is not None:
            await runtime.aperform_to_end(exchange.release())
        if stream.ends_here:
            await stream.afinish()
        return response

    def _stream(
        self, request: HttpRequest, runtime: Runtime, parsed: HTTPRequest, exchange: Exchange
    ) -> ResponseStream:
        if exchange.decision is not None:
            _show_decision(request, exchange.decision)
        revalidate = partial(_revalidate, runtime, self._get_response) if self._refreshes else None
        return ResponseStream(request, parsed, runtime, exchange, revalidate)


class UpstashMiddleware(Middleware):
    """Rate limits and response cache; the limits are outside the cache.

    If a limit by user has to be inside authentication and the cache outside, use the two other
    classes. The decision is ``request.rate_limit``.
    """

    features = Features.BOTH


class RateLimitMiddleware(Middleware):
    """Rate limits only. Directly above CacheMiddleware, both need one round trip in total.

    The decision is ``request.rate_limit``.
    """

    features = Features.RATE_LIMIT


class CacheMiddleware(Middleware):
    """Response cache only; place it above middleware that personalizes pages."""

    features = Features.CACHE


def _show_decision(request: HttpRequest, decision: Decision | None = None) -> None:
    """Set the decision that views read; by default an outer limit's, or none."""
    limited = cast("RateLimitedRequest", request)
    limited.rate_limit = decision or getattr(request, "rate_limit", None) or UNCHECKED


def _exchange_from_outer(
    request: HttpRequest, runtime: Runtime
) -> tuple[HTTPRequest, Exchange] | None:
    """Return the exchange that a rate limit directly outside has begun for this runtime."""
    parsed, outer = request.META[_INNER]
    if outer.inner is None or outer.inner.engine is not runtime.engine:
        return None
    return parsed, outer.take_inner()


# ------------------------------------------------------------------------------------------------
# Denials


def _has_denied(exchange: Exchange) -> bool:
    return exchange.decision is not None and not exchange.decision.allowed


def _denied_view() -> Any:
    return getattr(settings, DENIED_VIEW, None)


def ready_response(request: HttpRequest, exchange: Exchange, runtime: Runtime) -> HttpResponse:
    """Return the HttpResponse for an exchange that has a response.

    For a denial, this sends the signal ``rate_limited``, and returns the response of the view that
    the project has set. The response keeps its status unless that is 200, and gets the denial's
    fields that it lacks. If the view raises, or returns something else, this package's response
    is sent, and observers get a UserCodeFailed.
    """
    ready = cast("Response", exchange.response)
    own = response_from(ready, without_body=request.method == "HEAD")
    if not _has_denied(exchange):
        return own
    rate_limited.send_robust(type(request), request=request, decision=exchange.decision)
    if (named := _denied_view()) is None:
        return own
    try:
        response = _call_denied_view(named, request, exchange.decision)
    except Exception as error:  # noqa: BLE001 - any exception of the project's view
        runtime.observe(UserCodeFailed(DENIED_VIEW, error))
        return own
    if response.status_code == 200:  # the default of HttpResponse
        response.status_code = own.status_code
    for name, value in completing(ready.head.headers, {name.lower() for name in response.headers}):
        response.headers[name.decode("latin-1")] = value.decode("latin-1")
    return response


def _call_denied_view(named: Any, request: HttpRequest, decision: Decision | None) -> HttpResponse:
    view = import_string(named) if isinstance(named, str) else named
    response: Any = view(request, decision)
    if inspect.isawaitable(response):

        async def wait_for_response() -> Any:
            return await response

        response = async_to_sync(wait_for_response)()
    if not isinstance(response, HttpResponseBase):
        raise TypeError(f"{DENIED_VIEW} returned {response!r}; it should return an HttpResponse")
    if not getattr(response, "is_rendered", True):
        response = cast("Any", response).render()
    return cast("HttpResponse", response)


# ------------------------------------------------------------------------------------------------
# Responses


class ResponseStream(PendingExchange):
    """Passes a request's response to the server, and finishes its exchange.

    The exchange is finished when the request is closed. Django closes the request together with the
    response that it has sent, after the last byte, even if outer middleware has replaced our
    response, as ConditionalGetMiddleware does with a 304. Under ASGI Django closes it in a thread,
    so ``finish`` is used there too.
    """

    def __init__(
        self,
        request: HttpRequest,
        parsed: HTTPRequest,
        runtime: Runtime,
        exchange: Exchange,
        revalidate: Callable[[HttpRequest, Exchange], None] | None = None,
    ) -> None:
        super().__init__(runtime, exchange)
        self._request = request
        self._parsed = parsed
        self._revalidate = revalidate
        self._stale: Exchange | None = None  # to revalidate after the request is closed
        self._complete = False  # whether the whole response has passed
        self._announced: int | None = None
        """Remaining body bytes according to Content-Length; None without Content-Length."""
        self._before: tuple[str, str] | None = None
        """The active language and time zone when the request arrived."""
        if runtime.caches and exchange.response is None:
            self._before = active_localization()
            if announces_no_body(parsed) and _has_body(request):
                exchange.forbid_storing(UNANNOUNCED_BODY)
        at_end(request, self.finish, self._revalidate_stale, exchange)

    def ready(self) -> HttpResponse:
        """Return the exchange's response, which replaces the call of the application."""
        self._complete = True
        return guarded(self._request, ready_response(self._request, self.exchange, self.runtime))

    def forwarding(self) -> AbstractContextManager[None]:
        """Give the application its request, and the middleware directly inside its exchange."""
        if self.exchange.inner is None and self.exchange.request is self._parsed:
            return nullcontext()
        return self._forwarding()

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        meta = self._request.META
        if self.exchange.inner is not None:
            meta[_INNER] = self._parsed, self.exchange
        try:
            with forwarding(self._request, self._parsed.headers, self.exchange.request.headers):
                yield
        finally:
            meta.pop(_INNER, None)

    def answer(self, response: HttpResponseBase) -> HttpResponseBase:
        """Return the response to send for the application's; its body is watched as it passes."""
        head = self._head_of(response)
        # A server can send a file itself with ``wsgi.file_wrapper``. Reading the file here would
        # prevent ``sendfile``, so such a response is not stored.
        is_file = getattr(response, "file_to_stream", None) is not None
        is_for_server = is_file and "wsgi.file_wrapper" in self._request.META
        if is_for_server:
            self.exchange.unseen()
        if self._before and (why := unexpected_localization(self._request, self._before)):
            self.exchange.forbid_storing(why)
        sent = self.exchange.head(head)
        if response.streaming:
            self._announced = content_length(head.headers)
        if isinstance(sent, Response):
            self._complete = True
            return guarded(
                self._request,
                replacement(sent, response, without_body=self._parsed.method == "HEAD"),
            )
        change_head(response, head, sent)
        is_bodiless = self._parsed.method == "HEAD" or head.status in WITHOUT_BODY
        if not response.streaming:
            if self.exchange.watching and (content := cast("HttpResponse", response).content):
                self.exchange.chunk(content)
            self._complete = True
        elif self.runtime.finishes_first and (is_bodiless or self._announced == 0):
            self._complete = True  # a client that has the head has the whole response
        elif not is_for_server:
            streaming = cast("StreamingHttpResponse", response)
            watched: Any = self._awatch_body if streaming.is_async else self._watch_body
            streaming.streaming_content = watched(streaming.streaming_content)
        if sent.status in WITHOUT_BODY and head.status not in WITHOUT_BODY:
            _drop_body(response)
        return guarded(self._request, response)

    @property
    def ends_here(self) -> bool:
        """Whether the exchange must be finished before the response is sent."""
        return self._complete and self.runtime.finishes_first

    def finish(self, *, complete: bool = True) -> None:
        """Finish the exchange, unless it is already finished."""
        if self._revalidate is not None and not self.finished:
            self._stale = self.exchange.take_refresh()
        super().finish(complete=complete and self._complete)

    async def afinish(self, *, complete: bool = True) -> None:
        """Do the same as ``finish`` on an event loop."""
        await super().afinish(complete=complete and self._complete)

    def _revalidate_stale(self) -> None:
        stale, self._stale = self._stale, None
        if stale is not None and self._revalidate is not None:
            self._revalidate(self._request, stale)

    def _head_of(self, response: HttpResponseBase) -> ResponseHead:
        """Return the response's head, with the Content-Length of a whole body."""
        head = head_from(self._request, response)
        if response.streaming or not self.exchange.watching or self._parsed.method == "HEAD":
            return head
        if "content-length" in head.headers or head.status in WITHOUT_BODY:
            return head
        length = b"%d" % len(cast("HttpResponse", response).content)
        return ResponseHead(head.status, head.headers.adding((b"Content-Length", length)))

    def _watch_body(self, content: Iterator[bytes]) -> Iterator[bytes]:
        for piece in content:
            if self.exchange.session is not None:
                self.exchange.forbid_sharing()
            self.exchange.chunk(piece)
            if self.exchange.locking is not None:
                self.runtime.perform(self.exchange.release())
            if self._is_last(piece):
                self._complete = True
                self.finish()
            yield piece
            if self.exchange.holding and not self.finished:
                self.renew()
        self._complete = True
        self.finish()

    async def _awatch_body(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for piece in content:
                if self.exchange.session is not None:
                    self.exchange.forbid_sharing()
                self.exchange.chunk(piece)
                if self.exchange.locking is not None:
                    await self.runtime.aperform_to_end(self.exchange.release())
                if self._is_last(piece):
                    self._complete = True
                    await self.afinish()
                yield piece
                if self.exchange.holding and not self.finished:
                    await self.arenew()
            self._complete = True
        finally:  # Django also closes the request, except after an exception in ``send``
            if self.runtime.finishes_first or not self._complete:
                await self.afinish()

    def _is_last(self, piece: bytes) -> bool:
        """Whether this is the last piece by Content-Length, and the exchange must end before it."""
        if self._announced is None or not self.runtime.finishes_first:
            return False
        self._announced -= len(piece)
        return self._announced == 0 and bool(piece)


def _has_body(request: HttpRequest) -> bool:
    """Whether a view could read a body that no field announces; never under WSGI."""
    if not isinstance(request, ASGIRequest):
        return False
    stream = request._stream  # noqa: SLF001 - other ways to read take it from the view
    if not stream.seekable():  # the test client's stream, which announces every body
        return False
    place = stream.tell()
    length = stream.seek(0, SEEK_END)
    stream.seek(place)
    return bool(length)


def _drop_body(response: Any) -> None:
    """Drop the body: a 304 replaces the response. A streamed body is still watched."""

    def drop(content: Iterator[bytes]) -> Iterator[bytes]:
        for _ in content:
            pass
        yield b""

    async def adrop(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for _ in content:
            pass
        yield b""

    if not response.streaming:
        response.content = b""
    elif getattr(response, "file_to_stream", None) is not None:
        response.streaming_content = ()  # otherwise a server would send the file
    elif response.is_async:
        response.streaming_content = adrop(response.streaming_content)
    else:
        response.streaming_content = drop(response.streaming_content)


# ------------------------------------------------------------------------------------------------
# Background revalidation of a stale response (RFC 5861 §3), after its request has been closed


_ADDING_NOTHING: Final = frozenset(
    {
        "corsheaders.middleware.CorsMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        "django.middleware.security.SecurityMiddleware",
    }
)
"""Middleware that does not change requests; a subclass may."""


def adds_nothing(entry: object) -> bool:
    """Whether a middleware adds nothing to a request that a view could read."""
    if not inspect.isclass(entry):
        return False
    name = f"{entry.__module__}.{entry.__qualname__}"
    return name in _ADDING_NOTHING or issubclass(entry, RateLimitMiddleware)


def _revalidate(
    runtime: Runtime, get_response: Callable[[HttpRequest], Any], stale: HttpRequest, new: Exchange
) -> None:
    """Send a request without data of the visitor to the application, in this thread.

    It runs in a new context, because context variables may contain the visitor's data. URLs that
    views reverse keep the site's prefix.
    """
    prefix = get_script_prefix()

    def send() -> None:
        try:
            set_script_prefix(prefix)
            request = _request_without_visitor(stale, new.request)
            stream = ResponseStream(request, new.request, runtime, new)
        except Exception as error:  # noqa: BLE001 - the client already has its response
            runtime.observe(UserCodeFailed("background refresh", error))
            runtime.finish(new, complete=False)
            return
        try:
            if isinstance(request, ASGIRequest):
                async_to_sync(aconsume)(request, stream)
            else:
                response = stream.answer(get_response(request))
                for _piece in cast("Any", response) if response.streaming else ():
                    if not new.kept:
                        break  # a response that is not stored may never end
        except Exception as error:  # noqa: BLE001 - the client already has its response
            runtime.observe(UserCodeFailed("background refresh", error))
        finally:
            try:
                request.close()
            finally:
                stream.finish()

    async def aconsume(request: HttpRequest, stream: ResponseStream) -> None:
        response = stream.answer(await get_response(request))
        if response.streaming:
            async for _piece in cast("StreamingHttpResponse", response):
                if not new.kept:
                    break

    Context().run(send)


def _request_without_visitor(stale: HttpRequest, request: HTTPRequest) -> HttpRequest:
    if isinstance(stale, ASGIRequest):
        scope = cast("dict[str, Any]", stale.scope)
        new: HttpRequest = ASGIRequest(dict(refresh_scope(scope, request, {})), BytesIO())
        new.META.setdefault("REMOTE_ADDR", "")  # as for a Unix socket
    else:
        new = WSGIRequest(refresh_environ(stale.META, request))
    if hasattr(stale, "rate_limit"):  # outer limits do not count a revalidation
        new.rate_limit = UNCHECKED  # type: ignore[attr-defined]
    select_as(new, stale)
    return new


# ------------------------------------------------------------------------------------------------
# The end of a request

_MAX_WAIT_SECONDS = 5.0  # the calls that are awaited have their own deadlines


class _RequestEnd(Struct, eq=False):
    """The exchanges to finish when a request ends, outermost first."""

    begun: list[tuple[Callable[[], None], Callable[[], None] | None]] = []
    exchanges: list[Exchange] = []
    """The exchanges of this package's middleware, outermost first."""
    elsewhere: Event | None = None
    """Set when another thread has finished the exchanges."""

    def end(self, close: Callable[[], None]) -> None:
        """Finish all exchanges, innermost first; or wait until another thread has done so."""
        if self.elsewhere is not None:
            self.elsewhere.wait(_MAX_WAIT_SECONDS)
        begun, self.begun = self.begun, []
        try:
            for finish, _ in reversed(begun):
                finish()
        finally:
            try:
                close()
            finally:
                for _, then in reversed(begun):
                    if then is not None:
                        then()


def exchanges_of(request: HttpRequest) -> Sequence[Exchange]:
    """Return the exchanges that this package's middleware has begun for a request so far."""
    ends: _RequestEnd | None = vars(request).get(REQUEST_END)
    return () if ends is None else ends.exchanges


def at_end(
    request: HttpRequest,
    finish: Callable[[], None],
    then: Callable[[], None] | None = None,
    exchange: Exchange | None = None,
) -> None:
    """Call ``finish`` and then ``then`` when a request ends, however Django ends it.

    Django closes a request together with its response. If the client disconnects before there is
    a response, the ASGI handler cancels the request without closing it, but it sends
    ``request_finished``. Receivers of this signal run after a view that still runs in a thread.
    """
    ends: _RequestEnd | None = vars(request).get(REQUEST_END)
    if ends is None:
        ends = vars(request)[REQUEST_END] = _RequestEnd()
        request.close = partial(_end, request, request.close)  # type: ignore[method-assign]  # Django has no other hook
        if found := SyncToAsync.thread_sensitive_context.get(None):  # under ASGI
            _request_context(found).request = weakref.ref(request)
    ends.begun.append((finish, then))
    if exchange is not None:
        ends.exchanges.append(exchange)


def guarded(request: HttpRequest, response: R) -> R:
    """Return the response, which ends the request even if it is never closed."""
    ends: _RequestEnd | None = vars(request).get(REQUEST_END)
    guard: _Guard | None = vars(response).get(REQUEST_END)
    # A view may return the same response object for all requests.
    if ends is not None and (guard is None or guard.ends is not ends):
        vars(response)[REQUEST_END] = _Guard(ends)
    return response


class _Guard:
    """Ends a request when the response that refers to this object is deleted.

    Bridges from ASGI to WSGI do not close responses, and Django's ASGI handler does not after an
    exception in ``send``.
    """

    __slots__ = ("ends",)

    def __init__(self, ends: _RequestEnd) -> None:
        self.ends = ends

    def __del__(self) -> None:
        if self.ends.begun:
            others = _RequestEnd()
            others.begun, self.ends.begun = self.ends.begun, []
            self.ends.elsewhere = run_soon(partial(others.end, _do_nothing))

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Become None in a response that is pickled into a cache."""
        return type(None), ()


def _do_nothing() -> None:
    pass


def _end(request: HttpRequest, close: Callable[[], None]) -> None:
    vars(request).pop("close", None)
    # It is removed so that nothing keeps a reference to the body.
    ends: _RequestEnd | None = vars(request).pop(REQUEST_END, None)
    if ends is None:
        close()
    else:
        ends.end(close)


class _Context(Struct, eq=False):
    """The requests of an asgiref context, which belongs to one call of an ASGI handler."""

    requests: int = 0
    """The number of requests so far; if several share a context, it is unknown which has ended."""
    request: weakref.ref[HttpRequest] | None = None
    """A weak reference, because objects that outlive the request may keep this context."""


def _request_context(asgirefs: object) -> _Context:
    """Return the context of the current request for asgiref's context."""
    context: _Context = vars(asgirefs).setdefault(REQUEST_END, _Context())
    return context


def _count_request(**_: object) -> None:
    if found := SyncToAsync.thread_sensitive_context.get(None):  # under ASGI
        _request_context(found).requests += 1


def _end_abandoned(**_: object) -> None:
    """End the request of this context if Django has not closed it."""
    if not (found := SyncToAsync.thread_sensitive_context.get(None)):
        return
    context = _request_context(found)
    if context.requests == 1 and context.request is not None:
        request = context.request()
        if request is not None:
            _end(request, _do_nothing)


request_started.connect(_count_request)
request_finished.connect(_end_abandoned)
