"""What a request costs in the end: refunds, charges on top, overdrafts, on every way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ratelimit import reference
from tests.ratelimit.test_algorithms import MODEL, START, limits, take_one
from tests.ratelimit.test_limiter import Make, begin, get, passed
from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Limit,
    RateLimitExchange,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.core.ratelimit.charges import Settlement, settle_command
from upstash_middleware.drivers import run
from upstash_middleware.errors import CommandError, ConfigurationError, NotConnected
from upstash_middleware.events import Event, UpstashFailed, UserCodeFailed
from upstash_middleware.messages import NO_HEADERS, ResponseHead

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock, ValkeyStore
    from upstash_middleware.local import LocalUpstash

EVERY = [
    FixedWindow(10, 60),
    SlidingWindow(10, 60),
    TokenBucket(10, 1, 6),
    GCRA(10, 60),
    SlidingLog(10, 60),
]


def settle(store: ValkeyStore, now: int, limit: Limit, units: int, part: int) -> None:
    reply = store.reply(settle_command([Settlement("t:r:a", limit, units, part)], now))
    if isinstance(reply, CommandError):
        raise reply
    assert reply == b"OK"


def finish(exchange: RateLimitExchange, store: ValkeyStore, status: int | None = 200) -> bool:
    """End a request; answer whether that took a round trip. Without a status, it has raised."""
    if status is None:
        exchange.failed()
    else:
        exchange.head(ResponseHead(status, NO_HEADERS))
    before = len(store.pipelines)
    flow = exchange.finish(complete=status is not None)
    if flow is not None:
        run(flow, store)
    return len(store.pipelines) > before


def remaining(limiter: Any, store: ValkeyStore, **request: Any) -> int | None:
    decision = begin(limiter, store, get("/a", **request)).decision
    assert decision is not None
    return decision.remaining


@MODEL
@given(
    limit=limits(),
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 50), st.integers(0, 5000)),
            st.integers(1, 14),
            st.one_of(st.none(), st.integers(-14, 14)),
            st.integers(0, 5000),
        ),
        max_size=20,
    ),
)
def test_every_algorithm_settles_as_its_definition_says(
    store: ValkeyStore, limit: Limit, steps: list[tuple[int, int, int | None, int]]
) -> None:
    """Refunds and charges at any later time, into a window that may be over; waits stay exact."""
    store.client.flushall()
    model, now = reference.model_of(limit), START
    for wait, cost, wanted, later in steps:
        now += wait
        found = take_one(store, now, limit, cost)
        assert found.allowed == model.take(now, cost)
        if found.allowed and wanted:
            taken_at, now = now, now + later
            units = max(wanted, -cost)
            settle(store, now, limit, units, found.state_part)
            model.add(now, units) if units > 0 else model.give(now, -units, taken_at)
        assert model.left(now) <= limit.quota
        after = take_one(store, now, limit, limit.quota)
        assert after.allowed == model.take(now, limit.quota)
        assert after.remaining == model.remaining(now)
        if not after.allowed:
            assert after.retry_ms == model.first_pass(now, limit.quota) - now


@pytest.mark.parametrize("limit", EVERY, ids=str)
def test_refunds_never_lift_remaining_above_the_limit(store: ValkeyStore, limit: Limit) -> None:
    """As those of upstash-ratelimit do."""
    part = take_one(store, START, limit, cost=3).state_part
    settle(store, START, limit, -9, part)
    settle(store, START, limit, -9, part)
    assert take_one(store, START, limit).remaining == 9


@pytest.mark.parametrize("limit", EVERY[:2], ids=str)
def test_a_counter_never_goes_below_zero(store: ValkeyStore, limit: Limit) -> None:
    """Where it is shared, upstash-ratelimit would take that for more than there is."""
    part = take_one(store, START, limit).state_part
    settle(store, START, limit, -9, part)
    (key,) = store.client.keys("*")
    assert store.client.get(key) == b"0"


def test_what_is_given_back_is_given_once(store: ValkeyStore) -> None:
    """Also where several requests were made in the same millisecond."""
    limit = SlidingLog(10, 60)
    part = take_one(store, START, limit, cost=3).state_part
    take_one(store, START, limit, cost=3)
    settle(store, START, limit, -2, part)
    assert take_one(store, START, limit).remaining == 5


@pytest.mark.parametrize("limit", EVERY, ids=str)
def test_settling_leaves_every_key_its_lifetime(store: ValkeyStore, limit: Limit) -> None:
    """A refund keeps it, a charge sets it anew, as long as taking does."""
    part = take_one(store, START, limit, cost=5).state_part
    (key,) = store.client.keys("*")
    before = store.client.pttl(key)
    settle(store, START, limit, -2, part)
    assert before - 500 < store.client.pttl(key) <= before + 100
    store.client.persist(key)
    settle(store, START, limit, 2, part)
    assert before - 500 < store.client.pttl(key) <= before + 100


@pytest.mark.parametrize("limit", EVERY, ids=str)
def test_an_overdraft_is_taken_and_paid_off_by_waiting(store: ValkeyStore, limit: Limit) -> None:
    """What is above the limit denies until it is gone."""
    part = take_one(store, START, limit).state_part
    settle(store, START, limit, 14, part)
    denied = take_one(store, START, limit)
    assert (denied.allowed, denied.remaining) == (False, 0)
    assert denied.retry_ms
    assert not take_one(store, START + denied.retry_ms - 1, limit).allowed
    assert take_one(store, START + denied.retry_ms, limit).allowed


@pytest.mark.parametrize("limit", EVERY, ids=str)
def test_the_largest_overdraft_is_paid_off_some_day(store: ValkeyStore, limit: Limit) -> None:
    """No number that an application can charge breaks the arithmetic."""
    part = take_one(store, START, limit).state_part
    for _ in range(3):
        settle(store, START, limit, 10**15 - 1, part)
    denied = take_one(store, START, limit)
    assert not denied.allowed
    assert 0 < (denied.retry_ms or 0) <= 401 * 86_400_000
    assert take_one(store, START + (denied.retry_ms or 0), limit).allowed


@pytest.mark.parametrize("limit", EVERY, ids=str)
def test_what_is_not_ours_is_not_settled_over(store: ValkeyStore, limit: Limit) -> None:
    """Another value or another type at the key stays, with an error for the policy."""
    part = take_one(store, START, limit).state_part
    (key,) = store.client.keys("*")
    for units in (-1, 1):
        store.client.set(key, "mine")
        with pytest.raises(CommandError, match="WRONGVALUE"):
            settle(store, START, limit, units, part)
        assert store.client.get(key) == b"mine"
    store.client.delete(key)
    store.client.rpush(key, "mine")
    settle(store, START, limit, -1, part)
    with pytest.raises(CommandError, match="WRONGTYPE"):
        settle(store, START, limit, 1, part)
    assert store.client.lrange(key, 0, -1) == [b"mine"]


def test_only_failed_logins_count(limiter_of: Make, store: ValkeyStore) -> None:
    """A cost decided by the response, reserved before it."""
    rule = RateLimitRule("/a", "3/h", settle=lambda request, response: int(response.status == 401))
    limiter = limiter_of(rule)
    for status in (200, 401, 200, 200, 401, 303):
        exchange = begin(limiter, store, get("/a"))
        assert exchange.response is None
        assert finish(exchange, store, status) == (status != 401)
    assert finish(begin(limiter, store, get("/a")), store, 401) is False
    assert passed(limiter, store, get("/a")) == [False]


@pytest.mark.parametrize("status", [500, 503, None])
def test_server_errors_are_refunded_even_if_there_was_no_response(
    limiter_of: Make, store: ValkeyStore, status: int | None
) -> None:
    """An application that raised has answered nothing."""

    async def unless_broken(request: Any, response: ResponseHead) -> int:
        return 0 if response.status >= 500 else 1

    limiter = limiter_of(RateLimitRule("/a", FixedWindow(3, 3600), settle=unless_broken))
    assert finish(begin(limiter, store, get("/a")), store, status) is True
    assert remaining(limiter, store) == 2


def test_a_handler_charges_while_it_streams(limiter_of: Make, store: ValkeyStore) -> None:
    """Tokens of a language model, counted as they come, also when the client leaves."""
    limiter = limiter_of(RateLimitRule("/a", TokenBucket(100, 10, 60)))
    exchange = begin(limiter, store, get("/a"))
    assert exchange.decision is not None
    exchange.head(ResponseHead(200, NO_HEADERS))
    exchange.decision.charge(30)
    exchange.decision.charge(45)
    flow = exchange.finish(complete=False)
    assert flow is not None
    run(flow, store)
    assert remaining(limiter, store) == 100 - 1 - 75 - 1


def test_settling_follows_a_window_that_rolled_over(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Units are given back where they were taken, and charged when they are used."""
    limiter = limiter_of(RateLimitRule("/a", SlidingWindow(10, 60), cost=6))
    clock.move(59.999 - clock.time % 60 + 60)
    first, second = (begin(limiter, store, get("/a", peer=f"203.0.113.{n}")) for n in (1, 2))
    clock.move(0.001)
    for exchange, units in ((first, -6), (second, 3)):
        assert exchange.decision is not None
        exchange.decision.charge(units)
        finish(exchange, store)
    values = {key.decode()[-10:]: store.client.get(key) for key in store.client.keys("*")}
    assert sorted(values.values()) == [b"0", b"3", b"6"]
    assert remaining(limiter, store, peer="203.0.113.1") == 4


def test_nothing_to_settle_costs_nothing(limiter_of: Make, store: ValkeyStore) -> None:
    """No round trip without a difference, none for a denial."""
    limiter = limiter_of(RateLimitRule("/a", "1/h", settle=lambda request, response: 1))
    assert finish(begin(limiter, store, get("/a")), store) is False
    denied = begin(limiter, store, get("/a"))
    assert denied.decision is not None
    denied.decision.charge(5)
    assert finish(denied, store) is False
    assert finish(begin(limiter, store, get("/b")), store) is False


def test_a_settlement_that_fails_is_an_event(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Never a 500, and what was reserved stays taken."""
    limiter = limiter_of(RateLimitRule("/a", "9/h", settle=lambda request, response: 0))
    exchange = begin(limiter, store, get("/a"))
    store.fails_with = NotConnected("no")
    finish(exchange, store)
    assert events[-1] == UpstashFailed("rate limit settling", store.fails_with)


def test_a_settle_function_that_raises_leaves_what_was_reserved(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """So does one that answers no count."""
    answers: list[Any] = [-1, "x", None]
    limiter = limiter_of(RateLimitRule("/a", "9/h", settle=lambda *_: answers.pop()))
    for _ in range(4):
        assert finish(begin(limiter, store, get("/a")), store) is False
        failed = events[-1]
        assert isinstance(failed, UserCodeFailed)
        assert failed.where == "rate_limits[0].settle"


@pytest.mark.parametrize("units", [1.5, "3", None, True, 10**15])
def test_a_charge_that_is_no_count_is_refused_where_it_is_made(
    limiter_of: Make, store: ValkeyStore, units: Any
) -> None:
    """In the handler, with the value."""
    decision = begin(limiter_of(RateLimitRule("/a", "9/h")), store, get("/a")).decision
    assert decision is not None
    with pytest.raises(ValueError, match=r"charge\(.*\): units should be a whole number"):
        decision.charge(units)


def test_settling_costs_one_round_trip_and_three_commands(
    limiter_of: Make, client: Any, upstash: LocalUpstash
) -> None:
    """EVALSHA, MGET, SET."""
    rule = RateLimitRule("/a", "9/h", settle=lambda request, response: 0)
    limiter = limiter_of(rule, deadline=10)
    for _ in range(2):
        exchange = begin(limiter, client, get("/a"))
        exchange.head(ResponseHead(200, NO_HEADERS))
        upstash.reset_bill()
        flow = exchange.finish(complete=True)
        assert flow is not None
        run(flow, client)
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 3)


def test_limiters_of_the_sdk_cannot_be_settled() -> None:
    """Said at construction."""
    import upstash_ratelimit  # noqa: PLC0415 - only here

    with pytest.raises(ConfigurationError, match=r"RateLimitRule\.settle"):
        RateLimitRule("/a", upstash_ratelimit.FixedWindow(1, 1), settle=lambda *_: 0)
