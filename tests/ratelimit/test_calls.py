"""Calls that are no requests, against the algorithms' definitions, in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tests.ratelimit import reference
from tests.ratelimit.test_algorithms import MODEL, START, limits
from upstash_middleware.core.identify import Identifier
from upstash_middleware.core.ratelimit import FixedWindow, Limit, RateLimitRule, SlidingWindow
from upstash_middleware.drivers import run

if TYPE_CHECKING:
    from tests.ratelimit.reference import Model
    from tests.ratelimit.store import FakeClock, ValkeyStore
    from tests.ratelimit.test_limiter import Make
    from upstash_middleware.core.ratelimit import Decision

ADA = Identifier("id", "ada")

Step = tuple[str, int, int]
"""What is done, the ms before it, and a number: a cost, units, a limit."""


def steps() -> st.SearchStrategy[list[Step]]:
    names = st.sampled_from(["hit", "hit", "hit", "peek", "charge", "give back", "reset", "set"])
    waits = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 5000))
    return st.lists(st.tuples(names, waits, st.integers(1, 14)), max_size=25)


def check(decision: Decision | None, model: Model, now: int, cost: int, *, expected: bool) -> None:
    assert decision is not None
    (policy,) = decision.policies
    assert (decision.allowed, policy.limit) == (expected, model.quota)
    assert decision.remaining == model.remaining(now)
    assert round((decision.reset or 0) * 1000) == model.whole_again(now)
    if not expected and cost <= model.quota:
        assert decision.retry_after is not None
        assert round(decision.retry_after * 1000) == model.first_pass(now, cost) - now
    else:
        assert decision.retry_after is None


@MODEL
@given(limit=limits(), steps=steps())
def test_any_calls_in_any_order_do_what_the_definition_says(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit, steps: list[Step]
) -> None:
    """What is charged, given back, reset and changed included; and peeks leave no trace."""
    store.client.flushall()
    clock.time, clock.since_boot = START / 1000, 1000.0
    dynamic = isinstance(limit, FixedWindow | SlidingWindow)
    rule = RateLimitRule(None, limit, name="r", dynamic=dynamic)
    limiter, model, now = limiter_of(rule, remember_denials=0), reference.model_of(limit), START
    for name, wait, number in steps:
        clock.move(wait / 1000)
        now += wait
        match name:
            case "hit":
                exchange = run(limiter.begin_call("r", ADA, number), store)
                expected = model.take(now, number)
                check(exchange.decision, model, now, number, expected=expected)
            case "peek":
                decision = run(limiter.peek_call("r", ADA, number), store)
                check(decision, model, now, number, expected=model.would_take(now, number))
            case "charge":
                run(limiter.add("r", ADA, number), store)
                model.add(now, number)
            case "give back":
                exchange = run(limiter.begin_call("r", ADA, number), store)
                if model.take(now, number) and exchange.decision is not None:
                    exchange.decision.charge(-number)
                    model.give(now, number, now)
                if (flow := exchange.finish(complete=True)) is not None:
                    run(flow, store)
            case "reset":
                run(limiter.reset("r", ADA), store)
                quota, model = model.quota, reference.model_of(limit)
                model.quota = quota
            case "set" if dynamic:
                run(limiter.set_limit("r", number), store)
                model.quota = number


@MODEL
@given(limit=limits(), steps=steps())
def test_a_remembered_denial_lets_nothing_pass_and_ends_in_time(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit, steps: list[Step]
) -> None:
    """No call passes that the definition denies, and after Retry-After it does pass."""
    store.client.flushall()
    clock.time, clock.since_boot = START / 1000, 1000.0
    rule = RateLimitRule(None, limit, name="r")
    limiter, model, now = limiter_of(rule), reference.model_of(limit), START
    for name, wait, number in steps:
        clock.move(wait / 1000)
        now += wait
        if name == "reset":
            run(limiter.reset("r", ADA), store)
            model = reference.model_of(limit)
        if name == "charge":
            run(limiter.add("r", ADA, number), store)
            model.add(now, number)
        decision = run(limiter.begin_call("r", ADA, number), store).decision
        assert decision is not None
        assert decision.allowed == model.take(now, number)
        if decision.retry_after is not None and name != "charge":
            ahead = round(decision.retry_after * 1000)
            assert model.would_take(now + ahead, number)
