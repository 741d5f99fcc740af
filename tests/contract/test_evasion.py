"""What a client adds to a request gives it no further quota, and takes nothing of a rule away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, RateLimitRule, cookie, header, query

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served
    from upstash_middleware.local import LocalUpstash

KEY = (("x-api-key", "VALID"),)


def plain(_: Seen) -> Reply:
    return Reply(b"ok")


def limited(serve: Serve, **rule: Any) -> Served:
    limits = {"rate_limits": [RateLimitRule("/ask", **rule)], "default_limit": "1000/hour"}
    return serve(plain, ("RateLimitMiddleware", limits))


@pytest.mark.parametrize("sent", [("sid=VALID; sid=x{}",), ("sid=x{}; sid=VALID",)])
def test_further_cookies_of_one_name_give_no_further_quota(serve: Serve, sent: tuple[str]):
    served = limited(serve, limits="3/hour", by=cookie("sid"))
    answers = [
        served.request("GET", "/ask", (("cookie", sent[0].format(number)),)).status
        for number in range(6)
    ]
    assert answers == [200] * 3 + [429] * 3


@pytest.mark.parametrize("sent", ["key=VALID&key=x{}", "key=x{}&key=VALID", "k%65y=x{}&key=VALID"])
def test_further_parameters_of_one_name_give_no_further_quota(serve: Serve, sent: str):
    served = limited(serve, limits="3/hour", by=query("key"))
    answers = [served.request("GET", f"/ask?{sent.format(n)}").status for n in range(6)]
    assert answers == [200] * 3 + [429] * 3


def test_further_lines_of_a_field_give_no_further_quota(serve: Serve, backend: Any):
    """WSGI servers join the lines, so that an application sees no valid key (RFC 3875 §4.1.18)."""
    served = limited(serve, limits="3/hour", by=header("X-API-Key"))
    answers = [
        served.request("GET", "/ask", (*KEY, ("x-api-key", f"junk{number}"))).status
        for number in range(6)
    ]
    joins = backend.name != "starlette"
    assert answers == ([200] * 6 if joins else [200] * 3 + [429] * 3)


def test_a_denied_network_is_denied_whatever_else_identifies_its_clients(serve: Serve):
    served = limited(serve, limits="3/hour", by=header("X-API-Key"), deny=("203.0.113.0/24",))
    for fields in ((), KEY):
        assert served.request("GET", "/ask", fields, peer="203.0.113.9").status == 403
        assert served.request("GET", "/ask", fields, peer="198.51.100.9").status == 200


def test_slow_calls_of_the_cache_do_not_switch_limits_off(serve: Serve, upstash: LocalUpstash):
    """A client can make the cache's calls miss their short deadline by keeping the machine busy."""
    settings = {
        "rate_limits": [RateLimitRule("/ask", "3/hour"), RateLimitRule("/pages/{id}", "unlimited")],
        "default_limit": "1000/hour",
        "cache": [CacheRule("/pages/{id}", ttl=60)],
        "cache_deadline": 0.02,
        "breaker_slow": 10.0,
    }
    served = serve(plain, ("UpstashMiddleware", settings))
    assert [served.request("GET", "/ask").status for _ in range(4)] == [200] * 3 + [429]
    with upstash.faults(latency_ms=60):
        for number in range(20):
            assert served.request("GET", f"/pages/{number}").status == 200
        assert served.request("GET", "/ask", peer="198.51.100.9").header("x-ratelimit-remaining")
        assert served.request("GET", "/ask").status == 429


@pytest.mark.parametrize("on_error", ["open", "closed"])
def test_a_cost_above_every_limit_is_denied(serve: Serve, on_error: Any):
    """The function of the cost may have read it from the request."""
    served = limited(
        serve,
        limits="5/hour",
        on_error=on_error,
        cost=lambda request: int(request.headers.get("x-tokens") or "1"),
    )
    for cost in (6, 2**31, 2**53, 2**63, 10**20):
        answer = served.request("GET", "/ask", (("x-tokens", str(cost)),))
        assert answer.status == 429
    assert served.request("GET", "/ask").status == 200
