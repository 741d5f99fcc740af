"""RFC 9111 §4.2.4 and RFC 5861: when a response may be used stale, and what refreshes it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.cache.exchanges import Answered, Refresh
from upstash_middleware.messages import HTTPRequest, ResponseHead


@pytest.fixture
def site() -> Site:
    """A site whose engine refreshes in the background."""
    return Site(options={"background_refresh": True})


def become_stale(site: Site, control: str, asked: HTTPRequest | None = None, **fields: Any) -> None:
    """Store a page with these directives, and let it become stale by ten seconds."""
    site.app = lambda _: reply(b"stored", cache_control=f"max-age=2, {control}", **fields)
    site.visit(asked)
    site.clock.advance(12)


def failing(site: Site, status: int = 503) -> None:
    site.app = lambda _: reply(b"broken", status)


def begin_stale(site: Site, asked: HTTPRequest | None = None) -> Refresh:
    """Find a response usable stale, and return what the engine is to fetch."""
    exchange = site.begin(asked or request())
    assert exchange.response is not None
    assert exchange.response.body == b"stored"
    assert isinstance(exchange, Answered)
    assert exchange.refresh is not None
    return as_forwarded(exchange.refresh)


def as_forwarded(refresh: Refresh) -> Refresh:
    return replace(refresh, request=refresh.exchange.request_to_forward(refresh.request))


def carry_out(site: Site, refresh: Refresh) -> None:
    head, body = site.app(refresh.request)
    if isinstance(refresh.exchange.head(head), ResponseHead):
        refresh.exchange.chunk(body)
    site.finish(refresh.exchange)


def test_within_stale_while_revalidate_a_stale_response_is_used_and_refreshed(site):
    """RFC 5861 §3."""
    become_stale(site, "stale-while-revalidate=60")
    refresh = begin_stale(site)
    answer = site.visit()
    assert (answer.hit, answer.body, answer.headers.get("age")) == (True, b"stored", "12")
    assert answer.cache_status == "upstash-middleware; hit; ttl=-10"
    site.app = lambda _: reply(b"new", cache_control="max-age=60")
    carry_out(site, refresh)
    assert site.visit().body == b"new"
    assert site.visit().hit


def test_a_refresh_asks_as_nobody_in_particular_with_the_stored_validators(site):
    """Neither who asked nor what they have already may shape what others get."""
    become_stale(site, "stale-while-revalidate=60", etag='"a"', vary="Foo", asked=request(foo="1"))
    asked = request(
        "/page",
        "HEAD",
        foo="1",
        cookie="s=1",
        authorization="x",
        if_none_match='"z"',
        if_modified_since="x",
        range="bytes=0-1",
        cache_control="no-cache",
    )
    refresh = begin_stale_head(site, asked)
    assert refresh.request.method == "GET"
    assert dict(refresh.request.headers.raw) == {b"foo": b"1", b"if-none-match": b'"a"'}
    site.app = lambda _: reply(b"", 304, etag='"a"', cache_control="max-age=60")
    carry_out(site, refresh)
    site.clock.advance(50)
    assert site.visit(request(foo="1")).hit


def begin_stale_head(site: Site, asked: HTTPRequest) -> Refresh:
    exchange = site.begin(asked)
    assert exchange.response is not None
    assert isinstance(exchange, Answered)
    assert exchange.refresh is not None
    return as_forwarded(exchange.refresh)


def test_only_one_of_those_who_find_a_response_stale_refreshes_it(site):
    """In this process; another one may, once that was dropped."""
    become_stale(site, "stale-while-revalidate=600")
    begin_stale(site)
    exchange = site.begin(request())
    assert isinstance(exchange, Answered)
    assert exchange.refresh is None
    site.clock.advance(61)
    begin_stale(site)


def test_after_its_window_a_stale_response_is_not_used(site):
    """RFC 5861 §3."""
    become_stale(site, "stale-while-revalidate=9", etag='"a"')
    assert not site.visit().hit


def test_where_nobody_refreshes_a_stale_response_is_validated_first():
    """RFC 5861 §3: it may be used only while it is revalidated."""
    site = Site()
    become_stale(site, "stale-while-revalidate=60")
    assert not site.visit().hit


@pytest.mark.parametrize("vary", ["Cookie", "Foo, Authorization"])
def test_what_a_person_selects_is_not_refreshed_for_nobody(site, vary):
    """Only who bears the cookie could fetch it anew."""
    asked = request(cookie="s=1")
    become_stale(site, "stale-while-revalidate=60, public", asked, vary=vary)
    assert not site.visit(asked).hit


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_within_stale_if_error_a_stale_response_stands_in_for_an_error(site, status):
    """RFC 5861 §4."""
    become_stale(site, "stale-if-error=60")
    failing(site, status)
    answer = site.visit()
    assert (answer.status, answer.body) == (200, b"stored")
    assert f'fwd=stale; fwd-status={status}; ttl=-10; detail="stale-if-error"' in (
        answer.cache_status
    )


def test_a_stale_response_stands_in_for_an_application_that_raised(site):
    """RFC 5861 §4: an error is any situation that would result in one of these statuses."""
    become_stale(site, "stale-if-error=60")
    exchange = site.begin(request())
    response = exchange.failed()
    assert response is not None
    assert (response.head.status, response.body) == (200, b"stored")


@pytest.mark.parametrize("status", [404, 403, 501, 200])
def test_a_stale_response_does_not_stand_in_for_what_is_no_such_error(site, status):
    """RFC 5861 §4."""
    become_stale(site, "stale-if-error=60")
    failing(site, status)
    assert site.visit().body == b"broken"


def test_after_its_window_a_stale_response_does_not_stand_in(site):
    """RFC 5861 §4."""
    become_stale(site, "stale-if-error=9", etag='"a"')
    failing(site)
    assert site.visit().status == 503


@pytest.mark.parametrize("control", ["must-revalidate", "proxy-revalidate", "no-cache"])
def test_a_directive_that_forbids_it_outweighs_all_that_allow_it(control):
    """RFC 9111 §4.2.4, §5.2.2.2, §5.2.2.8."""
    allow = "stale-while-revalidate=60, stale-if-error=60"
    options = {"background_refresh": True, "profile": "conforming", "collapse": 0}
    site = Site(options=options)
    become_stale(site, f"{allow}, {control}", etag='"a"')
    assert not site.begin(request(cache_control="max-stale")).response
    failing(site)
    assert site.visit().status == 503


def test_s_maxage_forbids_even_an_explicit_stale_while_revalidate_in_profile_conforming(site):
    """RFC 9111 §5.2.2.10."""
    strict = Site(options={"background_refresh": True, "profile": "conforming"})
    for each, hit in ((site, True), (strict, False)):
        become_stale(each, "s-maxage=2, stale-while-revalidate=60", etag='"a"')
        assert (each.begin(request()).response is not None) is hit


def test_a_rules_windows_count_where_the_response_says_nothing():
    """What a response says outweighs them, a window of 0 included."""
    rule = CacheRule("/page", ttl=2, stale_while_revalidate=60, stale_if_error=60)
    for control, hit in (("public", True), ("stale-while-revalidate=0", False)):
        site = Site((rule,), options={"background_refresh": True})
        become_stale(site, control)
        assert (site.begin(request()).response is not None) is hit


def test_a_softly_purged_response_is_used_stale_where_that_is_allowed():
    """Stale, not gone."""
    site = Site(options={"background_refresh": True, "collapse": 0})
    site.app = lambda _: reply(b"stored", cache_control="max-age=60, stale-while-revalidate=60")
    site.visit()
    site.purge("/page", soft=True)
    begin_stale(site)
    site.purge("/page")
    assert not site.visit().hit


def conforming(control: str = "max-age=60", **fields: Any) -> Site:
    """A conforming site with a page that is 30 seconds old."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(b"stored", cache_control=control, etag='"a"', **fields)
    site.visit()
    site.clock.advance(30)
    return site


@pytest.mark.parametrize(
    ("control", "hit"),
    [
        ("max-age=30", True),
        ("max-age=29", False),
        ("max-age=0", False),
        ("min-fresh=30", True),
        ("min-fresh=31", False),
        ("no-cache", False),
        ("no-store", True),
        ("max-stale", True),
        ("foo", True),
    ],
)
def test_a_client_may_ask_for_a_younger_response(control, hit):
    """RFC 9111 §5.2.1.1, §5.2.1.3, §5.2.1.4."""
    answer = conforming().visit(request(cache_control=control))
    assert answer.hit is hit
    assert hit or "fwd=request" in answer.cache_status


@pytest.mark.parametrize(
    ("control", "hit"),
    [("max-stale", True), ("max-stale=10", True), ("max-stale=9", False), ("max-stale=x", False)],
)
def test_a_client_may_accept_a_stale_response(control, hit):
    """RFC 9111 §5.2.1.2."""
    assert conforming("max-age=20").visit(request(cache_control=control)).hit is hit


def test_a_client_may_ask_that_nothing_be_stored():
    """RFC 9111 §5.2.1.5, in both profiles."""
    for profile in ("safe", "conforming"):
        site = Site(options={"profile": profile})
        assert (
            "no-store in the request" in site.visit(request(cache_control="no-store")).cache_status
        )
        assert not site.visit().hit


def test_a_client_may_ask_for_a_stored_response_and_nothing_else():
    """RFC 9111 §5.2.1.7: 504 where there is none."""
    site = conforming()
    assert site.visit(request(cache_control="only-if-cached")).status == 200
    rendered = site.rendered
    answer = site.visit(request("/other", cache_control="only-if-cached"))
    assert (answer.status, answer.body, site.rendered) == (504, b"", rendered)


def test_pragma_counts_where_there_is_no_cache_control():
    """RFC 9111 §5.4."""
    site = conforming()
    assert site.visit(request(pragma="no-cache", cache_control="max-age=100")).hit
    assert site.visit(request(pragma="foo")).hit
    assert not site.visit(request(pragma="no-cache")).hit


@pytest.mark.parametrize("control", ["no-cache", "max-age=0", "min-fresh=100", "only-if-cached"])
def test_in_profile_safe_clients_do_not_command_the_cache(control):
    """RFC 9111 §5.2.1: they are advisory, and would be a lever to go around the cache."""
    site = Site()
    assert site.visit(request(cache_control="only-if-cached")).status == 200
    assert site.visit(request(cache_control=control, pragma="no-cache")).hit
