"""RFC 9111 §3: what is stored, and what never is."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.cache.exchanges import Miss
from upstash_middleware.errors import NotConnected
from upstash_middleware.events import CacheStored, UpstashFailed
from upstash_middleware.messages import Headers, ResponseHead


def hits_twice(site: Site, **fields: Any) -> bool:
    """Whether a second request after one with this response is a hit."""
    site.app = lambda _: reply(**fields)
    site.visit()
    return site.visit().hit


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": "max-age=60"},
        {"cache_control": "s-maxage=60"},
        {"cache_control": "max-age=0, s-maxage=60"},
        {"cache_control": "public, max-age=60"},
        {"cache_control": "max-age=60, foobar"},
        {"expires": "Tue, 14 Nov 2023 22:14:20 GMT"},
        {"expires": "0", "cache_control": "max-age=60"},
        {"cache_control": "max-age=60", "vary": "Accept"},
        {"cache_control": "max-age=60", "vary": "a,b,c,d,e,f,g,h"},
    ],
)
def test_a_response_with_explicit_freshness_is_stored(site, fields):
    """RFC 9111 §3, §4.2.1."""
    assert hits_twice(site, **fields)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, "no freshness lifetime"),
        ({"cache_control": "no-store, max-age=60"}, "no-store"),
        ({"cache_control": "No-StOrE", "expires": "Tue, 14 Nov 2023 22:14:20 GMT"}, "no-store"),
        ({"cache_control": "private, max-age=60"}, "private"),
        ({"cache_control": "max-age=60", "set_cookie": "a=b"}, "Set-Cookie"),
        ({"cache_control": "max-age=60", "vary": "*"}, "Vary: *"),
        ({"cache_control": "max-age=60", "vary": "Foo, *"}, "Vary: *"),
        ({"cache_control": "max-age=60", "vary": "a,b,c,d,e,f,g,h,i"}, "too many fields"),
        ({"cache_control": "max-age=60", "content_type": "Text/Event-Stream"}, "event stream"),
        ({"cache_control": "max-age=60", "content_length": "99999999"}, "body above"),
    ],
)
def test_a_response_that_must_not_be_stored_is_not_and_says_why(site, fields, detail):
    """RFC 9111 §3; RFC 9211's detail."""
    site.app = lambda _: reply(**fields)
    first = site.visit()
    assert detail in first.cache_status
    assert "stored" not in first.cache_status.split("detail")[0]
    assert first.round_trips == 1
    assert not site.visit().hit


def test_a_vary_star_on_a_second_line_counts(site):
    """RFC 9111 §4.1: a member ``*`` on any of its lines fails to match."""
    lines = [(b"cache-control", b"max-age=60"), (b"vary", b""), (b"vary", b", *")]
    site.app = lambda _: (ResponseHead(200, Headers(lines)), b"page")
    site.visit()
    assert not site.visit().hit


@pytest.mark.parametrize("status", [200, 203, 204, 300, 301, 302, 307, 404, 410, 500, 503, 599])
def test_any_final_status_with_explicit_freshness_is_stored_with_its_status(site, status):
    """RFC 9111 §3."""
    site.app = lambda _: reply(status=status, cache_control="max-age=60")
    site.visit()
    answer = site.visit()
    assert answer.hit
    assert answer.status == status


@pytest.mark.parametrize("status", [206, 304])
def test_a_part_or_a_confirmation_is_not_taken_for_a_whole(site, status):
    """RFC 9111 §3, §3.3."""
    site.app = lambda _: reply(status=status, cache_control="max-age=60")
    site.visit()
    assert not site.visit().hit


@pytest.mark.parametrize("status", [412, 416, 428, 429, 431, 511])
def test_what_answers_one_request_alone_is_not_stored(site, status):
    """Answers to conditions and ranges (RFC 9110 §15.5), and what RFC 6585 §3 to §6 forbid."""
    site.app = lambda _: reply(status=status, cache_control="max-age=60")
    site.visit()
    assert not site.visit().hit


def test_the_response_to_an_authorized_request_is_not_stored(site):
    """RFC 9111 §3.5."""
    asked = request(authorization="Bearer x")
    assert "Authorization" in site.visit(asked).cache_status
    assert not site.visit().hit


@pytest.mark.parametrize("directive", ["public", "s-maxage=60", "must-revalidate"])
def test_the_response_to_an_authorized_request_is_stored_where_it_says_so(site, directive):
    """RFC 9111 §3.5."""
    site.app = lambda _: reply(cache_control=f"max-age=60, {directive}")
    site.visit(request(authorization="Bearer x"))
    assert site.visit().hit


def test_a_rules_own_ttl_is_not_enough_for_an_authorized_request():
    """RFC 9111 §3.5: the response itself has to allow it."""
    site = Site((CacheRule("/page", ttl=60),))
    site.app = lambda _: reply()
    site.visit(request(authorization="Bearer x"))
    assert not site.visit().hit


def test_header_fields_are_replayed_whole_and_in_order(site):
    """RFC 9111 §3.1: repeated and unknown ones included."""
    lines = [(b"X-B", b"2"), (b"cache-control", b"max-age=60"), (b"x-a", b"\xe9"), (b"X-B", b"1")]
    site.app = lambda _: (ResponseHead(200, Headers(lines)), b"page")
    site.visit()
    assert list(site.visit().headers.raw[:4]) == lines


def test_fields_of_the_connection_are_not_stored(site):
    """RFC 9111 §3.1: nor those that Connection names."""
    fields: dict[str, Any] = dict.fromkeys(
        ("keep_alive", "proxy_authenticate", "proxy_connection", "te", "upgrade", "a", "b"), "x"
    )
    site.app = lambda _: reply(cache_control="max-age=60", connection="A, b", c="x", **fields)
    site.visit()
    names = set(site.visit().headers.names())
    assert names == {"cache-control", "c", "age", "cache-status", "content-length"}


@pytest.mark.parametrize("directive", ["no-cache", "private"])
def test_fields_that_a_directive_names_are_not_stored(site, directive):
    """RFC 9111 §5.2.2.4, §5.2.2.7."""
    site.app = lambda _: reply(cache_control=f'max-age=60, {directive}="A, b"', a="1", b="2", c="3")
    site.visit()
    answer = site.visit()
    assert answer.hit
    assert answer.headers.get("c") == "3"
    assert not {"a", "b"} & set(answer.headers.names())


def test_an_interrupted_response_is_not_stored(site):
    """RFC 9111 §3.3."""
    site.visit(complete=False)
    assert not site.visit().hit
    assert CacheStored("/page", stored=False, detail="the response was cut short") in site.events


def test_a_response_shorter_than_it_announced_is_not_stored(site):
    """RFC 9111 §3.3."""
    site.app = lambda _: reply(cache_control="max-age=60", content_length="5")
    site.visit()
    assert not site.visit().hit


def test_a_body_above_the_bound_passes_and_is_not_kept_in_memory():
    """Nothing of it is stored."""
    site = Site(options={"max_body": 10})
    exchange = site.begin(request())
    exchange.head(reply(cache_control="max-age=60")[0])
    for _ in range(3):
        exchange.chunk(b"12345678")
    assert isinstance(exchange, Miss)
    assert exchange.body == []
    assert exchange.finish(complete=True) is None


def test_a_response_to_a_request_with_cookies_is_stored_only_if_it_varies_on_them(site):
    """Profile safe: what a session changed is not given to others."""
    assert "cookies" in site.visit(request(cookie="session=1")).cache_status
    site.app = lambda _: reply(cache_control="max-age=60", vary="Cookie")
    site.visit(request(cookie="session=1"))
    assert site.visit(request(cookie="session=1")).hit
    assert not site.visit(request(cookie="session=2")).hit
    assert not site.visit().hit


def test_a_rule_may_narrow_vary_cookie_to_the_cookies_that_it_names():
    """Analytics cookies change nothing; other people's sessions do."""
    rule = CacheRule("/page", ttl=60, vary_cookies=("session",), narrow_vary_cookie=True)
    site = Site((rule,))
    site.app = lambda asked: reply((asked.headers.get("cookie") or "").encode(), vary="Cookie")
    site.visit(request(cookie="session=1; _ga=5"))
    assert site.visit(request(cookie="_ga=7; session=1")).hit
    assert not site.visit(request(cookie="session=2; _ga=5")).hit
    assert not site.visit().hit


def test_profile_conforming_stores_what_the_rfc_allows():
    """Set-Cookie, and requests with cookies."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(cache_control="max-age=60", set_cookie="a=b")
    site.visit(request(cookie="x=y"))
    answer = site.visit(request())
    assert answer.hit
    assert answer.headers.get("set-cookie") == "a=b"


def test_a_store_that_fails_costs_the_response_nothing(site):
    """A store that fails is a miss."""
    site.store.broken = NotConnected("refused")
    answer = site.visit()
    assert (answer.status, answer.body) == (200, b"page")
    assert "fwd=bypass" in answer.cache_status
    assert any(isinstance(event, UpstashFailed) for event in site.events)


def test_a_store_that_fails_after_the_lookup_is_told_and_nothing_more(site):
    """The response has long gone out."""
    exchange = site.begin(request())
    exchange.head(reply(cache_control="max-age=60")[0])
    site.store.broken = NotConnected("refused")
    site.finish(exchange)
    assert any(
        isinstance(event, UpstashFailed) and event.during == "cache store" for event in site.events
    )


@pytest.mark.parametrize(("ttl", "fields"), [(60, {}), (600, {"cache_control": "max-age=60"})])
def test_a_rules_ttl_counts_where_the_response_says_nothing(ttl, fields):
    """What a response says of its own freshness outweighs the rule."""
    site = Site((CacheRule("/page", ttl=ttl),))
    site.app = lambda _: reply(**fields)
    site.visit()
    site.clock.advance(59)
    assert site.visit().hit
    site.clock.advance(2)
    assert not site.visit().hit


def test_a_rules_ttl_is_for_successful_responses():
    """An error is not to stay because a page may."""
    site = Site((CacheRule("/page", ttl=60),))
    for status in (404, 500, 302):
        site.app = lambda asked: reply(status=int(asked.query))
        site.visit(request(query=str(status)))
        assert not site.visit(request(query=str(status))).hit


@pytest.mark.parametrize(
    ("status", "control", "stored"),
    [
        (200, "max-age=60, no-store, must-understand", True),
        (404, "max-age=60, no-store, must-understand", True),
        (599, "max-age=60, no-store, must-understand", False),
        (599, "max-age=60, must-understand", False),
        (299, "max-age=60, must-understand", False),
        (200, "max-age=60, must-understand", True),
    ],
)
def test_must_understand_stores_what_is_understood_and_nothing_else(site, status, control, stored):
    """RFC 9111 §5.2.2.3."""
    site.app = lambda _: reply(status=status, cache_control=control)
    site.visit()
    assert site.visit().hit is stored


@pytest.mark.parametrize(
    ("status", "control", "stored"),
    [
        *[(status, None, True) for status in (200, 203, 204, 300, 301, 308, 404, 405, 410, 414)],
        *[(status, None, False) for status in (201, 202, 302, 307, 403, 500, 502, 503, 504, 599)],
        (599, "public", True),
        (200, "no-store", False),
        (200, "private", False),
    ],
)
def test_heuristic_freshness_is_a_tenth_of_the_time_since_last_modified(status, control, stored):
    """RFC 9111 §4.2.2: for statuses that allow it, in profile conforming."""
    fields: dict[str, Any] = {"last_modified": "Tue, 14 Nov 2023 22:11:40 GMT"}
    fields |= {"cache_control": control} if control else {}
    for profile in ("conforming", "safe"):
        site = Site(options={"profile": profile})
        site.app = lambda _: reply(status=status, **fields)
        site.visit()
        assert site.visit().hit is (stored and profile == "conforming")
        site.clock.advance(10)
        assert not site.visit().hit


def test_heuristic_freshness_is_a_day_at_most_and_never_beside_an_explicit_one():
    """RFC 9111 §4.2.2."""
    site = Site(options={"profile": "conforming"})
    fields: dict[str, Any] = {"last_modified": "Tue, 14 Nov 2000 22:11:40 GMT"}
    site.app = lambda _: reply(**fields)
    site.visit()
    site.clock.advance(24 * 3600 - 1)
    assert site.visit().hit
    site.clock.advance(1)
    assert not site.visit().hit
    site.app = lambda _: reply(cache_control="max-age=1", **fields)
    site.visit(request("/other"))
    site.clock.advance(1)
    assert not site.visit(request("/other")).hit


def test_what_one_call_cannot_carry_is_not_stored():
    """Upstash refuses requests above 10 MB, and text takes a third more than bytes."""
    site = Site(options={"max_body": 9_000_000, "profile": "safe"})
    body = random.Random(7).randbytes(8_000_000)
    site.app = lambda _: reply(body, cache_control="max-age=60", content_type="image/png")
    site.visit()
    assert site.visit().hit
    site.app = lambda _: reply(
        body, cache_control="max-age=60", content_type="image/png", vary="Foo"
    )
    site.visit(request("/varied"))
    assert site.events[-1] == CacheStored("/varied", stored=False, detail="too large for one call")
