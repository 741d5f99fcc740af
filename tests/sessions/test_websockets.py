"""Sessions of WebSockets: a snapshot of the handshake, saved by the handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tests.sessions.site import SECRET, stored_keys
from upstash_middleware.starlette import SessionMiddleware, UpstashMiddleware, session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.websockets import WebSocket

    from upstash_middleware.local import LocalUpstash


class Chat:
    """A page that shows and stores entries, and a WebSocket that does what a test says."""

    def __init__(self) -> None:
        self.connected: Callable[[WebSocket], Awaitable[None]] | None = None

    async def socket(self, websocket: WebSocket) -> None:
        assert self.connected is not None
        await self.connected(websocket)

    async def page(self, request: Request) -> Response:
        request.session.update(request.query_params)
        return JSONResponse(dict(request.session))


@pytest.fixture
def chat() -> Chat:
    return Chat()


@pytest.fixture(params=["alone", "with limits"])
def browser(request: pytest.FixtureRequest, chat: Chat, upstash: LocalUpstash) -> TestClient:
    app = Starlette(routes=[WebSocketRoute("/chat", chat.socket), Route("/", chat.page)])
    if request.param == "alone":
        app.add_middleware(SessionMiddleware, secret_key=SECRET, redis=upstash, breaker=False)
    else:
        app.add_middleware(
            UpstashMiddleware,
            sessions={"secret_key": SECRET},
            default_limit="99/hour",
            redis=upstash,
            breaker=False,
        )
    return TestClient(app)


def connects(chat: Chat, browser: TestClient, connected: Callable[[Any], Any]) -> None:
    """Connect, and stay connected until the handler is done."""
    failed: list[BaseException] = []

    async def handle(websocket: WebSocket) -> None:
        try:
            await connected(websocket)
        except BaseException as error:
            failed.append(error)
            raise

    chat.connected = handle
    try:
        with browser.websocket_connect("/chat") as socket:
            socket.receive_text()
    finally:
        if failed and isinstance(failed[0], AssertionError):
            raise failed[0]


def test_it_reads_a_snapshot_and_saves_when_told_to(chat: Chat, browser: TestClient) -> None:
    browser.get("/?name=ada")

    async def connected(websocket: WebSocket) -> None:
        await websocket.accept()
        assert dict(session(websocket)) == {"name": "ada"}
        websocket.session["seen"] = [1]
        await session(websocket).save()
        websocket.session["seen"].append(2)
        await session(websocket).save()
        websocket.session["dropped"] = True
        await websocket.send_text("bye")
        await websocket.close()

    connects(chat, browser, connected)
    assert browser.get("/").json() == {"name": "ada", "seen": [1, 2]}


def test_it_does_not_write_over_what_a_request_stored_meanwhile(
    chat: Chat, browser: TestClient, upstash: LocalUpstash
) -> None:
    from tests.sessions.site import ask  # noqa: PLC0415

    browser.get("/?name=ada")

    async def connected(websocket: WebSocket) -> None:
        await websocket.accept()
        (key,) = stored_keys(upstash)
        ask(upstash, "HSET", key, "=name", '"grace"')
        websocket.session["seen"] = 1
        await session(websocket).save()
        await websocket.send_text("bye")
        await websocket.close()

    connects(chat, browser, connected)
    assert browser.get("/").json() == {"name": "grace", "seen": 1}


def test_a_session_that_is_created_before_it_is_accepted_gets_its_cookie(
    chat: Chat, browser: TestClient
) -> None:
    async def connected(websocket: WebSocket) -> None:
        websocket.session["a"] = 1
        await websocket.accept()
        websocket.session["b"] = 2
        await session(websocket).save()
        await websocket.send_text("bye")
        await websocket.close()

    chat.connected = connected
    with browser.websocket_connect("/chat") as socket:
        socket.receive_text()
        fields = dict(cast("Any", socket).extra_headers)
    value = fields[b"set-cookie"].decode().partition(";")[0].partition("=")[2]
    browser.cookies.set("session", value)
    assert browser.get("/").json() == {"a": 1, "b": 2}


@pytest.mark.parametrize("name", ["a first entry", "a login"])
def test_what_would_need_a_cookie_afterwards_raises(
    chat: Chat, browser: TestClient, upstash: LocalUpstash, name: str
) -> None:
    if name == "a login":
        browser.get("/?name=ada")
    before = stored_keys(upstash)

    async def connected(websocket: WebSocket) -> None:
        await websocket.accept()
        if name == "a login":
            session(websocket).bind("ada")
        else:
            websocket.session["a"] = 1
        with pytest.raises(RuntimeError, match="before the WebSocket is accepted"):
            await session(websocket).save()
        await websocket.send_text("bye")
        await websocket.close()

    connects(chat, browser, connected)
    assert stored_keys(upstash) == before


def test_a_logout_is_possible_at_any_time(
    chat: Chat, browser: TestClient, upstash: LocalUpstash
) -> None:
    browser.get("/?name=ada")

    async def connected(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.session.clear()
        await session(websocket).save()
        await websocket.send_text("bye")
        await websocket.close()

    connects(chat, browser, connected)
    assert stored_keys(upstash) == []


def test_a_login_that_fails_refuses_the_handshake_and_sends_nothing_after_it(
    chat: Chat, browser: TestClient, upstash: LocalUpstash
) -> None:
    browser.get("/?name=ada")

    async def connected(websocket: WebSocket) -> None:
        upstash.set_faults(fault="drop-before")
        session(websocket).bind("ada")
        await websocket.accept()
        await websocket.send_text("you are logged in")
        await websocket.close()

    chat.connected = connected
    with pytest.raises(WebSocketDisconnect) as closed, browser.websocket_connect("/chat"):
        pass
    assert closed.value.code == 1013
    upstash.set_faults()
    assert browser.get("/").json() == {"name": "ada"}


def test_it_opens_without_a_session_during_an_outage(
    chat: Chat, browser: TestClient, upstash: LocalUpstash
) -> None:
    browser.get("/?name=ada")
    seen: list[Any] = []

    async def connected(websocket: WebSocket) -> None:
        await websocket.accept()
        seen.append((session(websocket).available, dict(websocket.session)))
        await websocket.send_text("bye")
        await websocket.close()

    with upstash.faults(fault="drop-before"):
        connects(chat, browser, connected)
    assert seen == [(False, {})]
    assert browser.get("/").json() == {"name": "ada"}
