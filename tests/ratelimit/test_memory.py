"""Denials that a process remembers: no round trip, no second too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.ratelimit.test_limiter import Make, begin, get, passed
from upstash_middleware.core.ratelimit import FixedWindow, RateLimitRule, SlidingWindow
from upstash_middleware.events import Event, RateLimitDecided

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock, ValkeyStore


def test_denied_again_asks_nothing_until_it_would_pass(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, events: list[Event]
) -> None:
    """The wait falls as time passes, and the first request at its end goes through."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10), name="a"))
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]
    asked = len(store.pipelines)
    clock.move(2.5)
    remembered = begin(limiter, store, get("/a"))
    assert remembered.response is not None
    assert remembered.response.head.headers.get("retry-after") == "8"
    assert remembered.response.head.headers.get("ratelimit") == '"a";r=0;t=8'
    assert remembered.decision is not None
    assert (remembered.decision.retry_after, remembered.decision.settled_by) == (7.5, "memory")
    assert events[-1] == RateLimitDecided(
        "a", "ip=203.0.113.7", allowed=False, remaining=0, retry_after=7.5, settled_by="memory"
    )
    clock.move(7.499)
    assert passed(limiter, store, get("/a")) == [False]
    assert len(store.pipelines) == asked
    clock.move(0.001)
    assert passed(limiter, store, get("/a")) == [True]


def test_what_would_pass_is_not_denied_from_memory(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """upstash-ratelimit's block cache lets 0 of 9 requests pass after one denial at 61 s."""
    limiter = limiter_of(RateLimitRule("/a", SlidingWindow(10, 60), name="a"))
    clock.move(59 + 60 - clock.time % 60)
    assert sum(passed(limiter, store, *[get("/a")] * 10)) == 10
    clock.move(2)
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]
    later = 0
    for _ in range(57):
        clock.move(1)
        later += sum(passed(limiter, store, get("/a")))
    assert later == 9


def test_a_raised_quota_is_noticed_within_a_minute(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """A day's limit that was reset elsewhere does not stay used up until midnight."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 86_400)))
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]
    store.client.flushall()
    clock.move(59.999)
    assert passed(limiter, store, get("/a")) == [False]
    clock.move(0.001)
    assert passed(limiter, store, get("/a")) == [True]


def test_denials_are_remembered_per_identity_and_cost(limiter_of: Make, store: ValkeyStore) -> None:
    """What is too much at once may pass in smaller pieces."""
    rule = RateLimitRule("/a", FixedWindow(10, 60), cost=lambda request: int(request.query))
    limiter = limiter_of(rule)
    costs = [8, 3, 2, 1]
    assert passed(limiter, store, *[get("/a", query=str(cost)) for cost in costs]) == [
        True, False, True, False,
    ]  # fmt: skip
    assert passed(limiter, store, get("/a", query="1", peer="203.0.113.8")) == [True]


def test_it_can_be_switched_off(limiter_of: Make, store: ValkeyStore) -> None:
    """For those who reset quotas and want it seen at once."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 60)), remember_denials=0)
    passed(limiter, store, *[get("/a")] * 3)
    assert len(store.pipelines) == 3


def test_a_clock_set_back_denies_for_no_longer(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Neither the wall clock nor a freeze of the other one can make a denial last."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10)))
    passed(limiter, store, *[get("/a")] * 2)
    asked = len(store.pipelines)
    clock.time -= 5
    passed(limiter, store, get("/a"))
    assert len(store.pipelines) == asked + 1
    clock.since_boot += 3600
    passed(limiter, store, get("/a"))
    assert len(store.pipelines) == asked + 2
