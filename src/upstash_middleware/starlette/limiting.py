"""``@limit`` in front of a Starlette endpoint: an async or sync function, or a method."""

from __future__ import annotations

import functools
import inspect
import os
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from starlette.exceptions import HTTPException, WebSocketException
from starlette.requests import HTTPConnection
from starlette.responses import Response

from upstash_middleware.asgi.handshake import DENIAL_EXTENSION, TRY_AGAIN_LATER
from upstash_middleware.asgi.middleware import GATEWAY, PASSAGE
from upstash_middleware.asgi.passage import Passage
from upstash_middleware.asgi.protocol import headers_of, request_of
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.handler_limits import HandlerLimit, Place
from upstash_middleware.handlers import REFRESH, is_exempt, owner_of
from upstash_middleware.messages import ResponseHead
from upstash_middleware.starlette.denying import RequestDenied, answer_by_default

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from starlette.types import Receive, Scope, Send

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.handler_limits import Begun, LimitArguments

E = TypeVar("E", bound="Callable[..., Any]")

_by_environment: WeakKeyDictionary[Any, Gateway] = WeakKeyDictionary()


class Limit(HandlerLimit):
    """A limit that decorates endpoints; made by ``limit``."""

    def __call__(self, endpoint: E) -> E:
        """Put the limit in front of an endpoint, which gets the request as Starlette gives it."""
        if inspect.isclass(endpoint) or not callable(endpoint):
            raise ConfigurationError(
                f"{self.rule.setting}: {endpoint!r} should be an endpoint's function or method; "
                "of a class, decorate the methods"
            )
        make = _around_async if inspect.iscoroutinefunction(endpoint) else _around_sync
        return cast("E", make(self, endpoint))


def limit(limits: Any, **arguments: Unpack[LimitArguments]) -> Limit:
    """Limit the requests for an endpoint: ``@limit("5/minute", by=user)``.

    ``limits`` and the arguments are those of RateLimitRule. The limit stands behind routing and
    authentication, and takes a round trip of its own. Each endpoint counts by itself, under its
    qualified name; one limit object with a ``name`` before several counts them together. What is
    above the quota raises RequestDenied; the handler reads ``request.state.rate_limit``. In front
    of a WebSocket's endpoint it counts handshakes.
    Raises ConfigurationError.
    """
    return Limit(limits, arguments)


def gateway_of(scope: Scope) -> Gateway:
    """Return the gateway of the middleware that the request has come through.

    Where there is none, one made from the environment for the application.
    """
    found: Gateway | None = scope.get(GATEWAY)
    if found is not None:
        return found
    app = scope.get("app", Limit)
    if app not in _by_environment:
        made = Gateway.of({}, Halves(0), os.environ)
        _by_environment.setdefault(app, made)
    return _by_environment[app]


def counts(scope: Scope, gateway: Gateway) -> bool:
    """Whether requests are counted at all, and this one is a client's and not the cache's."""
    return gateway.enabled and REFRESH not in scope


def prior_decision(scope: Scope) -> Decision | None:
    """Return what limits further out have decided about the request."""
    found: Decision | None = scope.setdefault("state", {}).setdefault("rate_limit", None)
    return found


def entered(scope: Scope, begun: Begun) -> Exchange:
    """Show the handler the decision, and return the exchange.

    Raises RequestDenied, or WebSocketException where the server can only close a handshake.
    """
    scope["state"]["rate_limit"] = begun.decision
    exchange = begun.exchange
    if exchange.response is not None and exchange.decision is not None:
        if scope["type"] == "websocket" and DENIAL_EXTENSION not in (scope.get("extensions") or {}):
            raise WebSocketException(TRY_AGAIN_LATER)
        answer_by_default(scope)
        raise RequestDenied(exchange.response, exchange.decision)
    return exchange


def show_failure(exchange: Exchange, error: BaseException) -> None:
    """Show an exchange the head of the response that an exception of the handler's becomes."""
    if isinstance(error, HTTPException):
        fields = (error.headers or {}).items()
        headers = headers_of((n.encode("latin-1"), v.encode("latin-1")) for n, v in fields)
        exchange.head(ResponseHead(error.status_code, headers))


class _Limited(Response):
    """An endpoint's response, with which the exchange ends; in all else it is that response.

    For applications without a middleware of ours, which would see every way out.
    """

    __slots__ = ("_exchange", "_gateway", "_response")

    def __init__(self, response: Response, gateway: Gateway, exchange: Exchange) -> None:
        # Whoever sets fields of this sets the response's.
        self.__dict__ = response.__dict__
        self._response = response
        self._gateway = gateway
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passage = Passage(self._gateway, self._exchange, receive, send)
        try:
            await self._response(scope, passage.receive, passage.send)
        finally:
            await passage.finish(complete=False)


def _around_async(limit: Limit, endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        scope, place = _called(limit, endpoint, args)
        gateway, prior = gateway_of(scope), prior_decision(scope)
        if not counts(scope, gateway) or is_exempt(limited) or is_exempt(place.owner):
            return await endpoint(*args, **kwargs)
        request = request_of(scope)
        exchange = entered(scope, await limit.abegin(gateway, place, request, prior))
        if scope["type"] == "websocket":
            try:
                return await endpoint(*args, **kwargs)
            finally:
                await gateway.afinish(exchange, complete=True)
        if (passage := scope.get(PASSAGE)) is not None:
            passage.join(gateway, exchange)
            return await endpoint(*args, **kwargs)
        try:
            response = await endpoint(*args, **kwargs)
        except BaseException as error:
            show_failure(exchange, error)
            await gateway.afinish(exchange, complete=False)
            raise
        return _Limited(response, gateway, exchange)

    return limited


def _around_sync(limit: Limit, endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same in the thread in which Starlette calls the endpoint."""

    @functools.wraps(endpoint)
    def limited(*args: Any, **kwargs: Any) -> Any:
        scope, place = _called(limit, endpoint, args)
        gateway, prior = gateway_of(scope), prior_decision(scope)
        if not counts(scope, gateway) or is_exempt(limited) or is_exempt(place.owner):
            return endpoint(*args, **kwargs)
        request = request_of(scope)
        exchange = entered(scope, limit.begin(gateway, place, request, prior))
        if (passage := scope.get(PASSAGE)) is not None:
            passage.join(gateway, exchange)
            return endpoint(*args, **kwargs)
        try:
            response = endpoint(*args, **kwargs)
        except BaseException as error:
            show_failure(exchange, error)
            gateway.finish(exchange, complete=False)
            raise
        return _Limited(response, gateway, exchange)

    return limited


def _called(limit: Limit, endpoint: object, args: tuple[Any, ...]) -> tuple[Scope, Place]:
    """Return the scope and the place of a call with Starlette's arguments."""
    if not args or not isinstance(args[-1], HTTPConnection):
        raise ConfigurationError(
            f"{limit.rule.setting}: {endpoint!r} was not called with a request, as Starlette "
            "calls an endpoint; in FastAPI, write Depends(limit(...)) with the limit of "
            "upstash_middleware.fastapi"
        )
    owner = owner_of(endpoint, args) if len(args) > 1 else None
    return args[-1].scope, Place(endpoint, owner)
