"""Starlette: ``app.add_middleware(UpstashMiddleware, …)``, ``@limit`` and ``@cached``.

The middleware classes are those of ``upstash_middleware.asgi``. Here they also know the Starlette
application: its exception handlers respond to denials, and its endpoints can be exempt. For
FastAPI, use ``upstash_middleware.fastapi``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response as StarletteResponse
from starlette.routing import Match

from upstash_middleware import asgi
from upstash_middleware.asgi import (
    DENIAL_EXTENSION,
    HTTP_1,
    TRY_AGAIN_LATER,
    CacheHandle,
    CacheMiddleware,
    ReceivedBody,
    ResponseStream,
    ScopeCall,
    SessionMiddleware,
    headers_of,
)
from upstash_middleware.core.identify import USERS, Identifier
from upstash_middleware.decorators import (
    REROUTED,
    CachedDecorator,
    HandlerLimit,
    LimitDecorator,
    NeverCached,
    PendingExchange,
    completed,
    exempt,
    exempt_types,
    is_exempt,
    is_exempt_class,
    is_in_exempt_group,
    owner_of,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import SettingDoubted, UserCodeFailed
from upstash_middleware.messages import Headers, RequestBody, Response, ResponseHead
from upstash_middleware.runtime import Features, Runtime

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Unpack

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.core.sessions import Session
    from upstash_middleware.decorators import (
        Attached,
    )
    from upstash_middleware.messages import HTTPRequest
    from upstash_middleware.settings import Arguments

__all__ = [
    "CacheHandle",
    "CacheMiddleware",
    "RateLimitMiddleware",
    "RequestDenied",
    "SessionMiddleware",
    "UpstashMiddleware",
    "cached",
    "exempt",
    "limit",
    "never_cached",
    "session",
    "user",
]


def user(request: HTTPRequest) -> Identifier | None:
    """Identify clients by the user of Starlette's AuthenticationMiddleware: ``by=user``.

    The identifier is the user's ``identity``, or its ``display_name`` if the class has no identity.
    For anonymous visitors it is None, so the address is used.

    Args:
        request: The request.

    Raises:
        LookupError: No AuthenticationMiddleware is outside the limit.
    """
    if "user" not in request.native:
        raise LookupError("by=user: put Starlette's AuthenticationMiddleware outside of the limit")
    known = request.native["user"]
    if not known.is_authenticated:
        return None
    try:
        name = known.identity
    except NotImplementedError:  # as for starlette.authentication.SimpleUser
        name = known.display_name
    return Identifier("user", str(name))


def session(connection: HTTPConnection) -> Session:
    """Return the session of a request or WebSocket: ``request.session``, with its actual type.

    The response then depends on the session, so the response cache does not share it.

    In FastAPI: ``session: Annotated[Session, Depends(session)]``.

    Args:
        connection: The request or WebSocket.

    Raises:
        LookupError: No middleware of this package keeps sessions for this path.
    """
    from upstash_middleware.core.sessions import Session  # noqa: PLC0415 - if there are sessions

    found: Any = connection.scope.get("session")
    if isinstance(found, Session):
        found.mark_accessed()  # as ``request.session`` does
        return found
    if found is None:
        path = connection.scope.get("path")
        raise LookupError(
            "session: add this package's SessionMiddleware, or UpstashMiddleware(sessions=True); "
            f"if one is installed, its paths= does not include {path!r}"
        )
    raise LookupError(
        f"session: {type(found).__module__}.{type(found).__qualname__} is not this package's; "
        "replace its middleware with this package's SessionMiddleware"
    )


USERS.append((lambda native: isinstance(native, Mapping) and "type" in native, user))


# ------------------------------------------------------------------------------------------------
# Denials

_Handler = Callable[[Request, Any], Any]

_BODY_FIELDS = frozenset({"content-type", "content-length"})
_FRAMEWORK_MODULES = frozenset({"starlette.middleware.exceptions", "fastapi.exception_handlers"})


class RequestDenied(HTTPException):
    """A limit has denied a request: 429; 403 by a deny list; 503 if counting failed.

    It is raised before the handler runs, so that the application's exception handlers for this
    class, its status or HTTPException can respond. Otherwise ``denial`` is the response.
    """

    def __init__(self, denial: Response, decision: Decision) -> None:
        head = denial.head
        fields = head.headers.without(*_BODY_FIELDS).raw
        text = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
        super().__init__(head.status, headers=text)
        self.denial = denial
        self.decision = decision


async def _respond_with_denial(_request: Request, error: RequestDenied) -> StarletteResponse:
    response = StarletteResponse(error.denial.body, error.denial.head.status)
    response.raw_headers = error.denial.head.headers.lowered()
    return response


def own_handler(handlers: Mapping[Any, _Handler], status: int) -> _Handler | None:
    """Return the application's own handler for RequestDenied, by status or class."""
    for key in (status, RequestDenied, HTTPException):
        if (handler := handlers.get(key)) is not None:
            return None if getattr(handler, "__module__", "") in _FRAMEWORK_MODULES else handler
    return None


async def _call_handler(
    handler: _Handler, scope: Scope, receive: Receive, error: RequestDenied
) -> Response:
    """Return the response of an exception handler, with the denial's missing fields added."""
    request = Request(scope, receive)
    if inspect.iscoroutinefunction(handler):
        response = await handler(request, error)
    else:
        response = await run_in_threadpool(handler, request, error)
        if inspect.isawaitable(response):  # the handler is an object with an async __call__
            response = await response
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await response(scope, receive, send)
    head = ResponseHead(sent[0]["status"], Headers(sent[0]["headers"]))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Response(completed(head, error.denial), body)


# ------------------------------------------------------------------------------------------------
# Decorators

_by_environment: WeakKeyDictionary[Any, Runtime] = WeakKeyDictionary()


def runtime_by_environment(app: Any) -> Runtime:
    """Return the runtime of an application without middleware, made from the environment."""
    if app not in _by_environment:
        made = Runtime.of({}, Features(0), os.environ)
        _by_environment.setdefault(app, made)
    return _by_environment[app]


class EndpointCall(ScopeCall):
    """One call of a Starlette endpoint: a function, or a method of a class."""

    __slots__ = ("connection",)

    expected = "an endpoint's function or method; for a class, decorate the methods"

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002 - a hook
        wanted = HTTPConnection if isinstance(self.decorator, HandlerLimit) else Request
        if not args or not isinstance(args[-1], wanted):
            raise ConfigurationError(
                f"{self.decorator.name}: {self.handler!r} was not called with a request, as "
                f"Starlette calls an endpoint; in FastAPI, write Depends({self.decorator.name}) "
                "with the dependency of that name in upstash_middleware.fastapi"
            )
        self.owner: type | None = owner_of(self.handler, args) if len(args) > 1 else None
        self.connection: HTTPConnection = args[-1]
        self.read_scope(self.connection.scope)

    def body(self) -> RequestBody | None:
        return EndpointBody(self.connection) if isinstance(self.connection, Request) else None

    def own_runtime(self) -> Runtime:
        return runtime_by_environment(self.scope.get("app", EndpointCall))

    def is_exempt(self) -> bool:
        marked = (self.wrapper, self.owner, self.scope.get("app"))
        return any(map(is_exempt, marked)) or is_in_exempt_group(self.scope.get("endpoint"))

    def deny(self, pending: PendingExchange) -> Any:
        scope = self.scope
        if scope["type"] == "websocket" and DENIAL_EXTENSION not in (scope.get("extensions") or {}):
            raise WebSocketException(TRY_AGAIN_LATER)
        # Starlette and FastAPI have a handler for every HTTPException, and its response would not
        # contain the denial's body.
        by_class, by_status = scope.get("starlette.exception_handlers", ({}, {}))
        if own_handler({**by_class, **by_status}, 429) is None:
            by_class[RequestDenied] = _respond_with_denial
        raise RequestDenied(pending.denial, pending.exchange.decision)

    def attach(self, attached: Attached, response: Any) -> Any:
        if not isinstance(attached, PendingExchange):
            if self.stream is None and isinstance(response, StarletteResponse):
                before = headers_of(response.raw_headers)
                marked = attached.head(ResponseHead(response.status_code, before))
                response.raw_headers = marked.headers.lowered()
            return response
        if attached.finished_elsewhere or self.scope["type"] == "websocket":
            return response
        attached.finished_elsewhere = True
        return _RateLimitedResponse(response, attached)

    def failed(self, attached: Attached, error: BaseException) -> None:
        """Pass the limit the head of the response that Starlette makes from the exception."""
        if attached.finished_elsewhere or self.scope["type"] == "websocket":
            return
        if isinstance(error, HTTPException):
            fields = (error.headers or {}).items()
            lines = ((n.encode("latin-1"), v.encode("latin-1")) for n, v in fields)
            attached.head(ResponseHead(error.status_code, headers_of(lines)))
        elif isinstance(error, Exception) and not isinstance(error, ClientDisconnect):
            attached.failed()


class EndpointBody(RequestBody):
    """The body of a Starlette request, which may already have been read and parsed."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request: Any = request  # only private attributes allow replacing ``receive``

    def read(self, limit: int) -> bytes | Awaitable[bytes | None] | None:
        """See RequestBody."""
        request = self._request
        known: bytes | None = getattr(request, "_body", None)
        if known is not None:
            return known if len(known) <= limit else None
        if request._stream_consumed:  # noqa: SLF001
            return None
        body = ReceivedBody(request.receive)
        request._receive = body.receive  # noqa: SLF001
        return body.read(limit)

    def parsed(self, name: str) -> list[Any] | None:
        """Return a form's values; FastAPI parses a form before it calls dependencies."""
        form = self._request._form  # noqa: SLF001
        return None if form is None else cast("list[Any]", form.getlist(name))

    def is_available(self, *, waits: bool) -> bool:
        """See RequestBody."""
        request = self._request
        if getattr(request, "_body", None) is not None:
            return True
        if request._stream_consumed:  # noqa: SLF001
            return request._form is not None  # noqa: SLF001
        return waits


class _RateLimitedResponse(StarletteResponse):
    """An endpoint's response that also ends the exchange of a limit.

    It is used in applications without this package's middleware, which would see the response.
    """

    __slots__ = ("_pending", "_response")

    def __init__(self, response: StarletteResponse, pending: PendingExchange) -> None:
        self.__dict__ = response.__dict__  # attributes are shared with the response
        self._response = response
        self._pending = pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._pending.take()
        if exchange is None:
            await self._response(scope, receive, send)
            return
        runtime = self._pending.runtime
        may_hang = scope.get("http_version", "1.1") not in HTTP_1
        stream = ResponseStream(runtime, exchange, receive, send, may_hang)
        try:
            await self._response(scope, stream.receive, stream.send)
        finally:
            await stream.finish(complete=False)
        if runtime.late:  # charges by a background task of the response
            await runtime.late_settled()


limit: LimitDecorator = LimitDecorator(EndpointCall)
cached: CachedDecorator = CachedDecorator(EndpointCall)
never_cached: NeverCached = NeverCached(EndpointCall)


# ------------------------------------------------------------------------------------------------
# Middleware

_CORS_INSIDE = (
    "CORSMiddleware is inside the rate limit, so browsers hide denials from scripts of other "
    "origins; add CORSMiddleware after this one: the middleware that is added last is outermost"
)


class _StarletteMiddleware(asgi.ConfiguredMiddleware):
    """Passes denials to the application's exception handlers; does not limit exempt endpoints."""

    _reroutes = False
    """Whether inner middleware has ever changed a request's path or method."""

    def _configure(self, app: ASGIApp, **arguments: Unpack[Arguments]) -> None:
        super()._configure(app, **arguments)
        inside: object = app
        while inside is not None and Features.RATE_LIMIT in self.features:
            if isinstance(inside, CORSMiddleware):
                self.runtime.observe(SettingDoubted("the order of middleware", _CORS_INSIDE))
                break
            inside = getattr(inside, "app", None)

    def _exempts(self, request: HTTPRequest) -> bool:
        if not exempt_types or self._reroutes:
            return False
        return _is_exempt_request(request, self._application(request.native))

    def check_route(self, scope: Scope, looked_up: tuple[Any, Any]) -> None:
        routed = scope.get("path"), scope.get("method")
        if routed != looked_up and not self._reroutes:
            self._reroutes = True
            what = REROUTED.format(" ".join(map(str, reversed(routed))))
            self.runtime.observe(SettingDoubted("exempt", what))

    async def answer(
        self, scope: Scope, receive: Receive, response: Response, decision: Decision | None, /
    ) -> Response:
        """Return the response of the application's exception handler to a denial, if there is one.

        Starlette's and FastAPI's default handlers are not used: they would drop the denial's body.
        """
        if decision is None or decision.allowed:
            return response
        handlers = getattr(self._application(scope), "exception_handlers", {})
        handler = own_handler(handlers, response.head.status)
        if handler is None:
            return response
        try:
            return await _call_handler(handler, scope, receive, RequestDenied(response, decision))
        except Exception as error:  # noqa: BLE001 - any exception of the application's handler
            self.runtime.observe(UserCodeFailed("the exception handler for a denial", error))
            return response

    def _application(self, scope: Scope) -> object:
        """Return the application that contains this middleware, or that it wraps."""
        app: object = scope.get("app", self.app)
        while isinstance(app, asgi.Middleware):
            app = app.app
        return app


class UpstashMiddleware(_StarletteMiddleware):
    """Rate limits and response cache in one middleware; cache hits count against the limits."""

    features = Features.BOTH


class RateLimitMiddleware(_StarletteMiddleware):
    """Rate limits only. Directly outside a CacheMiddleware, both need one round trip in total."""

    features = Features.RATE_LIMIT


def _is_exempt_request(request: HTTPRequest, app: object) -> bool:
    """Whether a request's endpoint is exempt, or a router or application that contains it."""
    if is_exempt(app):
        return True
    scope = request.native
    routes: Any = getattr(app, "routes", None)
    if root_path := getattr(app, "root_path", ""):  # FastAPI adds its own to each scope
        scope = {**scope, "root_path": root_path}
    while routes:
        route, scope = _match_route(routes, scope)
        if route is None:
            return False
        endpoint = scope.get("endpoint")
        if is_exempt(getattr(route, "original_router", None)) or is_exempt(endpoint):
            return True
        if (included := getattr(route, "effective_candidates", None)) is not None:
            routes = included()  # a router that FastAPI has included
        else:
            routes = getattr(route, "routes", None)
        mounted = getattr(route, "app", None) if routes is not None else None
        while mounted is not None:  # also inside the middleware of a mount
            if is_exempt(mounted):
                return True
            mounted = getattr(mounted, "app", None)
        if routes is None:
            of_class = inspect.isclass(endpoint) and is_exempt_class(endpoint, request.method)
            return of_class or is_in_exempt_group(endpoint)
    return False


def _match_route(routes: Any, scope: Scope) -> tuple[Any, Scope]:
    for candidate in routes:
        route = getattr(candidate, "starlette_route", None) or candidate
        match, child = route.matches(scope)
        if match is Match.FULL:
            return route, {**scope, **child}
    return None, scope
