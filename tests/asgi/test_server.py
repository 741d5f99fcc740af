"""Under a real server: bytes arrive when they are sent, and what is stored is what was whole."""

from __future__ import annotations

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from websockets.sync.client import connect

from tests.asgi.serving import PATIENCE, served_by_uvicorn
from upstash_middleware import CacheRule
from upstash_middleware.runtime import Runtime
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from upstash_middleware.local import LocalUpstash


def guarded(*routes: Any, path: str = "/page") -> Starlette:
    """Return an application with a limit and a cache around these routes."""
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(
                UpstashMiddleware,
                default_limit="1000/hour",
                cache=[CacheRule(path, ttl=60)],
                deadline=PATIENCE,
                cache_deadline=PATIENCE,
            )
        ],
    )


async def until(event: threading.Event) -> None:
    """Wait for an event of another thread without holding up this one's event loop."""
    await anyio.to_thread.run_sync(event.wait, PATIENCE, abandon_on_cancel=True)


def piecemeal(*pieces: str, media_type: str = "text/plain") -> tuple[Route, threading.Event]:
    """Return a route that sends its first piece, then waits for the event before each other."""
    go = threading.Event()

    async def stream() -> AsyncIterator[str]:
        yield pieces[0]
        for piece in pieces[1:]:
            await until(go)
            go.clear()
            yield piece

    async def endpoint(_: Request) -> Response:
        return StreamingResponse(stream(), media_type=media_type)

    return Route("/page", endpoint), go


def test_the_first_byte_does_not_wait_for_the_second(upstash: LocalUpstash):
    route, go = piecemeal("one", "two")
    with served_by_uvicorn(guarded(route)) as port:
        url = f"http://127.0.0.1:{port}/page"
        with httpx.stream("GET", url, timeout=PATIENCE) as response:
            pieces = response.iter_raw()
            assert next(pieces) == b"one"
            go.set()
            assert next(pieces) == b"two"
            assert list(pieces) == []
        second = httpx.get(url, timeout=PATIENCE)
    assert second.text == "onetwo"
    assert "; hit" in second.headers["cache-status"], "it was stored although it was streamed"


def test_server_sent_events_pass_one_by_one_while_the_stream_is_open(upstash: LocalUpstash):
    route, go = piecemeal(*[f"data: {n}\n\n" for n in range(4)], media_type="text/event-stream")
    with (
        served_by_uvicorn(guarded(route)) as port,
        httpx.stream("GET", f"http://127.0.0.1:{port}/page", timeout=PATIENCE) as response,
    ):
        events = response.iter_text()
        for number in range(4):
            assert next(events) == f"data: {number}\n\n"
            go.set()
    assert upstash.bill().by_command.get("SET", 0) == 1, "the counter's; the stream is not stored"


def test_a_background_task_delays_neither_the_first_byte_nor_the_last(upstash: LocalUpstash):
    done = threading.Event()
    go = threading.Event()

    async def task() -> None:
        await until(go)
        done.set()

    async def endpoint(_: Request) -> Response:
        return PlainTextResponse("page", background=BackgroundTask(task))

    with served_by_uvicorn(guarded(Route("/page", endpoint))) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/page", timeout=PATIENCE).text == "page"
        assert not done.is_set()
        go.set()
        assert done.wait(PATIENCE)


def test_what_is_done_after_the_last_byte_does_not_delay_it(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    go = threading.Event()
    perform = Runtime.aperform_to_end

    async def held_up(runtime: Runtime, flow: Any) -> None:
        with anyio.CancelScope(shield=True):  # as aperform_to_end itself does
            await until(go)
        await perform(runtime, flow)

    monkeypatch.setattr(Runtime, "aperform_to_end", held_up)
    route, _ = piecemeal("page")
    with served_by_uvicorn(guarded(route)) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/page", timeout=PATIENCE).text == "page"
        assert upstash.bill().by_command["SET"] == 1, "the counter's: nothing is stored yet"
        go.set()
    assert upstash.bill().by_command["SET"] == 2


def test_a_client_that_leaves_half_way_leaves_nothing_in_the_cache(upstash: LocalUpstash):
    route, go = piecemeal("one", "two", "three")
    app, ended = guarded(route), threading.Event()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        if scope["type"] == "http":
            ended.set()

    with served_by_uvicorn(watched) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
            client.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while b"one" not in received:
                received += client.recv(4096)
        assert ended.wait(PATIENCE)
        assert upstash.bill().by_command["SET"] == 1, "the counter's"
        go.set()


def test_what_passes_through_a_websocket_is_neither_touched_nor_counted(upstash: LocalUpstash):
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text.upper())

    with (
        served_by_uvicorn(guarded(WebSocketRoute("/echo", echo))) as port,
        connect(f"ws://127.0.0.1:{port}/echo", open_timeout=PATIENCE) as client,
    ):
        upstash.reset_bill()  # the handshake was counted
        for word in ("tea", "coffee"):
            client.send(word)
            assert client.recv(PATIENCE) == word.upper()
    assert upstash.bill().requests == 0


def test_many_requests_at_once_are_counted_one_by_one(upstash: LocalUpstash):
    async def endpoint(_: Request) -> Response:
        return PlainTextResponse("page")

    async def ask_all(port: int) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=PATIENCE) as client:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await client.get(f"http://127.0.0.1:{port}/other"))

            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(ask)
            return answers

    with served_by_uvicorn(guarded(Route("/other", endpoint))) as port:
        answers = anyio.run(ask_all, port)
    remaining = sorted(int(answer.headers["x-ratelimit-remaining"]) for answer in answers)
    assert remaining == list(range(960, 1000))


def test_a_lifespan_without_credentials_says_which_variables_are_missing(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    for name in upstash.env:
        monkeypatch.delenv(name)
    with (
        caplog.at_level(logging.INFO, "uvicorn.error"),
        pytest.raises(SystemExit),
        served_by_uvicorn(guarded()),
    ):
        pass
    assert "UPSTASH_REDIS_REST_URL" in caplog.text
    assert "UPSTASH_REDIS_REST_TOKEN" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "path", [":" * 8000, "%3A" * 2600, "a:" * 4000], ids=["colons", "escaped", "text"]
)
def test_a_request_that_would_make_thousands_of_tags_delays_no_other(
    upstash: LocalUpstash, path: str
):
    """The event loop is everybody's: what one request does there, all others wait for."""

    async def endpoint(_: Request) -> Response:
        return PlainTextResponse("page")

    rule = CacheRule("/products/{id}", ttl=60, tags=("product:{id}", "{id}"))
    other = CacheRule("/{kind}/{rest:path}", ttl=60, tags=("{kind}:{rest}",))
    app = Starlette(
        routes=[Route("/{path:path}", endpoint)],
        middleware=[
            Middleware(
                UpstashMiddleware,
                cache=[rule, other],
                deadline=PATIENCE,
                cache_deadline=PATIENCE,
            )
        ],
    )
    with (
        served_by_uvicorn(app) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        client.get("/products/7")
        longest = []
        for _ in range(3):
            hostile = [
                threads.submit(
                    httpx.get, f"http://127.0.0.1:{port}/{kind}/{path}", timeout=PATIENCE
                )
                for kind in ("products", "pages")
            ]
            waits = [_seconds(lambda: client.get("/products/7")) for _ in range(10)]
            assert "fwd=bypass" in hostile[0].result().headers["cache-status"]
            assert "fwd=bypass" in hostile[1].result().headers["cache-status"]
            longest.append(max(waits))
    assert min(longest) < 5, "each would take longer"


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
