"""Limiters of upstash_ratelimit, and a user's own, in the place of ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import upstash_ratelimit as sdk
from upstash_ratelimit.asyncio import Ratelimit as AsyncRatelimit
from upstash_ratelimit.limiter import AbstractLimiter, Limiter, Response
from upstash_redis import Redis
from upstash_redis.asyncio import Redis as AsyncRedis

from tests.ratelimit.store import FakeClock, ValkeyStore
from tests.ratelimit.test_limiter import Make, begin, get, passed
from upstash_middleware.core.ratelimit import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    as_upstash_limiter,
)
from upstash_middleware.errors import ConfigurationError, NotConnected
from upstash_middleware.events import Event, UpstashFailed, UserCodeFailed

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

LIMITERS = [
    sdk.FixedWindow(3, 600),
    sdk.SlidingWindow(3, 600),
    sdk.TokenBucket(3, 1, 600),
]


@pytest.mark.parametrize("limiter", LIMITERS, ids=lambda limiter: type(limiter).__name__)
def test_each_of_its_limiters_decides_unmodified(
    limiter_of: Make, store: ValkeyStore, monkeypatch: pytest.MonkeyPatch, limiter: Limiter
) -> None:
    """In one round trip, with what it says of remaining and reset."""
    clock = FakeClock(1_790_000_100.0)  # early in a window, for both kinds
    monkeypatch.setattr(time, "time", clock.wall)
    own = limiter_of(RateLimitRule("/a", limiter, name="a"), clock=clock)
    remaining = []
    for _ in range(3):
        exchange = begin(own, store, get("/a"))
        assert exchange.response is None
        assert exchange.decision is not None
        remaining.append(exchange.decision.remaining)
    assert remaining == [2, 1, 0]
    response = begin(own, store, get("/a")).response
    assert response is not None
    assert response.head.status == 429
    assert 0 < int(response.head.headers.get("retry-after") or 0) <= 600
    assert response.head.headers.get("ratelimit-policy") == '"a";q=3'
    assert [len(pipeline.commands) for pipeline in store.pipelines] == [1, 1, 1, 1]
    assert passed(own, store, get("/a", peer="203.0.113.8")) == [True]


OURS = [
    FixedWindow(3, 86_400),
    SlidingWindow(3, 86_400),
    TokenBucket(3, 1, 86_400),
    GCRA(3, 86_400),
    SlidingLog(3, 86_400),
]


@pytest.mark.parametrize("limit", OURS, ids=str)
def test_our_algorithms_can_be_had_as_its_limiters(upstash: LocalUpstash, limit: Limit) -> None:
    """In its own Ratelimit, over its own client; a denial's reset is when the request passes."""
    now = [1_790_000_000.0]
    limiter = as_upstash_limiter(limit, wall=lambda: now[0])
    with Redis(upstash.url, upstash.token) as redis:
        ratelimit = sdk.Ratelimit(redis, limiter)
        assert [ratelimit.limit("me").remaining for _ in range(3)] == [2, 1, 0]
        assert ratelimit.get_remaining("me") == 0
        denied = ratelimit.limit("me")
        assert not denied.allowed
        assert ratelimit.get_reset("me") == denied.reset
        now[0] = denied.reset - 0.001
        assert not ratelimit.limit("me").allowed
        now[0] = denied.reset
        assert ratelimit.limit("me").allowed
        assert ratelimit.limit("you", rate=2).remaining == 1


@pytest.mark.anyio
async def test_our_algorithms_can_be_had_as_its_async_limiters(upstash: LocalUpstash) -> None:
    """With upstash_redis.asyncio."""
    limiter = as_upstash_limiter(FixedWindow(3, 86_400))
    async with AsyncRedis(upstash.url, upstash.token) as redis:
        ratelimit = AsyncRatelimit(redis, limiter)
        assert (await ratelimit.limit("me")).remaining == 2
        assert await ratelimit.get_remaining("me") == 2
        assert await ratelimit.get_reset("me") > time.time()


def test_a_limit_of_slots_is_no_limiter_of_the_sdks() -> None:
    """It has no way to give one back."""
    with pytest.raises(ConfigurationError, match="cannot release a slot"):
        as_upstash_limiter(Concurrency(1))


class Thrice(AbstractLimiter):
    """A limiter of a user's, in the SDK's own style."""

    def _limit(self, identifier: str, rate: int = 1) -> Any:
        count = yield ("incrby", (f"{identifier}:thrice", rate))
        yield Response(allowed=count <= 3, limit=3, remaining=3 - count, reset=time.time() + 60)

    def _get_remaining(self, identifier: str) -> Any:
        raise NotImplementedError

    def _get_reset(self, identifier: str) -> Any:
        raise NotImplementedError


class Flagging(Thrice):
    async def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Response:
        await redis.execute(["SET", identifier, True])
        await redis.execute(["SET", f"{identifier}:float", 1.5])
        return await super().limit_async(redis, identifier, rate)


def test_arguments_travel_as_the_sdks_client_would_send_them(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """As JSON has them."""
    begin(limiter_of(RateLimitRule("/a", Flagging(), name="a")), store, get("/a"))
    assert store.client.mget("t:a:ip=203.0.113.7", "t:a:ip=203.0.113.7:float") == [b"true", b"1.5"]


class Twice(Thrice):
    """One that speaks to the client itself, with commands of several kinds."""

    async def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Response:
        await redis.set(identifier, "x", px=60_000, nx=True)
        assert await redis.get(identifier) == "x"
        assert await redis.hgetall("absent") == {}
        first, second = await redis.mget(identifier, "absent")
        assert (first, second) == ("x", None)
        return await super().limit_async(redis, identifier, rate + 1)


@pytest.mark.parametrize(("limiter", "passes"), [(Thrice(), 3), (Twice(), 1)])
def test_a_users_own_subclass_works_in_the_same_place(
    limiter_of: Make, store: ValkeyStore, limiter: Limiter, passes: int
) -> None:
    """Whatever commands it sends, and however many."""
    own = limiter_of(RateLimitRule("/a", limiter))
    assert sum(passed(own, store, *[get("/a")] * 5)) == passes


def test_what_upstash_does_to_it_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Errors of the wire and of a command, as with our own limits."""
    own = limiter_of(RateLimitRule("/a", sdk.FixedWindow(3, 60), on_error="closed"))
    store.fails_with = NotConnected("no")
    assert passed(own, store, get("/a")) == [False]
    assert events[0] == UpstashFailed("rate limit", store.fails_with)
    store.fails_with = None
    number = int(time.time()) // 60
    for window in (number, number + 1):
        store.client.hset(f"t:/a:ip=203.0.113.7:{window}", "a", "b")
    assert passed(own, store, get("/a")) == [False]
    assert isinstance(events[-2], UpstashFailed)
    assert "WRONGTYPE" in str(events[-2].error)


class Broken(Thrice):
    async def limit_async(self, redis: Any, identifier: str, rate: int = 1) -> Response:
        raise RuntimeError("mine")


def test_a_limiter_that_raises_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """It is the application's code like any other."""
    assert passed(limiter_of(RateLimitRule("/a", Broken())), store, get("/a")) == [True]
    assert isinstance(events[0], UserCodeFailed)
    assert events[0].where == "rate_limits[0].limits"
