"""Calls over httpx end with their client, their event loop and their deadline."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING
from weakref import ref

import httpx
import pytest

from tests.upstash.raw_server import answer, raw_server
from tests.upstash.support import pipeline
from upstash_middleware.errors import ConnectionLost, DeadlineExceeded, NotConnected
from upstash_middleware.upstash import Client, Credentials
from upstash_middleware.upstash.httpx_transport import AsyncHttpxTransport, HttpxTransport
from upstash_middleware.upstash.protocol import Call

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 20.0
"""Seconds after which what should have happened did not."""

CALL = Call("/", (), b"[]")
HEAD = {"Content-Type": "application/octet-stream"}


def _answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, headers=HEAD, content=b":1\r\n")


def clients() -> set[int]:
    """Return the identities of httpx's clients that something still refers to."""
    gc.collect()
    return {id(each) for each in gc.get_objects() if type(each) is httpx.AsyncClient}


@pytest.mark.parametrize("ends_well", [True, False])
def test_the_client_of_an_event_loop_that_has_ended_is_forgotten(ends_well):
    credentials = Credentials("http://db.example", "t", transport=httpx.MockTransport(_answer))
    transport = AsyncHttpxTransport(credentials)
    before = clients()
    loops = [asyncio.new_event_loop() for _ in range(4)]  # which are kept
    for loop in loops:
        loop.run_until_complete(transport.send(CALL, PATIENCE))
        if ends_well:
            loop.run_until_complete(loop.shutdown_asyncgens())
            assert len(clients() - before) == 0
        loop.close()
    assert len(clients() - before) <= 1


def test_closing_closes_the_clients_of_all_event_loops_that_run():
    """Each on its own loop, and without waiting for the end of any."""
    with raw_server(answer(b":1\r\n")) as server:
        transport = AsyncHttpxTransport(Credentials(server.url, "t"))
        other = asyncio.new_event_loop()
        thread = threading.Thread(target=other.run_forever)
        thread.start()

        async def main() -> None:
            await transport.send(CALL, PATIENCE)
            there = asyncio.run_coroutine_threadsafe(transport.send(CALL, PATIENCE), other)
            await asyncio.wrap_future(there)
            assert (server.connections, server.ended) == (2, 0)
            await transport.aclose()
            await asyncio.to_thread(server.until, lambda: server.ended == 2)

        try:
            asyncio.run(main())
        finally:
            other.call_soon_threadsafe(other.stop)
            thread.join(PATIENCE)
            other.close()


def test_closing_the_client_of_threads_closes_its_connections():
    with raw_server(answer(b":1\r\n")) as server:
        transport = HttpxTransport(Credentials(server.url, "t"))
        transport.send(CALL, PATIENCE)
        transport.close()
        server.until(lambda: server.ended == 1)


def test_a_client_of_threads_that_is_dropped_unclosed_ends_its_thread_and_connections():
    def threads() -> set[threading.Thread]:
        return {each for each in threading.enumerate() if "httpx" in each.name}

    with raw_server(answer(b":1\r\n")) as server:
        before = threads()
        client = Client(Credentials(server.url, "t"), transport="httpx")
        client.execute(pipeline(("INCR", "a")))
        (own,) = threads() - before
        del client
        gc.collect()
        own.join(PATIENCE)
        assert not own.is_alive()
        server.until(lambda: server.ended == 1)


def test_the_thread_keeps_no_context_variables_of_the_request_that_started_it():
    class Visitor:
        """Data of one request."""

    visitor: ContextVar[Visitor] = ContextVar("visitor")

    def request() -> tuple[HttpxTransport, ref[Visitor]]:
        visitor.set(Visitor())
        mock = httpx.MockTransport(_answer)
        transport = HttpxTransport(Credentials("http://db.example", "t", transport=mock))
        transport.send(CALL, PATIENCE)
        return transport, ref(visitor.get())

    transport, found = Context().run(request)
    transport.send(CALL, PATIENCE)  # after which the loop has forgotten the first call
    gc.collect()
    assert found() is None
    transport.close()


class _Hanging(httpx.AsyncBaseTransport):
    """Answers no call; ``begun`` is set when there is one."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.begun.set()
        await asyncio.sleep(PATIENCE * 10)
        raise AssertionError


def test_closing_ends_the_calls_in_flight_in_other_threads():
    hanging = _Hanging()
    transport = HttpxTransport(Credentials("http://db.example", "t", transport=hanging))
    raised: list[Exception] = []

    def call() -> None:
        try:
            transport.send(CALL, PATIENCE * 10)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert hanging.begun.wait(PATIENCE)
    transport.close()
    thread.join(PATIENCE)
    assert [type(error) for error in raised] == [ConnectionLost]
    with pytest.raises(NotConnected):
        transport.send(CALL, PATIENCE)


class _Trickling(httpx.SyncByteStream):
    """A response that goes on until it is closed, or the test has ended."""

    def __init__(self) -> None:
        self.begun = False
        self.closed = threading.Event()
        self.test_has_ended = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self.begun = True
        while not self.test_has_ended.is_set():
            time.sleep(0.01)
            yield b"x"

    def close(self) -> None:
        self.closed.set()


def test_the_deadline_ends_a_call_over_the_applications_client_with_its_thread():
    body = _Trickling()
    answers = httpx.MockTransport(lambda _: httpx.Response(200, headers=HEAD, stream=body))
    with httpx.Client(transport=answers) as own:
        client = Client(Credentials("http://db.example", "t"), transport=own)
        try:
            with pytest.raises(DeadlineExceeded):
                client.execute(pipeline(("GET", "k"), deadline=0.3))
            assert not body.begun or body.closed.wait(PATIENCE)
        finally:
            body.test_has_ended.set()
            client.close()
