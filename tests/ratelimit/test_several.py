"""Several rules on one request, shadows, lists, and counters shared with the SDK."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import upstash_ratelimit as sdk
from upstash_redis import Redis

from tests.ratelimit.test_limiter import Make, begin, fields, get, passed
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.identify import client_ip, header
from upstash_middleware.core.ratelimit import FixedWindow, RateLimitRule, SlidingWindow
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import Event, RateLimitDecided
from upstash_middleware.messages import Headers, HTTPRequest

if TYPE_CHECKING:
    from tests.ratelimit.store import FakeClock, ValkeyStore
    from upstash_middleware.core.ratelimit import Limit
    from upstash_middleware.local import LocalUpstash


def test_the_first_rule_that_covers_a_request_decides(limiter_of: Make, store: ValkeyStore) -> None:
    """Those after it are not asked."""
    limiter = limiter_of(RateLimitRule("/a", "3/h"), RateLimitRule("/{any}", "1/h"))
    assert passed(limiter, store, *[get("/a")] * 4) == [True, True, True, False]
    assert passed(limiter, store, *[get("/b")] * 2) == [True, False]


def test_all_rules_that_match_take_all_or_nothing_in_one_call(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """By address and by key at once; what one denies uses up nothing of the other."""
    limiter = limiter_of(
        RateLimitRule("/a", "5/h", name="address"),
        RateLimitRule("/a", "2/h", by=header("x-key"), name="key"),
        default=RateLimitRule(None, "1/h", name="default"),
        match="all",
    )
    keyed = get("/a", headers=Headers.of(x_key="k"))
    assert passed(limiter, store, *[keyed] * 4) == [True, True, False, False]
    other = begin(limiter, store, get("/a", headers=Headers.of(x_key="other")))
    assert fields(other)["ratelimit-policy"] == '"address";q=5;w=3600, "key";q=2;w=3600'
    assert fields(other)["x-ratelimit-limit"] == "2"
    assert other.decision is not None
    assert [policy.remaining for policy in other.decision.policies] == [2, 1]
    assert {len(pipeline.commands) for pipeline in store.pipelines[1:]} == {1}
    assert passed(limiter, store, *[get("/b")] * 2) == [True, False]


def test_where_one_of_the_rules_denies_none_gives_back_what_it_has_not_taken(
    limiter_of: Make, store: ValkeyStore
) -> None:
    limiter = limiter_of(
        RateLimitRule("/a", "5/h", name="address"),
        RateLimitRule("/a", "1/h", by=header("x-key"), name="key"),
        match="all",
    )
    keyed = get("/a", headers=Headers.of(x_key="k"))
    begin(limiter, store, keyed)
    denied = begin(limiter, store, keyed)
    assert denied.response is not None
    assert denied.finish(complete=True) is None


def test_a_rule_that_could_not_be_asked_hides_no_other(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """What is known is told, and a 503 of one rule is a 503."""

    def boom(request: HTTPRequest) -> int:
        raise RuntimeError

    for policy, passes in (("open", True), ("closed", False)):
        broken: Any = {"cost": boom, "on_error": policy}
        limiter = limiter_of(
            RateLimitRule("/a", "9/h", name="broken", **broken),
            RateLimitRule("/a", "5/h", name="whole"),
            match="all",
        )
        exchange = begin(limiter, store, get("/a"))
        assert (exchange.response is None) == passes
        assert exchange.decision is not None
        assert exchange.decision.rule == ("whole" if passes else "broken")


def test_with_all_rules_an_exemption_exempts_from_all(limiter_of: Make, store: ValkeyStore) -> None:
    """Wherever it stands before them."""
    limiter = limiter_of(
        RateLimitRule("/health", "unlimited"), RateLimitRule("/{any}", "1/h"), match="all"
    )
    assert passed(limiter, store, *[get("/health")] * 3) == [True] * 3
    assert passed(limiter, store, *[get("/other")] * 2) == [True, False]


def test_the_longest_wait_of_all_rules_is_told(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """At its end the request passes, not before."""
    limiter = limiter_of(
        RateLimitRule("/a", FixedWindow(1, 10), name="short"),
        RateLimitRule("/a", FixedWindow(1, 60), name="long"),
        match="all",
        remember_denials=0,
    )
    assert passed(limiter, store, get("/a")) == [True]
    denied = begin(limiter, store, get("/a")).decision
    assert denied is not None
    assert denied.rule == "long"
    assert denied.retry_after == 60 - clock.time % 60
    clock.move(denied.retry_after - 0.001)
    assert passed(limiter, store, get("/a")) == [False]
    clock.move(0.001)
    assert passed(limiter, store, get("/a")) == [True]


def test_a_shadow_reports_and_stops_nothing(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Neither the request nor the rules after it, and it shows in no field."""
    limiter = limiter_of(
        RateLimitRule("/a", "1/h", name="planned", shadow=True),
        RateLimitRule("/a", "3/h", name="real"),
        remember_denials=0,
    )
    exchanges = [begin(limiter, store, get("/a")) for _ in range(4)]
    assert [exchange.response is None for exchange in exchanges] == [True, True, True, False]
    assert fields(exchanges[0])["ratelimit-policy"] == '"real";q=3;w=3600'
    decided = [event for event in events if isinstance(event, RateLimitDecided)]
    told = [(event.rule, event.allowed, event.shadow) for event in decided]
    assert told[:2] == [("planned", True, True), ("real", True, False)]
    assert told[2:4] == [("planned", False, True), ("real", True, False)]
    assert {len(pipeline.commands) for pipeline in store.pipelines[1:]} == {1}


def test_a_shadow_alone_leaves_the_request_to_the_default(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """As if it were not there."""
    shadow = RateLimitRule("/a", "1/h", shadow=True)
    limiter = limiter_of(shadow, default=RateLimitRule(None, "2/h", name="default"))
    assert passed(limiter, store, *[get("/a")] * 3) == [True, True, False]
    alone = limiter_of(RateLimitRule("/b", "1/h", shadow=True))
    exchanges = [begin(alone, store, get("/b")) for _ in range(3)]
    assert [(exchange.response, exchange.decision) for exchange in exchanges] == [(None, None)] * 3


def test_listed_networks_and_identities_pass_uncounted(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """An allow list costs no round trip."""
    by = header("x-user")
    rule = RateLimitRule(
        "/a", "1/h", by=by, allow=("10.0.0.0/8", "header.x-user=boss", "2001:db8::/32")
    )
    limiter = limiter_of(rule)
    for peer in ("10.1.2.3", "2001:db8:5::1"):
        assert passed(limiter, store, *[get("/a", peer=peer)] * 3) == [True] * 3
    boss = get("/a", headers=Headers.of(x_user="boss"))
    assert passed(limiter, store, *[boss] * 3) == [True] * 3
    assert store.pipelines == []
    assert passed(limiter, store, *[get("/a", peer="11.0.0.1")] * 2) == [True, False]


def test_denied_networks_and_identities_get_403(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Without a round trip, a quota or a wait."""
    rule = RateLimitRule(
        "/a", "9/h", by=lambda request: request.query or None, deny=["mallory", "203.0.113.0/24"]
    )
    limiter = limiter_of(rule)
    for request in (get("/a"), get("/a", query="mallory", peer="10.0.0.1")):
        response = begin(limiter, store, request).response
        assert response is not None
        assert response.head.status == 403
        assert response.head.headers.get("cache-control") == "no-store"
        assert "retry-after" not in response.head.headers
        assert b"Access is denied." in response.body
    assert store.pipelines == []
    assert passed(limiter, store, get("/a", query="alice", peer="10.0.0.1")) == [True]
    assert passed(limiter, store, get("/a", query="alice")) == [False], "her network is denied"
    assert isinstance(events[0], RateLimitDecided)
    assert not events[0].allowed


@pytest.mark.parametrize("wrong", ["10.0.0.0/8", [5], ["10.0.0.1/8"], ["10.0.0.300"], [""], 5])
def test_a_list_that_is_none_is_refused(wrong: Any) -> None:
    """A mistyped network would let nobody through, or everybody."""
    with pytest.raises(ConfigurationError, match=r"RateLimitRule\.deny"):
        RateLimitRule("/a", "1/h", deny=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shared_prefix": ""},
        {"shared_prefix": "x", "limits": "gcra 1/s"},
        {"shared_prefix": "x", "limits": "unlimited"},
        {"local_share": 0},
        {"local_share": 1.5},
        {"local_share": True},
        {"on_error": "local", "limits": sdk.FixedWindow(1, 1)},
    ],
)
def test_what_cannot_be_shared_is_refused(wrong: dict[str, Any]) -> None:
    """At construction."""
    name = next(iter(wrong))
    with pytest.raises(ConfigurationError, match=rf"RateLimitRule\.{name}"):
        RateLimitRule(**{"path": "/a", "limits": "1/h", **wrong})


SHARED = [
    (FixedWindow(6, 86_400 * 7), sdk.FixedWindow(6, 7, "d")),
    (SlidingWindow(6, 86_400 * 7), sdk.SlidingWindow(6, 7, "d")),
]


@pytest.mark.parametrize(("ours", "theirs"), SHARED)
def test_counters_are_shared_with_upstash_ratelimit_in_both_directions(
    limiter_of: Make, client: Any, upstash: LocalUpstash, ours: Limit, theirs: Any
) -> None:
    """Each side sees what the other has taken, and neither takes more than there is."""
    rule = RateLimitRule("/a", ours, by=client_ip(), shared_prefix="@upstash/ratelimit")
    limiter = limiter_of(rule, clock=SystemClock, deadline=10)
    with Redis(upstash.url, upstash.token) as redis:
        other = sdk.Ratelimit(redis, theirs)
        assert other.limit("203.0.113.7").remaining == 5
        decision = begin(limiter, client, get("/a")).decision
        assert decision is not None
        assert decision.remaining == 4
        assert other.get_remaining("203.0.113.7") == 4
        assert other.limit("203.0.113.7", rate=3).remaining == 1
        assert passed(limiter, client, *[get("/a")] * 2) == [True, False]
        assert not other.limit("203.0.113.7").allowed


def test_a_hash_of_the_sdks_token_bucket_is_not_destroyed(
    limiter_of: Make, client: Any, upstash: LocalUpstash
) -> None:
    """A key of another type at the same name is refused, by policy."""
    number = int(time.time()) // (7 * 86_400)
    rule = RateLimitRule(
        "/a", FixedWindow(6, 86_400 * 7), shared_prefix="bucket", on_error="closed"
    )
    limiter = limiter_of(rule, clock=SystemClock, deadline=10)
    with Redis(upstash.url, upstash.token) as redis:
        for window in (number, number + 1):
            bucket = sdk.Ratelimit(redis, sdk.TokenBucket(5, 1, 60), prefix="bucket")
            bucket.limit(f"203.0.113.7:{window}")
        response = begin(limiter, client, get("/a")).response
        assert response is not None
        assert response.head.status == 503
        assert redis.hget(f"bucket:203.0.113.7:{number}", "tokens") == "4"


@pytest.mark.parametrize(
    ("hosts", "asked", "covered"),
    [
        (["api.example.com"], "api.example.com", True),
        (["API.example.com"], "api.example.com:8443", True),
        (["api.example.com:8443"], "api.example.com:8443", True),
        (["api.example.com:8443"], "api.example.com", False),
        (["*.example.com"], "api.example.com", True),
        (["*.example.com"], "a.b.example.com", True),
        (["*.example.com"], "example.com", False),
        (["*.example.com"], "notexample.com", False),
        (["[2001:db8::1]"], "[2001:db8::1]:80", True),
        (["a.example", "b.example"], "b.example", True),
        (["a.example"], "", False),
    ],
)
def test_rules_match_hosts(
    limiter_of: Make, store: ValkeyStore, hosts: list[str], asked: str, covered: bool
) -> None:
    """A port counts only where the rule names one."""
    limiter = limiter_of(RateLimitRule("/a", "9/h", hosts=hosts))
    assert (begin(limiter, store, get("/a", host=asked)).decision is not None) == covered


@pytest.mark.parametrize("match", ["first", "all"])
def test_rules_of_one_bucket_share_their_counters(
    limiter_of: Make, store: ValkeyStore, match: Any
) -> None:
    """Two endpoints, one quota; a request that both cover is charged once."""
    limiter = limiter_of(
        RateLimitRule("/a", "3/h", bucket="writes"),
        RateLimitRule("/b", "3/h", bucket="writes"),
        RateLimitRule("/{any}", "3/h", bucket="writes"),
        match=match,
    )
    assert passed(limiter, store, get("/a"), get("/b"), get("/c"), get("/a")) == [
        True, True, True, False,
    ]  # fmt: skip


def test_what_was_taken_for_a_request_that_was_denied_all_the_same_is_given_back(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """By a deny list, or a limiter of upstash_ratelimit, which decide by commands of their own."""
    store.client.sadd("list:denyList:all", "203.0.113.66")
    limiter = limiter_of(
        RateLimitRule("/a", "5/h; 2 at once", name="own", cost=2),
        RateLimitRule("/a", sdk.FixedWindow(1, 1, "d"), name="theirs"),
        match="all",
        deny_list="list",
        remember_denials=0,
    )
    assert passed(limiter, store, get("/a")) == [True]
    for peer, remaining in (("203.0.113.7", 3), ("203.0.113.66", 5)):
        for _ in range(3):
            exchange = begin(limiter, store, get("/a", peer=peer))
            assert exchange.response is not None
            flow = exchange.finish(complete=True)
            if flow is not None:
                run(flow, store)
        peeked = run(limiter.peek(get("/a", peer=peer)), store)
        assert peeked is not None
        assert peeked.policies[0].remaining == remaining
