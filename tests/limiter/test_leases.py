"""Leases of limits that code calls: each method counts what is left of this process's slices."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import Lease, RateLimited

if TYPE_CHECKING:
    from tests.limiter.conftest import Make
    from upstash_middleware.local import LocalUpstash

LEASE = Lease(60, share=0.5)


def busy(limiter: Any) -> Any:
    """Call until a slice decides."""
    while (decision := limiter.hit("alice")).settled_by != "lease":
        pass
    return decision


def test_each_method_counts_what_is_left_of_slices(make: Make, upstash: LocalUpstash):
    limiter = make("fixed 1000/h", lease=LEASE)
    left = busy(limiter).remaining
    assert limiter.peek("alice").remaining == left
    assert limiter.try_hit("alice").remaining == left - 1
    assert limiter.wait("alice", timeout=1).remaining == left - 2
    limiter.charge("alice", 5)
    assert limiter.peek("alice").remaining == left - 7
    assert limiter.hit("bob").remaining == 999
    limiter.reset("alice")
    assert limiter.hit("alice").remaining == 999


def test_calls_that_a_slice_decides_and_their_charges_cost_nothing(
    make: Make, upstash: LocalUpstash
):
    limiter = make("fixed 1000/h", lease=LEASE)
    for _ in range(60):
        limiter.hit("alice")
    while (decision := limiter.hit("alice")).settled_by == "lease":
        pass
    left = decision.remaining  # by a call that has taken a slice
    upstash.reset_bill()
    with limiter("alice") as decision:
        decision.charge(3)
    assert limiter.hit("alice").remaining == left - 5
    assert upstash.bill().requests == 0


def test_denials_come_when_the_quota_is_used_up(make: Make):
    limiter = make("fixed 100/h", lease=LEASE)
    decisions = [limiter.try_hit("alice").allowed for _ in range(120)]
    assert decisions == [True] * 100 + [False] * 20
    with pytest.raises(RateLimited) as denied:
        limiter.hit("alice")
    assert 0 < (denied.value.retry_after or 0) <= 3600


def test_a_wait_lasts_until_the_quota_has_a_unit(make: Make, sleeping: list[float]):
    limiter = make("gcra 100/100s", lease=LEASE)
    while limiter.try_hit("alice").allowed:
        pass
    assert limiter.wait("alice", timeout=10).allowed
    assert 0 < sum(sleeping) <= 2


def test_a_lowered_limit_takes_effect_when_slices_end(make: Make, upstash: LocalUpstash):
    limiter = make("fixed 1000/30d", lease=LEASE, dynamic=True)
    left = busy(limiter).remaining
    limiter.set_limit(5)
    assert limiter.hit("alice").remaining == left - 1
    upstash.advance(61)
    assert not limiter.try_hit("alice").allowed


def test_a_reset_of_the_local_upstash_drops_slices(make: Make, upstash: LocalUpstash):
    """Also those of a limiter that is gone, as one that a test has made."""
    upstash.restore_time()  # as a reset does: slices end when the clock is set back
    busy(make("fixed 1000/h", lease=LEASE))
    gc.collect()
    upstash.reset()
    decision = make("fixed 1000/h", lease=LEASE).hit("alice")
    assert (decision.settled_by, decision.remaining) == ("upstash", 999)
