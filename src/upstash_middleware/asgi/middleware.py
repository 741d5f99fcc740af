"""The middleware classes of ASGI: a scope in, the gateway, the application's response out.

How a scope reads as a Request is in ``protocol``, how a response passes is in ``passage``; no
framework's name stands here.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from upstash_middleware.asgi.handshake import Handshake, deny
from upstash_middleware.asgi.passage import Passage
from upstash_middleware.asgi.protocol import nothing_more, refresh_scope, request_of, to_nobody
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Unpack

    from upstash_middleware.asgi.protocol import ASGIApp, Message, Receive, Scope, Send
    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.messages import Request, Response
    from upstash_middleware.settings import Arguments

GATEWAY = "upstash_middleware.gateway"
"""Where in a scope the limits in front of handlers find the client that they share."""
PASSAGE = "upstash_middleware.passage"
"""Where in a scope they find the response's way out, where their framework shows them none."""
_HANDED = "upstash_middleware.handed"


@dataclass(frozen=True, slots=True)
class CacheHandle:
    """What stands in ``scope["state"]["cache"]``: the cache, for the application's handlers."""

    gateway: Gateway

    async def purge(
        self, *urls: str, tags: tuple[str, ...] = (), everything: bool = False, soft: bool = False
    ) -> None:
        """Make stored responses unusable: ``await request.state.cache.purge("/tea?size=2")``.

        ``urls`` are paths with their query, or whole URLs; each goes with all its variants. A tag
        takes its colon-descendants along: ``product`` purges ``product:7``. ``soft`` leaves them
        to be served stale where their rule allows it. Raises UpstashError if Upstash could not be
        told; does nothing where the middleware is switched off.
        """
        await self.gateway.apurge(*urls, tags=tags, everything=everything, soft=soft)

    def purge_sync(
        self, *urls: str, tags: tuple[str, ...] = (), everything: bool = False, soft: bool = False
    ) -> None:
        """Do the same as ``purge`` in a handler that runs in a thread (a plain ``def``)."""
        self.gateway.purge(*urls, tags=tags, everything=everything, soft=soft)


class _Middleware:
    """Carries HTTP requests to its gateway and the gateway's answers back."""

    halves: ClassVar[Halves]

    def __init__(self, app: ASGIApp, **arguments: Unpack[Arguments]) -> None:
        self.app = app
        self.gateway: Gateway = Gateway.of(
            arguments, self.halves, exempts=self.exempting(), refreshes=True
        )
        self._limits = Halves.RATE_LIMIT in self.halves
        self._caches = Halves.CACHE in self.halves
        self._inner = _directly_inside(app, self.halves)
        self._cache_handle = CacheHandle(self.gateway)
        self._serving: Mapping[str, ASGIApp] = {
            "http": self._http,
            "websocket": self._websocket,
            "lifespan": self._lifespan,
        }
        self._lifespan_state: Mapping[str, Any] = {}
        """What the application's lifespan has put up for every request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope; see the ASGI specification, version 3."""
        if scope["type"] in {"http", "websocket"}:
            self._show_handles(scope)
        serve = self._serving.get(scope["type"]) if self.gateway.enabled else None
        await (serve or self.app)(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        handed: tuple[Request, Exchange] | None = scope.get(_HANDED)
        if handed is not None and handed[1].engine is self.gateway.engine:
            request, exchange = handed  # the middleware directly outside has begun it
            del scope[_HANDED]
        else:
            request = request_of(scope)
            exchange = await self.gateway.abegin(request, self._inner)
        if exchange.decision is not None:
            scope["state"]["rate_limit"] = exchange.decision
        scope[PASSAGE] = passage = Passage(self.gateway, exchange, receive, send)
        try:
            if exchange.response is not None:
                answer = await self.answer(scope, receive, exchange.response, exchange.decision)
                await self._give(scope, answer, exchange.take_refresh(), passage)
                return
            if exchange.inner is not None:
                scope[_HANDED] = (request, exchange.take_inner())
            if exchange.request.headers is not request.headers:
                scope = {**scope, "headers": list(exchange.request.headers.raw)}
            await self.app(scope, passage.receive, passage.send)
        except Exception:
            with suppress(Exception):  # the application's own is the one to be heard of
                await passage.stand_in()
            raise
        finally:
            # It knows the scope: a circle would outlive the request, until it is searched for.
            scope.pop(PASSAGE, None)
            if not passage.finished:
                await passage.finish(complete=False)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a handshake as a request; what passes once the connection stands is free."""
        request = request_of(scope)
        exchange = await self.gateway.abegin_by(self.gateway.limits, request)
        if exchange.decision is not None:
            scope["state"]["rate_limit"] = exchange.decision
        try:
            if exchange.response is not None:
                await deny(scope, receive, send, exchange.response)
            else:
                passing = Handshake(self.gateway, exchange, receive, send)
                await self.app(scope, passing.receive, passing.send)
        finally:
            await self.gateway.afinish(exchange, complete=True)

    def exempting(self) -> Callable[[Request], bool] | None:
        """Return what tells which requests no limit counts; a framework's class asks its routes."""
        return None

    async def answer(
        self,
        _scope: Scope,
        _receive: Receive,
        response: Response,
        _decision: Decision | None,
        /,
    ) -> Response:
        """Return what to send where this package has a response: here, that one."""
        return response

    async def _give(
        self, scope: Scope, answer: Response, refresh: Exchange | None, passage: Passage
    ) -> None:
        """Send a response of ours, and fetch anew what was stale about it."""
        try:
            await passage.send_whole(answer, scope["method"])
        except BaseException:
            if refresh is not None:
                await self.gateway.afinish(refresh, complete=False)
            raise
        if refresh is not None:
            await self._refresh(scope, refresh)

    async def _refresh(self, scope: Scope, refresh: Exchange) -> None:
        """Ask the application anew for what was just sent stale, in nobody's name."""
        passage = Passage(self.gateway, refresh, nothing_more, to_nobody)
        scope = refresh_scope(scope, refresh.request, self._lifespan_state)
        self._show_handles(scope)
        try:
            await self.app(scope, passage.receive, passage.send)
        except Exception as error:  # noqa: BLE001 - the client has its response
            self.gateway.observe(UserCodeFailed("background refresh", error))
        finally:
            await passage.finish(complete=False)

    def _show_handles(self, scope: Scope) -> None:
        """Put in the scope's state what handlers read there, also where nothing is to be done."""
        state = scope.setdefault("state", {})
        scope[GATEWAY] = self.gateway
        if self._limits:
            state.setdefault("rate_limit", None)
        if self._caches:
            state["cache"] = self._cache_handle

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.gateway.check_credentials()
        except ConfigurationError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        self._lifespan_state = scope.get("state", {})

        async def send_after_closing(message: Message) -> None:
            # A server may end its event loop as soon as it has heard that the shutdown is over.
            if message["type"].startswith("lifespan.shutdown."):
                await self.gateway.aclose()
            await send(message)

        await self.app(scope, receive, send_after_closing)


class UpstashMiddleware(_Middleware):
    """Rate limit and response cache in one; a hit is charged to the limit."""

    halves = Halves.BOTH


class RateLimitMiddleware(_Middleware):
    """The rate limit alone; directly outside a CacheMiddleware both take one round trip."""

    halves = Halves.RATE_LIMIT


class CacheMiddleware(_Middleware):
    """The response cache alone; outside a RateLimitMiddleware its hits are not charged."""

    halves = Halves.CACHE


def _directly_inside(app: ASGIApp, halves: Halves) -> Gateway | None:
    # Any other pair must not be joined: what a limit denies, or a hit answers, never asks further.
    if halves is Halves.RATE_LIMIT and isinstance(app, CacheMiddleware):
        return app.gateway
    return None
