"""A rate limit counts, denies, tells the truth about it, and lets nobody past by accident."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import pytest
from upstash_ratelimit import FixedWindow

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, Decision, RateLimitRule, header
from upstash_middleware.clock import SystemClock

if TYPE_CHECKING:
    from tests.clocks import MovableClock
    from tests.contract.conftest import Serve
    from upstash_middleware.messages import HTTPRequest

LIMITED = ("UpstashMiddleware", "RateLimitMiddleware")


def plain(_: Seen) -> Reply:
    return Reply(b"ok")


def limit(default: Any = "3/hour", *rules: RateLimitRule, **more: Any) -> tuple[str, Any]:
    return "RateLimitMiddleware", {"default_limit": default, "rate_limits": rules, **more}


@pytest.mark.parametrize("name", LIMITED)
def test_requests_pass_with_falling_remaining_until_the_quota_is_used_up(serve: Serve, name: str):
    served = serve(plain, (name, {"default_limit": "3/hour"}))
    answers = [served.request("GET", "/") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [answer.header("x-ratelimit-remaining") for answer in answers] == ["2", "1", "0", "0"]


def test_every_response_says_how_the_limit_stands(serve: Serve):
    """draft-ietf-httpapi-ratelimit-headers-10, §3 and §4."""
    served = serve(plain, limit("gcra 3/60s"))
    before = SystemClock.wall()
    answer = served.request("GET", "/")
    assert answer.header("x-ratelimit-limit") == "3"
    assert answer.header("x-ratelimit-remaining") == "2"
    reset = int(answer.header("x-ratelimit-reset") or 0)
    assert before <= reset <= SystemClock.wall() + 61
    assert answer.header("ratelimit-policy") == '"default";q=3;w=60'
    assert (answer.header("ratelimit") or "").startswith('"default";r=2;t=')


def test_a_denial_is_a_429_with_all_fields_that_no_cache_keeps(serve: Serve):
    """RFC 6585 §4, and draft-ietf-httpapi-ratelimit-headers-10 §6 for its body."""
    served = serve(plain, limit("1/60s"))
    served.request("GET", "/")
    answer = served.request("GET", "/")
    assert answer.status == 429
    assert answer.header("cache-control") == "no-store"
    assert 1 <= int(answer.header("retry-after") or 0) <= 121
    assert (answer.header("ratelimit") or "").startswith('"default";r=0')
    assert answer.header("content-type") == "application/problem+json"
    assert answer.header("content-length") == str(len(answer.body))
    problem = json.loads(answer.body)
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert problem["violated-policies"] == ["default"]


def test_a_denial_of_head_has_no_body(serve: Serve):
    """RFC 9110 §9.3.2."""
    served = serve(plain, limit("1/hour"))
    served.request("HEAD", "/")
    answer = served.request("HEAD", "/")
    assert (answer.status, answer.body) == (429, b"")


def test_the_application_is_not_called_for_a_denied_request(serve: Serve):
    calls: list[str] = []

    def counting(request: Seen) -> Reply:
        calls.append(request.path)
        return Reply()

    served = serve(counting, limit("2/hour"))
    for _ in range(5):
        served.request("GET", "/")
    assert len(calls) == 2


def test_retry_after_tells_the_truth(serve: Serve, clock: MovableClock):
    served = serve(plain, limit("2/60s"))
    statuses = [served.request("GET", "/").status for _ in range(2)]
    denied = served.request("GET", "/")
    wait = int(denied.header("retry-after") or 0)
    assert [*statuses, denied.status] == [200, 200, 429]
    clock.advance(wait - 1.5)
    assert served.request("GET", "/").status == 429
    clock.advance(1.5)
    assert served.request("GET", "/").status == 200


def test_after_retry_after_has_really_passed_a_request_passes(serve: Serve):
    served = serve(plain, limit("1/2s"))
    # On a slow machine each request may find another window.
    answers = (served.request("GET", "/") for _ in range(100))
    denied = next(answer for answer in answers if answer.status == 429)
    time.sleep(int(denied.header("retry-after") or 0))
    assert served.request("GET", "/").status == 200


def test_each_client_has_a_quota_of_its_own(serve: Serve):
    served = serve(plain, limit("1/hour"))
    assert served.request("GET", "/", peer="203.0.113.1").status == 200
    assert served.request("GET", "/", peer="203.0.113.2").status == 200
    assert served.request("GET", "/", peer="203.0.113.1").status == 429


def test_a_forwarded_header_that_no_setting_trusts_buys_no_second_quota(serve: Serve):
    served = serve(plain, limit("1/hour"))
    served.request("GET", "/", (("x-forwarded-for", "198.51.100.1"),))
    for spoofed in ("198.51.100.2", "198.51.100.3, 198.51.100.4"):
        answer = served.request("GET", "/", (("x-forwarded-for", spoofed),))
        assert answer.status == 429


def test_a_rule_can_count_by_a_header_field(serve: Serve):
    rule = RateLimitRule(limits="1/hour", by=header("x-api-key"), name="keys")
    served = serve(plain, limit(None, rule))
    assert served.request("GET", "/", (("X-API-Key", "a"),)).status == 200
    assert served.request("GET", "/", (("X-API-Key", "b"),)).status == 200
    assert served.request("GET", "/", (("X-API-Key", "a"),)).status == 429


def by_team(request: HTTPRequest) -> str | None:
    return request.headers.get("x-team")


async def by_team_later(request: HTTPRequest) -> str | None:
    await anyio.lowlevel.checkpoint()
    return request.headers.get("x-team")


@pytest.mark.parametrize("by", [by_team, by_team_later])
def test_a_rule_can_count_by_a_function_sync_or_async(serve: Serve, by: Any):
    served = serve(plain, limit(None, RateLimitRule(limits="1/hour", by=by, name="teams")))
    assert served.request("GET", "/", (("x-team", "red"),)).status == 200
    assert served.request("GET", "/", (("x-team", "blue"),)).status == 200
    assert served.request("GET", "/", (("x-team", "red"),)).status == 429


def test_a_function_that_finds_nobody_falls_to_the_address_not_to_one_bucket_for_all(serve: Serve):
    served = serve(plain, limit(None, RateLimitRule(limits="1/hour", by=by_team, name="teams")))
    assert served.request("GET", "/", peer="203.0.113.1").status == 200
    assert served.request("GET", "/", peer="203.0.113.2").status == 200
    assert served.request("GET", "/", peer="203.0.113.1").status == 429


def test_a_function_that_raises_costs_nobody_the_response(serve: Serve):
    def broken(request: HTTPRequest) -> str:
        raise KeyError(request.path)

    served = serve(plain, limit(None, RateLimitRule(limits="1/hour", by=broken, name="broken")))
    assert served.request("GET", "/", peer="203.0.113.1").status == 200
    assert served.request("GET", "/", peer="203.0.113.1").status == 429


def test_a_rule_covers_its_path_and_method_and_the_default_covers_the_rest(serve: Serve):
    rule = RateLimitRule("/api/{name}", "1/hour", methods=("POST",))
    served = serve(plain, limit("2/hour", rule))
    assert served.request("POST", "/api/generate").status == 200
    assert served.request("POST", "/api/other").status == 429, "one bucket whatever the name"
    assert served.request("GET", "/api/generate").header("x-ratelimit-limit") == "2"
    assert served.request("POST", "/elsewhere").header("x-ratelimit-remaining") == "0"
    assert served.request("POST", "/elsewhere").status == 429


def test_what_the_application_does_not_find_is_counted_all_the_same(serve: Serve):
    served = serve(lambda _: Reply(b"", 404), limit("2/hour"))
    statuses = [served.request("GET", f"/absent/{number}").status for number in range(3)]
    assert statuses == [404, 404, 429]


def test_several_limits_are_taken_from_all_or_from_none(serve: Serve):
    rules = RateLimitRule(limits="1/minute; 5/day", name="both")
    served = serve(plain, limit(None, rules))
    answers = [served.request("GET", "/") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 429, 429, 429]
    assert '"both 1d";r=4' in (answers[-1].header("ratelimit") or "")


def test_the_handler_can_read_the_decision(serve: Serve):
    seen: list[Any] = []

    def reading(request: Seen) -> Reply:
        seen.append(request.rate_limit)
        return Reply()

    served = serve(reading, limit("5/hour"))
    served.request("GET", "/")
    (decision,) = seen
    assert decision.allowed
    assert (decision.limit, decision.remaining, decision.rule) == (5, 4, "default")


OFF: dict[str, Any] = {"enabled": False}
UNCHECKED: dict[str, tuple[list[Any], list[Any]]] = {
    "no rule covers it": ([limit(None, RateLimitRule("/limited", "5/hour"))], []),
    "it is exempt": ([limit("5/hour", RateLimitRule("/", "unlimited"))], []),
    "it is free": ([limit(None, RateLimitRule("/", "5/hour", cost=lambda _: 0))], []),
    "there is only a cache": ([("CacheMiddleware", {"cache": [CacheRule("/a", ttl=1)]})], []),
    "a cache is outside": (
        [
            ("CacheMiddleware", {"cache": [CacheRule("/a", ttl=1)]}),
            limit(None, RateLimitRule("/limited", "5/hour")),
        ],
        [],
    ),
    "all is switched off": ([limit("5/hour", **OFF)], []),
    "the decorator's limits are switched off": (
        [("CacheMiddleware", OFF)],
        [("5/hour", {"name": "decorated"})],
    ),
    "the inner middleware covers nothing": (
        [("RateLimitMiddleware", OFF), limit(None, RateLimitRule("/limited", "5/hour"), **OFF)],
        [],
    ),
}


@pytest.mark.parametrize(("layers", "limits"), UNCHECKED.values(), ids=UNCHECKED)
def test_a_handler_reads_a_decision_also_where_no_limit_was_checked(
    serve: Serve, layers: list[Any], limits: list[Any]
):
    """It allows, has no figures, and a charge is without effect."""
    seen: list[Any] = []

    def reading(request: Seen) -> Reply:
        seen.append(request.rate_limit)
        request.rate_limit.charge(3)
        return Reply()

    served = serve(reading, *layers, limits=limits)
    for _ in range(2):
        answer = served.request("GET", "/")
        assert answer.status == 200
        assert "x-ratelimit-limit" not in [name.lower() for name, _ in answer.headers]
    for decision in seen:
        assert isinstance(decision, Decision)
        assert decision.allowed
        assert (decision.limit, decision.remaining, decision.reset) == (None, None, None)
        assert (decision.retry_after, decision.policies) == (None, ())
        assert decision.settled_by == "unchecked"


def test_a_limit_that_checks_nothing_hides_no_decision_of_one_outside(serve: Serve):
    seen: list[Any] = []

    def reading(request: Seen) -> Reply:
        seen.append(request.rate_limit)
        return Reply()

    inner: Any = {"when": lambda _: False, "name": "inner"}
    served = serve(reading, limit("5/hour"), limits=[("3/hour", inner)])
    served.request("GET", "/")
    (decision,) = seen
    assert (decision.rule, decision.remaining) == ("default", 4)


def test_an_upstash_ratelimit_limiter_can_stand_in_a_rule(serve: Serve):
    limiter = FixedWindow(max_requests=2, window=1, unit="d")
    served = serve(plain, limit(None, RateLimitRule(limits=limiter, name="theirs")))
    answers = [served.request("GET", "/") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert [answer.header("x-ratelimit-remaining") for answer in answers] == ["1", "0", "0"]
