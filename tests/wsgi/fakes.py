"""A runtime for threads over fake halves, and a server that calls an application as PEP 3333 says.

The engine is the real one; nothing here speaks to Upstash.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, cast
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from upstash_middleware.core.engine import Engine, Exchange
from upstash_middleware.drivers import run
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.wsgi import Middleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from tests.asgi.fakes import FakeHalf
    from upstash_middleware.core.flow import Flow, Pipeline, Reply
    from upstash_middleware.messages import HTTPRequest

Fields = list[tuple[str, str]]
TEXT: Fields = [("Content-Type", "text/plain")]


class FakeRuntime:
    """A runtime over one fake half."""

    finishes_first = False
    reads_body = False

    def __init__(
        self, half: FakeHalf, *, enabled: bool = True, features: Features = Features.BOTH
    ) -> None:
        self.enabled = enabled
        self.features = features
        self.engine = Engine([half], observe=_unexpected)
        self.inners: list[FakeRuntime | None] = []
        self.observed: list[object] = []

    def observe(self, event: object) -> None:
        self.observed.append(event)

    def begin(self, request: HTTPRequest, inner: FakeRuntime | None = None) -> Exchange:
        self.inners.append(inner)
        return run(self.engine.begin(request, inner.engine if inner else None), self)

    def finish(self, exchange: Exchange, *, complete: bool) -> None:
        self.perform(exchange.finish(complete=complete))

    def perform(self, flow: Flow[None] | None) -> None:
        if flow is not None:
            run(flow, self)

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        return [None for _ in pipeline.commands]


def around(
    app: WSGIApplication,
    half: FakeHalf,
    features: Features = Features.BOTH,
    *,
    enabled: bool = True,
) -> Middleware:
    """Put the middleware around an application, with a fake runtime behind it."""
    return Middleware(app, cast("Runtime", FakeRuntime(half, enabled=enabled, features=features)))


def checked(app: WSGIApplication, half: FakeHalf) -> WSGIApplication:
    """Put the middleware between two validators: it is a server to one, an application to one."""
    return validator(around(validator(app), half))


def environ_of(method: str = "GET", path: str = "/", **changes: Any) -> WSGIEnvironment:
    """Return the environ of a plain request; ``changes`` are keys of it."""
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "REMOTE_ADDR": "203.0.113.9",
        "HTTP_HOST": "shop.example",
        "wsgi.input": BytesIO(),
        **changes,
    }
    setup_testing_defaults(environ)
    return environ


class Server:
    """The server's side of one request, and what it got, in order."""

    def __init__(self) -> None:
        self.status = ""
        self.fields: Fields = []
        self.pieces: list[bytes] = []
        self.iterable: Iterable[bytes] = ()

    def start_response(
        self, status: str, headers: Fields, exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        if exc_info is not None and any(self.pieces):
            raise exc_info[1]
        assert exc_info is not None or not self.status, "started twice"
        self.status, self.fields = status, headers
        return self.pieces.append

    def call(self, app: WSGIApplication, environ: WSGIEnvironment | None = None) -> Iterable[bytes]:
        self.iterable = app(environ_of() if environ is None else environ, self.start_response)
        return self.iterable

    def take(self) -> bytes:
        """Take the next piece."""
        piece = next(iter(self.iterable))
        self.pieces.append(piece)
        return piece

    def close(self) -> None:
        close = getattr(self.iterable, "close", None)
        if close is not None:
            close()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    def field(self, name: str) -> str | None:
        return next((value for field, value in self.fields if field == name), None)


def served(app: WSGIApplication, environ: WSGIEnvironment | None = None) -> Server:
    """Carry a whole request to an application, as a server does."""
    server = Server()
    server.call(app, environ)
    try:
        server.pieces.extend(server.iterable)
    finally:
        server.close()
    return server


def replying(*pieces: bytes, status: str = "200 OK", fields: Fields = TEXT) -> WSGIApplication:
    """Return an application that answers a list of pieces."""

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, list(fields))
        return list(pieces)

    return app


def unused(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
    """Stand where a test expects no call."""
    raise AssertionError("the application was called")


def _unexpected(event: object) -> None:
    raise AssertionError(event)
