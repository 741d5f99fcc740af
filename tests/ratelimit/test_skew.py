"""Eight processes whose clocks differ by up to a tenth of the window, against one limit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from benchmarks import skewed_processes
from tests.ratelimit import reference
from tests.ratelimit.store import NOW, FakeClock, ValkeyStore
from tests.ratelimit.test_limiter import Make, begin, get
from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Limit,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

PROCESSES = 8
REQUESTS = 600
LIMITS = [
    FixedWindow(40, 10),
    SlidingWindow(40, 10),
    TokenBucket(40, 4, 1),
    GCRA(40, 10),
    SlidingLog(40, 10),
]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_skewed_processes_admit_what_one_would_on_the_servers_clock(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit
) -> None:
    """Not one too many and none too few, once each has heard the server's time."""
    chance = random.Random(7)
    skews = [-0.5, 0.5, *(round(chance.uniform(-0.5, 0.5), 3) for _ in range(PROCESSES - 2))]
    clocks = [FakeClock(NOW + skew, 5.0) for skew in skews]
    rule = RateLimitRule("/a", limit, name="a")
    limiters = [limiter_of(rule, clock=own, remember_denials=0) for own in clocks]
    for limiter in limiters:
        begin(limiter, store, get("/a", peer="198.51.100.1"))  # brings the server's time along
    model = reference.model_of(limit)
    for _ in range(REQUESTS):
        step = chance.choice((0, 0.001, 0.017, 0.1))
        for one in (clock, *clocks):
            one.move(step)
        admitted = begin(chance.choice(limiters), store, get("/a")).response is None
        assert admitted == model.take(round(clock.time * 1000), 1)


@pytest.mark.parametrize("limit", LIMITS[:2], ids=str)
def test_before_they_have_heard_it_the_leading_clock_counts(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock, limit: Limit
) -> None:
    """First requests of processes behind count in the window that the leading one has begun."""
    ahead, behind = FakeClock(NOW + 10.1), FakeClock(NOW + 9.2)
    store.clock = ahead
    rule = RateLimitRule("/a", limit, name="a", cost=39)
    begin(limiter_of(rule, clock=ahead), store, get("/a"))
    first = RateLimitRule("/a", limit, name="a")
    admitted = [
        begin(limiter_of(first, clock=behind), store, get("/a")).response is None for _ in range(3)
    ]
    assert admitted == [True, False, False]


@pytest.mark.slow
@pytest.mark.parametrize("limit", skewed_processes.LIMITS, ids=str)
def test_real_processes_on_skewed_clocks_admit_what_the_definition_does(
    upstash: LocalUpstash, limit: Limit
) -> None:
    """``benchmarks/skewed_processes.py`` with fewer requests than its 50,000."""
    assert skewed_processes.measure(upstash, limit, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("limit", skewed_processes.LEASED, ids=str)
def test_real_processes_with_leases_admit_no_more_than_the_definition_does(
    upstash: LocalUpstash, limit: Limit
) -> None:
    assert skewed_processes.measure(upstash, limit, 50_000, skewed_processes.LEASE)
