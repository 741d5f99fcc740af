"""The contract's application in Starlette, spoken to in raw ASGI as a server does."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import anyio
import anyio.from_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.contract.neutral import Answer, Seen, limited
from upstash_middleware import Warmed, awarm, starlette

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.from_thread import BlockingPortal
    from starlette.requests import Request

    from tests.contract.neutral import Fields, Handler, Layers, Limits, Reply, Served
    from upstash_middleware.asgi import Message, Scope

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class _Starlette:
    """A Backend; see ``neutral``."""

    name = "starlette"

    @contextmanager
    def serve(self, handler: Handler, layers: Layers, limits: Limits) -> Iterator[Served]:
        endpoint = limited(endpoint_of(handler), starlette.limit, limits)
        app = Starlette(
            routes=[Route("/{path:path}", endpoint, methods=list(_METHODS))],
            middleware=[Middleware(getattr(starlette, name), **given) for name, given in layers],
        )
        # The test client runs the lifespan; requests are made below, byte by byte.
        with TestClient(app) as client:
            assert client.portal is not None
            yield ServedByASGI(app, client.portal)


STARLETTE = _Starlette()


def endpoint_of(handler: Handler) -> Any:
    async def endpoint(request: Request) -> Response:
        reply = await run_in_threadpool(handler, seen_of(request, await request.body()))
        return response_of(reply)

    return endpoint


def seen_of(request: Request, body: bytes) -> Seen:
    cache = getattr(request.state, "cache", None)
    return Seen(
        method=request.method,
        path=request.url.path,
        query=request.url.query,
        headers=tuple(request.headers.items()),
        body=body,
        cookies=request.cookies.get,
        rate_limit=getattr(request.state, "rate_limit", None),
        purge=None if cache is None else partial(_purge, cache),
    )


def _purge(cache: starlette.CacheHandle, *urls: str, **options: Any) -> None:
    anyio.from_thread.run(partial(cache.purge, *urls, **options))


def response_of(reply: Reply) -> Response:
    response: Response
    if isinstance(reply.body, bytes):
        response = Response(reply.body)
        length = response.raw_headers
    else:
        response, length = StreamingResponse(iter(reply.body)), []
    response.status_code = reply.status
    response.raw_headers = [*_raw(reply.headers), *length]
    return response


class ServedByASGI:
    """A Served whose requests run to their end in the portal's event loop."""

    def __init__(self, app: Starlette, portal: BlockingPortal) -> None:
        self._app = app
        self._portal = portal

    def request(
        self,
        method: str,
        target: str,
        headers: Fields = (),
        body: bytes = b"",
        *,
        peer: str = "203.0.113.9",
        host: str = "shop.example",
        root_path: str = "",
        announced: bool = True,
    ) -> Answer:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1" if announced else "2",
            "method": method,
            "scheme": "http",
            "path": root_path + unquote(path),
            "raw_path": (root_path + path).encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": root_path,
            "headers": _request_headers(headers, body if announced else b"", host),
            "client": (peer, 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        return self._portal.call(_exchanged, self._app, scope, body)

    def warm(self, *urls: str, **options: Any) -> list[Warmed]:
        return self._portal.call(partial(awarm, self._app, urls, **options))


def _request_headers(headers: Fields, body: bytes, host: str) -> list[tuple[bytes, bytes]]:
    length = (("content-length", str(len(body))),) if body else ()
    return _raw((("host", host), *length, *headers))


def _raw(fields: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]


async def _exchanged(app: Starlette, scope: Scope, body: bytes) -> Answer:
    sent: list[Message] = []
    told: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    ended = anyio.Event()

    async def receive() -> Message:
        if told:
            return told.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            ended.set()

    try:
        await app(scope, receive, send)
    except Exception:
        if not sent:  # Starlette answers 500 and then tells the server what was raised
            raise
    return _answer(scope["method"], sent)


def _answer(method: str, sent: list[Message]) -> Answer:
    """Read the messages as a server does, which leaves out the body of an answer to HEAD."""
    start, *pieces = sent
    fields = start["headers"]
    return Answer(
        start["status"],
        tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields),
        b"" if method == "HEAD" else b"".join(piece.get("body", b"") for piece in pieces),
    )
