"""Counting in this process: the same decisions as the script's, and only while Upstash is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ratelimit.test_algorithms import MODEL, START, limits, take
from tests.ratelimit.test_limiter import Make, begin, fields, get, passed
from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Limit,
    RateLimitRule,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.core.ratelimit.charges import Charge
from upstash_middleware.core.ratelimit.memory import LocalCounters
from upstash_middleware.errors import NotConnected
from upstash_middleware.events import Event, RateLimitDecided, UpstashFailed

if TYPE_CHECKING:
    from tests.ratelimit.store import ValkeyStore


@MODEL
@given(
    several=st.lists(limits(), min_size=1, max_size=3),
    steps=st.lists(
        st.tuples(
            st.one_of(st.integers(-300, 300), st.integers(0, 5000)),
            st.integers(1, 14),
            st.lists(st.integers(0, 1), min_size=3, max_size=3),
        ),
        max_size=25,
    ),
)
def test_python_and_the_script_always_say_the_same(
    store: ValkeyStore, several: list[Limit], steps: list[tuple[int, int, list[int]]]
) -> None:
    """With groups, costs and clocks that go back a little."""
    store.client.flushall()
    local, now = LocalCounters(), START
    for wait, cost, groups in steps:
        now += wait
        charges = [
            Charge(f"t:{index}:a", limit, cost, groups[index])
            for index, limit in enumerate(several)
        ]
        assert local.decide(charges, now) == take(store, now, *charges)


def test_local_counts_on_while_upstash_is_away(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Its own counters, its own events, no false 503."""
    limiter = limiter_of(RateLimitRule("/a", "2/h", name="a", on_error="local"))
    store.fails_with = NotConnected("no")
    exchange = begin(limiter, store, get("/a"))
    assert exchange.decision is not None
    assert exchange.decision.settled_by == "local"
    assert fields(exchange)["x-ratelimit-remaining"] == "1"
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]
    assert passed(limiter, store, get("/a", peer="203.0.113.8")) == [True]
    assert [type(event) for event in events[:2]] == [UpstashFailed, RateLimitDecided]
    store.fails_with = None
    assert passed(limiter, store, *[get("/a")] * 3) == [True, True, False]


@pytest.mark.parametrize(
    ("limit", "share", "part"),
    [
        (FixedWindow(10, 60), 0.25, FixedWindow(2, 60)),
        (SlidingWindow(1, 60), 0.25, SlidingWindow(1, 60)),
        (TokenBucket(10, 4, 60), 0.5, TokenBucket(5, 2, 60)),
        (GCRA(10, 60, burst=20), 0.5, GCRA(5, 60, burst=10)),
    ],
)
def test_a_process_counts_its_share(limit: Limit, share: float, part: Limit) -> None:
    """Four processes with a quarter each stay within the quota together."""
    assert limit.share(share) == part


def test_a_share_is_what_passes(limiter_of: Make, store: ValkeyStore) -> None:
    """Two of ten, where each of five processes gets a fifth."""
    rule = RateLimitRule("/a", "10/h", on_error="local", local_share=0.2)
    store.fails_with = NotConnected("no")
    assert sum(passed(limiter_of(rule), store, *[get("/a")] * 5)) == 2


def test_memory_is_bounded() -> None:
    """The least recently written counters are dropped first."""
    local = LocalCounters(most_keys=100)
    for number in range(1000):
        local.decide([Charge(f"t:{number}", FixedWindow(1, 60), 1)], START)
    allowed = [
        local.decide([Charge(f"t:{number}", FixedWindow(1, 60), 2)], START)[0].remaining
        for number in range(1000)
    ]
    assert allowed == [1] * 900 + [0] * 100
