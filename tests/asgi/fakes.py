"""A half of the engine and a runtime that answer as a test says and remember what they saw.

The engine between them is the real one; nothing here speaks to Upstash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio

from upstash_middleware.asgi import Middleware
from upstash_middleware.core.engine import Engine, Exchange, Part, PartExchange
from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.drivers import arun
from upstash_middleware.messages import Headers, HTTPRequest, Response, ResponseHead
from upstash_middleware.runtime import Features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from upstash_middleware.asgi import ASGIApp, Message, Scope
    from upstash_middleware.core.flow import Flow, Reply
    from upstash_middleware.runtime import Runtime


class FakeHalf(PartExchange, Part):
    """A half of the engine, and its own exchange: it serves one request."""

    def __init__(
        self,
        *,
        response: Response | None = None,
        head: Callable[[ResponseHead], ResponseHead | Response] = lambda head: head,
        forward: Callable[[HTTPRequest], HTTPRequest] = lambda request: request,
        decision: object = None,
        stands_in: Response | None = None,
        renews: Callable[[], object] | None = None,
    ) -> None:
        self.holds = renews is not None
        self.watches = True
        self._renews = renews or unused
        self._stands_in = stands_in
        self.response = response
        self.decision: Any = decision
        self._head = head
        self._forward = forward
        self.requests: list[HTTPRequest] = []
        self.heads: list[ResponseHead] = []
        self.chunks: list[bytes] = []
        self.finished: list[bool] = []
        self.settled = 0
        """How many times what is left after the last byte has been done."""

    async def prepare(self, request: HTTPRequest) -> FakeHalf:
        self.requests.append(request)
        await Command(("ASK",))
        return self

    def request_to_forward(self, request: HTTPRequest) -> HTTPRequest:
        return self._forward(request)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        self.heads.append(head)
        return self._head(head)

    def failed(self) -> Response | None:
        return self._stands_in

    def chunk(self, data: bytes) -> None:
        self.chunks.append(data)

    async def renewal(self) -> None:
        self._renews()
        await Pipeline(())

    def finish(self, *, complete: bool) -> Flow[None]:
        self.finished.append(complete)
        return self._settle()

    async def _settle(self) -> None:
        await Pipeline(())
        self.settled += 1


class FakeRuntime:
    """A runtime over one fake half; ``waits`` is awaited where what is left would be done."""

    features = Features.BOTH
    finishes_first = False
    reads_body = False
    has_limits = True
    caches = False
    late: tuple[()] = ()

    def __init__(
        self,
        half: FakeHalf,
        *,
        enabled: bool = True,
        credentials_error: Exception | None = None,
        waits: Callable[[], Any] | None = None,
    ) -> None:
        self.half = half
        self.enabled = enabled
        self.engine = Engine([half], observe=_unexpected)
        self.closed = 0
        self.inners: list[Any] = []
        self.purged: list[tuple[tuple[str, ...], dict[str, Any]]] = []
        self.observed: list[Any] = []
        self._credentials_error = credentials_error
        self._waits = waits

    def observe(self, event: Any) -> None:
        self.observed.append(event)

    def prepare(self, request: HTTPRequest, inner: FakeRuntime | None = None) -> Flow[Exchange]:
        self.inners.append(inner)
        return self.engine.begin(request, inner.engine if inner else None)

    async def abegun(self, begun: Flow[Exchange]) -> Exchange:
        return await arun(begun, self)

    async def abegin(self, request: HTTPRequest) -> Exchange:
        return await self.abegun(self.prepare(request))

    async def afinish(self, exchange: Exchange, *, complete: bool) -> None:
        await self.aperform_to_end(exchange.finish(complete=complete))

    async def aperform_to_end(self, flow: Flow[None] | None) -> None:
        if flow is not None:
            with anyio.CancelScope(shield=True):  # as the real one does
                await arun(flow, self)

    async def execute(self, pipeline: Pipeline) -> list[Reply]:
        if self._waits is not None and not pipeline.commands:
            await self._waits()
        return [None for _ in pipeline.commands]

    async def apurge(self, *urls: str, **options: Any) -> None:
        self.purged.append((urls, options))

    def purge(self, *urls: str, **options: Any) -> None:
        self.purged.append((urls, options))

    def check_credentials(self) -> None:
        if self._credentials_error is not None:
            raise self._credentials_error

    async def aclose(self) -> None:
        self.closed += 1

    def async_redis(self) -> Any:
        raise AssertionError("no test uses it")


def _unexpected(event: object) -> None:
    raise AssertionError(event)


def around(app: ASGIApp, runtime: FakeRuntime, features: Features = Features.BOTH) -> ASGIApp:
    """Put the middleware around an application, with a fake runtime behind it."""
    runtime.features = features
    return Middleware(app, cast("Runtime", runtime))


def http_scope(**changes: Any) -> dict[str, Any]:
    """Return the scope of a plain GET request as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": ("203.0.113.9", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        **changes,
    }


class Server:
    """The server's side of one scope: what it tells the application and what it was sent."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return self._messages.pop(0)

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


REQUEST_BODY = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT = {"type": "http.disconnect"}


async def call(app: ASGIApp, scope: Scope | None = None, *messages: Message) -> Server:
    """Run an application to its end in one scope and return the server's side."""
    server = Server(*(messages or (REQUEST_BODY, DISCONNECT)))
    await app(scope if scope is not None else http_scope(), server.receive, server.send)
    return server


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    """Return the message that starts a response."""
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(data: bytes = b"", *, more: bool = False) -> Message:
    """Return a message with a piece of the body."""
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages: Message) -> ASGIApp:
    """Return an application that sends these messages and nothing else."""

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


def adding(*pairs: tuple[bytes, bytes]) -> Callable[[ResponseHead], ResponseHead]:
    """Return what adds header fields to a response's head."""
    return lambda head: ResponseHead(head.status, head.headers.adding(*pairs))


def whole(status: int, data: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    """Return a response that the engine gives itself."""
    return Response(ResponseHead(status, Headers(headers)), data)


def unused(*_: object) -> Any:
    """Stand where a test expects no call."""
    raise AssertionError("the application was called")


never = cast("ASGIApp", unused)
