"""Units of leases: none is created, and none is lost where it need not be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ratelimit.store import NOW
from tests.ratelimit.test_leases import calls, leasing
from tests.ratelimit.test_limiter import Make, begin, get, passed
from tests.ratelimit.test_settling import finish
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
    from tests.ratelimit.store import FakeClock, ValkeyStore


def remaining(limiter: RateLimiter, store: ValkeyStore) -> int:
    """Return what a request leaves of the quota."""
    decision = begin(limiter, store, get("/a")).decision
    assert decision is not None
    assert decision.remaining is not None
    return decision.remaining


def by_the_counter(limiter_of: Make, store: ValkeyStore, limit: Limit) -> int:
    """Return what the counter says is left."""
    look = run(limiter_of(RateLimitRule("/a", limit, name="r")).peek(get("/a")), store)
    assert look is not None
    assert look.remaining is not None
    return look.remaining


@pytest.mark.parametrize(
    "limit", [TokenBucket(1000, 100, 0.1), GCRA(1000, 1)], ids=lambda limit: limit.name
)
@pytest.mark.parametrize(("passes", "back"), [(0.9, 0.8), (20, 30)])
def test_a_process_whose_clock_is_set_back_returns_no_units_that_have_come_back_by_themselves(
    limiter_of: Make,
    store: ValkeyStore,
    clock: FakeClock,
    limit: Limit,
    passes: float,
    back: float,
) -> None:
    limiter = leasing(limiter_of, limit, Lease(1, share=1))
    passed(limiter, store, *[get("/a")] * 400)
    clock.move(passes)
    whole = RateLimitRule("/a", limit, name="r", cost=by_the_counter(limiter_of, store, limit))
    assert passed(limiter_of(whole), store, get("/a")) == [True]
    clock.time -= back
    run(limiter.flush(), store)
    clock.time = NOW + passes
    assert by_the_counter(limiter_of, store, limit) == 0


def test_a_refund_above_what_was_used_adds_nothing_to_a_slice(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    limiter = leasing(limiter_of, FixedWindow(1000, 60))
    passed(limiter, store, *[get("/a")] * 20)
    calls(store)
    exchange = begin(limiter, store, get("/a"))
    assert not calls(store)
    assert exchange.decision is not None
    exchange.decision.charge(-100)
    finish(exchange, store)
    assert calls(store) == 1
    taken = sum(
        each.units for each in events if isinstance(each, QuotaLeased) and each.change == "leased"
    )
    passed(limiter, store, *[get("/a")] * taken)
    assert calls(store) > 0


@pytest.mark.parametrize(
    "limit", [FixedWindow(1000, 60), SlidingWindow(1000, 60), GCRA(1000, 60), SlidingLog(1000, 60)]
)
def test_several_slices_of_one_identifier_are_all_given_back(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit
) -> None:
    """In one call, of which each slice is a part."""
    limiter = leasing(limiter_of, limit, 5, cost=7)
    for _ in range(40):
        passed(limiter, store, get("/a"))
        clock.move(0.001)
    calls(store)
    run(limiter.flush(), store)
    assert calls(store) == 1
    # A refill in the meantime is not given back twice.
    assert by_the_counter(limiter_of, store, limit) >= 1000 - 40 * 7 - 7


def test_remaining_does_not_count_a_slice_that_ends_during_a_call(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    limit = FixedWindow(1000, 60)
    limiter = leasing(limiter_of, limit)
    passed(limiter, store, *[get("/a")] * 20)
    calls(store)
    left = remaining(limiter, store) - by_the_counter(limiter_of, store, limit)
    calls(store)
    assert left > 0
    # A request that no slice is large enough for.
    flow = limiter.begin_call("r", "ip=203.0.113.7", left + 1)
    pipeline = flow.send(None)
    assert isinstance(pipeline, Pipeline)
    replies = store.execute(pipeline)
    clock.move(1)
    with pytest.raises(StopIteration) as end:
        flow.send(replies)
    assert end.value.value.decision.remaining == by_the_counter(limiter_of, store, limit)


def test_a_slice_whose_reply_comes_late_lasts_no_longer(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Although the wall clock is set back in the meantime."""
    limiter = leasing(limiter_of, FixedWindow(1000, 60))
    # The tenth of these asks for a slice.
    passed(limiter, store, *[get("/a")] * 9)
    flow = limiter.begin(get("/a"))
    pipeline = flow.send(None)
    assert isinstance(pipeline, Pipeline)
    assert "lease" in pipeline.commands[0].args
    replies = store.execute(pipeline)
    clock.since_boot += 0.8
    with pytest.raises(StopIteration):
        flow.send(replies)
    clock.since_boot += 0.3
    calls(store)
    begin(limiter, store, get("/a"))
    assert calls(store) == 1


def test_a_call_that_fails_gives_nothing_back_twice(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, events: list[Event]
) -> None:
    limiter = leasing(limiter_of, FixedWindow(1000, 60))
    passed(limiter, store, *[get("/a")] * 20)
    clock.move(1)
    store.fails_with = ConnectionLost("lost")
    begin(limiter, store, get("/a"))
    store.fails_with = None
    before = by_the_counter(limiter_of, store, FixedWindow(1000, 60))
    begin(limiter, store, get("/a"))
    run(limiter.flush(), store)
    assert by_the_counter(limiter_of, store, FixedWindow(1000, 60)) <= before - 1
    changes = [each.change for each in events if isinstance(each, QuotaLeased)]
    assert changes.count("wasted") == 1


def test_a_denial_does_not_shorten_the_pause_after_a_lost_reply(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    limiter = leasing(limiter_of, GCRA(1000, 1), 5)
    passed(limiter, store, *[get("/a")] * 9)
    store.fails_with = ConnectionLost("lost")
    begin(limiter, store, get("/a"))
    store.fails_with = None
    whole = RateLimitRule("/a", GCRA(1000, 1), name="r", cost=1000 - 9)
    passed(limiter_of(whole), store, get("/a"))
    assert passed(limiter, store, get("/a")) == [False]
    clock.move(1)
    calls(store)
    passed(limiter, store, *[get("/a")] * 20)
    assert calls(store) == 20


def test_no_slice_outlasts_the_window_that_it_was_taken_from(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    limiter = leasing(limiter_of, "fixed 1000/10s; 5000/min", 5)
    clock.move(9.5)
    passed(limiter, store, *[get("/a")] * 20)
    calls(store)
    clock.move(0.499)
    passed(limiter, store, get("/a"))
    assert not calls(store)
    clock.move(0.001)
    passed(limiter, store, get("/a"))
    assert calls(store) == 1


@pytest.mark.parametrize("clocks", [("time",), ("since_boot",)])
def test_a_slice_ends_by_either_clock(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, clocks: tuple[str, ...]
) -> None:
    """A machine that slept has none, and setting the clock does not prolong one."""
    limiter = leasing(limiter_of, FixedWindow(1000, 60))
    passed(limiter, store, *[get("/a")] * 20)
    calls(store)
    for each in clocks:
        setattr(clock, each, getattr(clock, each) + 1)
    passed(limiter, store, get("/a"))
    assert calls(store) == 1


def test_what_is_left_of_a_window_is_not_given_back_to_the_next_one(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, events: list[Event]
) -> None:
    limit = FixedWindow(1000, 10)
    limiter = leasing(limiter_of, limit)
    passed(limiter, store, *[get("/a")] * 20)
    clock.move(10)
    whole = RateLimitRule("/a", limit, name="r", cost=500)
    passed(limiter_of(whole), store, get("/a"))
    passed(limiter, store, get("/a"))
    assert by_the_counter(limiter_of, store, limit) == 1000 - 500 - 1
    assert {each.change for each in events if isinstance(each, QuotaLeased)} == {"leased", "wasted"}


def test_one_call_at_a_time_asks_for_a_slice_of_at_most_the_share(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    limiter = leasing(limiter_of, FixedWindow(1000, 60), Lease(share=0.005))
    flows = [limiter.begin(get("/a")) for _ in range(40)]
    effects = [flow.send(None) for flow in flows]
    waiting = 0
    for flow, effect in zip(flows, effects, strict=True):
        if isinstance(effect, Wait):
            waiting += 1
            flow.close()
            continue
        assert isinstance(effect, Pipeline)
        with pytest.raises(StopIteration):
            flow.send(store.execute(effect))
    assert waiting == 5  # as many as the slice serves; the others do not wait in vain
    (leased,) = [each.units for each in events if isinstance(each, QuotaLeased)]
    assert leased == 5  # of the 990 that the tenth request leaves


def test_a_refund_never_goes_into_another_slice(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    limit = FixedWindow(1000, 10)
    limiter = leasing(limiter_of, limit, settle=lambda request, response: 0)
    *_, exchange = [begin(limiter, store, get("/a")) for _ in range(20)]
    clock.move(10)
    passed(limiter, store, *[get("/a")] * 12)
    calls(store)
    remaining_before = remaining(limiter, store)
    assert not calls(store)
    assert finish(exchange, store)
    assert remaining(limiter, store) == remaining_before - 1


def test_a_refund_after_a_slice_was_given_back_reaches_the_counter(
    limiter_of: Make, store: ValkeyStore
) -> None:
    limit = FixedWindow(1000, 60)
    limiter = leasing(limiter_of, limit, settle=lambda request, response: 0)
    exchanges = [begin(limiter, store, get("/a")) for _ in range(20)]
    run(limiter.flush(), store)
    for exchange in exchanges:
        finish(exchange, store)
    assert by_the_counter(limiter_of, store, limit) == 1000
    calls(store)
    begin(limiter, store, get("/a"))
    assert calls(store) == 1


def test_a_rule_that_denies_beside_others_is_not_overruled_by_its_slice(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """The others have taken nothing."""
    rules = (
        RateLimitRule("/a", FixedWindow(1000, 60), name="r", lease=Lease(share=0.5)),
        RateLimitRule("/a", FixedWindow(5000, 60), name="other"),
    )
    limiter = limiter_of(*rules, match="all", remember_denials=0)
    admitted = sum(passed(limiter, store, *[get("/a")] * 30))
    left = by_the_counter(limiter_of, store, FixedWindow(1000, 60))
    whole = RateLimitRule("/a", FixedWindow(1000, 60), name="r", cost=left)
    passed(limiter_of(whole), store, get("/a"))
    admitted += sum(passed(limiter, store, *[get("/a")] * 100))
    other = limiter_of(RateLimitRule("/a", FixedWindow(5000, 60), name="other"))
    seen = run(other.peek(get("/a")), store)
    assert seen is not None
    assert seen.remaining == 5000 - admitted


def test_a_reset_drops_the_slices_of_its_process(limiter_of: Make, store: ValkeyStore) -> None:
    limit = FixedWindow(1000, 60)
    limiter = leasing(limiter_of, limit, Lease(share=1))
    passed(limiter, store, *[get("/a")] * 60)
    run(limiter.reset("r", "ip=203.0.113.7"), store)
    assert sum(passed(limiter, store, *[get("/a")] * 1100)) == 1000


def test_a_slice_that_is_given_back_for_a_higher_cost_is_not_used_any_more(
    limiter_of: Make, store: ValkeyStore
) -> None:
    limit = FixedWindow(1000, 60)
    limiter = leasing(limiter_of, limit)
    passed(limiter, store, *[get("/a")] * 20)
    left = remaining(limiter, store) - by_the_counter(limiter_of, store, limit)
    assert left > 0
    run(limiter.begin_call("r", "ip=203.0.113.7", left + 1), store)
    run(limiter.flush(), store)
    assert by_the_counter(limiter_of, store, limit) == 1000 - 21 - (left + 1)
    # Nor is it given back once more.
    begin(limiter, store, get("/a"))
    assert by_the_counter(limiter_of, store, limit) == 1000 - 21 - (left + 1) - 1


def test_a_call_that_is_denied_gives_back_as_well(limiter_of: Make, store: ValkeyStore) -> None:
    limit = FixedWindow(1000, 60)
    limiter = leasing(limiter_of, limit)
    passed(limiter, store, *[get("/a")] * 20)
    left = remaining(limiter, store) - by_the_counter(limiter_of, store, limit)
    assert left > 0
    whole = by_the_counter(limiter_of, store, limit)
    passed(limiter_of(RateLimitRule("/a", limit, name="r", cost=whole)), store, get("/a"))
    denied = run(limiter.begin_call("r", "ip=203.0.113.7", left + 1), store)
    assert denied.response is not None
    assert by_the_counter(limiter_of, store, limit) == left
