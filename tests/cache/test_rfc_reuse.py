"""Statements of RFC 9111 sections 3, 4 and 5 that no other test of this folder is about."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.messages import Headers, ResponseHead

EARLIER = "Tue, 14 Nov 2023 22:13:00 GMT"
LATER = "Tue, 14 Nov 2023 22:13:10 GMT"


@pytest.fixture
def conforming() -> Site:
    """A site under the profile that does all that the RFC allows."""
    return Site(options={"profile": "conforming"})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "FOO"])
def test_a_stored_get_answers_get_and_head_alone(site, method):
    """RFC 9111 §4: unsafe requests are written through, and others do not fit what is stored."""
    site.visit()
    site.app = lambda _: reply(b"written")
    answer = site.visit(request(method=method))
    assert (answer.hit, answer.body) == (False, b"written")
    assert site.forwarded is not None
    assert site.forwarded.method == method


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "FOO", "PUT", "DELETE"])
def test_a_response_to_a_method_that_is_not_understood_is_not_stored(conforming, method):
    """RFC 9111 §3."""
    conforming.app = lambda _: reply(cache_control="max-age=60, public")
    conforming.visit(request(method=method))
    assert not conforming.visit(request(method=method)).hit
    assert not conforming.visit().hit


def test_what_a_304_says_of_one_connection_or_one_user_is_not_stored(conforming):
    """RFC 9111 §3.2: header fields excepted from storage in §3.1 are not updated either."""
    conforming.app = lambda _: reply(b"stored", cache_control="max-age=2", etag='"a"')
    conforming.visit()
    conforming.clock.advance(3)
    control = 'max-age=60, private="secret"'
    fields: dict[str, Any] = {"proxy_authenticate": "x", "keep_alive": "x", "secret": "x"}
    conforming.app = lambda _: reply(b"", 304, etag='"a"', cache_control=control, **fields)
    conforming.visit()
    answer = conforming.visit()
    assert answer.hit
    assert not {"proxy-authenticate", "keep-alive", "secret"} & set(answer.headers.names())


def test_where_vary_differs_between_responses_a_request_selects_one_at_most(conforming):
    """RFC 9111 §4, §4.1: so that of several the most recent is never a question."""
    fields: dict[str, Any] = {"cache_control": "max-age=600"}
    conforming.app = lambda _: reply(b"by foo", vary="Foo", date=LATER, **fields)
    conforming.visit(request(foo="1", bar="1"))
    conforming.app = lambda _: reply(b"by bar", vary="Bar", date=EARLIER, **fields)
    conforming.visit(request(foo="2", bar="1"))
    assert conforming.visit(request(foo="2", bar="1")).body == b"by bar"
    assert not conforming.visit(request(foo="1", bar="2")).hit
    assert not conforming.visit(request(foo="2", bar="2")).hit


def test_a_variant_is_chosen_before_a_default_without_vary(conforming):
    """RFC 9111 §4.1: resources mistakenly omit Vary from their default response."""
    fields: dict[str, Any] = {"cache_control": "max-age=600"}
    conforming.app = lambda _: reply(b"german", vary="Accept-Language", **fields)
    conforming.visit(request(accept_language="de"))
    conforming.clock.advance(1)
    conforming.app = lambda _: reply(b"default", **fields)
    conforming.visit(request())
    assert conforming.visit(request(accept_language="de")).body == b"german"


@pytest.mark.parametrize(
    "expires",
    [
        "tue, 14 nov 2023 22:14:20 gmt",
        "TUESDAY, 14-NOV-23 22:14:20 GMT",
        "tue nov 14 22:14:20 2023",
    ],
)
def test_a_date_is_matched_without_regard_to_case(site, expires):
    """RFC 9111 §4.2: though all formats are specified to be case-sensitive."""
    site.app = lambda _: reply(expires=expires)
    site.visit()
    assert site.visit().hit


@pytest.mark.parametrize("zone", ["EST", "UTC", "+0000", "CET"])
def test_a_date_of_another_zone_is_in_the_past(site, zone):
    """RFC 9111 §4.2."""
    site.app = lambda _: reply(expires=f"Tue, 14 Nov 2023 22:14:20 {zone}")
    site.visit()
    assert not site.visit().hit


def test_the_machines_time_zone_changes_nothing(site, monkeypatch):
    """RFC 9111 §4.2."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        site.app = lambda _: reply(expires="Tue, 14 Nov 2023 22:14:20 GMT")
        site.visit()
        site.clock.advance(59)
        assert site.visit().hit
        site.clock.advance(1)
        assert not site.visit().hit
    finally:
        monkeypatch.undo()
        time.tzset()


def test_expires_counts_from_the_date_of_the_response(site):
    """RFC 9111 §4.2.1: so that clocks that disagree change no lifetime."""
    site.app = lambda _: reply(date=EARLIER, expires="Tue, 14 Nov 2023 22:14:00 GMT")
    site.visit()
    site.clock.advance(39)  # 20 seconds old when it came, and 60 is its lifetime
    assert site.visit().hit
    site.clock.advance(1)
    assert not site.visit().hit


def test_a_clock_ahead_of_ours_makes_nothing_fresh_for_longer(site):
    """RFC 9111 §4.2.1, §4.2.3: the lifetime is Expires minus Date, whatever our clock says."""
    site.app = lambda _: reply(
        date="Tue, 14 Nov 2023 23:13:20 GMT", expires="Tue, 14 Nov 2023 23:13:30 GMT"
    )
    site.visit()
    site.clock.advance(9)
    assert site.visit().hit
    site.clock.advance(1)
    assert not site.visit().hit


@pytest.mark.parametrize(
    ("lines", "hit"),
    [
        (["Tue, 14 Nov 2023 22:14:20 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"], True),
        (["Thu, 01 Jan 1970 00:00:00 GMT", "Tue, 14 Nov 2023 22:14:20 GMT"], False),
    ],
)
def test_of_two_expires_the_first_counts(site, lines, hit):
    """RFC 9111 §4.2.1."""
    fields = Headers([(b"expires", line.encode()) for line in lines])
    site.app = lambda _: (ResponseHead(200, fields), b"page")
    site.visit()
    assert site.visit().hit is hit


@pytest.mark.parametrize("expires", ["0", "-1", "", "now", "Tue, 14 Nov 2023 22:14:20"])
def test_an_invalid_expires_is_in_the_past(expires):
    """RFC 9111 §5.3: it is explicit, so that no rule's TTL and no heuristic counts."""
    for profile in ("safe", "conforming"):
        site = Site((CacheRule("/page", ttl=60),), options={"profile": profile})
        site.app = lambda _: reply(expires=expires, last_modified="Tue, 14 Nov 2000 22:14:20 GMT")
        site.visit()
        assert not site.visit().hit


@pytest.mark.parametrize("control", ["max-age=60", "s-maxage=60"])
def test_expires_is_ignored_beside_an_age(site, control):
    """RFC 9111 §5.3."""
    site.app = lambda _: reply(cache_control=control, expires="Thu, 01 Jan 1970 00:00:00 GMT")
    site.visit()
    assert site.visit().hit


@pytest.mark.parametrize("control", ["max-age=60, x=1", 'no-transform, max-age="60"', "no-store"])
def test_directives_are_passed_through_as_they_came(site, control):
    """RFC 9111 §5.2: they might apply to all recipients along the chain."""
    site.app = lambda _: reply(cache_control=control)
    for _ in range(2):
        assert site.visit(request(cache_control="max-age=7, y")).headers.lines("cache-control") == [
            control
        ]
    site.visit(request("/other", cache_control="max-age=7, y"))
    assert site.forwarded is not None
    assert site.forwarded.headers.lines("cache-control") == ["max-age=7, y"]


def test_content_is_not_transformed(site):
    """RFC 9111 §5.2.2.6: it is compressed at rest alone."""
    body = b"the same words again " * 1000
    site.app = lambda _: reply(body, cache_control="max-age=60, no-transform")
    site.visit()
    answer = site.visit()
    assert (answer.hit, answer.body) == (True, body)
    assert "content-encoding" not in answer.headers


def test_pragma_of_a_response_means_nothing(site):
    """RFC 9111 §5.4: it was never specified."""
    site.app = lambda _: reply(cache_control="max-age=60", pragma="no-cache")
    site.visit()
    assert site.visit().hit


def test_the_entity_tag_of_a_part_is_not_sent_for_the_whole(conforming):
    """RFC 9111 §4.3.2: a 304 could not be followed by a whole body."""
    span = {"content_range": "bytes 0-1/10"}
    conforming.app = lambda _: reply(b"01", 206, cache_control="max-age=2", etag='"a"', **span)
    conforming.visit(request(range="bytes=0-1"))
    conforming.clock.advance(3)
    conforming.visit(request(if_none_match='"b"'))
    assert conforming.forwarded is not None
    assert conforming.forwarded.headers.lines("if-none-match") == ['"b"']


def test_a_response_with_must_revalidate_is_no_longer_used_once_it_is_stale(conforming):
    """RFC 9111 §3.5, §5.2.2.2: also where it is kept for what Authorization brought."""
    control = "max-age=60, must-revalidate"
    conforming.app = lambda _: reply(cache_control=control, etag='"a"')
    conforming.visit(request(authorization="Bearer x"))
    assert conforming.visit().hit
    conforming.clock.advance(60)
    conforming.app = lambda _: reply(b"unreachable", 504)
    assert conforming.visit(request(cache_control="max-stale")).status == 504
