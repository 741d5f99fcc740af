"""Leases: a process takes quota ahead for a busy identifier, and serves from it without a call."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import pytest

from tests.ratelimit.store import FakeClock, ValkeyStore
from tests.ratelimit.test_limiter import Make, begin, get, passed
from tests.ratelimit.test_settling import finish
from upstash_middleware.core.engine import Prepared
from upstash_middleware.core.flow import Pipeline, Wait
from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Lease,
    Limit,
    RateLimiter,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConnectionLost
from upstash_middleware.events import Event, QuotaLeased

if TYPE_CHECKING:
    from upstash_middleware.core.flow import Reply

EVERY: list[Limit] = [
    FixedWindow(1000, 60),
    SlidingWindow(1000, 60),
    TokenBucket(1000, 1, 0.06),
    GCRA(1000, 60),
    SlidingLog(1000, 60),
]
EACH = pytest.mark.parametrize("limit", EVERY, ids=lambda limit: limit.name)


def leasing(limiter_of: Make, limits: Any, lease: Any = 1, **fields: Any) -> RateLimiter:
    return limiter_of(RateLimitRule("/a", limits, name="r", lease=lease, **fields))


async def sent(pipeline: Pipeline) -> list[Reply]:
    return await pipeline


def carry_out(limiter: RateLimiter, call: Any, store: ValkeyStore) -> None:
    limiter.receive(call, run(sent(call.pipeline), store))


def calls(store: ValkeyStore) -> int:
    """Return the calls since the last time."""
    count = len(store.pipelines)
    store.pipelines.clear()
    return count


@EACH
def test_a_busy_identifier_needs_few_calls(
    limiter_of: Make, store: ValkeyStore, limit: Limit
) -> None:
    limiter = leasing(limiter_of, limit)
    assert passed(limiter, store, *[get("/a")] * 1000) == [True] * 1000
    assert calls(store) <= 60
    assert passed(limiter, store, get("/a")) == [False]


@EACH
def test_few_requests_take_no_slice_and_cost_what_they_did(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit, events: list[Event]
) -> None:
    plain = limiter_of(RateLimitRule("/a", limit, name="r"))
    begin(plain, store, get("/a", peer="192.0.2.9"))
    (expected,) = store.pipelines[-1].commands[:1]
    limiter = leasing(limiter_of, limit)
    calls(store)
    for _ in range(30):
        begin(limiter, store, get("/a"))
        clock.move(0.2)
    assert len(store.pipelines) == 30
    assert len(store.pipelines[-1].commands[0].args) == len(expected.args)
    assert not [event for event in events if isinstance(event, QuotaLeased)]


@EACH
def test_remaining_is_the_counters_and_what_is_left_of_the_slice(
    limiter_of: Make, store: ValkeyStore, limit: Limit
) -> None:
    limiter = leasing(limiter_of, limit)
    remaining = []
    for _ in range(300):
        decision = begin(limiter, store, get("/a")).decision
        assert decision is not None
        remaining.append(decision.remaining)
    assert remaining == [*range(999, 699, -1)]


@pytest.mark.parametrize("limit", [FixedWindow(60, 10), SlidingWindow(60, 10)])
def test_remaining_includes_no_units_of_a_window_that_another_process_has_ended(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit
) -> None:
    rule = RateLimitRule("/a", limit, name="r", lease=Lease(0.5, share=0.1, from_rate=0.1))
    clock.move(9.61 - clock.time % 10)
    ahead = FakeClock(clock.time + 1.0)
    lagging, leading = limiter_of(rule), limiter_of(rule, clock=ahead)
    passed(lagging, store, *[get("/a")] * 31)
    passed(leading, ValkeyStore(store.client, ahead), get("/a"))
    decision = begin(lagging, store, get("/a")).decision
    assert decision is not None
    assert decision.remaining is not None
    assert decision.remaining <= 60 - 2


def test_no_request_exceeds_the_limit_with_two_processes(
    limiter_of: Make, store: ValkeyStore
) -> None:
    one, two = (leasing(limiter_of, FixedWindow(1000, 60)) for _ in range(2))
    allowed = []
    for _ in range(700):
        allowed += passed(one, store, get("/a")) + passed(two, store, get("/a"))
    assert sum(allowed) == 1000


def test_unused_units_are_given_back_by_the_next_call(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, events: list[Event]
) -> None:
    limiter = leasing(limiter_of, FixedWindow(1000, 60))
    passed(limiter, store, *[get("/a")] * 20)
    clock.move(1)
    decision = begin(limiter, store, get("/a")).decision
    assert decision is not None
    assert decision.remaining == 1000 - 21
    by_slices = 21 - calls(store)
    other = leasing(limiter_of, FixedWindow(1000, 60))
    decision = begin(other, store, get("/a")).decision
    assert decision is not None
    units = dict.fromkeys(("leased", "returned", "wasted"), 0)
    for event in events:
        if isinstance(event, QuotaLeased):
            units[event.change] += event.units
    assert units["returned"] > 0
    assert units["wasted"] == 0
    held = units["leased"] - units["returned"] - by_slices
    assert decision.remaining == 1000 - 22 - held


def test_a_lost_response_pauses_leases_and_loses_what_it_may_have_taken(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    limiter = leasing(limiter_of, FixedWindow(1000, 60))
    passed(limiter, store, *[get("/a")] * 10)
    store.fails_with = ConnectionLost("lost")
    while store.fails_with is not None:
        before = len(store.pipelines)
        begin(limiter, store, get("/a"))
        if len(store.pipelines) > before:
            store.fails_with = None
    calls(store)
    passed(limiter, store, *[get("/a")] * 30)
    assert calls(store) >= 15
    clock.move(1)
    passed(limiter, store, *[get("/a")] * 30)
    clock.move(0.1)
    calls(store)
    passed(limiter, store, *[get("/a")] * 10)
    assert calls(store) <= 2


@EACH
def test_a_refund_goes_into_the_slice(limiter_of: Make, store: ValkeyStore, limit: Limit) -> None:
    limiter = leasing(limiter_of, limit, settle=lambda request, response: 0)
    for _ in range(20):
        finish(begin(limiter, store, get("/a")), store)
    calls(store)
    exchange = begin(limiter, store, get("/a"))
    assert calls(store) == 0
    assert not finish(exchange, store)


@EACH
def test_closing_gives_everything_back(limiter_of: Make, store: ValkeyStore, limit: Limit) -> None:
    limiter = leasing(limiter_of, limit)
    passed(limiter, store, *[get("/a")] * 50)
    run(limiter.flush(), store)
    decision = begin(limiter_of(RateLimitRule("/a", limit, name="r")), store, get("/a")).decision
    assert decision is not None
    # A bucket's next refill may have come for somebody else already.
    assert decision.remaining == 1000 - 51 - (limit.name == "bucket")


def test_a_denial_while_a_slice_is_left_uses_the_slice(
    limiter_of: Make, store: ValkeyStore
) -> None:
    one, two = (leasing(limiter_of, FixedWindow(1000, 60)) for _ in range(2))
    passed(one, store, *[get("/a")] * 200)
    while passed(two, store, get("/a")) == [True]:
        pass
    rest = passed(one, store, *[get("/a")] * 200)
    assert rest == sorted(rest, reverse=True)
    assert sum(rest) > 0


def test_several_limits_lease_the_same_number(limiter_of: Make, store: ValkeyStore) -> None:
    limiter = leasing(limiter_of, "1000/min; 200/10s")
    assert sum(passed(limiter, store, *[get("/a")] * 300)) == 200
    assert calls(store) < 60


def test_lease_share_of_one_takes_everything(limiter_of: Make, store: ValkeyStore) -> None:
    limiter = leasing(limiter_of, FixedWindow(1000, 60), Lease(share=1, from_rate=2))
    assert sum(passed(limiter, store, *[get("/a")] * 1100)) == 1000
    assert calls(store) < 20


def test_concurrent_requests_seldom_find_the_slice_used_up(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """Forty more requests come while a call is in flight, and a slice is about a hundred units."""
    limiter = leasing(limiter_of, FixedWindow(100_000, 60), Lease(share=0.001))
    passed(limiter, store, *[get("/a")] * 300)
    own_calls = 0
    for _ in range(20):
        while not isinstance(asking := limiter.prepare(get("/a")), Prepared):
            pass
        waiting: list[Any] = []
        for _ in range(40):
            other = limiter.prepare(get("/a"))
            if isinstance(other, Prepared):
                own_calls += 1
                carry_out(limiter, other, store)
            elif isinstance(other, Coroutine):
                waiting.append(other)
        carry_out(limiter, asking, store)
        calls(store)
        assert {run(each, store).decision.settled_by for each in waiting} <= {"lease"}
        assert not calls(store)
    assert own_calls <= 20


@EACH
def test_requests_that_find_the_slice_used_up_wait_for_the_next_one(
    limiter_of: Make, store: ValkeyStore, limit: Limit
) -> None:
    """If its call is in flight, and brings units for all of them; then they make no call."""
    limiter = leasing(limiter_of, limit)
    passed(limiter, store, *[get("/a")] * 9)
    asking = limiter.prepare(get("/a"))
    flows = [limiter.begin(get("/a")) for _ in range(8)]
    assert all(isinstance(flow.send(None), Wait) for flow in flows)
    carry_out(limiter, asking, store)
    calls(store)
    for flow in flows:
        with pytest.raises(StopIteration) as end:
            flow.send(True)
        assert end.value.value.decision.settled_by == "lease"
    assert not calls(store)


@pytest.mark.parametrize("end", ["lost", "interrupted", "late"])
def test_requests_do_not_wait_for_a_call_that_brings_nothing(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, end: str
) -> None:
    """They make a call of their own, in what is left of the time of one."""
    limiter = leasing(limiter_of, FixedWindow(1000, 60), deadline=2)
    passed(limiter, store, *[get("/a")] * 9)
    asking: Any = limiter.prepare(get("/a"))
    flow = limiter.begin(get("/a"))
    wait = flow.send(None)
    assert isinstance(wait, Wait)
    assert wait.timeout == 1
    assert not wait.latch.opened
    if end == "lost":
        limiter.receive(asking, ConnectionLost("lost"))
    elif end == "interrupted":
        limiter.interrupted(asking)
    clock.move(1 if end == "late" else 0.25)
    assert wait.latch.opened == (end != "late")
    pipeline = flow.send(wait.latch.opened)
    assert isinstance(pipeline, Pipeline)
    assert pipeline.deadline == (1 if end == "late" else 1.75)
    flow.close()


def test_a_request_that_waits_is_denied_without_a_call_if_the_quota_is_used_up(
    limiter_of: Make, store: ValkeyStore
) -> None:
    limiter, other = (leasing(limiter_of, FixedWindow(20, 60)) for _ in range(2))
    passed(limiter, store, *[get("/a")] * 9)
    asking = limiter.prepare(get("/a"))
    flow = limiter.begin(get("/a"))
    assert isinstance(flow.send(None), Wait)
    while passed(other, store, get("/a")) == [True]:
        pass
    carry_out(limiter, asking, store)
    with pytest.raises(StopIteration) as end:
        flow.send(True)
    assert end.value.value.response is not None
    assert end.value.value.decision.settled_by == "memory"


@EACH
@pytest.mark.parametrize("cost", [2, 7, 10, 30])
def test_higher_costs_use_up_the_whole_quota(
    limiter_of: Make, store: ValkeyStore, limit: Limit, cost: int
) -> None:
    """Slices that are each too small for a request serve it together."""
    limiter = leasing(limiter_of, limit, 10, cost=cost)
    results = passed(limiter, store, *[get("/a")] * 600)
    # Each time that a bucket is given units back, one refill fewer: it may have come already.
    assert 1000 // cost - sum(results) <= (3 if limit.name == "bucket" else 0)
    assert results == sorted(results, reverse=True)


def test_limits_that_a_function_returns_may_have_a_lease(
    limiter_of: Make, store: ValkeyStore
) -> None:
    limiter = limiter_of(RateLimitRule("/a", lambda request: "fixed 1000/min lease 10s", name="r"))
    assert passed(limiter, store, *[get("/a")] * 100) == [True] * 100
    assert calls(store) <= 20
