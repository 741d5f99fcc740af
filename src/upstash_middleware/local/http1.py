"""HTTP/1.1 on a socket: requests, responses, and connections.

It does not use a web framework's server, because simulated faults cut a connection in the middle of
a response.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, TypeAlias

import httptools
import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Handler: TypeAlias = "Callable[[Request], Awaitable[tuple[Response, Delivery]]]"

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 256 * 1024 * 1024
"""More than a pipeline of the largest commands is likely to need; limits the memory."""
INCOMPLETE_SECONDS: Final = 30.0
"""The longest time between the first and the last byte of a request."""
CHUNK_BYTES: Final = 256 * 1024
"""The number of bytes to read at once."""
_TRICKLE_SECONDS: Final = 0.02

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Connection: close\r\n\r\n"
)
logger: logging.Logger = logging.getLogger(__name__)


class Request(Struct, frozen=True):
    """One request.

    `path` and `query` are percent-encoded as received; names in `headers` are in lower case.
    """

    method: str
    path: bytes
    query: bytes = b""
    headers: Mapping[bytes, bytes] = {}
    body: bytes = b""
    client: str = ""
    """The client's address; empty if there is none."""


class Answer(Struct, frozen=True):
    """A complete response."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(Struct, frozen=True):
    """A response with server-sent events, which ends when the client disconnects."""

    events: AsyncIterator[bytes]
    close: Callable[[], None]
    """Called at the end, even if no event was sent."""


Response: TypeAlias = Answer | Stream


class InvalidRequest(Exception):
    """A request that is not run; the arguments are the status and error of the response."""


class Delivery(Enum):
    """How a response is sent."""

    WHOLE = "whole"
    REFUSE = "refuse"
    DROP = "drop"
    TRUNCATE = "truncate"
    TRICKLE = "trickle"
    STALL = "stall"


def json_answer(status: int, value: object) -> Answer:
    """A response with `value` as JSON."""
    return Answer(status, msgspec.json.encode(value))


def error_answer(status: int, text: str) -> Answer:
    """An error response in Upstash's format: ``{"error": text}``."""
    return json_answer(status, {"error": text})


class HttpConnection:
    """A client's connection; its requests are handled one after another.

    A request is completed even if its client disconnects.
    """

    def __init__(
        self, handle: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._handle = handle
        self._reader = reader
        self._writer = writer
        self._requests: deque[tuple[Request, bool]] = deque()
        """Requests that were read, and whether to keep the connection after them."""
        self._last: Answer | None = None
        """The response to a malformed request, after which nothing more is read."""
        self._deadline: float | None = None
        """The time by which an incomplete request must be complete."""
        self._parser = httptools.HttpRequestParser(self)
        self.on_message_begin()
        self.task: asyncio.Task[None] = asyncio.create_task(self._serve())
        """Done when either side has closed the connection."""
        # Here and not in the task, because the task may be cancelled before it starts.
        self.task.add_done_callback(lambda _: writer.close())

    def abort(self) -> None:
        self._writer.transport.abort()

    def cancel_if_left(self) -> None:
        """Stop running the current request if its client has left or has stopped sending."""
        left = self._reader.at_eof() or self._writer.transport.is_closing()
        if left or self._reader.exception():
            self.task.cancel()

    async def _serve(self) -> None:
        try:
            more = True
            while more:
                more = await self._read()
                while self._requests:
                    if not await self._answer(*self._requests.popleft()):
                        return
                if self._last:
                    self._writer.write(_head(self._last, keep_alive=False) + self._last.body)
        except OSError:
            pass  # the client has left

    async def _read(self) -> bool:
        """Read the available bytes; whether there can be more."""
        try:
            async with asyncio.timeout_at(self._deadline):
                data = await self._reader.read(CHUNK_BYTES)
        except TimeoutError:
            self._last = error_answer(408, "ERR the rest of the request did not come")
            return False
        if not data:
            return False
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + INCOMPLETE_SECONDS
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # the request is answered without an upgrade
            return False
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, InvalidRequest):
                self._last = error_answer(*error.__context__.args)
            else:
                self._last = error_answer(400, f"ERR the request is not HTTP/1.1: {error}")
            return False
        return True

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._target += url  # it may arrive in parts
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._size = 0
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            raise InvalidRequest(413, f"ERR the request body is larger than {MAX_BODY_BYTES} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._deadline = None
        target = self._target
        if target.startswith((b"http://", b"https://")):  # absolute form, RFC 9112 section 3.2.2
            target = b"/" + target.split(b"/", 3)[3] if target.count(b"/") > 2 else b"/"
        path, _, query = target.partition(b"?")
        method = self._parser.get_method().decode("ascii")
        peer = self._writer.get_extra_info("peername") or ("",)
        body = b"".join(self._body)
        request = Request(method, path, query, self._headers, body, peer[0])
        self._requests.append((request, self._parser.should_keep_alive()))

    def _count_head(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEAD_BYTES:
            raise InvalidRequest(431, f"ERR the request head is larger than {MAX_HEAD_BYTES} bytes")

    # Answers.

    async def _answer(self, request: Request, keep_alive: bool) -> bool:
        """Answer a request; whether to keep the connection."""
        try:
            response, delivery = await self._handle(request)
        except Exception:
            logger.exception("the request could not be answered")
            response = error_answer(500, "ERR the local server failed, see its log")
            delivery = Delivery.WHOLE
        if isinstance(response, Stream):
            await self._send_stream(response)
            return False
        if delivery is Delivery.WHOLE:
            head = _head(response, keep_alive=keep_alive)
            self._writer.write(head if request.method == "HEAD" else head + response.body)
            await self._writer.drain()
            return keep_alive
        return await self._send_faulty(response, delivery)

    async def _send_faulty(self, answer: Answer, delivery: Delivery) -> bool:
        data = _head(answer, keep_alive=True) + answer.body
        if delivery in (Delivery.DROP, Delivery.REFUSE):
            self.abort()
        elif delivery is Delivery.TRICKLE:
            for index in range(len(data)):
                self._writer.write(data[index : index + 1])
                await asyncio.sleep(_TRICKLE_SECONDS)
                await self._writer.drain()
        else:
            self._writer.write(data[: len(data) - len(answer.body) // 2 - 1])
            if delivery is Delivery.STALL:
                await self._until_client_leaves()
        return delivery is Delivery.TRICKLE

    async def _send_stream(self, stream: Stream) -> None:
        leaving = asyncio.create_task(self._until_client_leaves())
        leaving.add_done_callback(lambda _: self.task.cancel())
        try:
            self._writer.write(_STREAM_HEAD)
            async for event in stream.events:
                self._writer.write(event)
                await self._writer.drain()
        finally:
            leaving.cancel()
            stream.close()

    async def _until_client_leaves(self) -> None:
        with suppress(OSError):
            while await self._reader.read(CHUNK_BYTES):
                pass


def _head(answer: Answer, *, keep_alive: bool) -> bytes:
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
        answer.status,
        _REASONS.get(answer.status, b"Unknown"),
        answer.content_type,
        len(answer.body),
        b"".join(b"%b: %b\r\n" % header for header in answer.headers),
        b"" if keep_alive else b"Connection: close\r\n",
    )
