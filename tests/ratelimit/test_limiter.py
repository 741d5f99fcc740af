"""The flow of one request: which rule, whose quota, what is asked, what a client is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.ratelimit.store import NOW, FakeClock, ValkeyStore
from upstash_middleware.core.identify import Identifier, client_ip, header
from upstash_middleware.core.ratelimit import (
    FixedWindow,
    RateLimiter,
    RateLimitExchange,
    RateLimitRule,
    SlidingWindow,
)
from upstash_middleware.drivers import arun, run
from upstash_middleware.errors import ConfigurationError, ConnectionLost, NotConnected
from upstash_middleware.events import (
    Event,
    InternalError,
    RateLimitDecided,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
)
from upstash_middleware.messages import Headers, HTTPRequest, ResponseHead

Make = Callable[..., RateLimiter]


def get(path: str = "/", peer: str | None = "203.0.113.7", **settings: Any) -> HTTPRequest:
    return HTTPRequest(**{"method": "GET", "path": path, "peer": peer, **settings})


def begin(limiter: RateLimiter, store: ValkeyStore, request: HTTPRequest) -> RateLimitExchange:
    return run(limiter.begin(request), store)


def passed(limiter: RateLimiter, store: ValkeyStore, *requests: HTTPRequest) -> list[bool]:
    return [begin(limiter, store, request).response is None for request in requests]


def fields(exchange: RateLimitExchange, status: int = 200, **headers: str) -> dict[str, str]:
    head = exchange.head(ResponseHead(status, Headers.of(**headers)))
    return {name: head.headers.combined(name) or "" for name in head.headers.names()}


def test_ten_pass_the_eleventh_is_denied_and_passes_after_its_wait(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """The promise in one test: falling remaining, 429, a wait that is exactly enough."""
    limiter = limiter_of(RateLimitRule("/api/generate", "10/10s", methods=("POST",)))
    request = get("/api/generate", method="POST")
    remaining = []
    for _ in range(10):
        exchange = begin(limiter, store, request)
        assert exchange.response is None
        assert exchange.decision is not None
        remaining.append(exchange.decision.remaining)
    assert remaining == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    denied = begin(limiter, store, request).decision
    assert denied is not None
    assert denied.retry_after is not None
    clock.move(denied.retry_after - 0.001)
    assert passed(limiter, store, request) == [False]
    clock.move(0.001)
    assert passed(limiter, store, request) == [True]


def test_a_denial_says_what_and_until_when(limiter_of: Make, store: ValkeyStore) -> None:
    """429, Retry-After, the fields of the draft and the usual ones, no-store, problem+json."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 60), name="burst"))
    begin(limiter, store, get("/a"))
    response = begin(limiter, store, get("/a")).response
    assert response is not None
    window_ends = NOW - NOW % 60 + 60
    wait = int(window_ends - NOW)
    names = {name: response.head.headers.get(name) for name in response.head.headers.names()}
    assert response.head.status == 429
    assert names == {
        "content-type": "application/problem+json",
        "content-length": str(len(response.body)),
        "cache-control": "no-store",
        "retry-after": str(wait),
        "x-ratelimit-limit": "1",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": str(int(window_ends)),
        "ratelimit-policy": '"burst";q=1;w=60',
        "ratelimit": f'"burst";r=0;t={wait}',
    }


def test_an_allowed_response_tells_every_policy_and_the_tightest(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """X-RateLimit-* are of the limit nearest to its end; there is no Retry-After."""
    limiter = limiter_of(RateLimitRule("/a", "5/min; 2/day", name="api"))
    found = fields(begin(limiter, store, get("/a")))
    assert found["x-ratelimit-limit"] == "2"
    assert found["x-ratelimit-remaining"] == "1"
    assert found["ratelimit-policy"] == '"api 1min";q=5;w=60, "api 1d";q=2;w=86400'
    assert re.fullmatch(r'"api 1min";r=4;t=\d+, "api 1d";r=1;t=\d+', found["ratelimit"])
    assert "retry-after" not in found


def test_no_fields_on_what_a_shared_cache_may_store(limiter_of: Make, store: ValkeyStore) -> None:
    """They would tell other clients of this one's quota."""
    exchange = begin(limiter_of(RateLimitRule("/a", "5/min")), store, get("/a"))
    assert set(fields(exchange, cache_control="max-age=60")) == {"cache-control"}
    assert set(fields(exchange, age="3")) == {"age"}
    assert "ratelimit" in fields(exchange, cache_control="private, max-age=60")


def test_fields_of_the_applications_own_are_left(limiter_of: Make, store: ValkeyStore) -> None:
    """And none of ours is added: a client must not read figures of two limits as one."""
    exchange = begin(limiter_of(RateLimitRule("/a", "5/min", name="a")), store, get("/a"))
    found = fields(exchange, x_ratelimit_limit="7", ratelimit='"own";r=1')
    assert found == {"x-ratelimit-limit": "7", "ratelimit": '"own";r=1'}


def test_windows_of_any_length_are_named(limiter_of: Make, store: ValkeyStore) -> None:
    """A policy has a `w` only where that is whole seconds."""
    rule = RateLimitRule("/a", "9/250ms; 9/1s; 9/90s; 9/2h; 9/3d", name="x")
    found = fields(begin(limiter_of(rule), store, get("/a")))
    assert found["ratelimit-policy"] == (
        '"x 250ms";q=9, "x 1s";q=9;w=1, "x 90s";q=9;w=90, "x 2h";q=9;w=7200, "x 3d";q=9;w=259200'
    )


def test_a_denial_by_one_limit_burns_nothing_of_another(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """Flask-Limiter, 100/minute;2/day: four denials burnt four of the minute's units."""
    limiter = limiter_of(RateLimitRule(None, "100/minute; 2/day", name="both"))
    assert passed(limiter, store, *[get()] * 6) == [True, True, False, False, False, False]
    decision = begin(limiter, store, get()).decision
    assert decision is not None
    assert [policy.remaining for policy in decision.policies] == [98, 0]
    assert [policy.allowed for policy in decision.policies] == [True, False]


def test_the_draft_has_no_t_later_than_retry_after(limiter_of: Make, store: ValkeyStore) -> None:
    """A policy that is whole again later than Retry-After leaves its `t` out (draft §5)."""
    limiter = limiter_of(RateLimitRule("/a", "1/s; 50/day", name="api"))
    begin(limiter, store, get("/a"))
    response = begin(limiter, store, get("/a")).response
    assert response is not None
    assert response.head.headers.get("retry-after") == "2"
    assert response.head.headers.get("ratelimit") == '"api 1s";r=0;t=2, "api 1d";r=49'


def test_retry_after_is_rounded_up_and_never_early(
    limiter_of: Make, store: ValkeyStore, clock: FakeClock
) -> None:
    """upstash-ratelimit says 0.5 s where the request is denied again at that moment."""
    clock.move(59.0 + 60 - NOW % 60)
    limiter = limiter_of(RateLimitRule("/a", SlidingWindow(10, 60)))
    for _ in range(10):
        begin(limiter, store, get("/a"))
    waits = []
    for pause in (0.5, 1.5):
        clock.move(pause)
        while (exchange := begin(limiter, store, get("/a"))).response is None:
            pass
        assert exchange.decision is not None
        waits.append(
            (exchange.decision.retry_after, exchange.response.head.headers.get("retry-after"))
        )
    assert waits == [(0.501, "1"), (5.001, "6")]


def test_concrete_urls_share_the_quota_of_their_pattern(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """slowapi gives /p/0, /p/1, … a fresh limit each."""
    limiter = limiter_of(RateLimitRule("/p/{id}", "2/min"))
    assert passed(limiter, store, get("/p/0"), get("/p/1"), get("/p/2")) == [True, True, False]


def test_a_request_that_no_rule_covers_falls_under_the_default(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """Nothing is bypassed in silence: unknown paths, odd methods, mounts, 404s."""
    default = RateLimitRule(None, "2/min", name="default")
    limiter = limiter_of(RateLimitRule("/a", "9/min", methods=("POST",)), default=default)
    odd = [get("/a"), get("/nowhere", method="PROPFIND"), get("//a", method="POST")]
    assert passed(limiter, store, *odd) == [True, True, False]
    assert passed(limiter, store, get("/a", method="POST")) == [True]


def test_without_a_default_the_rest_is_unlimited_and_asks_nothing(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """No rule, no round trip, no fields, no decision."""
    exchange = begin(limiter_of(RateLimitRule("/a", "1/min")), store, get("/b"))
    assert (exchange.response, exchange.decision) == (None, None)
    assert fields(exchange) == {}
    assert store.pipelines == []


def test_head_is_limited_with_get_and_gets_no_body(limiter_of: Make, store: ValkeyStore) -> None:
    """Frameworks answer HEAD by running GET's handler; RFC 9110 §9.3.2 forbids the body."""
    limiter = limiter_of(RateLimitRule("/a", "1/min", methods=("get",)))
    assert passed(limiter, store, get("/a")) == [True]
    response = begin(limiter, store, get("/a", method="HEAD")).response
    assert response is not None
    assert response.body == b""
    assert int(response.head.headers.get("content-length") or 0) > 0


def test_preflights_pass_unless_a_rule_names_options(limiter_of: Make, store: ValkeyStore) -> None:
    """flask-limiter#70: a browser's CORS preflights used the quota up."""
    asks = Headers.of(origin="https://x.example", access_control_request_method="POST")
    preflight = get("/a", method="OPTIONS", headers=asks)
    default = RateLimitRule(None, "1/min", name="default")
    limiter = limiter_of(RateLimitRule("/a", "1/min"), default=default)
    assert passed(limiter, store, *[preflight] * 3) == [True, True, True]
    assert passed(limiter, store, *[get("/a", method="OPTIONS")] * 2) == [True, False]
    strict = limiter_of(RateLimitRule("/a", "1/min", methods=("OPTIONS",), name="preflights"))
    assert passed(strict, store, *[preflight] * 2) == [True, False]


def test_an_unlimited_rule_exempts_before_the_default(limiter_of: Make, store: ValkeyStore) -> None:
    """The only way out of the default is an exemption that says so."""
    limiter = limiter_of(
        RateLimitRule("/health", "unlimited"),
        RateLimitRule(None, "unlimited", when=lambda request: request.peer == "10.0.0.1"),
        default=RateLimitRule(None, "1/min", name="default"),
    )
    assert passed(limiter, store, *[get("/health")] * 3) == [True] * 3
    assert passed(limiter, store, *[get("/a", peer="10.0.0.1")] * 3) == [True] * 3
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]


def test_clients_have_quotas_of_their_own(limiter_of: Make, store: ValkeyStore) -> None:
    """fastapi-limiter#80: the sixth client's first request is denied."""
    limiter = limiter_of(RateLimitRule("/a", "1/min"))
    clients = [get("/a", peer=f"203.0.113.{number}") for number in range(8)]
    assert passed(limiter, store, *clients) == [True] * 8
    assert passed(limiter, store, *clients) == [False] * 8


def test_an_extractor_that_finds_nothing_falls_to_the_peer(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """Clients without a key do not share one quota."""
    limiter = limiter_of(RateLimitRule("/a", "1/min", by=header("X-API-Key")))
    assert passed(limiter, store, get("/a", peer="203.0.113.1")) == [True]
    assert passed(limiter, store, get("/a", peer="203.0.113.2")) == [True]
    keyed = get("/a", peer="203.0.113.1", headers=Headers.of(x_api_key="k1"))
    elsewhere = get("/a", peer="203.0.113.9", headers=Headers.of(x_api_key="k1"))
    assert passed(limiter, store, keyed, elsewhere) == [True, False]


@pytest.mark.parametrize("policy", ["open", "closed"])
def test_clients_that_nothing_tells_apart_are_left_to_the_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event], policy: Any
) -> None:
    """Behind a Unix socket there is no peer: an event says what to set, no quota is shared."""
    limiter = limiter_of(RateLimitRule("/a", "1/min", on_error=policy))
    assert passed(limiter, store, *[get("/a", peer=None)] * 3) == [policy == "open"] * 3
    assert store.pipelines == []
    (doubt,) = (event for event in events if isinstance(event, SettingDoubted))
    assert doubt.where == "rate_limits[0]"
    assert "set client_ip=1" in doubt.advice


def test_secrets_reach_neither_keys_nor_events_nor_decisions(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """An API key is written as a hash under a key of the application's."""
    limiter = limiter_of(RateLimitRule("/a", "1/min", by=header("X-API-Key")))
    request = get("/a", headers=Headers.of(x_api_key="s3cr3t-key"))
    exchange = begin(limiter, store, request)
    written = repr((store.client.keys("*"), events, exchange.decision, limiter, exchange))
    assert "s3cr3t" not in written
    assert re.search(r"header\.x-api-key=#[0-9a-f]{32}", written)


def test_keys_are_prefix_rule_identifier_window(limiter_of: Make, store: ValkeyStore) -> None:
    """And colons, percent signs and braces inside a part are escaped, so that none collide."""
    limiter = limiter_of(RateLimitRule("/p/{id}", FixedWindow(1, 60), methods=("GET",)))
    begin(limiter, store, get("/p/1", peer="2001:db8:1:2:3::4"))
    assert store.client.keys("*") == [
        f"t:GET%20/p/%7Bid%7D:ip=2001%3Adb8%3A1%3A2%3A%3A/64:{int(NOW) // 60}".encode()
    ]


def test_costs_are_numbers_or_functions_and_zero_is_free(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """A request can take several units; one that takes none asks nothing."""
    limiter = limiter_of(
        RateLimitRule("/a", "10/min", cost=4),
        RateLimitRule("/b", "10/min", cost=lambda request: int(request.query)),
    )
    assert passed(limiter, store, *[get("/a")] * 3) == [True, True, False]
    assert passed(limiter, store, get("/b", query="9"), get("/b", query="2")) == [True, False]
    asked = len(store.pipelines)
    assert passed(limiter, store, get("/b", query="0")) == [True]
    assert len(store.pipelines) == asked


def test_a_computed_cost_above_the_limit_is_denied_without_a_false_wait(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """No wait would help, so there is no Retry-After and no `t`."""
    limiter = limiter_of(RateLimitRule("/a", "10/min", name="a", cost=lambda request: 11))
    exchange = begin(limiter, store, get("/a"))
    assert exchange.response is not None
    assert exchange.response.head.status == 429
    assert "retry-after" not in exchange.response.head.headers
    assert exchange.response.head.headers.get("ratelimit") == '"a";r=10'
    assert b"waiting does not help" in exchange.response.body


@pytest.mark.parametrize("error", [NotConnected("no"), ConnectionLost("gone")])
def test_open_lets_pass_when_upstash_cannot_be_asked(
    limiter_of: Make, store: ValkeyStore, events: list[Event], error: Any
) -> None:
    """The failure and what the policy makes of it are told; no fields claim to know, no 500."""
    store.fails_with = error
    exchange = begin(limiter_of(RateLimitRule("/a", "1/min")), store, get("/a"))
    assert exchange.response is None
    assert exchange.decision is not None
    assert (exchange.decision.allowed, exchange.decision.settled_by) == (True, "open")
    assert exchange.decision.remaining is None
    assert fields(exchange) == {}
    by_policy = RateLimitDecided("/a", "ip=203.0.113.7", True, 0, settled_by="open")
    assert events == [UpstashFailed("rate limit", error), by_policy]


def test_closed_answers_503_and_never_a_false_429(limiter_of: Make, store: ValkeyStore) -> None:
    """With Retry-After and the draft's problem type."""
    store.fails_with = NotConnected("no")
    rule = RateLimitRule("/a", "1/min", name="a", on_error="closed")
    response = begin(limiter_of(rule), store, get("/a")).response
    assert response is not None
    assert response.head.status == 503
    assert response.head.headers.get("retry-after") == "5"
    assert response.head.headers.get("cache-control") == "no-store"
    assert b"http-problem-types#temporary-reduced-capacity" in response.body
    assert b'"violated-policies": ["a"]' in response.body


def test_a_wrong_value_at_the_key_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """And it is not destroyed."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(5, 60), on_error="closed"))
    begin(limiter, store, get("/a"))
    (key,) = store.client.keys("*")
    store.client.delete(key)
    store.client.hset(key, "a", "b")
    response = begin(limiter, store, get("/a")).response
    assert response is not None
    assert response.head.status == 503
    assert isinstance(events[-2], UpstashFailed)
    assert "WRONGTYPE" in str(events[-2].error)


def boom(request: HTTPRequest) -> Any:
    raise RuntimeError("mine")


async def async_boom(request: HTTPRequest) -> Any:
    raise RuntimeError("mine")


@pytest.mark.parametrize("function", [boom, async_boom])
def test_an_extractor_that_raises_falls_to_the_peer(
    limiter_of: Make, store: ValkeyStore, events: list[Event], function: Any
) -> None:
    """The rule still holds, by address."""
    limiter = limiter_of(RateLimitRule("/b", "1/h"), RateLimitRule("/a", "1/min", by=function))
    assert passed(limiter, store, *[get("/a")] * 2) == [True, False]
    assert isinstance(events[0], UserCodeFailed)
    assert (events[0].where, str(events[0].error)) == ("rate_limits[1].by", "mine")


@pytest.mark.parametrize("part", ["when", "cost"])
@pytest.mark.parametrize("function", [boom, async_boom])
@pytest.mark.parametrize("policy", ["open", "closed"])
def test_a_predicate_or_cost_that_raises_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event], part: str, function: Any, policy: Any
) -> None:
    """It never becomes a 500."""
    rule = RateLimitRule("/a", "1/min", on_error=policy, **{part: function})
    exchange = begin(limiter_of(rule), store, get("/a"))
    assert (exchange.response is None) == (policy == "open")
    assert isinstance(events[0], UserCodeFailed)
    assert events[0].where == f"rate_limits[0].{part}"


class Unhashable(str):
    """A value that no set of listed ones can be asked about."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("policy", ["open", "closed", "local"])
@pytest.mark.parametrize(
    ("broken", "identifier"),
    [(Identifier("user", Unhashable("ada"), secret=True), "user=#"), (Identifier("user", 7), "")],  # type: ignore[arg-type]
)
def test_an_error_of_this_package_is_settled_by_policy(
    limiter_of: Make,
    store: ValkeyStore,
    events: list[Event],
    broken: Identifier,
    identifier: str,
    policy: Any,
) -> None:
    """It does not lift the limit: not while a charge is determined."""
    rule = RateLimitRule(
        "/a", "1/h", by=lambda _: broken, deny=["user=root"], on_error=policy, name="a"
    )
    limiter = limiter_of(rule)
    decisions = [begin(limiter, store, get("/a")).decision for _ in range(2)]
    found = [
        (each.allowed, each.settled_by, each.identifier[: len("user=#")])
        for each in decisions
        if each
    ]
    passes = {"open": [True, True], "closed": [False, False], "local": [True, False]}[policy]
    assert found == [(each, policy, identifier) for each in passes]
    assert [event.where for event in events if isinstance(event, InternalError)] == ["begin"] * 2


@pytest.mark.parametrize("policy", ["open", "closed", "local"])
@pytest.mark.parametrize("by", [None, lambda _: "alice"], ids=["usual", "unusual"])
def test_an_error_while_a_reply_is_read_is_settled_by_policy(
    limiter_of: Make, events: list[Event], by: Any, policy: Any
) -> None:
    limiter = limiter_of(RateLimitRule("/a", "1/h", by=by or client_ip(), on_error=policy))

    class Absurd:
        def execute(self, pipeline: Any) -> Any:
            return [[1, 0, 10**400, 0, 0, 1], *[[b"1", b"0"]] * (len(pipeline.commands) - 1)]

    exchange = begin(limiter, Absurd(), get("/a"))  # type: ignore[arg-type]
    assert (exchange.response is None) == (policy != "closed")
    assert exchange.decision is not None
    assert exchange.decision.settled_by == policy
    assert any(isinstance(event, InternalError) for event in events)


@pytest.mark.parametrize("answer", [-1, 1.5, True, "1", None])
def test_a_cost_that_is_no_count_is_settled_by_policy(
    limiter_of: Make, store: ValkeyStore, events: list[Event], answer: Any
) -> None:
    """Whatever a function answers, the script only gets whole numbers."""
    rule = RateLimitRule("/a", "1/min", cost=lambda request: answer)
    assert passed(limiter_of(rule), store, get("/a")) == [True]
    assert "a cost should be a whole number" in str(events[0])


def test_what_an_extractor_answers_is_checked(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Text and whole numbers are identifiers, nothing and emptiness fall to the peer."""
    answers: list[Any] = ["alice", 7, None, "", True, object()]
    limiter = limiter_of(RateLimitRule("/a", "9/min", by=lambda request: answers[0]))
    found = []
    for _ in range(6):
        decision = begin(limiter, store, get("/a")).decision
        assert decision is not None
        found.append(decision.identifier)
        answers.pop(0)
    assert found == ["id=alice", "id=7", *["ip=203.0.113.7"] * 4]
    wheres = [event.where for event in events if isinstance(event, UserCodeFailed)]
    assert wheres == ["rate_limits[0].by"] * 2


@pytest.mark.anyio
async def test_async_functions_of_the_application_run_on_its_loop(
    limiter_of: Make, store: ValkeyStore
) -> None:
    """Predicate, extractor and cost may all be async."""

    class Async:
        async def execute(self, pipeline: Any) -> Any:
            return store.execute(pipeline)

    async def yes(request: HTTPRequest) -> bool:
        return True

    async def who(request: HTTPRequest) -> str:
        return "alice"

    async def two(request: HTTPRequest) -> int:
        return 2

    limiter = limiter_of(RateLimitRule("/a", "5/min", when=yes, by=who, cost=two))
    exchange = await arun(limiter.begin(get("/a")), Async())
    assert exchange.decision is not None
    assert (exchange.decision.identifier, exchange.decision.remaining) == ("id=alice", 3)


def test_events_tell_of_each_decision(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Allowed and denied, with the wait."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10), name="a"))
    begin(limiter, store, get("/a"))
    begin(limiter, store, get("/a"))
    assert events == [
        UpstashAnswered("rate limit"),
        RateLimitDecided("a", "ip=203.0.113.7", allowed=True, remaining=0),
        UpstashAnswered("rate limit"),
        RateLimitDecided("a", "ip=203.0.113.7", allowed=False, remaining=0, retry_after=10.0),
    ]


def test_rules_of_one_name_are_refused(limiter_of: Make) -> None:
    """They would share counters."""
    with pytest.raises(ConfigurationError, match=r"rate_limits\[1\].name = 'x': rate_limits\[0\]"):
        limiter_of(RateLimitRule("/a", "1/s", name="x"), RateLimitRule("/b", "1/s", name="x"))


def test_a_default_that_does_not_cover_everything_is_refused(limiter_of: Make) -> None:
    """Else there would be requests under no rule at all."""
    with pytest.raises(ConfigurationError, match="default_limit"):
        limiter_of(default=RateLimitRule("/a", "1/s"))
