"""Looking without taking, and resetting: peek, explain, reset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ratelimit.test_algorithms import MODEL, START, limits, take_one
from tests.ratelimit.test_limiter import Make, begin, get, passed
from upstash_middleware.core.identify import Identifier, header
from upstash_middleware.core.ratelimit import FixedWindow, Limit, RateLimitRule
from upstash_middleware.core.ratelimit.charges import Charge, charge_command, read_verdicts
from upstash_middleware.drivers import run
from upstash_middleware.errors import NotConnected
from upstash_middleware.messages import Headers

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock, ValkeyStore
    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash


@MODEL
@given(limit=limits(), waits=st.lists(st.integers(0, 3000), max_size=12), cost=st.integers(1, 12))
def test_a_peek_says_what_taking_would_and_takes_nothing(
    store: ValkeyStore, limit: Limit, waits: list[int], cost: int
) -> None:
    """Any number of them, for every algorithm."""
    store.client.flushall()
    charges, now = [Charge("t:r:a", limit, cost)], START
    for wait in waits:
        now += wait
        peeked = [
            read_verdicts(store.reply(charge_command(charges, now, peek=True)), len(charges))[0]
            for _ in range(2)
        ]
        taken = take_one(store, now, limit, cost)
        assert peeked[0] == peeked[1]
        assert (peeked[0].allowed, peeked[0].retry_ms) == (taken.allowed, taken.retry_ms)
        assert peeked[0].remaining == taken.remaining + (cost if taken.allowed else 0)


def test_explain_tells_rule_key_and_verdict(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """And leaves no trace: no counter, no event."""
    limiter = limiter_of(
        RateLimitRule("/a", "5/min", name="planned", shadow=True),
        RateLimitRule("/a", FixedWindow(2, 60), cost=2, name="real"),
    )
    shadow, real = run(limiter.explain(get("/a")), store)
    assert (shadow.rule, shadow.shadow) == ("planned", True)
    assert (real.rule, real.setting, real.cost) == ("real", "rate_limits[1]", 2)
    assert real.identifier == "ip=203.0.113.7"
    number = START // 60_000
    assert real.keys == tuple(f"t:real:ip=203.0.113.7:{number + shift}" for shift in (0, 1))
    assert (real.decision.allowed, real.decision.remaining) == (True, 2)
    assert store.client.keys("*") == []
    assert events == []


def test_peek_answers_for_all_rules_together(limiter_of: Make, store: ValkeyStore) -> None:
    """Allowed, denied, or None where nothing limits."""
    limiter = limiter_of(RateLimitRule("/a", "1/min; 5/day"))
    decision = run(limiter.peek(get("/a")), store)
    assert decision is not None
    assert (decision.allowed, decision.remaining) == (True, 1)
    begin(limiter, store, get("/a"))
    decision = run(limiter.peek(get("/a")), store)
    assert decision is not None
    assert (decision.allowed, decision.remaining) == (False, 0)
    assert run(limiter.peek(get("/b")), store) is None


def test_a_reset_gives_the_whole_quota_at_once(limiter_of: Make, store: ValkeyStore) -> None:
    """In this process even where the denial was remembered; others keep theirs."""
    every = "fixed 1/min; sliding 1/h; gcra 1/day; log 1/2d"
    limiter = limiter_of(RateLimitRule("/a", every, name="every"))
    for peer in ("203.0.113.7", "203.0.113.8"):
        assert passed(limiter, store, *[get("/a", peer=peer)] * 2) == [True, False]
    run(limiter.reset("every", "ip=203.0.113.7"), store)
    assert passed(limiter, store, get("/a")) == [True]
    assert passed(limiter, store, get("/a", peer="203.0.113.8")) == [False]


def test_a_look_at_an_identifier_says_what_its_request_would_hear(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """By the rule's name, without a request, and taking nothing."""
    limiter = limiter_of(RateLimitRule("/a", "2/h", name="api"))
    assert passed(limiter, store, get("/a")) == [True]
    for _ in range(2):
        told = run(limiter.look("api", Identifier("ip", "203.0.113.7")), store)
        (asked,) = run(limiter.explain(get("/a")), store)
        assert told == asked
        assert (told.decision.allowed, told.decision.remaining) == (True, 1)
    assert not run(limiter.look("api", "ip=203.0.113.7", cost=2), store).decision.allowed


def test_a_secret_identity_is_reset_by_its_value(limiter_of: Make, store: ValkeyStore) -> None:
    """Nobody knows its hash by heart."""
    limiter = limiter_of(RateLimitRule("/a", "1/h", by=header("X-Key"), name="keyed"))
    request = get("/a", headers=Headers.of(x_key="k"))
    assert passed(limiter, store, *[request] * 2) == [True, False]
    run(limiter.reset("keyed", Identifier("header.x-key", "k", secret=True)), store)
    assert passed(limiter, store, request) == [True]


def test_shared_counters_are_reset_too(limiter_of: Make, store: ValkeyStore) -> None:
    """By the identifier as decisions tell it."""
    rule = RateLimitRule(
        "/a", "1/h", by=lambda request: "ü: x", shared_prefix="shared", name="shared"
    )
    limiter = limiter_of(rule)
    decision = begin(limiter, store, get("/a")).decision
    assert decision is not None
    assert store.client.keys("*")[0].decode().startswith("shared:ü: x:")
    run(limiter.reset("shared", decision.identifier), store)
    assert store.client.keys("*") == []


def test_a_rule_that_there_is_not_is_named_with_those_there_are(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """Before anything is sent."""
    limiter = limiter_of(RateLimitRule("/a", "1/h", name="api"))
    with pytest.raises(ValueError, match=r"no rule .* is called 'apo'; there are: 'api'"):
        run(limiter.reset("apo", "ip=1"), store)
    assert store.pipelines == []


def test_whoever_asks_hears_that_upstash_failed(limiter_of: Make, store: ValkeyStore) -> None:
    """Unlike a request, which its rule's policy settles."""
    limiter = limiter_of(RateLimitRule("/a", "1/h", name="api"))
    store.fails_with = NotConnected("no")
    for flow in (limiter.peek(get("/a")), limiter.reset("api", "ip=1")):
        with pytest.raises(NotConnected):
            run(flow, store)


def test_a_peek_costs_two_commands_and_a_reset_one(
    limiter_of: Make, client: Any, upstash: LocalUpstash, clock: FakeClock
) -> None:
    """One round trip each."""
    limiter = limiter_of(RateLimitRule("/a", "1/h; 5/day", name="api"), deadline=10)
    begin(limiter, client, get("/a"))
    for flow, commands in ((limiter.peek(get("/a")), 2), (limiter.reset("api", "ip=1"), 1)):
        upstash.reset_bill()
        run(flow, client)
        assert (upstash.bill().requests, upstash.bill().commands) == (1, commands)
