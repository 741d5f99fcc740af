"""Limiters under threads, forks, many who wait, and cancellation."""

from __future__ import annotations

import heapq
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from upstash_middleware import Concurrency, Limiter, RateLimited, SyncLimiter

if TYPE_CHECKING:
    from tests.limiter.conftest import Make
    from upstash_middleware.local import LocalUpstash

PATIENT = 20.0


def test_threads_take_what_there_is_and_no_more(upstash: LocalUpstash):
    """With one limiter, and with two of one name."""
    limiters = [SyncLimiter("log 30/h", name="threads", deadline=PATIENT) for _ in range(2)]
    with ThreadPoolExecutor(16) as threads:
        taken = list(threads.map(lambda n: limiters[n % 2].try_hit("ada").allowed, range(120)))
    assert sum(taken) == 30


FORKING = """
import os
from upstash_middleware import SyncLimiter

limiter = SyncLimiter("log 30/h", name="calls", deadline=20)
assert limiter.hit("ada").remaining == 29
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        os._exit(sum(limiter.try_hit("ada").allowed for _ in range(20)))
    children.append(child)
taken = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(sum(taken), limiter.try_hit("ada").allowed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_workers_share_the_quota(upstash: LocalUpstash):
    """Those of a server or a queue, of a process that has used the limiter before."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "29 False\n"), done.stderr


FORKING_MEANWHILE = """
import os, signal, threading
from starlette.applications import Starlette
from upstash_middleware import SyncLimiter
from upstash_middleware.starlette import UpstashMiddleware

entered, go = threading.Event(), threading.Event()

class Slow(UpstashMiddleware):
    def __init__(self, app, **settings):
        entered.set()
        go.wait()
        super().__init__(app, **settings)

slow = Starlette()
slow.add_middleware(Slow)
making = threading.Thread(target=SyncLimiter("9/h", name="slow", app=slow).hit, args=("ada",))
making.start()
entered.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    remaining = SyncLimiter("log 9/h", name="calls", deadline=20).hit("ada").remaining
    os._exit(remaining)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
go.set()
making.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_worker_forked_while_a_limiter_is_made_makes_its_own(upstash: LocalUpstash):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING_MEANWHILE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


class VirtualTime:
    """Moves the clocks on to the next who wakes, as soon as all tasks sleep."""

    def __init__(self, upstash: LocalUpstash, tasks: int) -> None:
        self.now = 0.0
        self._awake = tasks
        self._upstash = upstash
        self._sleeping: list[tuple[float, int, anyio.Event]] = []
        self._numbers = count()

    async def sleep(self, seconds: float) -> None:
        woken = anyio.Event()
        heapq.heappush(self._sleeping, (self.now + seconds, next(self._numbers), woken))
        self.end()
        await woken.wait()

    def end(self) -> None:
        """Note that a task has ended, or sleeps."""
        self._awake -= 1
        if self._awake == 0 and self._sleeping:
            when, _, woken = heapq.heappop(self._sleeping)
            self._upstash.advance(when - self.now)
            self.now, self._awake = when, 1
            woken.set()


def test_of_many_who_wait_no_more_pass_than_the_limit_and_none_is_forgotten(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    """In any ten seconds, and who has waited for long passes before those who have just come."""
    waiting, passed = 18, list[tuple[float, int]]()
    times = VirtualTime(upstash, waiting)
    monkeypatch.setattr(anyio, "sleep", times.sleep)
    monkeypatch.setattr(random, "random", random.Random(7).random)
    limiter = Limiter("log 3/10s", name="many who wait", deadline=PATIENT)

    async def wait(number: int) -> None:
        if number >= waiting // 2:
            await times.sleep(15)  # these come later
        decision = await limiter.wait("ada", timeout=300)
        assert decision.reset is not None
        passed.append((decision.reset - 10, number))  # by the log's own time, to the millisecond
        times.end()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(waiting):
                tasks.start_soon(wait, number)

    anyio.run(main)
    moments = [moment for moment, _ in passed]
    assert len(passed) == waiting
    for begin in moments:
        assert sum(begin <= moment < begin + 9.9995 for moment in moments) <= 3
    first, later = (
        [moment for moment, number in passed if (number >= waiting // 2) is is_later]
        for is_later in (False, True)
    )
    assert sum(first) / len(first) < sum(later) / len(later)


def test_who_waits_costs_little(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch):
    """A denial that one has got is not asked for by the others."""
    waiting = 20
    times = VirtualTime(upstash, waiting)
    monkeypatch.setattr(anyio, "sleep", times.sleep)
    limiter = Limiter("log 1/10s", name="a costly wait", deadline=PATIENT)

    async def wait() -> None:
        await limiter.wait("ada", timeout=600)
        times.end()

    async def main() -> None:
        await limiter.peek("ada")
        async with anyio.create_task_group() as tasks:
            for _ in range(waiting):
                tasks.start_soon(wait)

    upstash.reset_bill()
    anyio.run(main)
    # Each passes once; a denial for each round, and those that ask at the same time in the first.
    assert upstash.bill().requests <= 4 * waiting


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_block_that_is_cancelled_releases_its_slot(upstash: LocalUpstash, backend: str):
    """And one that waits for a slot takes none."""
    limiter = Limiter(Concurrency(1), name="calls", deadline=PATIENT)

    async def hold(started: anyio.Event, longest: float) -> None:
        async with limiter("ada", timeout=longest):
            started.set()
            await anyio.sleep_forever()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            held, never = anyio.Event(), anyio.Event()
            tasks.start_soon(hold, held, 0)
            await held.wait()
            tasks.start_soon(hold, never, 60)
            denied = await limiter.peek("ada")
            assert not denied.allowed
            tasks.cancel_scope.cancel()
        assert not never.is_set()
        async with limiter("ada") as decision:
            assert decision.allowed

    anyio.run(main, backend=backend)


def test_a_block_that_is_cancelled_while_it_begins_holds_no_slot(upstash: LocalUpstash):
    """Though the server may have given it one."""
    limiter = Limiter(Concurrency(1), name="calls", deadline=PATIENT)

    async def hold() -> None:
        async with limiter("ada"):
            pytest.fail("it should have been cancelled before")

    async def main() -> None:
        await limiter.peek("bob")
        with upstash.faults(latency_ms=1000):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold)
                await anyio.sleep(0.1)
                tasks.cancel_scope.cancel()
        async with limiter("ada") as decision:
            assert decision.allowed

    anyio.run(main)


def test_what_a_block_charges_is_settled_also_if_it_raises(make: Make):
    limiter: Any = make("log 10/h")

    def raises() -> None:
        with limiter("ada") as decision:
            decision.charge(4)
            raise KeyError

    with pytest.raises(KeyError):
        raises()
    assert limiter.peek("ada").remaining == 5
    for _ in range(5):
        limiter.hit("ada")
    with pytest.raises(RateLimited):
        raises()
