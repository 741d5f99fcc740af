"""upstash-ratelimit's own limiters, unmodified, over the local Upstash: verdicts and cost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import upstash_ratelimit.asyncio as asynchronous
from upstash_ratelimit import FixedWindow, Ratelimit, SlidingWindow, TokenBucket
from upstash_redis.asyncio import Redis as AsyncRedis

if TYPE_CHECKING:
    from upstash_redis import Redis

    from upstash_middleware.local import LocalUpstash

# What one allowed call costs when the key is there already, by Upstash's own documentation.
COSTS = {"fixed": 2, "sliding": 4, "bucket": 4}


def limiter(kind: str, module=None):
    if kind == "fixed":
        return (module or FixedWindow)(max_requests=3, window=3600, unit="s")
    if kind == "sliding":
        return (module or SlidingWindow)(max_requests=3, window=3600, unit="s")
    return (module or TokenBucket)(max_tokens=3, refill_rate=3, interval=3600, unit="s")


@pytest.mark.parametrize("kind", COSTS)
def test_three_are_allowed_and_the_fourth_is_not(redis: Redis, kind: str):
    ratelimit = Ratelimit(redis=redis, limiter=limiter(kind), prefix="test")
    answers = [ratelimit.limit("me") for _ in range(4)]
    assert [answer.allowed for answer in answers] == [True, True, True, False]
    assert [answer.remaining for answer in answers[:3]] == [2, 1, 0]
    assert ratelimit.limit("you").allowed
    assert ratelimit.get_remaining("me") == 0
    assert ratelimit.get_remaining("you") == 2


@pytest.mark.parametrize(("kind", "cost"), COSTS.items())
def test_a_call_costs_what_upstash_says_it_does(
    upstash: LocalUpstash, redis: Redis, kind: str, cost: int
):
    ratelimit = Ratelimit(redis=redis, limiter=limiter(kind), prefix="test")
    ratelimit.limit("me")
    upstash.reset_bill()
    ratelimit.limit("me")
    assert (upstash.bill().requests, upstash.bill().commands) == (1, cost)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_async_limiters_agree(upstash: LocalUpstash):
    async with AsyncRedis.from_env(rest_retries=0) as redis:
        for kind, module in (
            ("fixed", asynchronous.FixedWindow),
            ("sliding", asynchronous.SlidingWindow),
            ("bucket", asynchronous.TokenBucket),
        ):
            ratelimit = asynchronous.Ratelimit(
                redis=redis, limiter=limiter(kind, module), prefix=kind
            )
            allowed = [(await ratelimit.limit("me")).allowed for _ in range(4)]
            assert allowed == [True, True, True, False]


@pytest.mark.parametrize("kind", COSTS)
def test_a_rate_takes_or_gives_back_so_many_at_once(redis: Redis, kind: str):
    ratelimit = Ratelimit(redis=redis, limiter=limiter(kind), prefix="test")
    assert ratelimit.limit("me", rate=2).remaining == 1
    assert not ratelimit.limit("me", rate=2).allowed
    assert ratelimit.limit("you", rate=2).remaining == 1
    ratelimit.limit("you", rate=-1)
    assert ratelimit.get_remaining("you") == 2


@pytest.mark.parametrize("kind", COSTS)
def test_the_reset_is_told_and_lies_ahead(redis: Redis, kind: str):
    ratelimit = Ratelimit(redis=redis, limiter=limiter(kind), prefix="test")
    answer = ratelimit.limit("me")
    now = time.time()
    assert now - 1 < answer.reset <= now + 3601
    assert now - 1 < ratelimit.get_reset("me") <= now + 3601


@pytest.mark.parametrize("kind", COSTS)
def test_blocking_until_ready_gives_up_at_its_deadline(redis: Redis, kind: str):
    ratelimit = Ratelimit(redis=redis, limiter=limiter(kind), prefix="test")
    assert ratelimit.block_until_ready("me", timeout=0.05, rate=3).allowed
    assert not ratelimit.block_until_ready("me", timeout=0.05).allowed


def test_what_the_limiters_write_goes_away_by_itself(redis: Redis):
    for kind in COSTS:
        Ratelimit(redis=redis, limiter=limiter(kind), prefix=kind).limit("me")
    assert all(redis.pttl(key) > 0 for key in redis.keys("*"))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_many_at_once_are_counted_once_each(upstash: LocalUpstash):
    async with AsyncRedis.from_env(rest_retries=0) as redis:
        ratelimit = asynchronous.Ratelimit(
            redis=redis, limiter=limiter("sliding", asynchronous.SlidingWindow), prefix="test"
        )
        answers = await asyncio.gather(*(ratelimit.limit("me") for _ in range(20)))
        assert sum(answer.allowed for answer in answers) == 3
        assert await ratelimit.get_remaining("me") == 0
        assert await ratelimit.get_reset("me") > time.time()
        assert not (await ratelimit.block_until_ready("me", timeout=0.05)).allowed
