"""A transport for httpx that reaches a local Upstash without a socket.

Only httpx's side of a request may live here; the weather shows as the exceptions that httpx
raises for it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio.to_thread
import httpx

from upstash_middleware.local.messages import Answer, Request, Response, Stream
from upstash_middleware.local.weather import Manner

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future


class InProcessTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Carries the requests of `httpx.Client` and `httpx.AsyncClient` to a server's own thread.

    Server-sent events cannot be carried; asking for them raises httpx.UnsupportedProtocol.
    """

    def __init__(self, submit: Callable[[Request], Future[tuple[Response, Manner]]]) -> None:
        self._submit = submit

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Called by `httpx.Client`."""
        request.read()
        return _deliver(request, *self._submit(_read(request)).result())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Called by `httpx.AsyncClient`."""
        await request.aread()
        answering = self._submit(_read(request))
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # another kind of event loop
            return _deliver(request, *await anyio.to_thread.run_sync(answering.result))
        return _deliver(request, *await asyncio.wrap_future(answering))


def _read(request: httpx.Request) -> Request:
    return Request(
        method=request.method,
        path=request.url.raw_path.partition(b"?")[0],
        query=request.url.query,
        headers={name.lower(): value for name, value in request.headers.raw},
        body=request.content,
    )


def _deliver(request: httpx.Request, response: Response, manner: Manner) -> httpx.Response:
    if isinstance(response, Stream):
        response.close()
        raise httpx.UnsupportedProtocol("server-sent events need the server's socket")
    match manner:
        case Manner.REFUSE:
            raise httpx.ConnectError("Connection refused", request=request)
        case Manner.DROP:
            raise httpx.RemoteProtocolError(
                "Server disconnected without sending a response.", request=request
            )
        case Manner.TRUNCATE:
            raise httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body", request=request
            )
        case Manner.STALL | Manner.TRICKLE:
            raise httpx.ReadTimeout("The read operation timed out", request=request)
        case Manner.WHOLE:
            return _whole(response, bodiless=request.method == "HEAD")


def _whole(answer: Answer, *, bodiless: bool) -> httpx.Response:
    length = b"%d" % len(answer.body)
    headers = [
        (b"Content-Type", answer.content_type),
        (b"Content-Length", length),
        *answer.headers,
    ]
    # As a stream, so that who asked may read it as it comes, too.
    stream = httpx.ByteStream(b"" if bodiless else answer.body)
    return httpx.Response(answer.status, headers=headers, stream=stream)
