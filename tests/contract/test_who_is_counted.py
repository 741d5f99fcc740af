"""Whose quota a request uses where ``by`` finds nobody, fails, or no address is known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import (
    Identifier,
    RateLimitRule,
    client_ip,
    combine,
    first_of,
    header,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.settings import settings_from

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


@pytest.mark.parametrize(
    ("by", "setting"),
    [
        (client_ip(), 1),
        (KEY, 1),
        (broken, 1),
        (first_of(KEY, client_ip()), 1),
        (combine(KEY, client_ip()), 1),
        (combine(client_ip(), client_ip()), 1),
        (client_ip(), "10.0.0.0/8"),
        (KEY, ["10.0.0.0/8", "fd00::/8"]),
        (client_ip(), client_ip(trusted=("10.0.0.0/8",))),
        (combine(KEY, BEHIND), 0),
        (first_of(KEY, BEHIND), None),
    ],
)
def test_a_client_counts_by_the_address_that_the_proxy_wrote(serve: Serve, by: Any, setting: Any):
    """As the setting says; where nothing else is found; and where a part of ``by`` says so."""
    rule = RateLimitRule("/api", "1/hour", by=by)
    assert have_quotas_of_their_own(serve(plain, limit(rule, client_ip=setting)))


def test_the_default_limit_and_the_lists_use_the_setting(serve: Serve):
    default = {"limits": "1/hour", "allow": ["203.0.113.8/31"], "deny": ["192.0.2.0/24"]}
    served = serve(plain, limit(default=default, client_ip=1))
    assert have_quotas_of_their_own(served)
    assert [status(served, "203.0.113.9") for _ in range(3)] == [200, 200, 200]
    assert status(served, "192.0.2.7") == 403


async def from_the_field(request: HTTPRequest) -> str | None:
    return request.headers.get("x-client")


@pytest.mark.parametrize("setting", [from_the_field, header("X-Client")])
@pytest.mark.parametrize("by", [client_ip(), KEY, combine(client_ip(), client_ip())])
def test_a_function_of_the_application_may_find_the_address(serve: Serve, setting: Any, by: Any):
    """It is an address for networks, too; where it finds none, the connection's counts."""
    rule = RateLimitRule("/api", "1/hour", by=by, deny=("192.0.2.0/24",))
    served = serve(plain, limit(rule, client_ip=setting))

    def asked(*client: str) -> int:
        fields = tuple(("x-client", address) for address in client)
        return served.request("GET", "/api", fields, peer=PROXY).status

    assert [asked("203.0.113.1"), asked("203.0.113.1"), asked("203.0.113.2")] == [200, 429, 200]
    assert asked("192.0.2.7") == 403
    assert [asked(), asked()] == [200, 429]


def unknown(_: HTTPRequest) -> Identifier:
    return Identifier("ip", "unknown")


@pytest.mark.parametrize("parts", [{"by": unknown}, {"by": client_ip()}])
def test_what_claims_to_be_an_address_is_counted_beside_a_list_of_networks(
    serve: Serve, parts: Any
):
    rule = RateLimitRule("/api", "1/hour", **parts, deny=("192.0.2.0/24",), on_error="closed")
    served = serve(plain, limit(rule, client_ip=unknown))
    assert [status(served, "203.0.113.1") for _ in range(2)] == [200, 429]


def test_an_address_function_that_raises_is_logged_and_the_connection_counts(
    serve: Serve, caplog: pytest.LogCaptureFixture
):
    served = serve(plain, limit(default="1/hour", client_ip=broken))
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        assert [status(served, "203.0.113.1") for _ in range(2)] == [200, 429]
    (line,) = (r for r in caplog.records if r.name == "upstash_middleware")
    assert line.getMessage().startswith("client_ip raised")


def test_a_rule_of_its_own_address_ignores_the_setting(serve: Serve):
    served = serve(plain, limit(RateLimitRule("/api", "1/hour", by=BEHIND), client_ip="fly"))
    assert have_quotas_of_their_own(served)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (-1, "client_ip = -1: client_ip: trusted_hops=-1 should be from 0 to 32"),
        (True, "client_ip = True: should be the number of proxies in front, their networks"),
        ("verecl", "client_ip = 'verecl': client_ip: trusted network 'verecl'"),
        ("verecl", "platforms: vercel, fly,"),
        ("vercell", "(did you mean 'vercel'?); platforms:"),
        ("2", "write the number without quotes: 2; platforms:"),
        (["10.0.0.1/8"], "10.0.0.1/8 has host bits set"),
        ([], "client_ip = []: should be"),
        ([1], "client_ip = [1]: should be"),
        (1.5, "client_ip = 1.5: should be"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(setting: Any, said: str):
    with pytest.raises(ConfigurationError) as raised:
        settings_from({"default_limit": "1/hour", "client_ip": setting}, {})
    assert said in str(raised.value)


def test_what_no_setting_trusts_buys_no_second_quota(serve: Serve):
    served = serve(plain, limit(KEYED))
    assert status(served, "203.0.113.1") == 200
    assert status(served, "203.0.113.2") == 429


DECORATED = ("1/hour", {"by": KEY, "name": "decorated"})
DEFAULT: Any = {"limits": "100/hour", "name": "default"}


@pytest.mark.parametrize("default", [DEFAULT, None])
def test_a_decorator_uses_the_setting_of_the_middleware(serve: Serve, default: Any):
    layer = limit(default=default, client_ip=1)
    assert have_quotas_of_their_own(serve(plain, layer, limits=[DECORATED]))


@pytest.mark.parametrize("outside", [True, False])
def test_a_decorator_uses_the_setting_of_the_limit_beside_a_cache(serve: Serve, outside: bool):
    cache = ("CacheMiddleware", {"cache": [{"path": "/page", "ttl": 9}]})
    layers = [limit(default=DEFAULT, client_ip=1), cache]
    served = serve(plain, *(layers if outside else reversed(layers)), limits=[DECORATED])
    assert have_quotas_of_their_own(served)


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
    assert "set client_ip=1" in line.getMessage()
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
