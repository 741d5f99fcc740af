"""On every way out an exchange is finished, once, and it knows whether the response was whole."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from tests.asgi.fakes import (
    DISCONNECT,
    REQUEST_BODY,
    FakeHalf,
    FakeRuntime,
    Server,
    around,
    body,
    call,
    http_scope,
    sending,
    start,
    whole,
)
from upstash_middleware.asgi import STREAM
from upstash_middleware.decorators import Attached
from upstash_middleware.errors import NotConnected

if TYPE_CHECKING:
    from upstash_middleware.asgi import ASGIApp, Message, Receive, Scope, Send
    from upstash_middleware.messages import HTTPRequest

pytestmark = pytest.mark.anyio


class Broken(Exception):
    """What an application of these tests raises."""


def raising_after(*messages) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        raise Broken

    return app


@pytest.mark.parametrize(
    ("messages", "complete"),
    [
        ([], False),
        ([start()], False),
        ([start(), body(b"half", more=True)], False),
        ([start(), body(b"whole")], True),
    ],
    ids=["before the head", "after the head", "half-way", "in a background task"],
)
async def test_an_exception_of_the_application_passes_unchanged(messages, complete):
    half = FakeHalf()
    server = Server(REQUEST_BODY)
    app = around(raising_after(*messages), FakeRuntime(half))
    with pytest.raises(Broken) as raised:
        await app(http_scope(), server.receive, server.send)
    assert raised.value.__context__ is None
    assert server.sent == messages
    assert half.finished == [complete]
    assert half.settled == 1


async def test_a_response_may_stand_in_for_one_that_was_not_begun():
    """RFC 5861 §4; observers get the exception, and the server does not."""
    half = FakeHalf(stands_in=whole(200, b"stale"))
    runtime, server = FakeRuntime(half), Server(REQUEST_BODY)
    await around(raising_after(), runtime)(http_scope(), server.receive, server.send)
    assert server.sent == [start(200), body(b"stale")]
    assert half.finished == [True]
    (event,) = runtime.observed
    assert isinstance(event.error, Broken)


async def test_nothing_stands_in_for_a_response_that_has_begun():
    half = FakeHalf(stands_in=whole(200, b"stale"))
    server = Server(REQUEST_BODY)
    app = around(raising_after(start(201)), FakeRuntime(half))
    with pytest.raises(Broken):
        await app(http_scope(), server.receive, server.send)
    assert server.sent == [start(201)]
    assert half.finished == [False]


@pytest.mark.parametrize(
    "messages",
    [[], [start()], [start(), body(b"half", more=True)]],
    ids=["nothing sent", "head only", "no last piece"],
)
async def test_a_response_that_the_application_never_ends_is_not_whole(messages):
    half = FakeHalf()
    await call(around(sending(*messages), FakeRuntime(half)))
    assert half.finished == [False]


async def test_an_application_that_ends_its_response_early_because_the_client_left_is_not_whole():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"half", more=True))
        while (await receive())["type"] != "http.disconnect":
            pass
        await send(body())

    half = FakeHalf()
    await call(around(app, FakeRuntime(half)), None, REQUEST_BODY, DISCONNECT)
    assert half.finished == [False]


async def test_a_client_that_leaves_after_the_last_byte_leaves_a_whole_response():
    server = Server()
    left = anyio.Event()

    async def send(message) -> None:
        """Behave as a server that wakes those who listen before it returns."""
        server.sent.append(message)
        if message["type"] == "http.response.body":
            left.set()
            await anyio.sleep(0.01)

    async def receive():
        await left.wait()
        return DISCONNECT

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def listen() -> None:
            await receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await send(start())
            await send(body(b"whole"))

    half = FakeHalf()
    await around(app, FakeRuntime(half))(http_scope(), receive, send)
    assert half.finished == [True]


async def test_a_server_that_refuses_the_last_piece_leaves_the_response_short():
    async def refusing(message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has left")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        try:
            await send(body(b"whole"))
        except OSError:
            return

    half = FakeHalf()
    await around(app, FakeRuntime(half))(http_scope(), Server().receive, refusing)
    assert half.finished == [False]
    assert half.chunks == [b"whole"], "nobody who waits for it depends on this client"


async def test_a_server_that_refuses_a_response_of_ours_is_told_once():
    async def refusing(message) -> None:
        raise OSError("the client has left")

    half = FakeHalf(response=whole(429, b"later"))
    app = around(sending(), FakeRuntime(half))
    with pytest.raises(OSError, match="left"):
        await app(http_scope(), Server().receive, refusing)
    assert half.finished == [False]


async def test_a_cancelled_request_is_finished_as_cut_short():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(body(b"half", more=True))
        await anyio.sleep_forever()

    half = FakeHalf()
    with anyio.move_on_after(0.01) as scope:
        await call(around(app, FakeRuntime(half)))
    assert scope.cancelled_caught
    assert half.finished == [False]


@pytest.mark.parametrize("steps", range(12))
async def test_a_request_cancelled_at_any_moment_is_finished_once_and_to_the_end(steps):
    server = SlowServer()
    half = FakeHalf()
    runtime = FakeRuntime(half, waits=anyio.lowlevel.checkpoint)
    app = around(sending(start(), body(b"one", more=True), body(b"two")), runtime)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(running, app, server)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(half.finished) == half.settled == (1 if half.requests else 0)
    if half.finished == [True]:
        assert server.body == b"onetwo"


async def running(app: ASGIApp, server: Server) -> None:
    await app(http_scope(), server.receive, server.send)


class SlowServer(Server):
    """Gives way to others at every message."""

    async def send(self, message) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)


async def test_a_failure_while_finishing_is_not_followed_by_a_second_finish():
    async def broken_wire() -> None:
        raise NotConnected

    events: list[object] = []
    half = FakeHalf()
    runtime = FakeRuntime(half, waits=broken_wire)
    runtime.engine.observe = events.append
    server = await call(around(sending(start(), body(b"whole")), runtime))
    assert server.body == b"whole"
    assert half.finished == [True]
    assert half.settled == 0
    assert len(events) == 1


class Watching(Server):
    """A server that notes whether all was done when each message came."""

    def __init__(self, half: FakeHalf) -> None:
        super().__init__(REQUEST_BODY)
        self._half = half
        self.settled: list[bool] = []

    async def send(self, message: Message) -> None:
        await super().send(message)
        self.settled.append(self._half.settled == 1)


@pytest.mark.parametrize(
    ("messages", "first"),
    [
        ([start(), body(b"whole")], [False, True]),
        ([start(), body(b"a", more=True), body(b"b")], [False, False, True]),
        ([start(), body(b"a", more=True), body()], [False, False, True]),
        (
            [start(200, (b"content-length", b"2")), body(b"a", more=True), body(b"b")],
            [False, False, True],
        ),
        (
            [start(200, (b"content-length", b"1")), body(b"a", more=True), body(b"")],
            [False, True, True],
        ),
    ],
)
@pytest.mark.parametrize("finishes_first", [True, False])
async def test_a_gateway_that_finishes_first_does_so_before_the_last_byte(
    messages, first, finishes_first
):
    """And any other right after it."""
    half = FakeHalf()
    runtime, server = FakeRuntime(half), Watching(half)
    runtime.finishes_first = finishes_first
    await around(sending(*messages), runtime)(http_scope(), server.receive, server.send)
    assert server.sent == messages
    assert server.settled == (first if finishes_first else [False, *first[:-1]])
    assert (half.settled, half.finished) == (1, [True])
    assert b"".join(half.chunks) == server.body


@pytest.mark.parametrize(
    ("messages", "method"),
    [
        ([start(200, (b"content-length", b"5")), body(b"whole")], "HEAD"),
        ([start(200), body()], "HEAD"),
        ([start(200, (b"content-length", b"0")), body()], "GET"),
        ([start(204), body()], "GET"),
        ([start(304), body()], "GET"),
    ],
)
async def test_a_gateway_that_finishes_first_does_so_before_a_head_that_is_all(messages, method):
    """A client may ask again as soon as it has it."""
    half = FakeHalf()
    runtime, server = FakeRuntime(half), Watching(half)
    runtime.finishes_first = True
    scope = http_scope(method=method)
    await around(sending(*messages), runtime)(scope, server.receive, server.send)
    assert server.sent == messages
    assert server.settled == [True, True]
    assert half.finished == [True]


async def test_a_gateway_that_finishes_first_does_so_before_the_trailers_after_no_body():
    half = FakeHalf()
    runtime, server = FakeRuntime(half), Watching(half)
    runtime.finishes_first = True
    messages = [start(200, (b"content-length", b"0"), trailers=True), body()]
    messages.append({"type": "http.response.trailers", "headers": [], "more_trailers": False})
    await around(sending(*messages), runtime)(http_scope(), server.receive, server.send)
    assert server.settled == [False, False, True]


@pytest.mark.parametrize(
    ("ours", "settled"),
    [(whole(304, b""), [True, True]), (whole(200, b"stored"), [False, True])],
    ids=["where that is all", "of what has a body not"],
)
async def test_a_gateway_that_finishes_first_holds_back_the_head_of_ours(ours, settled):
    half = FakeHalf(head=lambda _: ours)
    runtime, server = FakeRuntime(half), Watching(half)
    runtime.finishes_first = True
    await around(sending(start(), body(b"x")), runtime)(http_scope(), server.receive, server.send)
    assert server.settled == settled
    assert half.finished == [True]


class KeptScope(dict[str, Any]):
    """A scope that can be referred to weakly."""


class Forgetful(FakeHalf):
    """A half that keeps no request."""

    async def prepare(self, request: HTTPRequest) -> FakeHalf:
        del request
        return self


async def test_nothing_keeps_a_scope_once_its_request_is_over():
    """A circle would keep it, and all that it leads to, until it is searched for."""

    async def anywhere(*_: Any) -> Any:
        return {"type": "http.request"}

    served = around(sending(start(), body(b"ok")), FakeRuntime(Forgetful()))
    scope = KeptScope(http_scope())
    kept = weakref.ref(scope)
    gc.disable()
    try:
        await served(scope, anywhere, anywhere)
        del scope
        assert kept() is None
    finally:
        gc.enable()


class Interrupted(Attached):
    """What a decorator adds, whose end is interrupted by the task's cancellation."""

    def __init__(self) -> None:
        super().__init__(lambda head: head)
        self.ended = False

    async def afinish(self, *, complete: bool = True) -> None:
        self.ended = complete
        raise asyncio.CancelledError


async def test_the_exchange_is_finished_although_the_end_of_a_decorators_is_cancelled():
    decorators = [Interrupted(), Interrupted()]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for one in decorators:
            scope[STREAM].attach(one)
        await send(start())
        await send(body(b"whole"))

    half = FakeHalf()
    with pytest.raises(asyncio.CancelledError):
        await call(around(app, FakeRuntime(half)))
    assert [one.ended for one in decorators] == [True, True]
    assert half.settled == 1
