"""An application for real WSGI servers: the same pages through the middleware, and alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Flask, Response

from upstash_middleware import CacheRule, RateLimitRule, flask
from upstash_middleware.wsgi import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

TEXT = [("Content-Type", "text/plain")]
_fails: set[str] = set()


def listed(*pieces: bytes) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """Return an application that answers a list."""

    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        return list(pieces)

    return app


def stream(_: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Answer two pieces."""
    start_response("200 OK", list(TEXT))
    return iter([b"one ", b"two"])


def written(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Write two pieces, and return a third."""
    write = start_response("200 OK", list(TEXT))
    write(b"one ")
    write(b"two ")
    return [b"three"]


def fails_later(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a page that may be used stale; once ``/fail`` has been asked for, half of another."""
    fields = [*TEXT, ("Cache-Control", "max-age=600, stale-if-error=600")]
    start_response("200 OK", fields)
    if not _fails:
        return [b"page"]

    def pieces() -> Iterator[bytes]:
        yield b"half "
        raise OSError("the database is away")

    return pieces()


def fail(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Have ``/fails-later`` be stale, and fail."""
    _fails.add("fails")
    environ["upstash_middleware.cache"].purge("/fails-later", soft=True)
    start_response("200 OK", list(TEXT))
    return [b"it fails now"]


PAGES: dict[str, Any] = {
    "/empty": listed(),
    "/one": listed(b"one"),
    "/many": listed(b"one ", b"two ", b"three"),
    "/stream": stream,
    "/written": written,
    "/fails-later": fails_later,
    "/fail": fail,
}


def alone(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a page."""
    page: Iterable[bytes] = PAGES[environ["PATH_INFO"]](environ, start_response)
    return page


through = UpstashMiddleware(
    alone,
    rate_limits=[RateLimitRule("/{rest:path}", "1 at once; 100000/hour", name="slot")],
    default_limit=None,
    cache=[CacheRule("/stream", ttl=60), CacheRule("/fails-later")],
    deadline=20.0,
    cache_deadline=20.0,
)

limited = Flask(__name__)


@limited.get("/limited/text")
@flask.limit("1 at once", name="text")
def text() -> str:
    """Answer a text."""
    return "text"


@limited.get("/limited/file")
@flask.limit("1 at once", name="file")
def file() -> Response:
    """Answer a file, which a server may read itself."""
    from flask import send_file  # noqa: PLC0415

    return send_file(__file__, mimetype="text/plain")


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer through the middleware; below ``/alone`` without it, below ``/limited`` by Flask."""
    path = environ["PATH_INFO"]
    if path.startswith("/alone"):
        return alone({**environ, "PATH_INFO": path.removeprefix("/alone")}, start_response)
    if path.startswith("/limited"):
        return limited(environ, start_response)
    return through(environ, start_response)
