"""Warnings about proxies that nobody has told us of: once, and with the remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.ratelimit.test_limiter import Make, begin, get
from upstash_middleware.core.identify import client_ip, header
from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.core.ratelimit.charges import SAMPLE
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import Event, SettingDoubted
from upstash_middleware.logs import LogObserver
from upstash_middleware.messages import Headers

if TYPE_CHECKING:
    from tests.ratelimit.store import ValkeyStore


def doubts(events: list[Event]) -> list[SettingDoubted]:
    return [event for event in events if isinstance(event, SettingDoubted)]


PROXY = "10.0.0.9"


@pytest.mark.parametrize(
    ("peer", "fields", "said"),
    [
        (PROXY, {"x_forwarded_for": "198.51.100.1"}, "set client_ip=1;"),
        (PROXY, {"x_forwarded_for": "6.6.6.6, 198.51.100.1"}, "set client_ip=1;"),
        (PROXY, {"x_forwarded_for": "10.6.6.6, 198.51.100.1"}, "set client_ip=1;"),
        (PROXY, {"x_forwarded_for": "198.51.100.1, 10.0.0.3"}, "set client_ip=2;"),
        (PROXY, {"x_forwarded_for": "198.51.100.1, 10.0.0.2, 10.0.0.3"}, "set client_ip=3;"),
        # A client of a private network may have written all but the last.
        (PROXY, {"x_forwarded_for": "192.168.1.5"}, "set client_ip=1;"),
        (PROXY, {"x_forwarded_for": "10.6.6.6, 10.6.6.7, 192.168.1.5"}, "set client_ip=1;"),
        (PROXY, {"x_forwarded_for": "unknown, 192.168.1.5"}, "set client_ip=1;"),
        ("127.0.0.1", {"x_forwarded_for": "198.51.100.1"}, "set client_ip=1;"),
        ("fd00::9", {"x_forwarded_for": "198.51.100.1"}, "set client_ip=1;"),
        (
            PROXY,
            {"forwarded": "for=198.51.100.1"},
            "set client_ip=client_ip(trusted_hops=1, header='Forwarded');",
        ),
        (PROXY, {}, "configure it to append to X-Forwarded-For, and set client_ip=1;"),
        (PROXY, {"x_real_ip": "198.51.100.1"}, "append to X-Forwarded-For, and set client_ip=1;"),
        (None, {"x_forwarded_for": "198.51.100.1"}, "set client_ip=1;"),
        (
            "203.0.113.9",
            {"x_forwarded_for": "198.51.100.1"},
            "which appends to the field, set client_ip='203.0.113.9', or the proxy's networks",
        ),
        (
            PROXY,
            {"x_forwarded_for": "198.51.100.1", "do_connecting_ip": "198.51.100.1"},
            "on DigitalOcean App Platform, set client_ip='digitalocean'",
        ),
    ],
)
def test_an_unconfigured_proxy_is_reported_once_with_the_value_to_set(
    limiter_of: Make,
    store: ValkeyStore,
    events: list[Event],
    caplog: pytest.LogCaptureFixture,
    peer: str | None,
    fields: dict[str, str],
    said: str,
) -> None:
    """By any rule that counts by address, also where ``by`` finds nothing else."""
    rules = RateLimitRule("/a", "9/h"), RateLimitRule("/b", "9/h", by=header("x-api-key"))
    limiter = limiter_of(*rules)
    for path in ("/b", "/a", "/a"):
        begin(limiter, store, get(path, peer=peer, headers=Headers.of(**fields)))
    (doubt,) = [doubt for doubt in doubts(events) if doubt.where == "client_ip"]
    assert said in doubt.advice
    LogObserver()(doubt)
    assert f"client_ip: {doubt.advice}" in caplog.text


@pytest.mark.parametrize(
    ("peer", "fields"),
    [
        ("203.0.113.9", {}),
        ("127.0.0.1", {}),
        ("::1", {}),
        ("testclient", {}),
        ("testclient", {"x_forwarded_for": "198.51.100.1"}),
        # The server has taken it from the field, as uvicorn does for proxies that it trusts.
        ("198.51.100.1", {"x_forwarded_for": "6.6.6.6, 198.51.100.1"}),
        ("192.168.1.5", {"x_forwarded_for": "192.168.1.5"}),
    ],
)
def test_local_development_and_addresses_that_the_server_has_read_are_no_doubt(
    limiter_of: Make, store: ValkeyStore, events: list[Event], peer: str, fields: dict[str, str]
) -> None:
    begin(
        limiter_of(RateLimitRule("/a", "9/h")),
        store,
        get("/a", peer=peer, headers=Headers.of(**fields)),
    )
    assert doubts(events) == []


def test_what_is_configured_is_no_doubt(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """Zero proxies are configured, too, and so is a rule's own address; a key is no address."""
    proxied = get("/a", peer=PROXY, headers=Headers.of(x_forwarded_for="10.0.0.8", x_key="k"))
    behind = client_ip(trusted_hops=1)
    begin(limiter_of(RateLimitRule("/a", "9/h"), address=behind), store, proxied)
    begin(limiter_of(RateLimitRule("/a", "9/h"), address=client_ip()), store, proxied)
    begin(limiter_of(RateLimitRule("/a", "9/h", by=behind)), store, proxied)
    begin(limiter_of(RateLimitRule("/a", "9/h", by=header("x-key"))), store, proxied)
    assert doubts(events) == []


def test_one_private_address_that_dominates_is_told_once(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    """All clients share the quota of a proxy that forwards no address."""
    limiter = limiter_of(RateLimitRule("/a", "1/h"), address=client_ip())
    for index in range(2 * SAMPLE):
        peer = f"10.0.0.{index % 12}" if index % 12 == 0 else "10.0.1.1"
        begin(limiter, store, get("/a", peer=peer if index else "10.0.1.1"))
    (doubt,) = doubts(events)
    assert f"nearly all of {SAMPLE} requests came from 10.0.1.1" in doubt.advice


@pytest.mark.parametrize(
    ("by", "said"),
    [
        (client_ip(), "came from 203.0.113.7"),
        (header("X-Api-Key"), "have the same header.x-api-key"),
    ],
)
def test_any_identifier_that_dominates_is_told_once_and_no_secret_with_it(
    limiter_of: Make, store: ValkeyStore, events: list[Event], by: Any, said: str
) -> None:
    """A front with a public address; a key that a runtime puts into every request."""
    limiter = limiter_of(RateLimitRule("/a", "1/h", by=by))
    for index in range(3 * SAMPLE):
        one, key = ("198.51.100.9", "another") if index % 20 == 19 else ("203.0.113.7", "s3cret")
        begin(limiter, store, get("/a", peer=one, headers=Headers.of(x_api_key=key)))
    (doubt,) = doubts(events)
    assert said in doubt.advice
    assert "s3cret" not in doubt.advice


def test_clients_of_their_own_and_one_quota_that_is_meant_are_no_doubt(
    limiter_of: Make, store: ValkeyStore, events: list[Event]
) -> None:
    own = limiter_of(RateLimitRule("/a", "1/h"))
    meant = limiter_of(RateLimitRule("/a", "1/h", name="all", by=lambda _: "everybody"))
    for index in range(2 * SAMPLE):
        begin(own, store, get("/a", peer=f"203.0.113.{index % 5}"))
        begin(meant, store, get("/a", peer="203.0.113.7"))
    assert doubts(events) == []


def test_a_rule_can_demand_an_identity(limiter_of: Make, store: ValkeyStore) -> None:
    """401 with a challenge (RFC 9110 §15.5.2), and no round trip."""
    limiter = limiter_of(RateLimitRule("/a", "1/h", by=header("x-key"), challenge="Bearer"))
    response = begin(limiter, store, get("/a")).response
    assert response is not None
    assert response.head.status == 401
    assert response.head.headers.get("www-authenticate") == "Bearer"
    assert response.head.headers.get("cache-control") == "no-store"
    assert store.pipelines == []
    keyed = get("/a", headers=Headers.of(x_key="k"))
    assert begin(limiter, store, keyed).response is None


@pytest.mark.parametrize("wrong", ["", " ", 5, "Bearer\n", "é"])
def test_a_challenge_that_is_none_is_refused(wrong: Any) -> None:
    """It goes into a header field."""
    with pytest.raises(ConfigurationError, match=r"RateLimitRule\.challenge"):
        RateLimitRule("/a", "1/h", challenge=wrong)
