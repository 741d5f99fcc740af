"""What an application receives of a body that a limit has read, and what is read at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from upstash_middleware.asgi import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from upstash_middleware.asgi import Message
    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.anyio

FORM = (b"content-type", b"application/x-www-form-urlencoded")
LEFT: Message = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Server:
    """Gives messages one by one, and counts how many it was asked for."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.received = 0
        self.statuses: list[int] = []
        self.paused: anyio.Event | None = None

    async def receive(self) -> Message:
        if self.paused is not None:
            await self.paused.wait()
        self.received += 1
        return self.messages.pop(0) if self.messages else LEFT

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])


class Site:
    """An application that receives until the client has left, behind a limit by name."""

    def __init__(self, **rule: Any) -> None:
        self.received: list[Message] = []
        self.before: list[int] = []
        rule = {"path": "/login", "limits": "1/hour", "by": "form:name", "deadline": 20} | rule
        self.app = UpstashMiddleware(self.serve, rate_limits=[rule], default_limit=None)
        self.server = Server()

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.before.append(self.server.received)
        self.received = []
        while not self.received or self.received[-1]["type"] == "http.request":
            self.received.append(await receive())
        assert await receive() == LEFT
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def request(self, *messages: Message, path: str = "/login", **more: Any) -> int:
        self.server = Server(*messages)
        await self.app(scope(path, **more), self.server.receive, self.server.send)
        return self.server.statuses[0]

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.received)


def scope(path: str, length: int | None = None, kind: str = "http") -> dict[str, Any]:
    announced = [] if length is None else [(b"content-length", b"%d" % length)]
    return {
        "type": kind,
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": [FORM, *announced],
        "client": ("203.0.113.9", 50000),
    }


@pytest.fixture
async def site(upstash: LocalUpstash) -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.app.runtime.aclose()


async def test_pieces_arrive_as_one_body_and_then_the_client_leaves(site: Site):
    pieces = [piece(b"na"), piece(b""), piece(b"me=a"), piece(b"da", more=False)]
    assert await site.request(*pieces) == 200
    assert (site.body, site.received[-2]["more_body"]) == (b"name=ada", False)
    assert await site.request(piece(b"name=ADA", more=False)) == 429


async def test_of_a_body_without_length_no_more_is_read_than_the_limit(site: Site):
    pieces = [piece(b"name=ada&x="), *[piece(b"x" * 2**15)] * 5, piece(b"end", more=False)]
    assert await site.request(*pieces) == 200
    assert site.before == [3]  # of seven
    assert site.body == b"name=ada&x=" + b"x" * 5 * 2**15 + b"end"
    assert site.received[-2]["more_body"] is False
    assert await site.request(piece(b"name=bob", more=False), length=2**17) == 429


async def test_a_body_that_is_announced_as_too_long_is_left_to_the_application(site: Site):
    """So that a server sends no 100 Continue before the application wants it."""
    assert await site.request(piece(b"name=ada", more=False), length=2**17) == 200
    assert (site.before, site.body) == ([0], b"name=ada")


async def test_other_requests_are_not_received(site: Site):
    assert await site.request(piece(b"name=ada", more=False), path="/other") == 200
    assert (site.before, site.body) == ([0], b"name=ada")


async def test_a_client_that_leaves_in_the_middle_counts_and_the_application_sees_it(site: Site):
    assert await site.request(piece(b"name=ada"), LEFT) == 200
    assert site.received == [piece(b"name=ada"), LEFT]
    assert await site.request(LEFT) == 429
    assert await site.request(piece(b"name=ada", more=False)) == 200


async def test_a_client_that_sends_slowly_delays_nobody_else(site: Site):
    slow = Server(piece(b"name=ada", more=False))
    slow.paused = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(site.app, scope("/login"), slow.receive, slow.send)
        await anyio.wait_all_tasks_blocked()
        assert await site.request(piece(b"name=bob", more=False)) == 200
        assert not slow.statuses
        site.server = slow
        slow.paused.set()
    assert slow.statuses == [200]


async def test_cancelling_while_the_body_is_read_counts_nothing(site: Site):
    slow = Server()
    slow.paused = anyio.Event()
    with anyio.CancelScope() as cancelled:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(site.app, scope("/login"), slow.receive, slow.send)
            await anyio.wait_all_tasks_blocked()
            cancelled.cancel()
    assert (site.before, slow.statuses) == ([], [])
    assert await site.request(LEFT) == 200


async def test_a_handshake_has_no_body_and_counts_with_those_without_a_name(site: Site):
    async def serve(_scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})

    site.app.app = serve
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    for _ in range(2):
        server = Server({"type": "websocket.connect"})
        handshake = scope("/login", kind="websocket")
        del handshake["method"]
        await site.app(handshake, server.receive, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
