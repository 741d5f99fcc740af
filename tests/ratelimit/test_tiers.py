"""Limits that a function of the request answers: a quota for each tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import upstash_ratelimit as sdk

from tests.ratelimit.test_limiter import Make, begin, fields, get, passed
from upstash_middleware.core.ratelimit import FixedWindow, RateLimitRule, SlidingWindow
from upstash_middleware.errors import NotConnected
from upstash_middleware.events import Event, RateLimitDecided, UpstashFailed, UserCodeFailed

if TYPE_CHECKING:
    from tests.ratelimit.store import ValkeyStore
    from upstash_middleware.messages import HTTPRequest

TIERS: dict[str, Any] = {
    "free": "1/h",
    "paid": [SlidingWindow(2, 3600), FixedWindow(9, 86_400)],
    "staff": "unlimited",
    "sdk": sdk.FixedWindow(1, 1, "d"),
}


async def tier(request: HTTPRequest) -> Any:
    return TIERS[request.query]


def test_each_tier_has_its_own_quota(limiter_of: Make, store: ValkeyStore) -> None:
    """Text, limits, an exemption or a limiter of upstash_ratelimit, sync or async."""
    limiter = limiter_of(RateLimitRule("/a", tier, by=lambda request: request.query))
    for query, admitted in (("free", 1), ("paid", 2), ("staff", 4), ("sdk", 1)):
        assert sum(passed(limiter, store, *[get("/a", query=query)] * 4)) == admitted


def test_an_upgrade_counts_at_once_and_carries_over_what_was_used(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """A denial of the old tier is not remembered against the new one."""
    quota = ["2/h"]
    limiter = limiter_of(RateLimitRule("/a", lambda request: quota[0], name="a"))
    assert passed(limiter, store, *[get("/a")] * 3) == [True, True, False]
    quota[0] = "5/h"
    exchange = begin(limiter, store, get("/a"))
    assert fields(exchange)["ratelimit-policy"] == '"a";q=5;w=3600'
    assert fields(exchange)["x-ratelimit-remaining"] == "2"


@pytest.mark.parametrize("answer", ["5/", None, 7, {}, lambda request: "1/h"])
@pytest.mark.parametrize("policy", ["open", "closed"])
def test_an_answer_that_is_no_limit_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event], answer: Any, policy: Any
) -> None:
    """And told, with the setting."""
    rule = RateLimitRule("/a", lambda request: answer, on_error=policy)
    assert passed(limiter_of(rule), store, get("/a")) == [policy == "open"]
    assert isinstance(events[0], UserCodeFailed)
    assert events[0].where == "rate_limits[0].limits"


def test_tiers_can_be_settled_and_counted_locally(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Like limits that are written down."""
    rule = RateLimitRule("/a", tier, on_error="local", settle=lambda request, response: 0)
    limiter = limiter_of(rule)
    store.fails_with = NotConnected("no")
    assert passed(limiter, store, *[get("/a", query="free")] * 2) == [True, False]
    assert passed(limiter, store, *[get("/a", query="staff")] * 2) == [True, True]
    assert all(isinstance(event, UpstashFailed | RateLimitDecided) for event in events)
