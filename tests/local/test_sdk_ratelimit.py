"""upstash-ratelimit's own limiters, unmodified, over the local Upstash: verdicts and cost."""

from __future__ import annotations

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
