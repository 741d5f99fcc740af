"""How many requests may be in flight at once: slots taken, given back, and lost by the dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.ratelimit.test_limiter import Make, begin, fields, get
from tests.ratelimit.test_settling import finish
from upstash_middleware.core.ratelimit import (
    Concurrency,
    RateLimitExchange,
    RateLimitRule,
    parse_limits,
)
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError, NotConnected
from upstash_middleware.events import Event, RateLimitDecided, UpstashFailed

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock, ValkeyStore
    from upstash_middleware.local import LocalUpstash


def test_a_slot_is_taken_while_a_request_is_in_flight(limiter_of: Make, store: ValkeyStore) -> None:
    """The third at once is denied; when one has ended, it passes."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(2), name="jobs"))
    first, second = (begin(limiter, store, get("/a")) for _ in range(2))
    assert fields(second)["ratelimit"] == '"jobs";r=0'
    assert fields(second)["ratelimit-policy"] == '"jobs";q=2'
    denied = begin(limiter, store, get("/a")).response
    assert denied is not None
    assert denied.head.status == 429
    assert "retry-after" not in denied.head.headers
    assert b"Too many requests at once" in denied.body
    assert begin(limiter, store, get("/a", peer="203.0.113.8")).response is None
    assert finish(first, store)
    third = begin(limiter, store, get("/a"))
    assert third.response is None
    assert finish(second, store)
    assert finish(third, store)
    assert store.client.get("t:jobs:ip=203.0.113.7:slots") == b""


@pytest.mark.parametrize("status", [200, 500, None])
def test_a_slot_is_given_back_on_every_way_out(
    limiter_of: Make, store: ValkeyStore, status: int | None
) -> None:
    """Whatever the application did, and whether or not the client stayed."""
    limiter = limiter_of(RateLimitRule("/a", "1 at once"))
    for _ in range(3):
        exchange = begin(limiter, store, get("/a"))
        assert exchange.response is None
        finish(exchange, store, status)


def test_the_slots_of_a_process_that_died_expire(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """After `longest`, not before."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(1, longest=30)))
    begin(limiter, store, get("/a"))
    clock.move(29.999)
    assert begin(limiter, store, get("/a")).response is not None
    clock.move(0.001)
    assert begin(limiter, store, get("/a")).response is None


def renew(exchange: RateLimitExchange, store: ValkeyStore) -> bool:
    """Renew what is due; answer whether that took a round trip."""
    flow = exchange.renewal()
    if flow is not None:
        run(flow, store)
    return flow is not None


def test_a_slot_is_renewed_after_half_its_life_and_no_earlier(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Each renewal lets it live as long again, and what ends is free at once."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(1, longest=30)))
    streaming = begin(limiter, store, get("/a"))
    assert streaming.holds
    for _ in range(5):
        clock.move(14.999)
        assert not renew(streaming, store)
        clock.move(0.001)
        assert renew(streaming, store)
        assert not renew(streaming, store)
        assert begin(limiter, store, get("/a")).response is not None
    clock.move(29.999)
    assert begin(limiter, store, get("/a")).response is not None
    finish(streaming, store)
    assert begin(limiter, store, get("/a")).response is None


def test_a_renewed_slot_expires_with_its_process(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """A whole life after it was last renewed, and Redis forgets the key soon after."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(1, longest=30), name="jobs"))
    dying = begin(limiter, store, get("/a"))
    clock.move(20)
    renew(dying, store)
    assert 30_000 < store.client.pttl("t:jobs:ip=203.0.113.7:slots") <= 31_000
    clock.move(29.999)
    assert begin(limiter, store, get("/a")).response is not None
    clock.move(0.001)
    assert begin(limiter, store, get("/a")).response is None


def test_a_renewal_leaves_the_slots_of_others_alone(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """It takes no second slot, and lets no other request's live longer."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(2, longest=30)))
    streaming, dying = (begin(limiter, store, get("/a")) for _ in range(2))
    clock.move(15)
    renew(streaming, store)
    assert begin(limiter, store, get("/a")).response is not None
    clock.move(15)
    assert begin(limiter, store, get("/a")).response is None
    assert begin(limiter, store, get("/a")).response is not None
    finish(dying, store)
    assert begin(limiter, store, get("/a")).response is not None


def test_a_renewal_that_fails_is_told_and_tried_again_before_the_slot_expires(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, events: list[Event]
) -> None:
    """Not with every piece of the response, and it never raises."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(1, longest=32)))
    streaming = begin(limiter, store, get("/a"))
    clock.move(16)
    store.fails_with = failure = NotConnected("no")
    assert renew(streaming, store)
    assert events[-1] == UpstashFailed("rate limit settling", failure)
    assert not renew(streaming, store)
    store.fails_with = None
    clock.move(4)
    assert renew(streaming, store)
    clock.move(31.999)
    assert begin(limiter, store, get("/a")).response is not None


def test_a_request_without_a_slot_has_nothing_to_renew(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Neither one under another limit, nor one that was denied its slot."""
    limiter = limiter_of(RateLimitRule("/a", "1 at once"), RateLimitRule("/b", "5/h"))
    begin(limiter, store, get("/a"))
    for path in ("/a", "/b"):
        exchange = begin(limiter, store, get(path))
        clock.move(59)
        assert not exchange.holds
        assert not renew(exchange, store)
        clock.move(-59)


def test_a_slot_that_expired_does_not_free_another(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """A request gives back its own slot only."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(1, longest=30)))
    slow = begin(limiter, store, get("/a"))
    clock.move(31)
    begin(limiter, store, get("/a"))
    finish(slow, store)
    assert begin(limiter, store, get("/a")).response is not None


def test_slots_and_quotas_are_taken_together_or_not_at_all(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """A denial for want of a slot uses up no quota, nor the other way round."""
    limiter = limiter_of(RateLimitRule("/a", "5/h; 1 at once", name="api"), remember_denials=0)
    first = begin(limiter, store, get("/a"))
    denied = begin(limiter, store, get("/a")).decision
    assert denied is not None
    assert [(policy.name, policy.remaining) for policy in denied.policies] == [
        ("api 1h", 4),
        ("api at once", 0),
    ]
    finish(first, store)
    assert begin(limiter, store, get("/a")).response is None


def test_a_shadow_tells_of_slots_as_if_it_were_in_force(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """What it has taken is given back, alone and beside a rule that is in force."""
    shadow = RateLimitRule("/a", "1 at once", name="planned", shadow=True)
    for default in (None, RateLimitRule(None, "9/h", name="default")):
        limiter = limiter_of(shadow, default=default)
        for _ in range(2):
            finish(begin(limiter, store, get("/a")), store)
        first, second = (begin(limiter, store, get("/a")) for _ in range(2))
        assert second.response is None
        for exchange in (first, second):
            finish(exchange, store)
    told = [
        event.allowed for event in events if isinstance(event, RateLimitDecided) and event.shadow
    ]
    assert told == [True, True, True, False] * 2


def test_a_shadow_holds_no_slot_for_a_request_that_another_rule_denied(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """It has none in flight."""
    shadow = RateLimitRule("/a", "9 at once", name="planned", shadow=True)
    limiter = limiter_of(shadow, default=RateLimitRule(None, "1/h", name="default"))
    for status in (200, None):
        finish(begin(limiter, store, get("/a")), store, status)
    assert store.client.get("t:planned:ip=203.0.113.7:slots") == b""


def test_a_denial_for_want_of_a_slot_is_not_remembered(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """The next moment one may be free."""
    limiter = limiter_of(RateLimitRule("/a", "1 at once"))
    for _ in range(3):
        begin(limiter, store, get("/a"))
    assert len(store.pipelines) == 3


def test_a_slot_that_could_not_be_given_back_expires(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Upstash was away when the request ended."""
    limiter = limiter_of(RateLimitRule("/a", Concurrency(1, longest=5)))
    exchange = begin(limiter, store, get("/a"))
    store.fails_with = NotConnected("no")
    finish(exchange, store)
    store.fails_with = None
    clock.move(5)
    assert begin(limiter, store, get("/a")).response is None


def test_a_slot_costs_one_more_round_trip_and_three_commands(
    limiter_of: Make, client: Any, upstash: LocalUpstash
) -> None:
    """To be given back."""
    limiter = limiter_of(RateLimitRule("/a", "9 at once"), deadline=10)
    for _ in range(2):
        exchange = begin(limiter, client, get("/a"))
        upstash.reset_bill()
        flow = exchange.finish(complete=True)
        assert flow is not None
        run(flow, client)
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 3)


def test_a_renewal_costs_one_round_trip_and_three_commands(
    limiter_of: Make, client: Any, upstash: LocalUpstash, clock: FakeClock
) -> None:
    """Each time that half of `longest` has passed."""
    limiter = limiter_of(RateLimitRule("/a", "9 at once"), deadline=10)
    for _ in range(2):
        exchange = begin(limiter, client, get("/a"))
        clock.move(30)
        upstash.reset_bill()
        renew(exchange, client)
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 3)


def test_it_can_be_written_as_text_and_is_checked() -> None:
    """Numbers, one per rule, and not locally."""
    assert parse_limits("5 at once") == (Concurrency(5),)
    with pytest.raises(ConfigurationError, match="limit should be at most 1000"):
        Concurrency(1001)
    with pytest.raises(ConfigurationError, match="longest should be a number of seconds"):
        Concurrency(1, longest=0)
    with pytest.raises(ConfigurationError, match="at most one Concurrency"):
        RateLimitRule("/a", "1 at once; 2 at once")
    with pytest.raises(ConfigurationError, match=r"RateLimitRule\.on_error"):
        RateLimitRule("/a", "1 at once", on_error="local")


def test_a_request_that_is_interrupted_in_on_denied_gives_its_slot_back(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """As where its task is cancelled while the application's function waits."""

    def on_denied(*_: object) -> None:
        raise KeyboardInterrupt

    limiter = limiter_of(
        RateLimitRule("/a", Concurrency(5), name="jobs", shadow=True),
        RateLimitRule("/a", "1/hour", name="all"),
        on_denied=on_denied,
        match="all",
    )
    assert finish(begin(limiter, store, get("/a")), store)
    with pytest.raises(KeyboardInterrupt):
        begin(limiter, store, get("/a"))
    assert store.client.get("t:jobs:ip=203.0.113.7:slots") == b""
