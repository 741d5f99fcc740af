"""When an exchange ends in ASGI, and what the server and code outside get to see of it."""

from __future__ import annotations

import asyncio
import gc
import http.client
import logging
import re
import subprocess
import sys
import textwrap
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.asgi.fakes import REQUEST_BODY, Server, body, call, http_scope, start
from tests.asgi.serving import PATIENCE, served_by_uvicorn
from tests.upstash.raw_server import answer, raw_server
from upstash_middleware import CacheRule, events, starlette
from upstash_middleware.asgi import UpstashMiddleware

if TYPE_CHECKING:
    from starlette.requests import Request

    from upstash_middleware.asgi import Message, Receive, Scope, Send
    from upstash_middleware.local import LocalUpstash

PATIENT: dict[str, Any] = {"deadline": PATIENCE, "cache_deadline": PATIENCE}


class Flaky:
    """An application that answers a page once, and then raises; ASGI, and Starlette's endpoint."""

    def __init__(self) -> None:
        self.calls = 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls > 1:
            raise OSError("the database is away")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("none here")
        if scope["path"] == "/page":
            self._call()
        await send(start(200, (b"content-type", b"text/plain"), (b"content-length", b"4")))
        await send(body(b"page"))

    async def endpoint(self, request: Request) -> Response:
        self._call()
        return PlainTextResponse("page")


@pytest.mark.parametrize("kind", ["ASGI", "Starlette"])
def test_after_an_exception_that_a_stale_page_stands_in_for_the_connection_stays_open(
    upstash: LocalUpstash, kind: str, caplog: pytest.LogCaptureFixture
):
    """RFC 5861 §4; observers get the exception, as in the other frameworks."""
    observed: list[Any] = []
    flaky = Flaky()
    given: dict[str, Any] = {
        "cache": [CacheRule("/page", ttl=60, stale_if_error=600)],
        "default_limit": None,
        "observers": [observed.append],
        **PATIENT,
    }
    if kind == "ASGI":
        app: Any = UpstashMiddleware(flaky, **given)
    else:
        routes = [
            Route("/page", flaky.endpoint),
            Route("/other", lambda _: PlainTextResponse("page")),
        ]
        app = Starlette(routes=routes)
        app.add_middleware(starlette.UpstashMiddleware, **given)
    with caplog.at_level(logging.ERROR), served_by_uvicorn(app, lifespan="off") as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.connect()
        sock = connection.sock
        for path, seconds in [("/page", 61), ("/page", 0), ("/other", 0), ("/page", 0)]:
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"page")
            assert connection.sock is sock, "the server has closed the connection"
            upstash.advance(seconds)
        connection.close()
    assert flaky.calls > 1
    (failed, *_) = [e for e in observed if isinstance(e, events.UserCodeFailed)]
    assert str(failed.error) == "the database is away"
    assert not [r for r in caplog.records if r.name.startswith("uvicorn")], "it was not raised"


@pytest.mark.anyio
async def test_while_the_cache_validates_code_outside_finds_what_the_application_has_found(
    upstash: LocalUpstash,
):
    """Starlette's router puts its route into the scope, which metrics and tracing read."""
    inside: list[Any] = []
    found: list[Any] = []

    async def page(request: Request) -> Response:
        inside.append(request.headers.get("if-none-match"))
        fields = {"etag": '"1"', "cache-control": "max-age=60"}
        return Response(b"" if inside[-1] else b"page", 304 if inside[-1] else 200, fields)

    app = Starlette(routes=[Route("/page/{id}", page)])
    cached = UpstashMiddleware(app, default_limit=None, cache=[CacheRule("/page/{id}")], **PATIENT)

    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        async def watching_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                found.append(list(scope["headers"]))
            await send(message)

        await cached(scope, receive, watching_send)
        found.append((scope["endpoint"], scope["path_params"], list(scope["headers"])))

    clients = [(b"host", b"shop.example")]
    for _ in range(2):
        server = await call(outside, http_scope(path="/page/7", raw_path=b"/page/7"))
        assert server.body == b"page"
        upstash.advance(61)
    assert inside == [None, '"1"']
    assert found == [clients, (page, {"id": "7"}, clients)] * 2
    await cached.runtime.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("first", [False, True], ids=["stored after", "stored first"])
async def test_a_response_ends_with_its_last_announced_byte(upstash: LocalUpstash, first: bool):
    """Whatever the application does afterwards, and although it has sent no end."""
    hits: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"text/plain"), (b"content-length", b"7")))
        await send(body(b"one ", more=True))
        await send(body(b"two", more=True))
        if not hits:
            hits.append(b"asked")
            server = await call(served, http_scope())  # the slot is free, and the page stored
            hits[:] = [dict(server.sent[0]["headers"])[b"cache-status"]]
        await send(body())

    served = UpstashMiddleware(
        app,
        default_limit="1 at once",
        cache=[CacheRule("/{rest:path}", ttl=60)],
        cache_store_first=first,
        **PATIENT,
    )
    assert (await call(served, http_scope())).body == b"one two"
    assert b"; hit;" in hits[0]
    await served.runtime.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "messages",
    [
        [start(200, (b"content-length", b"5")), body(b"saved")],
        [start(200), body(b"saved")],
        [start(200), body(b"sav", more=True), body(b"ed")],
        [
            start(200, trailers=True),
            body(b"saved"),
            {"type": "http.response.trailers", "headers": [], "more_trailers": False},
        ],
    ],
    ids=["with its length", "in one piece", "in two pieces", "with trailers"],
)
async def test_with_store_first_a_change_has_invalidated_the_page_before_its_last_message(
    upstash: LocalUpstash, messages: list[Message]
):
    """A client that has the whole response may ask another process for the page (RFC 9111 §4.4)."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await send(start(200, (b"content-type", b"text/plain")))
            await send(body(b"page"))
            return
        for message in messages:
            await send(message)

    given: dict[str, Any] = {"default_limit": None, "cache_store_first": True, **PATIENT}
    given["cache"] = [CacheRule("/{rest:path}", ttl=60)]
    changing, other = UpstashMiddleware(app, **given), UpstashMiddleware(app, **given)
    hits: list[bool] = []

    async def get() -> None:
        server = await call(other, http_scope())
        hits.append(b"; hit;" in dict(server.sent[0]["headers"])[b"cache-status"])

    async def send(message: Message) -> None:
        if message == messages[-1]:
            await get()

    await get()
    await get()
    await changing(http_scope(method="POST"), Server(REQUEST_BODY).receive, send)
    assert hits == [False, True, False]
    for served in (changing, other):
        await served.runtime.aclose()


@pytest.mark.anyio
async def test_a_response_that_is_begun_twice_is_not_stored(upstash: LocalUpstash):
    """A server refuses the second head; an error handler may swallow that and go on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"text/plain")))
        await send(body(b"half ", more=True))
        with suppress(Exception):
            await send(start(500, (b"cache-control", b"private")))
        await send(body(b"error page"))

    served = UpstashMiddleware(app, cache=[CacheRule("/{rest:path}", ttl=60)], **PATIENT)
    for _ in range(2):
        server = await call(served, http_scope())
        assert b"hit" not in dict(server.sent[0]["headers"])[b"cache-status"]
    await served.runtime.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("length", [0, 9], ids=["empty", "with a body"])
async def test_what_an_application_sends_once_its_client_has_left_is_for_nobody_else(
    upstash: LocalUpstash, length: int
):
    """It may be cut short, although it ends in good order; nor does the process keep it."""
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert (await receive())["type"] == "http.request"
            assert (await receive())["type"] == "http.disconnect"
            group.start_soon(ask)
            await anyio.sleep(0.05)  # it waits for this one's response
        await send(
            start(200, (b"content-type", b"text/plain"), (b"content-length", b"%d" % length))
        )
        await send(body(b"x" * length))

    async def ask() -> None:
        answer = await call(served, http_scope())
        said.append(dict(answer.sent[0]["headers"])[b"cache-status"])

    said: list[bytes] = []
    served = UpstashMiddleware(app, cache=[CacheRule("/{rest:path}", ttl=60)], **PATIENT)
    async with anyio.create_task_group() as group:
        await call(served, http_scope())
    assert calls == 2
    await ask()
    assert b"collapsed" not in said[0]
    assert b"; hit;" in said[1]
    await served.runtime.aclose()


@pytest.mark.anyio
async def test_a_response_whose_client_leaves_with_its_last_byte_answers_nobody_who_comes_later(
    upstash: LocalUpstash,
):
    """It has come whole, and those who waited for it have it; the process keeps it no longer."""
    calls = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await send(start(200, (b"content-type", b"text/plain"), (b"content-length", b"4")))
        await send(body(b"page"))

    async def leave(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client is gone")

    served = UpstashMiddleware(app, cache=[CacheRule("/{rest:path}", ttl=60)], **PATIENT)
    with pytest.raises(OSError, match="gone"):
        await served(http_scope(), no_body, leave)
    assert (
        b"collapsed"
        not in dict((await call(served, http_scope())).sent[0]["headers"])[b"cache-status"]
    )
    assert calls == 2
    await served.runtime.aclose()


@pytest.mark.parametrize("limits", ["1000/hour; 1 at once", "1000/hour"])
@pytest.mark.parametrize("hanging", ["the head", "a piece", "the last piece"])
def test_a_request_ends_although_the_server_never_takes_its_response(
    upstash: LocalUpstash, hanging: str, limits: str
):
    """As hypercorn, if the client of a stream of HTTP/2 opens no window and leaves."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["rate_limit"].charge(4)
        await send(start(200, (b"content-length", b"8")))
        await send(body(b"one ", more=True))
        await send(body(b"two "))

    served = UpstashMiddleware(app, default_limit=limits, **PATIENT)
    count = {"the head": 1, "a piece": 2, "the last piece": 3}[hanging]

    async def main() -> None:
        left, sent = asyncio.Event(), []

        async def receive() -> Message:
            if not told:
                told.append(True)
                return await no_body()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if len(sent) == count:
                await asyncio.Event().wait()

        told: list[bool] = []
        stuck = asyncio.ensure_future(served({**http_scope(), "http_version": "2"}, receive, send))
        while len(sent) < count:  # noqa: ASYNC110 - it is the application that is waited for
            await asyncio.sleep(0.001)
        left.set()
        passed = 0
        # One each, and what the first has charged; each of the others charges as much.
        while await remaining() != 1000 - 5 - 5 * passed - 1:
            passed += 1
            await asyncio.sleep(0.02)
        stuck.cancel()
        with suppress(asyncio.CancelledError):
            await stuck
        await served.runtime.aclose()

    async def remaining() -> int:
        while (answer := await call(served, http_scope())).sent[0]["status"] == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        field = dict(answer.sent[0]["headers"])[b"ratelimit"]
        return max(map(int, re.findall(rb"r=([0-9]+)", field)))

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_an_application_receives_its_request_while_the_server_does_not_take_the_head(
    upstash: LocalUpstash,
):
    """What is received to learn whether the client has left is the application's all the same."""
    uploaded = b""
    taken = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            nonlocal uploaded
            await anyio.sleep(1.1)  # by now the server is asked whether the client has left
            uploaded = (await receive())["body"]
            taken.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await send(start(200, (b"content-length", b"2")))
        await send(body(b"ok"))

    async def main() -> None:
        messages = [{"type": "http.request", "body": b"upload", "more_body": False}]

        async def receive() -> Message:
            await asyncio.sleep(1.3)
            if not messages:
                await asyncio.Event().wait()
            return messages.pop()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                await taken.wait()

        await served({**http_scope(), "http_version": "2"}, receive, send)
        await served.runtime.aclose()

    served = UpstashMiddleware(app, default_limit="20/hour", **PATIENT)
    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert uploaded == b"upload"


async def no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


FIRST_REQUESTS = """
import asyncio
import os
import sys

opened = []
watching = False


def hook(event, arguments):
    if watching and event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])


sys.addaudithook(hook)

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.asgi import UpstashMiddleware
from upstash_middleware.starlette import limit


async def page(request):
    return PlainTextResponse("page", headers={"vary": "accept-language"})


async def change(request):
    await request.state.cache.purge(tags=("a",), soft=True)
    return PlainTextResponse("changed")


@limit("10/minute; 3 at once")
async def guarded(request):
    return PlainTextResponse("guarded")


alone = Starlette(routes=[Route("/guarded", guarded)])
app = UpstashMiddleware(
    Starlette(routes=[Route("/page", page), Route("/page", change, methods=["PUT"])]),
    default_limit=RateLimitRule(limits="10/minute; 3 at once", settle=lambda *_: 2),
    cache=[CacheRule("/page", ttl=60, tags=("a",))],
    cache_lock=True,
)


async def ask(app, method, path):
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            fields = dict(message["headers"])
            assert message["status"] == 200, message
            assert b"ratelimit" in fields or b"cache-status" in fields, fields

    await app({
        "type": "http", "method": method, "path": path, "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"shop.example")], "client": ("203.0.113.9", 1),
    }, receive, send)


async def main():
    global watching
    watching = True
    for method in ("GET", "GET", "PUT", "GET"):
        await ask(app, method, "/page")
    await ask(alone, "GET", "/guarded")
    watching = False


asyncio.run(main())
print([name for name in opened if not name.endswith((".py", ".pyc", ".so"))])
"""


def test_no_request_reads_a_file_on_the_event_loop(upstash: LocalUpstash):
    """Other than modules that are imported: scripts are read when the middleware is made."""
    command = [sys.executable, "-c", textwrap.dedent(FIRST_REQUESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_without_a_lifespan_no_unclosed_socket_is_reported(upstash: LocalUpstash, backend: str):
    """However often an event loop begins and ends."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"page"))

    async def main(served: Any) -> list[bytes]:
        servers = [await call(served, http_scope()) for _ in range(2)]
        return [dict(server.sent[0]["headers"])[b"x-ratelimit-remaining"] for server in servers]

    served = UpstashMiddleware(app, default_limit="10/hour", **PATIENT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left = [anyio.run(main, served, backend=backend) for _ in range(2)]
        del served
        gc.collect()
    assert left == [[b"9", b"8"], [b"7", b"6"]]
    assert [str(each.message) for each in caught if each.category is ResourceWarning] == []


@pytest.mark.anyio
async def test_a_response_of_which_the_server_refused_a_piece_is_not_stored(upstash: LocalUpstash):
    """An application may pass over the error and end its response in good order."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"text/plain")))
        for piece in (b"one ", b"two ", b"three"):
            with suppress(OSError):
                await send(body(piece, more=True))
        await send(body())

    refused: list[Message] = []

    async def refusing(message: Message) -> None:
        if message.get("body") == b"two ":
            refused.append(message)
            raise OSError("the client is gone")

    served = UpstashMiddleware(app, cache=[CacheRule("/{rest:path}", ttl=60)], **PATIENT)
    await served(http_scope(), no_body, refusing)
    assert refused
    answer = await call(served, http_scope())
    assert b"; hit" not in dict(answer.sent[0]["headers"])[b"cache-status"]
    await served.runtime.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("flag", [b"7", b"-1"])
async def test_an_answer_that_says_neither_allowed_nor_denied_is_no_denial(flag: bytes):
    """The rule's policy decides, as after any failure of Upstash."""
    time = b"*2\r\n$10\r\n1790000000\r\n$1\r\n0\r\n"
    figures = b"*6\r\n:%b\r\n:1\r\n:1\r\n:1\r\n:1\r\n:1\r\n" % flag
    with raw_server(answer(figures + time)) as upstash:
        served = UpstashMiddleware(sending_page, default_limit="9/hour", url=upstash.url, token="t")
        answered = (await call(served, http_scope())).sent[0]
        assert answered["status"] == 200
        assert upstash.requests
        await served.runtime.aclose()


async def sending_page(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start(200, (b"content-length", b"4")))
    await send(body(b"page"))
