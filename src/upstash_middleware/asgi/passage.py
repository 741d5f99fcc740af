"""One response on its way from an ASGI application to the server, and the exchange's end.

What `send` and `receive` make particular lives here: the messages of a response, their order and
their extensions, and which of them is the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from upstash_middleware.asgi.protocol import headers_of, start_message
from upstash_middleware.messages import WITHOUT_BODY, Response, ResponseHead, content_length

if TYPE_CHECKING:
    from upstash_middleware.asgi.protocol import Message, Receive, Send
    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway

_FILES = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class Passage:
    """One response on its way from the application to the server, and the exchange's end."""

    __slots__ = (
        "_announced",
        "_behind",
        "_client_left",
        "_exchange",
        "_gateway",
        "_holders",
        "_receive",
        "_replaced",
        "_seen_whole",
        "_send",
        "_started",
        "_trailers",
        "finished",
    )

    def __init__(self, gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._receive = receive
        self._send = send
        self._behind: list[tuple[Gateway, Exchange]] = []
        self._holders = [(gateway, exchange)] if exchange.holding else []
        """Whose slots are renewed while the response passes."""
        self._started = False
        self._announced: int | None = None
        """Bytes still to come by Content-Length; None where it does not tell."""
        self._trailers = False
        """Whether the last byte is that of the trailers."""
        self._replaced = False
        """Whether a whole Response has gone out in place of the application's."""
        self._seen_whole = True
        """Whether every byte of the body passed here, so that it can be stored."""
        self._client_left = False
        self.finished: bool = False
        """Whether the exchange has been finished."""

    def join(self, gateway: Gateway, exchange: Exchange) -> None:
        """Have an exchange of a limit further in see the response's head, and its end.

        For limits that see neither themselves, as dependencies.
        """
        self._behind.append((gateway, exchange))
        if exchange.holding:
            self._holders.append((gateway, exchange))

    async def receive(self) -> Message:
        """Pass the server's message on, and note that the client has left.

        An application that hears of it may cut its response short and end it in good order.
        """
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._client_left = True
        return message

    async def send(self, message: Message) -> None:
        """Pass the application's message on, and finish right after the last byte."""
        if self._replaced:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._started = True
            begun = self._begun(message)
            if isinstance(begun, Response):
                await self.send_whole(begun, self._exchange.request.method)
                return
            if self._gateway.finishes_first and self._head_is_all(begun["status"]):
                await self.finish(complete=not self._client_left)
            await self._send(begun)
            return
        is_file = kind in _FILES
        if is_file:
            self._seen_whole = False
        # All of this is asked before the message goes out: middleware outside may write into it,
        # the application may fill its buffer again, and after the last byte any client leaves.
        piece = bytes(message.get("body", b""))
        ends = self._ends(message)
        complete = self._seen_whole and not self._client_left
        if self._gateway.finishes_first and self._is_last(piece, ends=ends):
            self._show(piece)
            await self.finish(complete=complete)
            await self._send(message)
            return
        await self._send(message)
        self._show(piece)
        if ends:
            await self.finish(complete=complete)
        elif self._holders and (piece or is_file):
            await self._renew()

    async def stand_in(self) -> None:
        """Send what may stand in for a response that the application has not begun, if anything."""
        response = None if self._started else self._exchange.failed()
        if response is not None:
            await self.send_whole(response, self._exchange.request.method)

    async def send_whole(self, response: Response, method: str) -> None:
        """Send a response of ours in place of the application's, without its body for HEAD."""
        self._started = self._replaced = True
        body = b"" if method == "HEAD" else response.body
        if self._gateway.finishes_first and not body:
            await self.finish(complete=True)
        await self._send(start_message(response.head))
        if self._gateway.finishes_first:
            await self.finish(complete=True)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        await self.finish(complete=True)

    async def finish(self, *, complete: bool) -> None:
        """Finish the exchange unless that has been done."""
        if not self.finished:
            self.finished = True
            for gateway, exchange in (*self._behind, (self._gateway, self._exchange)):
                await gateway.afinish(exchange, complete=complete)

    def _show(self, piece: bytes) -> None:
        if piece and self._exchange.watching and not self.finished:
            self._exchange.chunk(piece)

    def _head_is_all(self, status: int) -> bool:
        """Whether a client has all once it has the head, whatever the application gives."""
        is_bodiless = self._exchange.request.method == "HEAD" or status in WITHOUT_BODY
        return (is_bodiless or self._announced == 0) and not self._trailers

    def _is_last(self, piece: bytes, *, ends: bool) -> bool:
        """Whether a client has all once it has this piece; Content-Length may tell it early."""
        if self._announced is not None:
            self._announced -= len(piece)
        return ends or (self._announced == 0 and bool(piece))

    async def _renew(self) -> None:
        for gateway, exchange in self._holders:
            await gateway.arenew(exchange)

    def _begun(self, message: Message) -> Message | Response:
        """Return what to send for the application's start of a response."""
        head = ResponseHead(message["status"], headers_of(message.get("headers", ())))
        for _, behind in reversed(self._behind):
            head = cast("ResponseHead", behind.head(head))  # a limit replaces no response
        answer = self._exchange.head(head)
        if isinstance(answer, Response):
            return answer
        self._trailers = message.get("trailers", False)
        if self._gateway.finishes_first and self._exchange.request.method != "HEAD":
            self._announced = content_length(head.headers)
        return {**message, **start_message(answer)}

    def _ends(self, message: Message) -> bool:
        match message["type"]:
            case "http.response.body" | "http.response.zerocopysend":
                return not (message.get("more_body", False) or self._trailers)
            case "http.response.pathsend":
                return not self._trailers
            case "http.response.trailers":
                return not message.get("more_trailers", False)
            case _:
                return False
