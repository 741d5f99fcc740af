"""An exchange ends once, at the first of all its ends, under servers and bridges of all kinds.

``1 at once`` shows a slot that stays taken, and a hit that the response was stored.
"""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import re
import socket
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from asgiref.wsgi import WsgiToAsgi
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from flask import Flask, Response

from tests.django.project import Urls
from tests.patience import patient_environment
from tests.wsgi.ending_app import listed, stream, written
from upstash_middleware import CacheRule, RateLimitRule, django, flask
from upstash_middleware.wsgi import UpstashMiddleware

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would rather not have it
    from starlette.middleware.wsgi import WSGIMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.local import LocalUpstash

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
QUOTA = 1000
COST = 5
LIMITS = f"1 at once; {QUOTA}/hour"
SETTLED: dict[str, Any] = {"name": "r", "settle": lambda _request, _response: COST}
GIVEN: dict[str, Any] = {
    "rate_limits": [RateLimitRule(limits=LIMITS, **SETTLED)],
    "default_limit": None,
    "cache": [CacheRule("/{rest:path}", ttl=60)],
    "deadline": PATIENCE,
    "cache_deadline": PATIENCE,
}


# -- Bridges from ASGI to WSGI, neither of which calls close().

BRIDGES: dict[str, Callable[[Any], Any]] = {"Starlette": WSGIMiddleware, "asgiref": WsgiToAsgi}


CLIENT = [""]
NUMBERS = itertools.count(10)


@contextmanager
def applications(kind: str) -> Iterator[WSGIApplication]:
    """Serve ``/text`` with Content-Length, and ``/stream`` without, to another client each time.

    What the last request of a test has dropped may end when the next test has begun.
    """
    CLIENT[0] = f"203.0.113.{next(NUMBERS)}"
    framework, _, guard = kind.partition(" ")
    if framework == "WSGI":
        pages = {"/text": listed(b"text"), "/stream": stream}
        yield UpstashMiddleware(lambda e, s: pages[e["PATH_INFO"]](e, s), **GIVEN)
    elif framework == "Flask":
        app = Flask(__name__)
        views: dict[str, Any] = {"text": lambda: "text", "stream": _streamed}
        for name, view in views.items():
            limited = flask.limit(LIMITS, **SETTLED)(view) if guard else view
            app.add_url_rule(f"/{name}", name, limited, methods=["GET", "POST"])
        if not guard:
            flask.UpstashMiddleware(app, **GIVEN)
        yield app
    else:
        made: dict[str, Any] = {
            "text": lambda _: HttpResponse("text", headers={"Content-Length": "4"}),
            "stream": lambda _: StreamingHttpResponse(_streaming()),
        }
        if guard:
            made = {name: django.limit(LIMITS, **SETTLED)(view) for name, view in made.items()}
        with override_settings(
            ROOT_URLCONF=Urls(**made),
            MIDDLEWARE=[] if guard else ["upstash_middleware.django.UpstashMiddleware"],
            UPSTASH_MIDDLEWARE={"deadline": PATIENCE} if guard else GIVEN,
        ):
            yield WSGIHandler()


def _streaming() -> Iterator[bytes]:
    yield b"one "
    yield b"two"


def _streamed() -> Response:
    return Response(_streaming(), mimetype="text/plain")


async def ask(
    app: Any, path: str, method: str = "GET", *, leaves_after: int = 1000
) -> tuple[int, dict[str, str]]:
    """Send a request through a bridge; after so many messages ``send`` raises."""
    sent: list[Any] = []
    told = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return told.pop() if told else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if len(sent) >= leaves_after:
            raise OSError("the client has left")
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": (CLIENT[0], 1),
        "server": ("127.0.0.1", 80),
    }
    try:
        await app(scope, receive, send)
    except (OSError, ExceptionGroup):
        assert len(sent) == leaves_after
    fields = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], fields


async def until(app: Any, path: str, method: str = "GET", *, hit: bool = False) -> dict[str, str]:
    """Ask until there is a free slot, and a hit if that is wanted; return the fields."""
    end = time.monotonic() + PATIENCE
    while True:
        status, fields = await ask(app, path, method)
        if status == 200 and (not hit or "; hit;" in fields["cache-status"]):
            return fields
        assert status in {200, 429}
        assert time.monotonic() < end, "the slot stayed taken, or nothing was stored"
        gc.collect()
        await asyncio.sleep(0.01)


async def assert_settled(app: Any, path: str) -> None:
    """Wait for the slot of the only request before, and look what it has cost."""
    fields = await until(app, path, "POST")  # which no cache answers
    (remaining,) = re.findall(r'"r 1h";r=(\d+)', fields["ratelimit"])
    assert QUOTA - int(remaining) - 1 == COST


KINDS = ["WSGI", "Flask", "Flask limit", "Django", "Django limit"]


@pytest.mark.parametrize("path", ["/text", "/stream"])
@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exchange_ends_under_a_bridge_that_closes_nothing(
    upstash: LocalUpstash, kind: str, bridge: str, path: str
):
    async def main(app: Any) -> None:
        await ask(app, path)
        await assert_settled(app, path)

    with applications(kind) as app:
        asyncio.run(main(BRIDGES[bridge](app)))


@pytest.mark.parametrize("path", ["/text", "/stream"])
@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "limit" not in kind])
def test_a_response_is_stored_under_a_bridge_that_closes_nothing(
    upstash: LocalUpstash, kind: str, bridge: str, path: str
):
    async def main(app: Any) -> None:
        await until(app, path, hit=True)

    with applications(kind) as app:
        asyncio.run(main(BRIDGES[bridge](app)))


@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exchange_ends_under_a_bridge_whose_client_leaves(
    upstash: LocalUpstash, kind: str, bridge: str
):
    async def main(app: Any) -> None:
        await ask(app, "/stream", leaves_after=2)
        await assert_settled(app, "/stream")

    with applications(kind) as app:
        asyncio.run(main(BRIDGES[bridge](app)))


# -- A server's start_response may return None instead of a ``write`` (against PEP 3333).


class Server:
    """The server's side of one request; it sends what it is given."""

    def __init__(self, *, writes: bool = True) -> None:
        self._writes = writes
        self.statuses: list[str] = []
        self.fields: dict[str, str] = {}
        self.body = b""
        self.raised: Exception | None = None

    def start_response(self, status: str, fields: list[tuple[str, str]], exc: Any = None) -> Any:
        self.statuses.append(status)
        self.fields = {name.lower(): value for name, value in fields}
        return self._write if self._writes else None

    def _write(self, piece: bytes) -> None:
        self.body += piece

    def ask(self, app: WSGIApplication, path: str, **environ: Any) -> Server:
        iterable: Any = ()
        try:
            iterable = app(environ_of(path, **environ), self.start_response)
            for piece in iterable:
                self.body += piece
        except Exception as error:  # noqa: BLE001 - a server logs it
            self.raised = error
        finally:
            getattr(iterable, "close", lambda: None)()
        return self


def environ_of(path: str, method: str = "GET", **more: Any) -> WSGIEnvironment:
    return {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "203.0.113.9",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        **more,
    }


writing = pytest.mark.parametrize("writes", [True, False], ids=["a write", "no write"])


@writing
@pytest.mark.parametrize("first", [False, True], ids=["stored after", "stored first"])
def test_what_an_application_writes_reaches_the_client(
    upstash: LocalUpstash, writes: bool, first: bool
):
    app = UpstashMiddleware(written, **GIVEN, cache_store_first=first)
    for expected in ("fwd=uri-miss", "hit"):
        server = Server(writes=writes).ask(app, "/page")
        assert server.body == b"one two three"
        assert expected in server.fields["cache-status"]


@writing
def test_an_application_that_raises_after_its_first_piece_gets_no_second_body(
    upstash: LocalUpstash, writes: bool
):
    """And what it has sent of the page is stored for nobody (RFC 5861 §4, RFC 9111 §3.3)."""
    fails: list[bool] = []

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"page"] if not fails else _breaking()

    def _breaking() -> Iterator[bytes]:
        yield b"half "
        raise OSError("the database is away")

    rule = CacheRule("/{rest:path}", ttl=60, stale_if_error=600)
    app = UpstashMiddleware(page, **{**GIVEN, "cache": [rule]})
    assert Server(writes=writes).ask(app, "/page").body == b"page"
    upstash.advance(61)
    fails.append(True)
    server = Server(writes=writes).ask(app, "/page")
    assert (server.body, str(server.raised)) == (b"half ", "the database is away")
    fails.clear()
    server = Server(writes=writes).ask(app, "/page")
    assert server.body == b"page"
    assert "fwd=stale" in server.fields["cache-status"], "the half of a page is not fresh"


@writing
def test_a_head_is_replaced_until_a_byte_is_out_and_then_the_exception_is_raised(
    upstash: LocalUpstash, writes: bool
):
    """PEP 3333, "The start_response() Callable"."""

    def late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"" if environ["PATH_INFO"] == "/early" else b"out"
        try:
            int("no number")
        except ValueError:
            start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
        yield b"sorry"

    app = UpstashMiddleware(late, **GIVEN)
    server = Server(writes=writes).ask(app, "/early")
    assert (server.statuses, server.body) == (["200 OK", "500 Oops"], b"sorry")
    server = Server(writes=writes).ask(app, "/late")
    assert (server.statuses, server.body) == (["200 OK"], b"out")
    assert isinstance(server.raised, ValueError)


# -- Code outside of the middleware sees what the application does to the environ.


def test_code_outside_finds_in_the_environ_what_the_application_has_put_there(
    upstash: LocalUpstash,
):
    """Also while the cache validates, when the application sees other fields."""
    inside: list[Any] = []
    outside: list[Any] = []

    def page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        inside.append(environ.get("HTTP_IF_NONE_MATCH"))
        environ["app.route"] = "page"
        fields = [("Content-Type", "text/plain"), ("ETag", '"1"'), ("Cache-Control", "max-age=60")]
        start_response("304 Not Modified" if inside[-1] else "200 OK", fields)
        return [] if inside[-1] else [b"page"]

    app = UpstashMiddleware(page, default_limit=None, cache=[CacheRule("/page")], **PATIENT)

    def outer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(*arguments: Any) -> Any:
            outside.append((environ.get("app.route"), environ.get("HTTP_IF_NONE_MATCH")))
            return start_response(*arguments)

        return app(environ, start)

    assert Server().ask(outer, "/page").body == b"page"
    upstash.advance(61)
    assert Server().ask(outer, "/page").body == b"page"
    assert inside == [None, '"1"']
    assert outside == [("page", None)] * 2


PATIENT: dict[str, Any] = {"deadline": PATIENCE, "cache_deadline": PATIENCE}


# -- Real servers.

WSGIREF = """
from wsgiref.simple_server import make_server
from tests.wsgi.ending_app import app
make_server("127.0.0.1", PORT, app).serve_forever()
"""
COMMANDS: dict[str, list[str]] = {
    "gunicorn": ["-m", "gunicorn", "--bind", "127.0.0.1:PORT", "--log-level", "critical"],
    "granian": [
        "-m",
        "granian",
        "--interface",
        "wsgi",
        "--port",
        "PORT",
        "--log-level",
        "critical",
    ],
    "waitress": ["-m", "waitress", "--listen", "127.0.0.1:PORT", "--threads", "2"],
    "wsgiref": ["-c", WSGIREF],
}


@pytest.fixture(params=COMMANDS, scope="module")
def server(
    request: pytest.FixtureRequest, upstash_server: LocalUpstash
) -> Iterator[tuple[str, httpx.Client]]:
    """Each server, in a process of its own, and a client that keeps its connection alive."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [word.replace("PORT", port) for word in COMMANDS[request.param]]
    target = [] if request.param == "wsgiref" else ["tests.wsgi.ending_app:app"]
    process = subprocess.Popen(
        [sys.executable, *command, *target],
        cwd=ROOT,
        env=patient_environment() | upstash_server.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
        ) as client:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    client.get("/alone/one")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < until
                    assert process.poll() is None, "the server did not start"
                    time.sleep(0.05)
            yield request.param, client
    finally:
        process.terminate()
        process.wait(30)


def answered(client: httpx.Client, path: str) -> httpx.Response:
    """Ask until a slot is free: a server may end a response before it calls close()."""
    until = time.monotonic() + PATIENCE
    while (response := client.get(path)).status_code == 429:
        assert time.monotonic() < until, "the slot stayed taken"
        time.sleep(0.01)
    return response


@pytest.mark.parametrize("path", ["/empty", "/one", "/many", "/stream", "/written"])
def test_each_server_sends_what_the_application_gives(server: tuple[str, httpx.Client], path: str):
    name, client = server
    response = answered(client, f"{path}?not-stored-by-another-test")
    if (name, path) != ("granian", "/written"):  # where it fails alone
        alone = client.get(f"/alone{path}")
        assert (response.status_code, response.content) == (alone.status_code, alone.content)
        framing = ["content-length", "transfer-encoding"]
        if name == "granian":
            assert [response.headers.get(each) for each in framing] == [
                alone.headers.get(each) for each in framing
            ]
    else:
        assert response.content == b"one two three"


@pytest.mark.parametrize("path", ["/limited/text", "/limited/file"])
def test_a_limit_in_front_of_a_flask_view_gives_its_slot_back(
    server: tuple[str, httpx.Client], path: str
):
    """A file may be closed by the server itself, which calls nothing of the response's."""
    _, client = server
    for _ in range(3):
        assert answered(client, path).status_code == 200


def test_a_stream_is_stored_by_each_server(server: tuple[str, httpx.Client]):
    _, client = server
    until = time.monotonic() + PATIENCE
    while "hit" not in answered(client, "/stream").headers["cache-status"]:
        assert time.monotonic() < until, "it was never stored"
        time.sleep(0.01)


def test_a_page_that_breaks_off_is_neither_repaired_nor_stored(server: tuple[str, httpx.Client]):
    _, client = server
    assert answered(client, "/fails-later").text == "page"
    answered(client, "/fail")
    for _ in range(2):
        try:
            until = time.monotonic() + PATIENCE
            response = client.get("/fails-later")
            while response.status_code == 429 and time.monotonic() < until:
                response = client.get("/fails-later")
        except httpx.RemoteProtocolError:
            continue  # the connection was cut, as it has to be
        assert response.text == "half "
        assert "hit" not in response.headers["cache-status"]


def test_files_of_django_end_their_exchange_where_the_server_reads_them(upstash: LocalUpstash):
    """``wsgi.file_wrapper``: the server closes the file, and with it the response."""
    wrapped: list[Any] = []

    def wrapper(file: Any, block_size: int) -> Any:
        wrapped.append(file)
        return iter(lambda: file.read(block_size), b"")

    view: Any = lambda _: FileResponse(open(__file__, "rb"))  # noqa: E731, PTH123, SIM115 - closed by Django
    with override_settings(
        ROOT_URLCONF=Urls(page=view),
        MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
        UPSTASH_MIDDLEWARE=GIVEN,
    ):
        app = WSGIHandler()
        for _ in range(2):
            server = Server().ask(app, "/page", **{"wsgi.file_wrapper": wrapper})
            assert server.statuses == ["200 OK"]
            wrapped.pop().close()
