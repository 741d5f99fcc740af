"""One WebSocket handshake on its way between server and application, and the exchange's end.

Only a limit has to do with it; nothing of what passes once the connection stands is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from upstash_middleware.asgi.protocol import headers_of
from upstash_middleware.messages import NO_HEADERS, ResponseHead

if TYPE_CHECKING:
    from upstash_middleware.asgi.protocol import Message, Receive, Scope, Send
    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Headers, Response

DENIAL_EXTENSION = "websocket.http.response"
TRY_AGAIN_LATER = 1013


class Handshake:
    """Shows an exchange how the application answers a handshake, and keeps its slot meanwhile."""

    __slots__ = ("_answered", "_exchange", "_gateway", "_receive", "_send")

    def __init__(self, gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._answered = False

    async def send(self, message: Message) -> None:
        """Pass the application's message on; the limit's fields go with the answer."""
        if not self._answered:
            message = self._answer(message)
        await self._send(message)
        if self._exchange.holding:
            await self._gateway.arenew(self._exchange)

    async def receive(self) -> Message:
        """Pass the server's message on."""
        message = await self._receive()
        if self._exchange.holding:
            await self._gateway.arenew(self._exchange)
        return message

    def _answer(self, message: Message) -> Message:
        self._answered = True
        match message["type"]:
            case "websocket.accept":
                headers = self._shown(101, headers_of(message.get("headers", ())))
            case "websocket.http.response.start":
                headers = self._shown(message["status"], headers_of(message.get("headers", ())))
            case _:  # closed before it was accepted: the server answers 403 (ASGI, WebSocket)
                self._shown(403, NO_HEADERS)
                return message
        return {**message, "headers": headers.lowered()}

    def _shown(self, status: int, headers: Headers) -> Headers:
        head = cast("ResponseHead", self._exchange.head(ResponseHead(status, headers)))
        return head.headers  # a limit replaces no response


async def deny(scope: Scope, receive: Receive, send: Send, denial: Response) -> None:
    """Refuse a handshake: with the response where the server can send one, else by closing."""
    await receive()  # websocket.connect
    if DENIAL_EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
        return
    await send(
        {
            "type": "websocket.http.response.start",
            "status": denial.head.status,
            "headers": denial.head.headers.lowered(),
        }
    )
    await send({"type": "websocket.http.response.body", "body": denial.body, "more_body": False})
