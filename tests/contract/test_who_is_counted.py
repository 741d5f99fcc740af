"""Whose quota a request uses where ``by`` finds nobody, fails, or no address is known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import RateLimitRule, client_ip, combine, first_of, header

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served
    from upstash_middleware import HTTPRequest

PROXY = "10.0.0.9"
KEY = header("X-API-Key")
BEHIND = client_ip(trusted_hops=1)


def plain(_: Seen) -> Reply:
    return Reply(b"ok")


def limit(*rules: RateLimitRule, default: Any = None, **more: Any) -> tuple[str, Any]:
    return "RateLimitMiddleware", {"rate_limits": rules, "default_limit": default, **more}


def status(served: Served, client: str, *headers: tuple[str, str]) -> int:
    """Send a request of a client that comes through the proxy."""
    forwarded = (("x-forwarded-for", f"198.51.100.1, {client}"), *headers)
    return served.request("GET", "/api", forwarded, peer=PROXY).status


def have_quotas_of_their_own(served: Served) -> bool:
    first = [status(served, "203.0.113.1"), status(served, "203.0.113.1")]
    return [*first, status(served, "203.0.113.2")] == [200, 429, 200]


def broken(request: HTTPRequest) -> str:
    raise KeyError(request.path)


KEYED = RateLimitRule("/api", "1/hour", by=KEY, name="keyed")
DEFAULT = RateLimitRule(None, "100/hour", by=BEHIND, name="default")


@pytest.mark.parametrize(
    ("rules", "default"),
    [
        ([KEYED], DEFAULT),
        ([KEYED, RateLimitRule("/other", "9/hour", by=BEHIND)], None),
        ([RateLimitRule("/api", "1/hour", by=combine(KEY, BEHIND))], None),
        ([RateLimitRule("/api", "1/hour", by=broken)], DEFAULT),
        ([KEYED, RateLimitRule("/other", "9/hour", by=first_of(KEY, BEHIND))], None),
    ],
    ids=["the default", "another rule", "the rule itself", "by raised", "a part"],
)
def test_without_its_key_a_client_counts_by_the_address_that_the_proxy_wrote(
    serve: Serve, rules: list[RateLimitRule], default: Any
):
    """By whichever rule the application is told of its proxy."""
    assert have_quotas_of_their_own(serve(plain, limit(*rules, default=default)))


def test_networks_and_platforms_count_as_well(serve: Serve):
    default = RateLimitRule(None, "100/hour", by=client_ip(platform="fly"), name="default")
    served = serve(plain, limit(KEYED, default=default))
    for client, expected in (("203.0.113.1", 200), ("203.0.113.1", 429), ("203.0.113.2", 200)):
        fields = (("fly-client-ip", client),)
        assert served.request("GET", "/api", fields, peer=PROXY).status == expected


def test_what_no_setting_trusts_buys_no_second_quota(serve: Serve):
    served = serve(plain, limit(KEYED))
    assert status(served, "203.0.113.1") == 200
    assert status(served, "203.0.113.2") == 429


DECORATED = ("1/hour", {"by": KEY, "name": "decorated"})


def test_a_decorator_asks_the_rules_of_the_middleware(serve: Serve):
    assert have_quotas_of_their_own(serve(plain, limit(default=DEFAULT), limits=[DECORATED]))


@pytest.mark.parametrize("outside", [True, False])
def test_a_decorator_asks_the_rules_of_the_limit_beside_a_cache(serve: Serve, outside: bool):
    layers = [limit(default=DEFAULT), ("CacheMiddleware", {"cache": [{"path": "/page", "ttl": 9}]})]
    served = serve(plain, *(layers if outside else reversed(layers)), limits=[DECORATED])
    assert have_quotas_of_their_own(served)


def test_without_a_middleware_a_decorator_asks_the_other_decorators(serve: Serve):
    others = ("9/hour", {"by": BEHIND, "name": "others"})
    assert have_quotas_of_their_own(serve(plain, limits=[others, DECORATED]))


UNKNOWN: Any = {"peer": ""}
"""A server behind a Unix socket knows no address."""


@pytest.mark.parametrize("where", ["middleware", "decorator"])
def test_local_counts_requests_whose_client_is_unknown(serve: Serve, where: str):
    """All together, in this process; with another policy they would pass, or none of them."""
    given = {"on_error": "local", "name": "default"}
    if where == "middleware":
        served = serve(plain, limit(default={"limits": "2/hour", **given}))
    else:
        served = serve(plain, limits=[("2/hour", given)])
    statuses = [served.request("GET", "/", **UNKNOWN).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert served.request("GET", "/", peer="203.0.113.1").status == 200


@pytest.mark.parametrize("part", ["cost", "when"])
def test_local_counts_requests_of_which_a_part_is_unknown(serve: Serve, part: str):
    """A function that raised costs nobody the response, and lifts no limit."""
    parts: Any = {part: broken}
    rule = RateLimitRule("/", "2/hour", on_error="local", **parts)
    served = serve(plain, limit(rule))
    assert [served.request("GET", "/").status for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(("policy", "expected"), [("open", 200), ("closed", 503)])
def test_the_other_policies_apply_to_requests_whose_client_is_unknown(
    serve: Serve, policy: str, expected: int
):
    served = serve(plain, limit(default={"limits": "1/hour", "on_error": policy}))
    statuses = [served.request("GET", "/", **UNKNOWN).status for _ in range(2)]
    assert statuses == [expected] * 2


def test_the_log_says_once_that_the_client_is_unknown(
    serve: Serve, caplog: pytest.LogCaptureFixture
):
    served = serve(plain, limit(default="1/hour"))
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        for _ in range(3):
            served.request("GET", "/", **UNKNOWN)
    (line,) = (r for r in caplog.records if r.name == "upstash_middleware")
    assert "default_limit" in line.getMessage()
    assert "on_error='open'" in line.getMessage()
    assert "client_ip(trusted_hops=1)" in line.getMessage()
    assert "raised" not in line.getMessage()


@pytest.mark.parametrize("part", ["by", "cost", "when", "settle"])
def test_the_log_names_the_limit_whose_function_raised(
    serve: Serve, caplog: pytest.LogCaptureFixture, part: str
):
    """Also that of a decorator, of which an application has many."""

    def raises(*_: Any) -> Any:
        raise KeyError("x")

    served = serve(plain, limits=[("9/hour", {"name": "logins", part: raises})])
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        assert served.request("GET", "/").status == 200
    (line,) = (r for r in caplog.records if r.name == "upstash_middleware")
    assert f"limit('9/hour', name='logins').{part} raised" in line.getMessage()
