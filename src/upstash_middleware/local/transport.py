"""A transport for httpx that reaches a local Upstash without a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import anyio.to_thread
import httpx

from upstash_middleware.local.http1 import Delivery, Request, Response, Stream

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

_ERRORS: Final[dict[Delivery, tuple[type[httpx.TransportError], str]]] = {
    Delivery.REFUSE: (httpx.ConnectError, "Connection refused"),
    Delivery.DROP: (httpx.RemoteProtocolError, "Server disconnected without sending a response."),
    Delivery.TRUNCATE: (httpx.RemoteProtocolError, "peer closed connection without complete body"),
    Delivery.STALL: (httpx.ReadTimeout, "The read operation timed out"),
    Delivery.TRICKLE: (httpx.ReadTimeout, "The read operation timed out"),
}


class InProcessTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Passes requests of `httpx.Client` and `httpx.AsyncClient` to the server's thread.

    For simulated faults it raises the same exceptions as httpx. Server-sent events are not
    supported: they raise httpx.UnsupportedProtocol.
    """

    def __init__(self, submit: Callable[[Request], Future[tuple[Response, Delivery]]]) -> None:
        self._submit = submit

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        return _response(request, *self._submit(_read(request)).result())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        future = self._submit(_read(request))
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # another kind of event loop
            return _response(request, *await anyio.to_thread.run_sync(future.result))
        return _response(request, *await asyncio.wrap_future(future))


def _read(request: httpx.Request) -> Request:
    return Request(
        method=request.method,
        path=request.url.raw_path.partition(b"?")[0],
        query=request.url.query,
        headers={name.lower(): value for name, value in request.headers.raw},
        body=request.content,
    )


def _response(request: httpx.Request, answer: Response, delivery: Delivery) -> httpx.Response:
    if isinstance(answer, Stream):
        raise httpx.UnsupportedProtocol("server-sent events need the server's socket")
    if delivery in _ERRORS:
        error, text = _ERRORS[delivery]
        raise error(text, request=request)
    headers = [
        (b"Content-Type", answer.content_type),
        (b"Content-Length", b"%d" % len(answer.body)),
        *answer.headers,
    ]
    # As a stream, because the caller may read it in parts.
    stream = httpx.ByteStream(b"" if request.method == "HEAD" else answer.body)
    return httpx.Response(answer.status, headers=headers, stream=stream)
