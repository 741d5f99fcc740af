"""``wsgiref.validate`` outside and inside of the middleware, under the standard library's server.

Each application is served alone and through the middleware; what the server sent, what it was
raised, and how often the application's iterable was closed must be the same, but for the fields
that the middleware adds. The request is then repeated: what is stored must be the same body.
"""

from __future__ import annotations

import email
import io
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from wsgiref.handlers import SimpleHandler
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from flask import Flask, Response, request, send_file

from tests.django.project import Urls
from upstash_middleware import CacheRule, flask
from upstash_middleware.wsgi import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.local import LocalUpstash

PATIENT: dict[str, Any] = {"deadline": 20.0, "cache_deadline": 20.0}
_RULES: dict[str, Any] = {
    "default_limit": "1000/minute; 50 at once",
    "cache": [CacheRule("/{rest:path}", ttl=60, stale_if_error=60)],
}
MODES: dict[str, dict[str, Any]] = {
    "limits": {"default_limit": "1000/minute; 50 at once", **PATIENT},
    "limits and cache": {**_RULES, **PATIENT},
    "stored first": {**_RULES, **PATIENT, "cache_store_first": True},
    "conforming": {**_RULES, **PATIENT, "cache_profile": "conforming"},
    "dead Upstash": {**_RULES, "url": "http://127.0.0.1:9", "token": "none"},
}
ADDED = {
    "age",
    "cache-status",
    "ratelimit",
    "ratelimit-policy",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
}
TEXT = [("Content-Type", "text/plain")]


class Broken(Exception):
    """What the applications raise."""


class Body:
    """An iterable that counts how often it is closed, and raises where a piece is an exception."""

    def __init__(self, closed: list[int], *pieces: bytes | Exception) -> None:
        self._closed = closed
        self._pieces = iter(pieces)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self._closed.append(1)


CLOSED: list[int] = []
"""One entry for each call of a ``close``."""


def one_piece(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])
    return [b"whole"]


def nothing(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])
    return []


def pieces(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])
    return (b"one ", b"", b"two")


def announced(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("Content-Length", "7")])
    return Body(CLOSED, b"one ", b"two")


def generator(_: WSGIEnvironment, start: StartResponse) -> Iterator[bytes]:
    start("200 OK", [*TEXT])
    try:
        yield b"one "
        yield b"two"
    finally:
        CLOSED.append(1)


def file(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("Content-Length", "30")])
    wrapper: Any = environ.get("wsgi.file_wrapper", FileWrapper)
    return wrapper(io.BytesIO(b"0123456789" * 3), 8)  # type: ignore[no-any-return]


def written(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    write = start("200 OK", [*TEXT])
    write(b"one ")
    write(b"two ")
    return Body(CLOSED, b"three")


def written_alone(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])(b"all")
    return []


def echo(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("201 Created", [*TEXT])
    return [b"got ", environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]


def no_content(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("204 No Content", [])
    return Body(CLOSED)


def not_modified(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("304 Not Modified", [("ETag", '"1"')])
    return []


def raises(_: WSGIEnvironment, _start: StartResponse) -> Iterable[bytes]:
    raise Broken("before the head")


def raises_after_the_head(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])
    raise Broken("after the head")


def raises_before_a_piece(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])
    return Body(CLOSED, Broken("before the first piece"))


def raises_after_a_piece(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("Content-Length", "7")])
    return Body(CLOSED, b"one ", Broken("after the first piece"))


def raises_after_the_last_byte(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT, ("Content-Length", "4")])
    return Body(CLOSED, b"one ", Broken("after the last byte"))


def raises_after_writing(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])(b"one ")
    raise Broken("after writing")


def changes_its_mind(_: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
    start("200 OK", [*TEXT])
    try:
        raise Broken  # noqa: TRY301
    except Broken:
        start("500 Oops", [*TEXT], sys.exc_info())
    return [b"sorry"]


def changes_its_mind_late(_: WSGIEnvironment, start: StartResponse) -> Iterator[bytes]:
    start("200 OK", [*TEXT])
    yield b"one "
    try:
        raise Broken("late")  # noqa: TRY301
    except Broken:
        start("500 Oops", [*TEXT], sys.exc_info())
    yield b"sorry"


PLAIN: list[WSGIApplication] = [
    one_piece,
    nothing,
    pieces,
    announced,
    generator,
    file,
    written,
    written_alone,
    echo,
    no_content,
    not_modified,
    raises,
    raises_after_the_head,
    raises_before_a_piece,
    raises_after_a_piece,
    raises_after_the_last_byte,
    raises_after_writing,
    changes_its_mind,
    changes_its_mind_late,
]


@dataclass
class Sent:
    """What the server has sent and was raised."""

    status: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    raised: list[str] = field(default_factory=list)
    closed: int = 0

    def without_added(self, *more: str) -> Sent:
        fields = [(n, v) for n, v in self.fields if n.lower() not in ADDED | set(more)]
        return Sent(self.status, sorted(fields), self.body, self.raised, self.closed)


class Handler(SimpleHandler):
    """A server that keeps what it is raised instead of logging it."""

    raised: list[str]

    def log_exception(self, exc_info: tuple[Any, Any, TracebackType | None]) -> None:
        self.raised.append(repr(exc_info[1]))


def serve(
    app: WSGIApplication, method: str, path: str, *, wraps_files: bool, condition: str = ""
) -> Sent:
    CLOSED.clear()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "REMOTE_ADDR": "203.0.113.9",
    }
    if condition:
        environ["HTTP_IF_NONE_MATCH"] = condition
    body = b"hello" if method == "POST" else b""
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
    setup_testing_defaults(environ)
    # A server sets those itself, some of them to what is not allowed twice.
    environ = {key: value for key, value in environ.items() if not key.startswith("wsgi.")}
    output, errors = io.BytesIO(), io.StringIO()
    handler = Handler(io.BytesIO(body), output, errors, environ)
    handler.os_environ = {}
    handler.raised = []
    if not wraps_files:
        handler.wsgi_file_wrapper = None
    handler.run(app)
    head, _, content = output.getvalue().partition(b"\r\n\r\n")
    status, _, fields = head.decode("latin-1").partition("\r\n")
    parsed = email.message_from_string(fields)
    parsed_fields = [(name, value) for name, value in parsed.items() if name != "Date"]
    content = b"" if method == "HEAD" else content  # as a server for HTTP leaves it out
    return Sent(status, parsed_fields, content, handler.raised, len(CLOSED))


def compare(
    alone: WSGIApplication, through: WSGIApplication, method: str, *, wraps_files: bool = False
) -> None:
    """Send a request to both, and repeat it to the second."""
    path = "/page"
    expected = serve(alone, method, path, wraps_files=wraps_files)
    assert all("Broken" in each or "Division" in each for each in expected.raised), expected
    sent = serve(through, method, path, wraps_files=wraps_files)
    # Of a list, a server tells the length itself; of what is behind the middleware it cannot.
    length = () if "Content-Length" in dict(expected.fields) else ("content-length",)
    assert sent.without_added(*length) == expected.without_added()
    again = serve(through, method, path, wraps_files=wraps_files)
    assert (again.status, again.body) == (expected.status, expected.body)
    assert again.raised in (expected.raised, []), "nothing is raised of what is stored"


methods = pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
modes = pytest.mark.parametrize("mode", MODES)


@methods
@modes
@pytest.mark.parametrize("app", PLAIN, ids=lambda app: app.__name__)
def test_a_wsgi_application_is_served_as_without_the_middleware(
    upstash: LocalUpstash, app: WSGIApplication, mode: str, method: str
):
    middleware = UpstashMiddleware(validator(app), **MODES[mode])
    compare(validator(app), validator(middleware), method)
    middleware.runtime.close()


@methods
@modes
def test_a_file_is_served_as_without_the_middleware_by_a_server_that_reads_files(
    upstash: LocalUpstash, mode: str, method: str
):
    """Without validators, behind which no server sees its own wrapper."""
    middleware = UpstashMiddleware(file, **MODES[mode])
    compare(file, middleware, method, wraps_files=True)
    middleware.runtime.close()


def tagged(how: str) -> WSGIApplication:
    """Return an application whose page has an ETag and a known length."""

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        fields = [*TEXT, ("ETag", '"v"'), ("Content-Length", "6")]
        write = start("200 OK", fields)
        if how == "written":
            write(b"abc")
            return [b"def"]
        if how == "file":
            wrapper = environ.get("wsgi.file_wrapper", FileWrapper)
            wrapped: Iterable[bytes] = wrapper(io.BytesIO(b"abcdef"))
            return wrapped
        return Body(CLOSED, b"abc", b"def") if how == "pieces" else [b"abcdef"]

    return app


@pytest.mark.parametrize("mode", ["limits and cache", "stored first"])
@pytest.mark.parametrize("how", ["list", "pieces", "written", "file"])
def test_a_304_in_place_of_a_page_that_is_stored_has_no_body(
    upstash: LocalUpstash, how: str, mode: str
):
    """RFC 9110 §15.4.5."""
    middleware = UpstashMiddleware(validator(tagged(how)), **MODES[mode])
    app = validator(middleware)
    sent = serve(app, "GET", "/page", wraps_files=False, condition='"v"')
    assert (sent.status, sent.body, sent.raised) == ("HTTP/1.0 304 Not Modified", b"", [])
    assert sent.closed == (how == "pieces")
    stored = serve(app, "GET", "/page", wraps_files=False)
    assert "; hit" in dict(stored.fields)["cache-status"]
    assert stored.body == b"abcdef"
    middleware.runtime.close()


def flask_app() -> Flask:
    app = Flask(__name__)
    app.logger.disabled = True

    @app.route("/<kind>", methods=["GET", "POST"])
    def view(kind: str) -> Any:
        kind = request.args.get("kind", kind)
        return FLASK[kind]()

    return app


def _streamed(*pieces: bytes | Exception) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


def _text(answer: Any) -> Any:
    return Response(answer, mimetype="text/plain")


FLASK: dict[str, Any] = {
    "text": lambda: _text("text"),
    "file": lambda: send_file(io.BytesIO(b"0123456789" * 5_000), mimetype="text/plain"),
    "stream": lambda: _text(_streamed(b"one ", b"two")),
    "broken": lambda: _text(_streamed(b"one ", Broken("late"))),
    "raises": lambda: 1 / 0,
    "echo": lambda: _text(request.get_data()),
    "limited": flask.limit("1000/minute; 50 at once", name="flask")(lambda: _text("limited")),
    "limited file": flask.limit("1000/minute; 50 at once", name="file")(
        lambda: send_file(io.BytesIO(b"0123456789" * 5_000), mimetype="text/plain")
    ),
}


@methods
@modes
@pytest.mark.parametrize("kind", FLASK)
def test_a_flask_application_is_served_as_without_the_middleware(
    upstash: LocalUpstash, kind: str, mode: str, method: str
):
    def rooted(app: WSGIApplication) -> WSGIApplication:
        def call(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            environ["QUERY_STRING"] = f"kind={kind.replace(' ', '+')}"
            return app(environ, start)

        return call

    alone, through = flask_app(), flask_app()
    through.wsgi_app = validator(through.wsgi_app)  # type: ignore[assignment]
    extension = flask.UpstashMiddleware(through, **MODES[mode])
    compare(rooted(validator(alone)), rooted(validator(through)), method)
    through.extensions["upstash_middleware"][extension].runtime.close()


def _file_response() -> FileResponse:
    return FileResponse(io.BytesIO(b"0123456789" * 5_000), content_type="text/plain")


DJANGO: dict[str, Any] = {
    "text": lambda _: HttpResponse("text", content_type="text/plain"),
    "pieces": lambda _: HttpResponse([b"one ", b"two"], content_type="text/plain"),
    "file": lambda _: _file_response(),
    "stream": lambda _: StreamingHttpResponse(
        _streamed(b"one ", b"two"), content_type="text/plain"
    ),
    "broken": lambda _: StreamingHttpResponse(
        _streamed(b"one ", Broken("late")), content_type="text/plain"
    ),
    "raises": lambda _: 1 / 0,
    "echo": lambda request: HttpResponse(request.body, content_type="text/plain"),
    "no content": lambda _: _without_type(HttpResponse(status=204)),
}


def _without_type(response: HttpResponse) -> HttpResponse:
    del response["Content-Type"]
    return response


@methods
@modes
@pytest.mark.parametrize(
    ("kind", "wraps_files"), [*((kind, False) for kind in DJANGO), ("file", True)]
)
def test_a_django_project_is_served_as_without_the_middleware(
    upstash: LocalUpstash, kind: str, mode: str, method: str, wraps_files: bool
):
    with override_settings(ROOT_URLCONF=Urls(anything=DJANGO[kind])):
        alone = WSGIHandler()
        with override_settings(
            MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
            UPSTASH_MIDDLEWARE=MODES[mode],
        ):
            through = WSGIHandler()
            if wraps_files:
                compare(alone, through, method, wraps_files=True)
            else:
                compare(validator(alone), validator(through), method)
