"""What is shared with the JavaScript SDK beside counters: its deny list and its analytics."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from upstash_redis import Redis

from tests.ratelimit.store import NOW, FakeClock, ValkeyStore
from tests.ratelimit.test_limiter import Make, begin, get, passed
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.identify import (
    Identifier,
    address_setting,
    client_ip,
    combine,
    first_of,
    hashed,
    header,
)
from upstash_middleware.core.ratelimit import FixedWindow, RateLimitRule, SlidingWindow
from upstash_middleware.core.ratelimit.dashboard import (
    MAX_COUNTS,
    MAX_MEMBERS,
    SEND_EVERY,
    DenyList,
)
from upstash_middleware.core.ratelimit.memory import ServerClock
from upstash_middleware.drivers import run
from upstash_middleware.errors import NotConnected
from upstash_middleware.events import Event, SettingDoubted, UpstashFailed
from upstash_middleware.messages import Headers
from upstash_middleware.runtime import Features, Runtime

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit import Limit
    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.messages import HTTPRequest

SDK = "@upstash/ratelimit"
NODE = Path(__file__).parents[1] / "node"
HOUR = int(NOW) // 3600 * 3600 * 1000
KEY = f"{SDK}:events:{HOUR}"


def counts(store: ValkeyStore) -> dict[bytes, float]:
    return dict(store.client.zrange(KEY, 0, -1, withscores=True))


def test_decisions_are_counted_and_sent_with_a_later_pipeline(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """No round trip of their own; keys have a lifetime."""
    limiter = limiter_of(RateLimitRule("/a", "2/h"), analytics=SDK)
    passed(limiter, store, *[get("/a")] * 4)
    asked = len(store.pipelines)
    assert counts(store) == {}
    clock.move(SEND_EVERY)
    begin(limiter, store, get("/a", peer="203.0.113.8"))
    assert len(store.pipelines) == asked + 1
    assert counts(store) == {
        b'{"identifier":"203.0.113.7","success":true}': 2.0,
        b'{"identifier":"203.0.113.7","success":false}': 2.0,
    }
    assert 0 < store.client.ttl(KEY) <= 30 * 86_400


def test_what_is_left_is_sent_at_shutdown(limiter_of: Make, store: ValkeyStore) -> None:
    """And nothing where nothing was collected."""
    limiter = limiter_of(RateLimitRule("/a", "2/h"), analytics=SDK)
    run(limiter.flush(), store)
    assert store.pipelines == []
    begin(limiter, store, get("/a"))
    run(limiter.flush(), store)
    run(limiter.flush(), store)
    assert counts(store) == {b'{"identifier":"203.0.113.7","success":true}': 1.0}
    run(limiter_of(RateLimitRule("/a", "2/h")).flush(), store)


def test_counts_that_could_not_be_sent_are_sent_later(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """A lost call loses no counts, and requests pass by their policy."""
    limiter = limiter_of(RateLimitRule("/a", "9/h"), analytics=SDK)
    begin(limiter, store, get("/a"))
    clock.move(SEND_EVERY)
    store.fails_with = NotConnected("no")
    assert passed(limiter, store, get("/a")) == [True]
    store.fails_with = None
    run(limiter.flush(), store)
    assert counts(store) == {b'{"identifier":"203.0.113.7","success":true}': 1.0}


def test_the_memory_of_counts_is_bounded(limiter_of: Make, store: ValkeyStore) -> None:
    """A million identities cost no more than a thousand."""
    limiter = limiter_of(
        RateLimitRule("/a", "9/h", by=lambda request: request.query, on_error="local"),
        analytics=SDK,
    )
    store.fails_with = NotConnected("no")
    for number in range(MAX_COUNTS + 50):
        begin(limiter, store, get("/a", query=str(number + 1)))
    store.fails_with = None
    run(limiter.flush(), store)
    assert len(counts(store)) == MAX_COUNTS


def test_who_is_on_the_deny_list_gets_403_and_is_remembered(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Identifiers and user agents; in the pipeline of the limits, then from memory."""
    store.client.sadd(f"{SDK}:denyList:all", "203.0.113.66", "bad-bot/1.0")
    limiter = limiter_of(RateLimitRule("/a", "9/h"), deny_list=SDK, analytics=SDK)
    agent = Headers.of(user_agent="bad-bot/1.0")
    for request in (get("/a", peer="203.0.113.66"), get("/a", headers=agent)):
        before = len(store.pipelines)
        for _ in range(2):
            response = begin(limiter, store, request).response
            assert response is not None
            assert response.head.status == 403
        assert len(store.pipelines) == before + 1
    assert passed(limiter, store, get("/a")) == [True]
    store.client.flushall()
    clock.move(59.999)
    assert passed(limiter, store, get("/a", peer="203.0.113.66")) == [False]
    clock.move(0.001)
    assert passed(limiter, store, get("/a", peer="203.0.113.66")) == [True]
    run(limiter.flush(), store)
    assert b'{"identifier":"203.0.113.66","success":"denied"}' in counts(store)


BEHIND_PROXY = client_ip(trusted_hops=1)


def forwarded_for(request: HTTPRequest) -> str | None:
    return request.headers.get("x-forwarded-for")


async def forwarded_for_as_address(request: HTTPRequest) -> Identifier:
    return Identifier("ip", forwarded_for(request) or "")


@pytest.mark.parametrize(
    ("by", "address"),
    [
        (header("x-api-key"), BEHIND_PROXY),
        (header("x-api-key"), address_setting("client_ip", forwarded_for)),
        (header("x-api-key"), address_setting("client_ip", forwarded_for_as_address)),
        (None, address_setting("client_ip", forwarded_for)),
        (combine(header("x-api-key"), hashed(BEHIND_PROXY)), None),
        (first_of(header("x-api-key"), BEHIND_PROXY), None),
    ],
    ids=["setting", "function", "async function", "function alone", "combined", "second choice"],
)
@pytest.mark.parametrize("listed", ["198.51.100.6", "2001:db8::6"])
def test_an_address_on_the_deny_list_is_denied_whatever_the_rule_identifies_by(
    limiter_of: Make, store: ValkeyStore, by: Any, address: Any, listed: str
) -> None:
    """As the address that the trusted proxies tell, and to the last bit where it is IPv6."""
    store.client.sadd(f"{SDK}:denyList:all", listed)
    rule = RateLimitRule("/a", "9/h", by=by or client_ip())
    limiter = limiter_of(rule, address=address, deny_list=SDK)

    def of(address: str, key: str) -> Any:
        return get("/a", headers=Headers.of(x_api_key=key, x_forwarded_for=address))

    assert passed(limiter, store, of(listed, "a"), of("198.51.100.7", "a")) == [False, True]
    assert passed(limiter, store, of("2001:db8::7", "b"), of(listed, "b")) == [True, False]


def test_the_deny_list_is_asked_about_the_peer_where_no_proxy_is_trusted(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """A header that anybody can write frees nobody, and has nobody else denied."""
    store.client.sadd(f"{SDK}:denyList:all", "203.0.113.66")
    by = header("x-api-key")
    limiter = limiter_of(RateLimitRule("/a", "9/h", by=by), deny_list=SDK)
    forged = Headers.of(x_api_key="a", x_forwarded_for="203.0.113.66")
    key = Headers.of(x_api_key="a", x_forwarded_for="198.51.100.7")
    assert passed(limiter, store, get("/a", headers=forged)) == [True]
    assert passed(limiter, store, get("/a", headers=key, peer="203.0.113.66")) == [False]


def test_the_memory_of_the_denied_is_bounded(clock: FakeClock) -> None:
    """The longest known are forgotten first."""
    listed = DenyList(SDK, ServerClock(clock))
    for number in range(MAX_MEMBERS + 50):
        assert listed.learn([str(number)], [1])
    known = [listed.known([str(number)]) for number in range(MAX_MEMBERS + 50)]
    assert known == [False] * 50 + [True] * MAX_MEMBERS


def test_a_deny_list_that_cannot_be_read_stops_nobody(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """An event tells of it, once."""
    store.client.set(f"{SDK}:denyList:all", "not a set")
    limiter = limiter_of(RateLimitRule("/a", "1/h"), deny_list=SDK)
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]
    (doubt,) = (event for event in events if isinstance(event, SettingDoubted))
    assert doubt.where == "deny_list"
    assert "WRONGTYPE" in doubt.advice
    store.fails_with = NotConnected("no")
    events.clear()
    assert passed(limiter, store, get("/a", peer="203.0.113.8")) == [True]
    assert events[0] == UpstashFailed("rate limit", store.fails_with)


def test_deny_list_and_analytics_cost_one_command_and_no_round_trip(
    limiter_of: Make, client: Any, upstash: LocalUpstash, clock: FakeClock
) -> None:
    """SMISMEMBER; ZINCRBY and the key's lifetime."""
    limiter = limiter_of(RateLimitRule("/a", "9/h"), deny_list=SDK, deadline=10)
    begin(limiter, client, get("/a"))
    upstash.reset_bill()
    begin(limiter, client, get("/a"))
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 4)
    limiter = limiter_of(RateLimitRule("/a", "9/h"), analytics=SDK, deadline=10)
    begin(limiter, client, get("/a"))
    clock.move(SEND_EVERY)
    upstash.reset_bill()
    begin(limiter, client, get("/a"))
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 5)


def test_a_gateway_sends_what_is_left_when_it_is_closed(upstash: LocalUpstash) -> None:
    """The settings `analytics` and `deny_list` reach the limits."""
    settings = {
        "url": upstash.url,
        "token": upstash.token,
        "deadline": 10.0,
        "rate_limits": [RateLimitRule("/a", "9/h")],
        "default_limit": None,
        "analytics": "shop",
        "deny_list": "shop",
    }
    runtime = Runtime.of(settings, Features.RATE_LIMIT, {})
    with Redis(upstash.url, upstash.token) as redis:
        redis.sadd("shop:denyList:all", "203.0.113.8")
        for peer, passes in (("203.0.113.7", True), ("203.0.113.8", False)):
            assert (runtime.begin(get("/a", peer=peer)).response is None) == passes
        assert redis.keys("shop:events:*") == []
        runtime.close()
        (key,) = redis.keys("shop:events:*")
        assert redis.zcard(key) == 2
        runtime.begin(get("/a"))
        anyio.run(runtime.aclose)
        assert redis.zscore(key, '{"identifier":"203.0.113.7","success":true}') == 2


def javascript(script: str, upstash: LocalUpstash) -> Any:
    """Run a line of the JavaScript SDK's and return what it prints as JSON."""
    node = shutil.which("node")
    assert node is not None
    code = (
        'import { Ratelimit } from "@upstash/ratelimit"; import { Redis } from "@upstash/redis";'
        "const redis = Redis.fromEnv();"
        f"const answer = await (async () => {{ {script} }})();"
        "console.log(JSON.stringify(answer));"
    )
    done = subprocess.run(
        [node, "--input-type=module", "--eval", code],
        cwd=NODE, env={**upstash.env, "UPSTASH_DISABLE_TELEMETRY": "1"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.node
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FixedWindow(6, 86_400 * 7), 'Ratelimit.fixedWindow(6, "7 d")'),
        (SlidingWindow(6, 86_400 * 7), 'Ratelimit.slidingWindow(6, "7 d")'),
    ],
)
def test_counters_are_shared_with_the_javascript_sdk_in_both_directions(
    limiter_of: Make, client: Any, upstash: LocalUpstash, ours: Limit, theirs: str
) -> None:
    """Each side sees what the other has taken, and neither takes more than there is."""
    take = (
        f"const one = new Ratelimit({{ redis, limiter: {theirs}, ephemeralCache: false }});"
        'const { success, remaining } = await one.limit("203.0.113.7", { rate: RATE });'
        "return [success, remaining];"
    )
    rule = RateLimitRule("/a", ours, shared_prefix=SDK)
    limiter = limiter_of(rule, clock=SystemClock, deadline=10)
    assert javascript(take.replace("RATE", "2"), upstash) == [True, 4]
    decision = begin(limiter, client, get("/a")).decision
    assert decision is not None
    assert decision.remaining == 3
    assert javascript(take.replace("RATE", "2"), upstash) == [True, 1]
    assert passed(limiter, client, *[get("/a")] * 2) == [True, False]
    assert javascript(take.replace("RATE", "1"), upstash)[0] is False


@pytest.mark.node
def test_the_consoles_queries_find_our_analytics(
    limiter_of: Make, client: Any, upstash: LocalUpstash
) -> None:
    """Read by the JavaScript SDK's own analytics, beside its own traffic."""
    limiter = limiter_of(RateLimitRule("/a", "1/h"), analytics=SDK, clock=SystemClock, deadline=10)
    assert passed(limiter, client, *[get("/a")] * 3) == [True, False, False]
    run(limiter.flush(), client)
    found = javascript(
        "const { Analytics } = await import('@upstash/core-analytics');"
        "const analytics = new Analytics({ redis, prefix: '@upstash/ratelimit', window: '1h' });"
        "return await analytics.getMostAllowedBlocked('events', 1, 5);",
        upstash,
    )
    assert found["allowed"] == [{"identifier": "203.0.113.7", "count": 1}]
    assert found["ratelimited"] == [{"identifier": "203.0.113.7", "count": 2}]


@pytest.mark.node
def test_the_javascript_sdks_deny_list_is_obeyed(
    limiter_of: Make, client: Any, upstash: LocalUpstash
) -> None:
    """At the key where its dashboard writes."""
    javascript(f"return await redis.sadd('{SDK}:denyList:all', '203.0.113.7');", upstash)
    limiter = limiter_of(RateLimitRule("/a", "9/h"), deny_list=SDK, deadline=10)
    response = begin(limiter, client, get("/a")).response
    assert response is not None
    assert response.head.status == 403
