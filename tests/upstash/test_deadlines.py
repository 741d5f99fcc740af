"""Calls of one event loop with different deadlines: each ends at its own."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from tests.upstash.raw_server import Connection, answer, raw_server
from tests.upstash.support import pipeline
from upstash_middleware.errors import DeadlineExceeded
from upstash_middleware.upstash import AsyncClient, Credentials

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from upstash_middleware.core.flow import Reply

ONE = answer(b":1\r\n")
PATIENT = 20.0


class TimedLoop(asyncio.SelectorEventLoop):
    """An event loop that knows its timers."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []

    def call_at(  # type: ignore[override]  # whose types are private
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        self.timers.append(super().call_at(when, callback, *args, context=context))
        return self.timers[-1]

    def pending(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are still to fire."""
        return [each for each in self.timers if not each.cancelled() and each.when() > self.time()]


@pytest.fixture(params=[asyncio.SelectorEventLoop, uvloop.new_event_loop])
def run(request):
    """Return what runs a coroutine on a new event loop."""

    def run(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return run


async def as_told(connection: Connection) -> None:
    """Respond at once, after a while, or never, as the command says."""
    if b"never" in connection.body:
        await asyncio.sleep(60)
    elif b"late" in connection.body:
        await asyncio.sleep(0.6)
    await ONE(connection)


async def call(client: AsyncClient, word: str, deadline: float) -> list[Reply]:
    return await client.execute(pipeline(("ECHO", word), deadline=deadline))


def test_a_call_has_a_shorter_deadline_than_the_call_before_on_its_connection(run):
    async def main(url: str) -> None:
        client = AsyncClient(Credentials(url, "t"))
        assert await call(client, "now", PATIENT) == [1]
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
            await call(client, "never", 0.3)
        assert 0.25 < time.monotonic() - began < PATIENT / 2
        await client.aclose()

    with raw_server(as_told) as server:
        run(main(server.url))
        assert server.connections == 1


def test_a_call_has_a_longer_deadline_than_the_call_before_on_its_connection(run):
    async def main(url: str) -> None:
        client = AsyncClient(Credentials(url, "t"))
        assert await call(client, "now", PATIENT) == [1]
        for _ in range(2):
            try:
                assert await call(client, "now", 0.3) == [1]
            except DeadlineExceeded:  # on a busy machine
                continue
            assert await call(client, "late", PATIENT) == [1]
        await client.aclose()

    with raw_server(as_told) as server:
        run(main(server.url))


@pytest.mark.parametrize("coalesce", [True, False])
def test_of_concurrent_calls_each_ends_at_its_own_deadline_the_earliest_first(run, coalesce):
    deadlines = [1.5, 0.3, 0.9, 0.6, 1.2]
    ended: list[float] = []

    async def ends(client: AsyncClient, deadline: float) -> None:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=f"within {deadline:.2g} s"):
            await call(client, "never", deadline)
        assert time.monotonic() - began > deadline - 0.05
        ended.append(deadline)

    async def main(url: str) -> None:
        client = AsyncClient(Credentials(url, "t"), coalesce=coalesce)
        await asyncio.gather(*[ends(client, deadline) for deadline in deadlines])
        await client.aclose()

    with raw_server(as_told) as server:
        run(main(server.url))
    assert ended == sorted(deadlines)


@pytest.mark.parametrize("coalesce", [True, False])
def test_cancelled_calls_leave_no_timer(coalesce):
    """But for the one of a shared call, which goes on."""

    async def main(url: str) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TimedLoop)
        client = AsyncClient(Credentials(url, "t"), coalesce=coalesce)
        tasks = [
            asyncio.create_task(call(client, "never", PATIENT + number)) for number in range(5)
        ]
        await asyncio.to_thread(server.wait_for_requests, 3 if coalesce else 5)
        assert loop.pending()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert len(loop.pending()) == (1 if coalesce else 0)
        await client.aclose()

    with raw_server(as_told) as server, asyncio.Runner(loop_factory=TimedLoop) as runner:
        runner.run(main(server.url))
