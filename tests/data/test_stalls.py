"""Calls that need not wait: for a lock that nobody needs, or with a value that is too old."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import Data, SyncData

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.data.conftest import Make
    from upstash_middleware.local import LocalUpstash

PATIENT: dict[str, Any] = {"deadline": 20.0, "cache_deadline": 20.0}


def loads_at_once(data: Any, value: Any = "loaded") -> bool:
    begun = time.monotonic()
    assert data.get_or_set("a", 60, lambda: value, wait=20) == value
    return time.monotonic() - begun < 10


def set_and_purge(data: Any, upstash: LocalUpstash) -> None:
    data.set("a", 2, ttl=60)
    data.clear()


def set_for_a_moment(data: Any, upstash: LocalUpstash) -> None:
    data.set("a", 2, ttl=0.1)
    upstash.advance(0.2)


def keep_for_a_moment(data: Any, upstash: LocalUpstash) -> None:
    data.touch("a", ttl=0.1)
    upstash.advance(0.2)


@pytest.mark.parametrize("end", [set_and_purge, set_for_a_moment, keep_for_a_moment])
def test_a_value_replaced_after_its_load_is_loaded_again_at_once(
    data: Any, upstash: LocalUpstash, end: Callable[[Any, LocalUpstash], None]
):
    assert loads_at_once(data, 1)
    end(data, upstash)
    assert loads_at_once(data, 3)


def test_a_value_too_large_to_store_is_loaded_again_at_once(make: Make):
    for data in (make(), make()):
        for _ in range(2):
            assert loads_at_once(data, "x" * 10_000_000)


def test_a_store_that_failed_delays_no_other_process(make: Make, upstash: LocalUpstash):
    data, other = make(), make()
    data.get("a")

    def load() -> int:
        upstash.set_faults(fault="server-error", times=1)
        return 1

    assert data.get_or_set("a", 60, load, wait=20) == 1
    upstash.set_faults()
    assert loads_at_once(other)


def test_who_comes_after_a_delete_gets_no_value_loaded_before_it(upstash: LocalUpstash):
    data, begun, end = SyncData(**PATIENT), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        end.wait(20)
        return "old"

    with ThreadPoolExecutor(2) as pool:
        before = pool.submit(lambda: data.get_or_set("a", 60, load, wait=20))
        begun.wait(20)
        data.delete("a")
        after = pool.submit(lambda: data.get_or_set("a", 60, lambda: "new", wait=20))
        time.sleep(0.2)
        end.set()
        assert before.result() == "old"
        assert after.result() == "new"
    assert data.get("a") == "new"


def test_with_l1_a_stale_value_hides_no_newer_one(make: Make, upstash: LocalUpstash):
    data, other = make(data_l1_bytes=1_000_000, data_l1_seconds=60), make()
    data.get_or_set("a", 10, lambda: 1, stale=60)
    assert data.get("a") == 1
    upstash.advance(11)
    other.set("a", 2, ttl=60)
    assert data.get("a") == 2


def test_a_failed_loader_leaves_no_reference_cycle(upstash: LocalUpstash):
    class Large:
        pass

    async def main() -> None:
        async with Data(**PATIENT) as data:

            async def call() -> weakref.ref[Large]:
                large = Large()

                async def load() -> None:
                    raise LookupError(type(large).__name__)

                with suppress(LookupError):
                    await data.get_or_set("a", 60, load)
                return weakref.ref(large)

            await call()
            gc.collect()
            gc.disable()
            try:
                assert (await call())() is None
            finally:
                gc.enable()

    asyncio.run(main())
