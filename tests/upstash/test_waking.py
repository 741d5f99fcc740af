"""A process that was frozen, as functions are between requests, trusts no old connection."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from tests.upstash.raw_server import Behaviour, Connection, answer, raw_server
from tests.upstash.support import executing, pipeline
from upstash_middleware.upstash import AsyncClient, Client, Credentials
from upstash_middleware.upstash import client as client_module
from upstash_middleware.upstash.protocol import Response

ONE = answer(b":1\r\n")


class Clocks:
    """The machine's clocks, of which the wall clock can run ahead."""

    def __init__(self) -> None:
        self.slept = 0.0

    def time(self) -> float:
        return time.time() + self.slept

    def monotonic(self) -> float:
        return time.monotonic()

    def perf_counter(self) -> float:
        return time.perf_counter()


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(client_module, "time", clocks)
    return clocks


@pytest.fixture(params=["sockets", "httpx"])
def library(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def talk(request, library):
    """Return what opens a client to a URL."""
    return lambda url: executing(request.param, Credentials(url, "t"), library)


def once() -> Behaviour:
    """Response the first request of the server's life on this connection, and no other there."""
    known: list[object] = []

    async def behave(connection: Connection) -> None:
        if not known or connection.writer not in known:
            known.append(connection.writer)
            await ONE(connection)
        else:  # the router between has forgotten this connection, and nobody says so
            await asyncio.sleep(60)

    return behave


@pytest.mark.parametrize("sleep", [60.0, 3 * 3600.0])
def test_after_a_sleep_that_the_monotonic_clock_missed_a_call_has_a_connection_of_its_own(
    talk, clocks, sleep
):
    """So that a write, which may not be repeated, does not meet one that is dead."""
    with raw_server(once()) as server, talk(server.url) as execute:
        for _ in range(3):
            assert execute(pipeline(("INCR", "k"), deadline=20.0)) == [1]
            clocks.slept += sleep
        assert server.connections == 3


def test_clocks_that_are_corrected_a_little_or_set_back_cost_no_connection(talk, clocks):
    with raw_server(ONE) as server, talk(server.url) as execute:
        for correction in (0.0, 1.0, 4.0, -3600.0, 2.0):
            clocks.slept += correction
            assert execute(pipeline(("INCR", "k"))) == [1]
        assert server.connections == 1


def test_calls_in_flight_when_another_wakes_come_to_their_end(library, clocks):
    """What was opened before is closed only at the next sleep, or with the client."""

    async def slow(connection: Connection) -> None:
        await asyncio.sleep(0.3)
        await ONE(connection)

    async def main(url: str) -> list[object]:
        client = AsyncClient(Credentials(url, "t"), transport=library, coalesce=False)
        first = asyncio.create_task(client.execute(pipeline(("INCR", "k"), deadline=20.0)))
        await asyncio.sleep(0.1)
        clocks.slept += 60
        second = await client.execute(pipeline(("INCR", "k"), deadline=20.0))
        found: list[object] = [*await first, *second]
        await client.aclose()
        return found

    with raw_server(slow) as server:
        assert asyncio.run(main(server.url)) == [1, 1]


def test_a_client_keeps_one_retired_transport_at_most_and_closes_all(clocks):
    """However often it is frozen."""
    closed: list[int] = []
    opened: list[int] = []

    def transport(_credentials):
        number = len(opened)
        opened.append(number)
        return SimpleNamespace(
            send=lambda call, seconds: waking_answer(), close=lambda: closed.append(number)
        )

    def waking_answer():
        return Response(200, "application/octet-stream", b":1\r\n")

    client = Client(Credentials("https://a.example", "t"), transport=transport)
    for _ in range(4):
        client.execute(pipeline(("GET", "k")))
        clocks.slept += 60
    assert opened == [0, 1, 2, 3]
    assert closed == [0, 1]
    client.close()
    assert closed == [0, 1, 2, 3]
