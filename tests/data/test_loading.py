"""Loading what is missing: one loader at a time, purges meanwhile, and loading again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import patient_environment
from upstash_middleware import Data, NotStorable, Redis, SyncData
from upstash_middleware.events import UserCodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.data.conftest import Make
    from upstash_middleware.local import LocalUpstash

PATIENT: dict[str, Any] = {"deadline": 20.0, "cache_deadline": 20.0}


def in_threads(count: int, function: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(function) for _ in range(count)]]


class Slow:
    """A loader that takes a moment, and counts its calls."""

    def __init__(self, seconds: float = 0.3) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self) -> list[int]:
        self.calls += 1
        time.sleep(self.seconds)
        return [self.calls]

    async def later(self) -> list[int]:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        return [self.calls]


def test_of_concurrent_threads_one_loads(upstash: LocalUpstash):
    data, slow = SyncData(**PATIENT), Slow()
    values = in_threads(8, lambda: data.get_or_set("a", 60, slow, wait=20))
    assert values == [[1]] * 8
    assert slow.calls == 1
    assert len({id(value) for value in values}) == 8  # each has a copy


def test_of_concurrent_tasks_one_loads(upstash: LocalUpstash):
    slow = Slow()

    async def main() -> list[Any]:
        async with Data(**PATIENT) as data:
            calls = (data.get_or_set("a", 60, slow.later, wait=20) for _ in range(20))
            return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [[1]] * 20
    assert slow.calls == 1


def test_of_instances_with_nothing_in_common_one_loads(upstash: LocalUpstash):
    """As in several processes: they agree by the lock."""
    slow = Slow()
    values = in_threads(
        4, lambda: SyncData(**PATIENT).get_or_set("a", 60, slow, wait=20, tags=["x"])
    )
    assert values == [[1]] * 4
    assert slow.calls == 1


def test_without_the_lock_each_process_loads(upstash: LocalUpstash):
    slow = Slow()
    in_threads(2, lambda: SyncData(**PATIENT).get_or_set("a", 60, slow, lock=False))
    assert slow.calls == 2


PROGRAM = """
import sys, time
from pathlib import Path
from upstash_middleware import SyncData

def load():
    with Path(sys.argv[1]).open("a") as file:
        file.write("loaded\\n")
    time.sleep(1)
    return "value"

print(SyncData(deadline=20, cache_deadline=20).get_or_set("a", 60, load, wait=20))
"""


def test_of_concurrent_processes_one_loads(upstash: LocalUpstash, tmp_path: Path):
    log = tmp_path / "log"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(log)],
            stdout=subprocess.PIPE,
            text=True,
            env=patient_environment(),
        )
        for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in running] == ["value\n"] * 3
    assert log.read_text() == "loaded\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_waits_for_no_loader_of_its_parent(upstash: LocalUpstash):
    data, begun, end = SyncData(**PATIENT), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        end.wait(20)
        return "parent"

    with ThreadPoolExecutor(1) as pool:
        parent = pool.submit(lambda: data.get_or_set("a", 60, load, lock=False))
        begun.wait(20)
        child = os.fork()
        if child == 0:
            started = time.monotonic()
            value = data.get_or_set("a", 60, lambda: "child", lock=False, wait=20)
            os._exit(0 if value == "child" and time.monotonic() - started < 10 else 1)
        assert os.waitpid(child, 0)[1] == 0
        end.set()
        assert parent.result() == "parent"


def test_those_who_wait_get_the_error_of_the_loader(upstash: LocalUpstash):
    data, calls = SyncData(**PATIENT), []

    def load() -> None:
        calls.append(1)
        time.sleep(0.3)
        raise LookupError("no such product")

    def fails() -> bool:
        with pytest.raises(LookupError, match="no such product"):
            data.get_or_set("a", 60, load, wait=20)
        return True

    assert all(in_threads(6, fails))
    assert len(calls) < 6
    assert data.get_or_set("a", 60, lambda: 1) == 1  # the lock was released


@pytest.mark.parametrize("load", [lambda: 1 / 0, object], ids=["raises", "cannot be stored"])
def test_a_loader_that_fails_leaves_no_lock_behind(upstash: LocalUpstash, load: Any):
    with pytest.raises((ZeroDivisionError, NotStorable)):
        SyncData(**PATIENT).get_or_set("a", 60, load)
    with Redis() as redis:
        assert redis.keys("*") == []


def test_a_cancelled_loader_leaves_its_work_to_another(upstash: LocalUpstash):
    async def main() -> Any:
        async with Data(**PATIENT) as data:
            begun = asyncio.Event()

            async def never() -> str:
                begun.set()
                await asyncio.sleep(60)
                return "never"

            first = asyncio.create_task(data.get_or_set("a", 60, never, wait=20))
            await begun.wait()
            second = asyncio.create_task(data.get_or_set("a", 60, lambda: "second", wait=20))
            await asyncio.sleep(0.1)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            return await second

    assert asyncio.run(main()) == "second"


def test_nobody_waits_for_longer_than_said(upstash: LocalUpstash):
    data, begun, end = SyncData(**PATIENT), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        end.wait(20)
        return "slow"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: data.get_or_set("a", 60, load, wait=20))
        begun.wait(20)
        assert data.get_or_set("a", 60, lambda: "quick", wait=0.05) == "quick"
        other = SyncData(**PATIENT)
        other.delete("a")
        assert other.get_or_set("a", 60, lambda: "other", wait=0.05) == "other"
        end.set()
        assert slow.result() == "slow"


def test_a_value_loaded_during_a_purge_is_not_found_afterwards(upstash: LocalUpstash):
    for tags in (["product:7"], []):
        data, other = SyncData(**PATIENT), SyncData(**PATIENT)

        def load(tags: Any = tags, other: Any = other) -> str:
            other.purge(tags=["product"], everything=not tags)
            return "old"

        assert data.get_or_set("a", 60, load, tags=tags) == "old"
        assert data.get("a") is None
        assert other.get_or_set("a", 60, lambda: "new", tags=tags) == "new"
        assert data.get("a") == "new"
        data.clear()


def test_who_comes_after_a_purge_gets_no_value_loaded_before_it(upstash: LocalUpstash):
    """Although it could wait for that loader, which is still at work."""
    data, begun, end = SyncData(**PATIENT), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        end.wait(20)
        return "old"

    def load_old() -> str:
        return data.get_or_set("a", 60, load, tags=["x"], wait=20)

    def load_new() -> str:
        return data.get_or_set("a", 60, lambda: "new", tags=["x"], wait=20)

    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(load_old)
        begun.wait(20)
        data.purge(tags=["x"])
        after = pool.submit(load_new)
        time.sleep(0.2)
        end.set()
        assert before.result() == "old"
        assert after.result() == "new"
    assert data.get("a") == "new"


@pytest.mark.parametrize("write", ["set", "delete", "incr"])
def test_what_this_process_writes_meanwhile_is_not_overwritten(upstash: LocalUpstash, write: str):
    data = SyncData(**PATIENT)

    def load() -> str:
        if write == "set":
            data.set("a", "newer", ttl=60)
        elif write == "delete":
            data.delete("a")
        else:
            data.incr("a", ttl=60)
        return "older"

    assert data.get_or_set("a", 60, load) == "older"
    assert data.get("a") == {"set": "newer", "delete": None, "incr": 1}[write]


def test_a_deleted_value_is_loaded_again_at_once(data: Any):
    """The lock of the load before it is not in the way."""
    for number in range(3):
        begun = time.monotonic()
        assert data.get_or_set("a", 60, lambda number=number: number, wait=20) == number
        assert time.monotonic() - begun < 10
        data.delete("a")


def test_an_expired_value_is_loaded_again_at_once(data: Any, upstash: LocalUpstash):
    for number in range(3):
        begun = time.monotonic()
        assert data.get_or_set("a", 1, lambda number=number: number, wait=20) == number
        upstash.advance(1.5)
        assert time.monotonic() - begun < 10


def test_a_purged_value_is_loaded_again_at_once(data: Any):
    for number in range(3):
        begun = time.monotonic()
        load = lambda number=number: number  # noqa: E731
        assert data.get_or_set("a", 60, load, wait=20, tags=["x"]) == number
        assert time.monotonic() - begun < 10
        data.purge(tags=["x"])


# --- Loading again what is stale ----------------------------------------------------------------


def test_in_a_thread_one_call_loads_a_stale_value_and_others_get_it(upstash: LocalUpstash):
    data, other = SyncData(**PATIENT), SyncData(**PATIENT)

    def call(data: Any, load: Callable[[], Any]) -> Any:
        return data.get_or_set("a", 60, load, stale=600)

    assert call(data, lambda: 1) == 1
    upstash.advance(61)
    assert data.get("a") is None
    seen: list[Any] = []

    def load() -> int:
        seen.append(call(data, lambda: pytest.fail("another one loads already")))
        seen.append(call(other, lambda: pytest.fail("another process loads already")))
        return 2

    assert call(data, load) == 2
    assert seen == [1, 1]
    assert data.get("a") == other.get("a") == 2
    upstash.advance(661)
    assert call(data, lambda: 3) == 3


def test_on_an_event_loop_a_stale_value_is_loaded_in_the_background(upstash: LocalUpstash):
    async def main() -> None:
        async with Data(**PATIENT) as data:
            begun, end = asyncio.Event(), asyncio.Event()

            async def load() -> int:
                begun.set()
                await end.wait()
                return 2

            assert await data.get_or_set("a", 60, lambda: 1, stale=600) == 1
            upstash.advance(61)
            assert await data.get_or_set("a", 60, load, stale=600) == 1
            await begun.wait()
            assert await data.get_or_set("a", 60, load, stale=600) == 1
            end.set()
            while await data.get("a") != 2:  # noqa: ASYNC110 - its task is not known here
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_stale_value_is_used_while_its_loader_fails(make: Make, upstash: LocalUpstash):
    events: list[Any] = []
    data, calls = make(observers=[events.append]), []

    def fails() -> int:
        calls.append(1)
        raise LookupError

    data.get_or_set("a", 60, lambda: 1, stale=600)
    upstash.advance(61)
    for _ in range(5):
        assert data.get_or_set("a", 60, fails, stale=600) == 1
    until = time.monotonic() + 20
    while not (failed := [each for each in events if isinstance(each, UserCodeFailed)]):
        assert time.monotonic() < until
    assert [each.where for each in failed] == ["the loader of 'a'"]
    assert len(calls) == 1  # the next one after some seconds
    upstash.advance(6)
    data.get_or_set("a", 60, fails, stale=600)
    while len(calls) < 2:
        assert time.monotonic() < until
    with pytest.raises(LookupError):
        data.get_or_set("a", 60, fails)


def test_a_soft_purge_leaves_a_value_where_stale_ones_are_allowed(upstash: LocalUpstash):
    data = SyncData(**PATIENT)
    data.get_or_set("a", 60, lambda: 1, tags=["x"], stale=60)
    data.purge(tags=["x"], soft=True)
    assert data.get("a") is None

    def fails() -> int:
        raise LookupError

    assert data.get_or_set("a", 60, fails, tags=["x"], stale=60) == 1
    data.purge(everything=True, soft=True)
    upstash.advance(6)
    assert data.get_or_set("a", 60, lambda: 2, tags=["x"], stale=60) == 2
    assert data.get("a") == 2
    data.purge(tags=["x"])
    with pytest.raises(LookupError):
        data.get_or_set("a", 60, fails, tags=["x"], stale=60)


def test_a_value_is_loaded_early_the_more_probably_the_closer_its_end(upstash: LocalUpstash):
    """And the longer it takes to load: within some times that, nearly certainly."""
    data = SyncData(**PATIENT)

    def load() -> int:
        upstash.advance(1)  # it takes a second
        return 1

    def loads_again(left: float) -> int:
        calls: list[int] = []
        for _ in range(20):
            data.delete("a")
            data.get_or_set("a", 60, load, early=1)
            upstash.advance(60 - left)
            data.get_or_set("a", 60, lambda: calls.append(1), early=1)
        return len(calls)

    assert loads_again(50) == 0
    assert loads_again(0.01) > 10
    data.get_or_set("b", 60, load)
    upstash.advance(30)
    for _ in range(20):
        assert data.get_or_set("b", 60, lambda: 2, early=100) == 1  # it was not stored for that


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stale": -1}, "stale="),
        ({"early": -1}, "early="),
        ({"early": 1000}, "early="),
        ({"wait": 0}, "wait="),
        ({"stale": "400 days"}, "400 days"),
    ],
)
def test_options_of_loading_are_checked(data: Any, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        data.get_or_set("a", 60, lambda: 1, **options)


def test_a_loader_is_a_function(data: Any):
    with pytest.raises(TypeError, match="is not a function"):
        data.get_or_set("a", 60, 7)
