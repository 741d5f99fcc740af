"""How long a call may take: what settings and rules say, alone and joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.core.test_engine import PAGE
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache import Cache, CacheRule
from upstash_middleware.core.engine import Engine
from upstash_middleware.core.ratelimit import Concurrency, RateLimiter, RateLimitRule
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError, NotConnected
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from upstash_middleware.core.flow import Pipeline

PATHS = "/{rest:path}"


class Deadlines:
    """A client that notes how long each call may take, and loses it or finds nothing."""

    def __init__(self, *, connected: bool = False) -> None:
        self.seen: list[float | None] = []
        self._connected = connected

    def execute(self, pipeline: Pipeline):
        self.seen.append(pipeline.deadline)
        if not self._connected:
            raise NotConnected("refused")
        return [
            [None] * (len(command.args) - 1) if command.args[0] == "MGET" else b"OK"
            for command in pipeline.commands
        ]


def limiter(*rules: RateLimitRule, **options) -> RateLimiter:
    return RateLimiter(
        rules,
        None,
        prefix="t",
        secret=lambda: b"",
        clock=SystemClock,
        observe=lambda _: None,
        **options,
    )


def cache(rule: CacheRule) -> Cache:
    return Cache((rule,), prefix="t", secret=lambda: b"", clock=SystemClock, observe=lambda _: None)


def asked(*halves: RateLimiter | Cache) -> list[float | None]:
    client = Deadlines()
    request = HTTPRequest("GET", "/page", peer="192.0.2.1")
    run(Engine(list(halves), observe=lambda _: None).begin(request), client)
    return client.seen


def test_a_limit_has_its_rules_deadline_or_the_settings():
    assert asked(limiter(RateLimitRule(PATHS, "9/day"), deadline=0.7)) == [0.7]
    assert asked(limiter(RateLimitRule(PATHS, "9/day", deadline=0.2), deadline=0.7)) == [0.2]


def test_limits_that_are_asked_about_together_have_the_longest_of_theirs():
    rules = [
        RateLimitRule(PATHS, "9/day", name="a", deadline=0.2),
        RateLimitRule(PATHS, "9/hour", name="b", deadline=0.4),
    ]
    assert asked(limiter(*rules, match="all", deadline=0.7)) == [0.4]
    assert asked(limiter(*rules, RateLimitRule(PATHS, "9/h", name="c"), match="all")) == [1.0]


def test_what_travels_with_a_limit_has_the_limits_deadline():
    """A deny list, what analytics have collected, and the cache's lookup, whatever that says."""
    rule = RateLimitRule(PATHS, "9/day", deadline=0.1)
    with_more = limiter(rule, deny_list="@upstash/ratelimit", analytics="@upstash/ratelimit")
    assert asked(with_more, cache(CacheRule(PATHS, ttl=9, deadline=0.5))) == [0.1]
    assert asked(limiter(RateLimitRule(PATHS, "9/day")), cache(CacheRule(PATHS, ttl=9))) == [1.0]


def test_a_cache_by_itself_has_its_rules_deadline_or_the_settings_for_lookup_and_store():
    for rule, deadline in ((CacheRule(PATHS, ttl=9), 0.25), (CacheRule(PATHS, 9, deadline=2), 2)):
        client = Deadlines(connected=True)
        exchange = run(cache(rule).begin(HTTPRequest("GET", "/page")), client)
        exchange.head(PAGE)
        exchange.chunk(b"page")
        flow = exchange.finish(complete=True)
        assert flow is not None
        run(flow, client)
        assert client.seen == [deadline, deadline]


def test_settling_and_giving_back_have_the_rules_deadline():
    half = limiter(RateLimitRule(PATHS, Concurrency(2), deadline=0.3))
    client = Deadlines()
    exchange = run(half.begin(HTTPRequest("GET", "/page", peer="192.0.2.1")), client)
    flow = exchange.finish(complete=True)
    if flow is not None:
        run(flow, client)
    assert set(client.seen) == {0.3}


@pytest.mark.parametrize("wrong", [0, -1, 61, True, "1", float("nan")])
def test_a_deadline_that_is_none_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="deadline"):
        CacheRule("/a", ttl=9, deadline=wrong)
    with pytest.raises(ConfigurationError, match="deadline"):
        RateLimitRule("/a", "9/day", deadline=wrong)


def test_mappings_can_hold_it():
    settings = settings_from(
        {
            "rate_limits": [{"path": "/a", "limits": "9/day", "deadline": 0.2}],
            "default_limit": None,
            "cache": [{"path": "/a", "ttl": 9, "deadline": 0.1}],
        },
        {},
    )
    assert settings.rate_limits[0].deadline == 0.2
    assert settings.cache[0].deadline == 0.1
