"""The rate limits over HTTP, on the local Upstash: round trips, bill, and the SDK beside us."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import upstash_ratelimit as sdk
from upstash_redis import Redis

from tests.ratelimit.test_limiter import Make, begin, get, passed
from tests.upstash.support import pipeline
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.ratelimit import RateLimitExchange, RateLimitRule
from upstash_middleware.drivers import arun
from upstash_middleware.upstash import AsyncClient, Credentials

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash


def rules(count: int) -> list[RateLimitRule]:
    windows = ("3600s", "7200s", "1d", "2d", "3d", "4d", "5d", "6d", "7d", "8d")
    kinds = ("sliding", "fixed", "gcra")
    limits = "; ".join(f"{kinds[i % 3]} 4/{windows[i]}" for i in range(count))
    return [RateLimitRule("/a", limits, name="many")]


@pytest.mark.parametrize("count", [1, 3, 10])
def test_budgets_hold_on_the_wire(
    limiter_of: Make, upstash: LocalUpstash, client: Any, count: int
) -> None:
    """Allowed, N limits: one round trip and 2 + N commands; denied: one, and 2."""
    limiter = limiter_of(*rules(count), clock=SystemClock, deadline=30)
    begin(limiter, client, get("/a"))  # teaches the server the script, and us its time
    for expected, allowed in ((2 + count, True), (2 + count, True), (2 + count, True), (2, False)):
        upstash.reset_bill()
        assert passed(limiter, client, get("/a")) == [allowed]
        assert (upstash.bill().requests, upstash.bill().commands) == (1, expected)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_an_unknown_script_costs_one_more_round_trip_once(
    limiter_of: Make, upstash: LocalUpstash, client: Any, count: int
) -> None:
    """NOSCRIPT is answered by sending the text; time is asked along with the first."""
    limiter = limiter_of(*rules(count), clock=SystemClock, deadline=30)
    client.execute(pipeline(("SCRIPT", "FLUSH")))
    bills = []
    for _ in range(3):
        upstash.reset_bill()
        assert passed(limiter, client, get("/a")) == [True]
        bills.append((upstash.bill().requests, upstash.bill().commands))
    unknown_and_time = 2
    assert bills == [(2, 2 + count + unknown_and_time), (1, 2 + count), (1, 2 + count)]


@pytest.mark.anyio
async def test_the_same_flow_runs_on_an_event_loop(limiter_of: Make, upstash: LocalUpstash) -> None:
    """Over the async client."""
    limiter = limiter_of(RateLimitRule("/a", "2/h"), clock=SystemClock, deadline=30)
    client = AsyncClient(Credentials(upstash.url, upstash.token), deadline=30)

    async def response() -> Any:
        exchange: RateLimitExchange = await arun(limiter.begin(get("/a")), client)
        return exchange.response and exchange.response.head.status

    try:
        assert [await response() for _ in range(3)] == [None, None, 429]
    finally:
        await client.aclose()


@pytest.mark.parametrize("kind", ["fixed", "sliding", "gcra", "log"])
def test_threads_together_are_let_through_as_often_as_the_limit_says(
    limiter_of: Make, client: Any, kind: str
) -> None:
    """Not one more, not one less, whoever comes first."""
    limiter = limiter_of(RateLimitRule("/a", f"{kind} 40/day"), clock=SystemClock, deadline=30)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: begin(limiter, client, get("/a")), range(120)))
    assert sum(answer.response is None for answer in answers) == 40


@pytest.mark.anyio
async def test_tasks_together_are_let_through_as_often_as_the_limit_says(
    limiter_of: Make, upstash: LocalUpstash
) -> None:
    """All-or-nothing holds among them too: the longer limit is charged for no denial."""
    rule = RateLimitRule("/a", "40/day; 1000/2d")
    limiter = limiter_of(rule, clock=SystemClock, deadline=30, remember_denials=0)
    client = AsyncClient(Credentials(upstash.url, upstash.token), deadline=30)
    passes = []

    async def ask() -> None:
        exchange: RateLimitExchange = await arun(limiter.begin(get("/a")), client)
        passes.append(exchange.response is None)

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(120):
                tasks.start_soon(ask)
        decision = await arun(limiter.peek(get("/a")), client)
    finally:
        await client.aclose()
    assert sum(passes) == 40
    assert decision is not None
    assert [policy.remaining for policy in decision.policies] == [0, 960]


def test_limiters_of_the_sdk_count_together_with_the_sdk(
    limiter_of: Make, upstash: LocalUpstash, client: Any
) -> None:
    """The same limiter object, driven by us and by upstash_ratelimit itself, on one counter."""
    shared = sdk.FixedWindow(5, 1, "d")
    limiter = limiter_of(RateLimitRule("/a", shared, name="a"), clock=SystemClock, deadline=30)
    assert passed(limiter, client, *[get("/a")] * 3) == [True, True, True]
    with Redis(upstash.url, upstash.token) as redis:
        other = sdk.Ratelimit(redis, shared, prefix="t:a")
        assert other.limit("ip=203.0.113.7").remaining == 1
    assert passed(limiter, client, *[get("/a")] * 2) == [True, False]
