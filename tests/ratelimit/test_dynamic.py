"""Limits changed at run time, through a key that every process reads along with the counters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.ratelimit.test_dashboard import javascript
from tests.ratelimit.test_limiter import Make, begin, fields, get, passed
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import Event, UpstashFailed

if TYPE_CHECKING:
    from tests.ratelimit.store import ValkeyStore
    from upstash_middleware.local import LocalUpstash


def test_a_limit_changed_at_run_time_holds_at_once(limiter_of: Make, store: ValkeyStore) -> None:
    """Raised, lowered, set to nothing, and given back; what was used stays used."""
    limiter = limiter_of(RateLimitRule("/a", "2/h", name="a", dynamic=True), remember_denials=0)
    assert passed(limiter, store, *[get("/a")] * 3) == [True, True, False]
    run(limiter.set_limit("a", 4), store)
    exchange = begin(limiter, store, get("/a"))
    assert fields(exchange)["ratelimit-policy"] == '"a";q=4;w=3600'
    assert fields(exchange)["x-ratelimit-remaining"] == "1"
    run(limiter.set_limit("a", 3), store)
    assert passed(limiter, store, get("/a")) == [False]
    run(limiter.set_limit("a", 0), store)
    nothing = begin(limiter, store, get("/a", peer="203.0.113.8")).response
    assert nothing is not None
    assert "retry-after" not in nothing.head.headers
    run(limiter.set_limit("a", None), store)
    assert passed(limiter, store, get("/a", peer="203.0.113.8")) == [True]
    assert store.client.keys("*dynamic*") == []


def test_it_is_read_in_the_same_mget(limiter_of: Make, store: ValkeyStore) -> None:
    """Three commands as without it."""
    limiter = limiter_of(RateLimitRule("/a", "9/h", name="a", dynamic=True))
    run(limiter.set_limit("a", 5), store)
    begin(limiter, store, get("/a"))
    store.billed_calls()
    begin(limiter, store, get("/a"))
    assert store.billed_calls() == 3


def test_other_rules_in_the_same_call_keep_theirs(limiter_of: Make, store: ValkeyStore) -> None:
    """Each limit reads its own keys."""
    limiter = limiter_of(
        RateLimitRule("/a", "9/h", name="a"),
        RateLimitRule("/a", "9/h", name="b", dynamic=True),
        RateLimitRule("/a", "9/h", name="c"),
        match="all",
    )
    run(limiter.set_limit("b", 5), store)
    found = fields(begin(limiter, store, get("/a")))["ratelimit-policy"]
    assert found == '"a";q=9;w=3600, "b";q=5;w=3600, "c";q=9;w=3600'


def test_a_value_that_is_no_limit_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """And named."""
    store.client.set("t:a:dynamic:global", "many")
    limiter = limiter_of(RateLimitRule("/a", "9/h", name="a", dynamic=True))
    assert passed(limiter, store, get("/a")) == [True]
    assert isinstance(events[0], UpstashFailed)
    assert "t:a:dynamic:global" in str(events[0].error)


def test_what_cannot_be_changed_is_refused(limiter_of: Make, store: ValkeyStore) -> None:
    """A rule that is not dynamic, a limit that is none, limits of other kinds."""
    limiter = limiter_of(RateLimitRule("/a", "9/h", name="a"), RateLimitRule("/b", "9/h", name="b"))
    with pytest.raises(ValueError, match="rule 'a' is not dynamic"):
        run(limiter.set_limit("a", 5), store)
    dynamic = limiter_of(RateLimitRule("/a", "9/h", name="a", dynamic=True))
    wrong: list[Any] = [-1, 1.5, True, "5", 10**15]
    for limit in wrong:
        with pytest.raises(ValueError, match="should be a whole number from 0"):
            run(dynamic.set_limit("a", limit), store)
    for limits in ("9/h; 10/day", "gcra 9/h", "unlimited", lambda request: "1/h"):
        with pytest.raises(ConfigurationError, match=r"RateLimitRule\.dynamic"):
            RateLimitRule("/a", limits, dynamic=True)
    assert store.pipelines == []


@pytest.mark.node
def test_the_javascript_sdk_changes_it_where_the_prefix_is_shared(
    limiter_of: Make, client: Any, upstash: LocalUpstash
) -> None:
    """`setDynamicLimit` of a service beside this one."""
    javascript(
        'const limiter = Ratelimit.slidingWindow(9, "1 h");'
        "const one = new Ratelimit({ redis, limiter, dynamicLimits: true });"
        "await one.setDynamicLimit({ limit: 1 }); return 1;",
        upstash,
    )
    rule = RateLimitRule("/a", "9/h", shared_prefix="@upstash/ratelimit", dynamic=True)
    limiter = limiter_of(rule, clock=SystemClock, deadline=10)
    assert passed(limiter, client, *[get("/a")] * 2) == [True, False]
