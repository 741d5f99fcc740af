"""HTTP/1.1 on a socket: bytes to requests, answers to bytes.

Only the transport may live here.  It is an asyncio protocol of our own, not a web framework's,
because the weather needs the socket itself: to cut a connection in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

import httptools

from upstash_middleware.local.messages import Answer, Request, Response, Stream, error_answer
from upstash_middleware.local.weather import TRICKLE_SECONDS, Manner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler: TypeAlias = Callable[[Request], Awaitable[tuple[Response, Manner]]]

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 256 * 1024 * 1024
"""More than a pipeline of the largest commands is likely to need; a bound on memory."""
MAX_WAITING: Final = 64
"""Requests on one connection that wait for their turn, before no more are read."""
INCOMPLETE_SECONDS: Final = 30.0
"""How long a client may take between the first byte of a request and its last."""

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\n\r\n"
)
logger: logging.Logger = logging.getLogger(__name__)


class _TooLarge(Exception):
    """The request is larger than this server takes; carries the answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.answer = error_answer(status, text)


class HttpConnection(asyncio.Protocol):
    """One client's connection: its requests are answered one after another."""

    def __init__(
        self,
        handle: Handler,
        connections: set[HttpConnection],
        orphans: set[asyncio.Task[None]],
    ) -> None:
        self._handle = handle
        self._connections = connections
        """Where a connection is to be found as long as it is open."""
        self._orphans = orphans
        """Where work is to be found whose client has left, or will say no more."""
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._waiting: deque[tuple[Request, bool] | Answer | None] = deque()
        """Requests and whether more may follow; a last answer; or None, to hang up."""
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deaf = False
        self._delivering = False
        """Whether an answer is being sent bit by bit."""
        self._begin_message()
        self._parser = httptools.HttpRequestParser(self)

    def _begin_message(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what the loop promises
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        """Called by the event loop."""
        self._connections.discard(self)
        self._transport = None
        self._writable.set()
        self._stop_timer()
        if self._task is not None:
            self._leave(self._task)

    def _leave(self, task: asyncio.Task[None]) -> None:
        """Stop what is only delivery; what the client has asked for is done without it."""
        if self._delivering:
            task.cancel()
        else:
            self._orphan(task)

    def _orphan(self, task: asyncio.Task[None]) -> None:
        self._orphans.add(task)
        task.add_done_callback(self._orphans.discard)

    def eof_received(self) -> bool:
        """Called by the event loop: the client says no more, but may still listen."""
        self._deaf = True
        self._stop_timer()
        if self._task is None or self._delivering:
            return False
        self._orphan(self._task)
        self._task.add_done_callback(lambda _: self.close())
        return True

    def pause_writing(self) -> None:
        """Called by the event loop."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._deaf:
            return
        if self._timer is None:
            self._start_timer()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing here can be upgraded to: the request is answered, and it is the last.
            self._hang_up_after_answers()
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooLarge):
                self._refuse(error.__context__.answer)
            else:
                self._refuse(error_answer(400, f"ERR the request is not HTTP/1.1: {error}"))

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._begin_message()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, perhaps with a part only."""
        self._target += url
        self._count_head(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self._headers[name.lower()] = value
        self._count_head(name + value)

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._size = 0
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            raise _TooLarge(413, f"ERR the request body is larger than {MAX_BODY_BYTES} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser: the request is whole."""
        self._stop_timer()
        path, _, query = _origin_form(self._target).partition(b"?")
        request = Request(
            method=self._parser.get_method().decode("ascii"),
            path=path,
            query=query,
            headers=self._headers,
            body=b"".join(self._body),
        )
        self._enqueue((request, self._parser.should_keep_alive()))

    def _count_head(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_HEAD_BYTES:
            raise _TooLarge(431, f"ERR the request head is larger than {MAX_HEAD_BYTES} bytes")

    # What we do.

    def _start_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(INCOMPLETE_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._refuse(error_answer(408, "ERR the rest of the request did not come"))

    def _refuse(self, answer: Answer) -> None:
        """Answer what cannot be read, after what could be, and say goodbye."""
        self._deaf = True
        self._stop_timer()
        self._enqueue(answer)

    def _hang_up_after_answers(self) -> None:
        self._deaf = True
        self._stop_timer()
        self._enqueue(None)

    def _enqueue(self, work: tuple[Request, bool] | Answer | None) -> None:
        self._waiting.append(work)
        if len(self._waiting) == MAX_WAITING and self._transport is not None:
            self._transport.pause_reading()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._answer_all())

    async def _answer_all(self) -> None:
        while self._waiting and self._transport is not None:
            work = self._waiting.popleft()
            if len(self._waiting) == MAX_WAITING // 2:
                self._transport.resume_reading()
            if work is None:
                self.close()
                break
            if isinstance(work, Answer):
                self._send(work, keep_alive=False)
                break
            request, keep_alive = work
            response, manner = await self._answer(request)
            if isinstance(response, Stream):
                await self._send_stream(response)
                break
            bodiless = request.method == "HEAD"
            if manner is Manner.WHOLE:
                self._send(response, keep_alive=keep_alive, bodiless=bodiless)
            else:
                await self._send_badly(response, manner)
                self._delivering = False
            await self._writable.wait()
        self._task = None

    async def _answer(self, request: Request) -> tuple[Response, Manner]:
        try:
            return await self._handle(request)
        except Exception:
            logger.exception("a request could not be answered")
            return error_answer(500, "ERR the local server failed, see its log"), Manner.WHOLE

    def _send(self, answer: Answer, *, keep_alive: bool, bodiless: bool = False) -> None:
        head = _head(answer, keep_alive=keep_alive)
        self._write(head if bodiless else head + answer.body)
        if not keep_alive:
            self.close()

    async def _send_badly(self, answer: Answer, manner: Manner) -> None:
        """Deliver an answer as the weather has it."""
        self._delivering = True
        whole = _head(answer, keep_alive=True) + answer.body
        half = whole[: len(whole) - len(answer.body) // 2 - 1]
        match manner:
            case Manner.DROP | Manner.REFUSE:
                self.abort()
            case Manner.TRUNCATE:
                self._write(half)
                self.close()
            case Manner.STALL:
                self._write(half)
                await asyncio.Event().wait()  # until the client leaves: connection_lost cancels
            case Manner.TRICKLE:
                for index in range(len(whole)):
                    self._write(whole[index : index + 1])
                    await asyncio.sleep(TRICKLE_SECONDS)
            case Manner.WHOLE:
                self._write(whole)
            case _:
                assert_never(manner)

    async def _send_stream(self, stream: Stream) -> None:
        self._delivering = True
        self._write(_STREAM_HEAD)
        try:
            if self._transport is None:
                return
            async for event in stream.events:
                await self._writable.wait()
                self._write(event)
        finally:
            stream.close()
        self.close()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """End the connection, after what was written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection at once: the client sees it reset."""
        if self._transport is not None:
            self._transport.abort()


def _origin_form(target: bytes) -> bytes:
    """A request target without scheme and host, which a client may send (RFC 9112 §3.2.2)."""
    if target.startswith((b"http://", b"https://")):
        return b"/" + target.split(b"/", 3)[3] if target.count(b"/") > 2 else b"/"
    return target


def _head(answer: Answer, *, keep_alive: bool) -> bytes:
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
        answer.status,
        _REASONS.get(answer.status, b"Unknown"),
        answer.content_type,
        len(answer.body),
        b"".join(b"%b: %b\r\n" % header for header in answer.headers),
        b"" if keep_alive else b"Connection: close\r\n",
    )
