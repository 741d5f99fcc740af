"""The wire over sockets, for threads and event loops: its connections, and what is left of them.

Warnings are errors, so no test leaves a socket behind that nobody has closed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio
import pytest
import uvloop

from tests.upstash.listening import answered, listening, next_request
from tests.upstash.raw_server import Behaviour, Connection, RawServer, answer, raw_server, silent
from upstash_middleware.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import Credentials, Response, sockets
from upstash_middleware.upstash.protocol import Call
from upstash_middleware.upstash.sockets import (
    AsyncSocketsTransport,
    Lookup,
    SocketsTransport,
    addresses_in,
    interleave_families,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    Send = Callable[..., Response]

CALL = Call("/", (), b'["GET","k"]')
KIND = "application/octet-stream"
ONE = Response(200, KIND, b":1\r\n")
A_ONE = answer(b":1\r\n")


def credentials(url: str) -> Credentials:
    return Credentials(url, "a-token")


@contextmanager
def sending(kind: str, url: str) -> Iterator[Send]:
    """Yield what sends a call, or CALL, from a thread or on one event loop."""
    if kind == "threads":
        transport = SocketsTransport(credentials(url))
        yield lambda call=CALL, seconds=20.0: transport.send(call, seconds)
        transport.close()
        return
    over_loops = AsyncSocketsTransport(credentials(url))
    factory = uvloop.new_event_loop if kind == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda call=CALL, seconds=20.0: runner.run(over_loops.send(call, seconds))
        runner.run(over_loops.aclose())


@pytest.fixture(params=["threads", "asyncio", "uvloop"])
def to(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Return what opens a transport to a URL."""
    return lambda url: sending(request.param, url)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a coroutine on an event loop of its own."""
    return request.param  # type: ignore[no-any-return]


# A call


@pytest.mark.parametrize("size", [0, 1, 200_000, 5_000_000])
def test_calls_and_answers_of_any_size_arrive_whole(to, size):
    def echo(connection: socket.socket, _ended: threading.Event) -> None:
        with connection:
            while (body := next_request(connection)) is not None:
                connection.sendall(answered(body))

    body = os.urandom(size)
    with listening(echo) as port, to(f"http://127.0.0.1:{port}") as send:
        for _ in range(2):
            assert send(Call("/", (), body)) == Response(200, KIND, body)


@pytest.mark.parametrize("event", ["call", "return"])
@pytest.mark.parametrize(
    "where", ["on_header", "on_headers_complete", "on_body", "on_message_complete"]
)
def test_what_the_handler_of_a_signal_raises_is_raised_while_a_response_is_read(where, event):
    """It is raised wherever the interpreter is at that moment, here by its profiler."""

    def interrupt(frame: FrameType, kind: str, _argument: object) -> None:
        if kind == event and frame.f_code.co_name == where:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with raw_server(A_ONE) as server:
        transport = SocketsTransport(credentials(server.url))
        sys.setprofile(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                transport.send(CALL, 20.0)
        finally:
            sys.setprofile(None)
        assert transport.send(CALL, 20.0) == ONE
        assert server.connections == 2
        transport.close()


def test_an_answer_may_come_in_chunks_and_after_interim_ones(to):
    async def behave(connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n")
        await connection.write(b"Content-Type: application/octet-stream\r\n")
        await connection.write(b"Transfer-Encoding: chunked\r\n\r\n2\r\n:1\r\n")
        await asyncio.sleep(0.01)
        await connection.write(b"2;x=y\r\n\r\n\r\n0\r\n\r\n")

    with raw_server(behave) as server, to(server.url) as send:
        assert [send(), send()] == [ONE, ONE]
        assert server.connections == 1


def test_an_ipv6_address_is_one(to):
    def serve(connection: socket.socket, _ended: threading.Event) -> None:
        with connection:
            next_request(connection)
            connection.sendall(answered(b":1\r\n", b"Connection: close"))

    try:
        with listening(serve, "::1") as port, to(f"http://[::1]:{port}") as send:
            assert send() == ONE
    except OSError:
        pytest.skip("this machine has no IPv6")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a reset discards what has come")
def test_an_answer_that_came_instead_of_reading_the_whole_call_is_the_answer(to):
    def refuses(connection: socket.socket, _ended: threading.Event) -> None:
        with connection:
            connection.recv(1000)
            connection.sendall(answered(b"too large"))

    with listening(refuses) as port, to(f"http://127.0.0.1:{port}") as send:
        for _ in range(2):
            assert send(Call("/", (), b"x" * 20_000_000)).body == b"too large"


def test_a_server_that_stops_reading_costs_the_deadline(to):
    def stops(connection: socket.socket, ended: threading.Event) -> None:
        with connection:
            ended.wait(30)

    with listening(stops) as port, to(f"http://127.0.0.1:{port}") as send:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            send(Call("/", (), b"x" * 20_000_000), 0.4)
        assert 0.35 < time.monotonic() - began < 20


def test_what_no_request_can_carry_is_a_value_error_and_opens_nothing(to):
    with raw_server(A_ONE) as server, to(server.url) as send:
        with pytest.raises(ValueError, match="path"):
            send(Call("/a b", (), b""))
        assert server.connections == 0


# The connections between two calls


@pytest.mark.parametrize("said", [b"Connection: close\r\n", b"Connection: x, Close\r\n"])
def test_a_connection_that_is_announced_to_close_is_not_used_again(to, said):
    with raw_server(answer(b":1\r\n", headers=said)) as server, to(server.url) as send:
        for _ in range(3):
            assert send() == ONE
        assert server.connections == 3


def test_a_connection_over_which_something_came_unasked_is_not_used_again(to):
    spoken = threading.Event()

    async def speaks(connection: Connection) -> None:
        await A_ONE(connection)
        await asyncio.sleep(0.05)
        await connection.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        spoken.set()

    with raw_server(speaks) as server, to(server.url) as send:
        for number in range(1, 4):
            assert send() == ONE
            assert spoken.wait(20)
            spoken.clear()
            assert server.connections == number


def test_a_connection_that_was_reset_while_it_idled_costs_no_call(to):
    was_reset = threading.Event()

    async def resets(connection: Connection) -> None:
        await A_ONE(connection)
        await asyncio.sleep(0.02)
        connection.reset()
        await connection.ended()
        was_reset.set()

    with raw_server(resets) as server, to(server.url) as send:
        for _ in range(3):
            assert send() == ONE
            assert was_reset.wait(20)
            was_reset.clear()
            time.sleep(0.05)
        assert len(server.requests) == 3


def test_a_connection_that_takes_nothing_any_more_was_not_connected(to, monkeypatch):
    """The server has seen nothing of the call, so that it may be sent again."""

    def serve(connection: socket.socket, _ended: threading.Event) -> None:
        next_request(connection)
        connection.sendall(answered(b":1\r\n"))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    monkeypatch.setattr(sockets.Connection, "is_usable", lambda self: self.wait(20))
    with listening(serve) as port, to(f"http://127.0.0.1:{port}") as send:
        assert send() == ONE
        with pytest.raises(NotConnected):
            send()
        assert send() == ONE


def test_a_connection_that_has_idled_too_long_is_not_used_again(to, monkeypatch):
    slept = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + slept)
    monkeypatch.setattr(sockets, "time", clock)
    with raw_server(A_ONE) as server, to(server.url) as send:
        for expected, sleep in ((1, 20.0), (1, 20.0), (1, 26.0), (2, 0.0)):
            assert send() == ONE
            assert server.connections == expected
            slept += sleep


def at_once(transport: SocketsTransport, number: int) -> None:
    with ThreadPoolExecutor(number) as threads:
        calls = [threads.submit(transport.send, CALL, 20.0) for _ in range(number)]
        assert [call.result() for call in calls] == [ONE] * number


def together(number: int) -> Behaviour:
    """Response none before so many are there."""
    barrier = asyncio.Barrier(number)

    async def behave(connection: Connection) -> None:
        await barrier.wait()
        await A_ONE(connection)

    return behave


def test_as_many_connections_are_opened_as_calls_are_made_at_once():
    with raw_server(together(5)) as server:
        transport = SocketsTransport(credentials(server.url))
        for _ in range(3):
            at_once(transport, 5)
        assert server.connections == 5
        transport.close()


def test_no_more_connections_idle_than_are_allowed(monkeypatch):
    monkeypatch.setattr(sockets, "IDLE_CONNECTIONS", 2)
    with raw_server(together(5)) as server:
        transport = SocketsTransport(credentials(server.url))
        at_once(transport, 5)
        at_once(transport, 5)
        assert server.connections == 8
        transport.close()


def test_those_that_have_idled_too_long_are_closed_by_whoever_returns_one(monkeypatch):
    slept = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + slept)
    monkeypatch.setattr(sockets, "time", clock)
    with raw_server(*[together(3)] * 3, A_ONE) as server:
        transport = SocketsTransport(credentials(server.url))
        at_once(transport, 3)
        slept = 24.0
        transport.send(CALL, 20.0)
        slept = 26.0
        transport.send(CALL, 20.0)
        server.until(lambda: server.ended == 2)
        assert server.connections == 3
        transport.close()


def ends(connection: socket.socket) -> bool:
    """Whether the other side has closed it, within twenty seconds."""
    connection.settimeout(20)
    with suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


def test_closing_closes_what_idles_and_later_what_is_in_use(to):
    """A client that has slept leaves its transport to the calls in flight."""
    ended: list[bool] = []
    reached, go_on = threading.Event(), threading.Event()

    def serve(connection: socket.socket, _ended: threading.Event) -> None:
        with connection:
            next_request(connection)
            reached.set()
            assert go_on.wait(20)
            connection.sendall(answered(b":1\r\n"))
            ended.append(ends(connection))

    with listening(serve) as port:
        transport = SocketsTransport(credentials(f"http://127.0.0.1:{port}"))
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(transport.send, CALL, 20.0)
            assert reached.wait(20)
            transport.close()
            go_on.set()
            assert call.result() == ONE
    assert ended == [True]


@pytest.mark.parametrize("cycle", [False, True])
def test_a_transport_that_nobody_closes_leaves_no_socket_behind_and_nothing_is_said(cycle):
    with raw_server(A_ONE) as server:
        transport: Any = SocketsTransport(credentials(server.url))
        assert transport.send(CALL, 20.0) == ONE
        assert server.ended == 0
        if cycle:
            transport.itself = transport
        del transport
        gc.collect()
        server.until(lambda: server.ended == 1)


def test_of_a_socket_that_was_forgotten_in_use_it_is_said():
    sock = sockets.socket_for((socket.AF_INET, None))
    with pytest.warns(ResourceWarning, match="unclosed"):
        sock.__del__()
    assert sock.fileno() == -1


def test_where_there_is_no_poll_select_does_it(to, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(select, "poll")

    closed = threading.Event()

    async def answers_late_and_closes(connection: Connection) -> None:
        await asyncio.sleep(0.05)
        await A_ONE(connection)
        connection.close()
        await connection.ended()
        closed.set()

    with raw_server(A_ONE, answers_late_and_closes, A_ONE) as server, to(server.url) as send:
        for number in range(4):
            assert send() == ONE
            if number == 1:
                assert closed.wait(20)
                time.sleep(0.05)
        assert server.connections == 2


# Event loops, cancellation, deadlines


def test_event_loops_in_turn_use_the_same_connection(run):
    with raw_server(A_ONE) as server:
        transport = AsyncSocketsTransport(credentials(server.url))
        for _ in range(100):
            assert run(transport.send(CALL, 20.0)) == ONE
        assert server.connections == 1
        run(transport.aclose())


def test_an_event_loop_that_pauses_lends_its_connection(run):
    """As with ``run_until_complete``, between two runs."""
    with raw_server(A_ONE) as server:
        transport = AsyncSocketsTransport(credentials(server.url))
        paused = (asyncio if run is asyncio.run else uvloop).new_event_loop()
        for _ in range(3):
            assert paused.run_until_complete(transport.send(CALL, 20.0)) == ONE
            assert run(transport.send(CALL, 20.0)) == ONE
        assert server.connections == 1
        paused.run_until_complete(transport.aclose())
        paused.close()


def test_an_open_connection_keeps_no_context_variables_of_a_request(run):
    class Visitor:
        """Data of one request."""

    visitor: ContextVar[Visitor] = ContextVar("visitor")

    async def request(transport: AsyncSocketsTransport) -> ref[Visitor]:
        visitor.set(Visitor())
        await transport.send(CALL, 20.0)
        return ref(visitor.get())

    async def main() -> None:
        transport = AsyncSocketsTransport(credentials(server.url))
        found = await asyncio.create_task(request(transport))
        await asyncio.sleep(0)
        gc.collect()
        assert found() is None
        await transport.send(CALL, 20.0)
        assert server.connections == 1
        await transport.aclose()

    with raw_server(A_ONE) as server:
        run(main())


def test_a_connection_of_a_running_event_loop_is_not_taken_by_another(run):
    with raw_server(A_ONE) as server:
        transport = AsyncSocketsTransport(credentials(server.url))

        async def main() -> None:
            assert await transport.send(CALL, 20.0) == ONE
            other = asyncio.to_thread(run, transport.send(CALL, 20.0))
            assert await other == ONE
            assert server.connections == 2
            assert await transport.send(CALL, 20.0) == ONE
            assert server.connections == 2
            await transport.aclose()

        run(main())


def test_a_connection_that_ended_while_its_process_was_frozen_costs_no_call(run):
    """Its end and the next call are noticed in the same turn of the event loop."""
    closed = threading.Event()

    async def answers_and_closes(connection: Connection) -> None:
        await A_ONE(connection)
        await asyncio.sleep(0.02)
        connection.close()
        await connection.ended()
        closed.set()

    async def main(url: str) -> None:
        transport = AsyncSocketsTransport(credentials(url))
        for _ in range(3):
            assert await transport.send(CALL, 20.0) == ONE
            closed.wait(20)  # blocks the event loop, as a freeze does
            closed.clear()
            time.sleep(0.05)  # noqa: ASYNC251
        await transport.aclose()

    with raw_server(answers_and_closes) as server:
        run(main(server.url))
        assert len(server.requests) == 3


def test_an_idle_connection_that_the_server_ended_is_closed_by_the_event_loop(run):
    """Without a call, and not read again and again until there is one."""

    async def answers_and_ends(connection: Connection) -> None:
        await A_ONE(connection)
        connection.writer.write_eof()

    async def main(server: RawServer) -> None:
        transport = AsyncSocketsTransport(credentials(server.url))
        assert await transport.send(CALL, 20.0) == ONE
        await asyncio.to_thread(server.until, lambda: server.ended == 1)
        assert await transport.send(CALL, 20.0) == ONE
        await transport.aclose()

    with raw_server(answers_and_ends) as server:
        run(main(server))
        assert server.connections == 2


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_a_transport_that_ends_on_a_running_event_loop_leaves_nothing_behind(run, end):
    async def main(url: str) -> None:
        for _ in range(20):
            transport = AsyncSocketsTransport(credentials(url))
            assert await transport.send(CALL, 20.0) == ONE
            if end == "closed":
                await transport.aclose()
            del transport
            gc.collect()
            # A socket with the number of the one before can be watched.
            near, far = socket.socketpair()
            with near, far:
                readable = asyncio.Event()
                asyncio.get_running_loop().add_reader(near, readable.set)
                far.send(b"x")
                await asyncio.wait_for(readable.wait(), 20)
                asyncio.get_running_loop().remove_reader(near)

    with raw_server(A_ONE) as server:
        run(main(server.url))


def test_event_loops_at_once_share_a_transport(run):
    with raw_server(A_ONE) as server:
        transport = AsyncSocketsTransport(credentials(server.url))

        async def several() -> None:
            for _ in range(25):
                together = (transport.send(CALL, 20.0) for _ in range(4))
                assert await asyncio.gather(*together) == [ONE] * 4

        with ThreadPoolExecutor(4) as threads:
            for loop in [threads.submit(run, several()) for _ in range(4)]:
                loop.result()
        assert server.connections <= 16
        run(transport.aclose())


class ProactorEventLoop(asyncio.SelectorEventLoop):
    """An event loop with the name of Windows' own, by which it is known."""


def test_on_windows_a_connection_stays_with_its_event_loop():
    with raw_server(A_ONE) as server:
        transport = AsyncSocketsTransport(credentials(server.url))

        async def twice() -> None:
            assert [await transport.send(CALL, 20.0) for _ in range(2)] == [ONE, ONE]
            await transport.aclose()

        for _ in range(3):
            transport_of = asyncio.Runner(loop_factory=ProactorEventLoop)
            with transport_of as runner:
                runner.run(twice())
            gc.collect()
        assert server.connections >= 3


@pytest.mark.parametrize("how", ["task", "scope", "deadline"])
def test_a_call_that_is_given_up_closes_its_connection(run, how):
    """Its answer would be taken for the next one's."""
    reached, closed = threading.Event(), threading.Event()

    def serve(connection: socket.socket, _ended: threading.Event) -> None:
        with connection:
            if next_request(connection) == CALL.body:
                reached.set()
                if ends(connection):
                    closed.set()
            else:
                connection.sendall(answered(b":1\r\n"))

    async def given_up(transport: AsyncSocketsTransport) -> None:
        if how == "deadline":
            with pytest.raises(DeadlineExceeded):
                await transport.send(CALL, 0.3)
            return
        if how == "scope":
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(transport.send, CALL, 20.0)
                    await anyio.to_thread.run_sync(reached.wait, 20)
                    scope.cancel()
            return
        task = asyncio.create_task(transport.send(CALL, 20.0))
        await anyio.to_thread.run_sync(reached.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main(url: str) -> None:
        transport = AsyncSocketsTransport(credentials(url))
        await given_up(transport)
        assert await anyio.to_thread.run_sync(closed.wait, 20)
        assert await transport.send(Call("/", (), b"another"), 20.0) == ONE
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await transport.aclose()

    with listening(serve) as port:
        run(main(f"http://127.0.0.1:{port}"))


def test_a_call_may_be_cancelled_at_any_time(run):
    """Whatever it was doing, nothing is left, and the next call gets its own answer."""

    def echo(connection: socket.socket, _ended: threading.Event) -> None:
        with connection, suppress(ConnectionError):
            while (body := next_request(connection)) is not None:
                for octet in answered(body):
                    connection.sendall(bytes((octet,)))

    async def main(url: str) -> None:
        transport = AsyncSocketsTransport(credentials(url))
        loop = asyncio.get_running_loop()
        for number in range(150):
            task = asyncio.create_task(transport.send(Call("/", (), b"%d" % number), 20.0))
            loop.call_later(number * 0.00003, task.cancel)
            with suppress(asyncio.CancelledError):
                assert (await task).body == b"%d" % number
        await transport.aclose()

    with listening(echo) as port:
        run(main(f"http://localhost:{port}"))


def test_a_coroutine_that_is_never_ended_leaves_no_connection():
    with raw_server(silent) as server:
        transport = AsyncSocketsTransport(credentials(server.url))
        loop = asyncio.new_event_loop()
        task = loop.create_task(transport.send(CALL, 60.0))
        until = time.monotonic() + 20
        while not server.requests and time.monotonic() < until:
            loop.run_until_complete(asyncio.sleep(0.01))
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
        gc.collect()


# Addresses


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Have lookups hang; return the hosts that were looked up."""
    ended = threading.Event()
    hosts: list[str] = []

    def getaddrinfo(host: str, *arguments: Any, flags: int = 0, **options: Any) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        hosts.append(host)
        ended.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "it has hung")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield hosts
    ended.set()
    for thread in threading.enumerate():
        if thread.name == "upstash-middleware-dns":
            thread.join(20)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def lookups() -> int:
    """Return how many lookups are in progress, each in a thread."""
    return sum(each.name == "upstash-middleware-dns" for each in threading.enumerate())


def test_a_lookup_that_hangs_costs_the_deadline_and_holds_up_nothing(to, hanging):
    """Neither the end of an event loop, which waits for its threads, nor that of the process."""
    began = time.monotonic()
    with to("http://db.example") as send, pytest.raises(DeadlineExceeded):
        send(CALL, 0.3)
    assert 0.25 < time.monotonic() - began < 20
    assert hanging == ["db.example"]


def test_calls_that_meet_during_a_lookup_share_it(hanging, monkeypatch):
    monkeypatch.setattr(sockets, "time", SimpleNamespace(monotonic=lambda: 0.0))
    lookup = Lookup("db.example", 80)
    for _ in range(8):
        lookup.begin(lambda _: None)
    until(lambda: bool(hanging))
    assert lookups() == 1


def test_a_lookup_that_has_hung_for_a_while_is_not_waited_for_by_others(hanging, monkeypatch):
    now = 0.0
    monkeypatch.setattr(sockets, "time", SimpleNamespace(monotonic=lambda: now))
    lookup = Lookup("db.example", 80)
    for _ in range(2):
        lookup.begin(lambda _: None)
        now += 2.0
    until(lambda: len(hanging) == 2)
    assert lookups() == 2


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70 + ".example"])
def test_a_host_without_an_address_is_not_connected(to, host):
    with (
        to(f"http://{host}") as send,
        pytest.raises(NotConnected, match="address was not found") as raised,
    ):
        send()
    assert raised.value.__cause__ is not None


def test_where_no_thread_can_be_made_any_more_the_lookup_is_made_here(monkeypatch):
    """As the interpreter ends."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    told: list[Any] = []
    Lookup("localhost", 80).begin(told.append)
    assert {address[0] for _, address in addresses_in(told[0])} <= {"127.0.0.1", "::1"}


def test_families_take_turns():
    """RFC 8305 §4."""
    six, four = socket.AF_INET6, socket.AF_INET
    assert interleave_families([(six, 1), (six, 2), (six, 3), (four, 4)]) == [
        (six, 1),
        (four, 4),
        (six, 2),
        (six, 3),
    ]


def resolving_to(monkeypatch: pytest.MonkeyPatch, *ports: int) -> None:
    def getaddrinfo(*_: Any, flags: int = 0, **options: Any) -> list[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextmanager
def full() -> Iterator[int]:
    """Yield a port at which connections are neither accepted nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for one in waiting:
            one.close()


def test_an_address_that_refuses_or_says_nothing_gives_way_to_the_next(to, monkeypatch):
    with socket.socket() as closed, full() as silent_port, raw_server(A_ONE) as server:
        closed.bind(("127.0.0.1", 0))
        good = int(server.url.rpartition(":")[2])
        resolving_to(monkeypatch, closed.getsockname()[1], silent_port, good)
        with to("http://db.example") as send:
            began = time.monotonic()
            assert send(CALL, 5.0) == ONE
            assert time.monotonic() - began > 2.4, "half of the deadline"


def test_the_address_that_has_worked_is_tried_first(to, monkeypatch):
    closing = answer(b":1\r\n", headers=b"Connection: close\r\n")
    with full() as silent_port, raw_server(closing) as server:
        resolving_to(monkeypatch, silent_port, int(server.url.rpartition(":")[2]))
        with to("http://db.example") as send:
            assert send(CALL, 5.0) == ONE
            began = time.monotonic()
            assert send(CALL, 60.0) == ONE
            assert time.monotonic() - began < 25, "not half of the deadline"


def test_addresses_of_which_none_answers_cost_the_deadline(to, monkeypatch):
    with full() as silent_port:
        resolving_to(monkeypatch, silent_port, silent_port)
        with to("http://db.example") as send:
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                send(CALL, 0.4)
            assert 0.35 < time.monotonic() - began < 20


def test_addresses_that_all_refuse_are_not_connected(to, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        resolving_to(monkeypatch, *[closed.getsockname()[1]] * 3)
        with to("http://db.example") as send, pytest.raises(NotConnected) as raised:
            send()
    assert isinstance(raised.value.__cause__, ConnectionRefusedError)


# Forks


FORKING = """
import os, sys
from upstash_middleware.upstash import Client, Credentials
from tests.upstash.support import pipeline

client = Client(Credentials(sys.argv[1], "token"), deadline=20.0)
assert client.execute(pipeline(("GET", "k"))) == [1]
child = os.fork()
assert client.execute(pipeline(("GET", "k"))) == [1]
if child == 0:
    client.close()
    sys.exit(7)  # and not os._exit: all that the interpreter holds is taken down
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert client.execute(pipeline(("GET", "k"))) == [1]
client.close()
"""


FORKING_ON_A_LOOP = """
import asyncio, os, sys
from upstash_middleware.upstash import AsyncClient, Credentials
from tests.upstash.support import pipeline

client = AsyncClient(Credentials(sys.argv[1], "token"), deadline=20.0)

async def call():
    assert await client.execute(pipeline(("GET", "k"))) == [1]

async def main():
    await call()
    child = os.fork()
    if child == 0:
        return child
    await call()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    for _ in range(3):
        await call()
        await asyncio.sleep(0.01)
    await client.aclose()
    return child

with asyncio.Runner() as runner:
    child = runner.run(main())
if child == 0:
    asyncio.run(call())
    asyncio.run(client.aclose())
    sys.exit(7)
"""


def forking(url: str, program: str = FORKING, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, url],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_a_connection_of_its_own_and_leaves_its_parents_open():
    with raw_server(A_ONE) as server:
        forking(server.url)
        assert server.connections == 2
        assert len(server.requests) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_on_an_event_loop_leaves_its_parents_connection_alone():
    with raw_server(A_ONE) as server:
        forking(server.url, FORKING_ON_A_LOOP)
        assert server.connections == 2
        assert len(server.requests) == 6


# Errors


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (b"", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\n", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", UnexpectedAnswer),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", UnexpectedAnswer),
        (b"SSH-2.0\r\n", UnexpectedAnswer),
    ],
)
def test_what_a_connections_end_means_depends_on_how_far_the_answer_had_come(to, behaviour, error):
    async def behave(connection: Connection) -> None:
        await connection.write(behaviour)
        connection.close()

    with raw_server(behave) as server, to(server.url) as send:
        with pytest.raises(UpstashError) as raised:
            send()
        assert type(raised.value) is error
