"""Leases under threads, event loops, both at once, forks, and very many identifiers."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from tests.patience import patient_environment
from tests.ratelimit.test_limiter import Make, begin, get
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.identify import client_ip
from upstash_middleware.core.ratelimit import FixedWindow, Lease, RateLimiter, RateLimitRule
from upstash_middleware.core.ratelimit.charges import RuleCharge
from upstash_middleware.core.ratelimit.leases import Leases
from upstash_middleware.core.ratelimit.memory import ServerClock
from upstash_middleware.core.ratelimit.rules import compile_rules
from upstash_middleware.drivers import arun
from upstash_middleware.upstash import AsyncClient, Credentials

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock
    from upstash_middleware.local import LocalUpstash

QUOTA = 2000
REQUESTS = 3200
DAY = 86400


async def on_a_loop(limiter: RateLimiter, upstash: LocalUpstash, requests: int) -> int:
    """Make requests in 64 tasks; return how many pass."""
    client = AsyncClient(Credentials(upstash.url, upstash.token), deadline=30)
    admitted = 0

    async def task() -> None:
        nonlocal admitted
        for _ in range(requests // 64):
            exchange = await arun(limiter.begin(get("/a")), client)
            admitted += exchange.response is None

    async with anyio.create_task_group() as tasks:
        for _ in range(64):
            tasks.start_soon(task)
    await client.aclose()
    return admitted


def in_threads(limiter: RateLimiter, client: Any, requests: int) -> int:
    """Make requests in 16 threads; return how many pass."""

    def thread(_: int) -> int:
        return sum(
            begin(limiter, client, get("/a")).response is None for _ in range(requests // 16)
        )

    with ThreadPoolExecutor(16) as threads:
        return sum(threads.map(thread, range(16)))


@pytest.mark.parametrize("where", ["threads", "loop", "both"])
def test_one_busy_identifier_gets_its_quota_and_no_more(
    limiter_of: Make, upstash: LocalUpstash, client: Any, where: str
) -> None:
    """In calls of which there are far fewer than requests."""
    rule = RateLimitRule("/a", FixedWindow(QUOTA, DAY), lease=Lease(60, share=0.2))
    limiter = limiter_of(rule, clock=SystemClock, deadline=30)
    begin(limiter, client, get("/a", peer="192.0.2.9"))
    upstash.reset_bill()
    if where == "threads":
        admitted = in_threads(limiter, client, REQUESTS)
    elif where == "loop":
        admitted = anyio.run(on_a_loop, limiter, upstash, REQUESTS)
    else:
        with ThreadPoolExecutor(1) as other:
            loop = other.submit(anyio.run, on_a_loop, limiter, upstash, REQUESTS // 2)
            admitted = in_threads(limiter, client, REQUESTS // 2) + loop.result()
    assert admitted == QUOTA
    assert upstash.bill().requests < QUOTA / 2


FORKING = """
import os
from upstash_middleware import Lease, SyncLimiter

limiter = SyncLimiter("fixed 1000/day", name="calls", deadline=20, lease=Lease(60, share=0.5))
decisions = [limiter.hit("ada") for _ in range(100)]
assert decisions[-1].settled_by == "lease"
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    first = limiter.hit("ada")
    assert first.settled_by == "upstash", first
    os.write(writing, b"%d" % (1 + sum(limiter.try_hit("ada").allowed for _ in range(1000))))
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
assert limiter.hit("ada").settled_by == "lease"
parents = 101 + sum(limiter.try_hit("ada").allowed for _ in range(1000))
print(parents + int(os.read(reading, 10)))
"""


def test_a_forked_child_has_no_slice_and_its_parent_keeps_its_own(upstash: LocalUpstash) -> None:
    """Together they are admitted the whole quota."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING],
        env=patient_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stderr, done.stdout) == ("", "1000\n")


@pytest.mark.slow
def test_a_million_identifiers_take_no_more_memory_than_ten_thousand(clock: FakeClock) -> None:
    rule = RateLimitRule("/a", FixedWindow(1000, 60), lease=1)
    (compiled,) = compile_rules((rule,), None, "t", client_ip())
    leases, time = Leases(lambda _: None), ServerClock(clock)

    def see(first: int, last: int) -> None:
        for number in range(first, last):
            leases.serve(RuleCharge(compiled, "", f"t:{number}", 1), time)

    see(0, 20_000)
    gc.collect()
    before = len(gc.get_objects())
    see(20_000, 1_000_000)
    gc.collect()
    assert len(gc.get_objects()) < 1.2 * before
