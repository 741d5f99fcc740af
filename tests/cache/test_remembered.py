"""Heads that one process uses for many hits change when anything they depend on changes."""

from __future__ import annotations

from tests.cache.world import Site, reply, request
from upstash_middleware.errors import NotConnected

L1 = {"l1_bytes": 1024 * 1024, "l1_seconds": 0.1}


def test_within_a_second_all_are_told_the_same_head_and_after_it_another():
    site = Site()
    site.visit()
    assert site.visit().headers == site.visit().headers
    site.clock.advance(0.5)
    assert site.visit().headers.get("age") == "0"
    assert site.visit().cache_status == "upstash-middleware; hit; ttl=59"
    site.clock.advance(0.5)
    assert site.visit().headers.get("age") == "1"


def test_what_conditions_ranges_and_head_get_leaves_the_whole_as_it_was():
    site = Site()
    site.app = lambda _: reply(b"page", cache_control="max-age=60", etag='"a"', content_type="a/b")
    site.visit()
    whole = site.visit()
    assert site.visit(request(if_none_match='"a"')).status == 304
    assert site.visit(request(range="bytes=1-2")).body == b"ag"
    assert site.visit(request(method="HEAD")).body == b""
    again = site.visit()
    assert (again.status, again.headers, again.body) == (200, whole.headers, b"page")


def test_why_it_is_used_is_told_of_each_use():
    """The same stored response, within one second: fresh, and in place of a store that failed."""
    site = Site(options=L1)
    site.app = lambda _: reply(cache_control="max-age=60, stale-if-error=60")
    site.visit()
    assert "detail" not in site.visit().cache_status
    site.clock.advance(0.2)
    site.store.broken = NotConnected("test")
    assert 'detail="the store did not answer"' in site.visit().cache_status
    site.store.broken = None
    assert "detail" not in site.visit().cache_status


def test_what_was_stored_anew_within_the_second_is_told_as_it_is():
    site = Site()
    site.app = lambda _: reply(b"old", cache_control="max-age=60", etag='"old"')
    site.visit()
    assert site.visit().headers.get("etag") == '"old"'
    site.purge("/page")
    site.app = lambda _: reply(b"new", cache_control="max-age=60", etag='"new"')
    site.visit()
    answer = site.visit()
    assert (answer.hit, answer.body, answer.headers.get("etag")) == (True, b"new", '"new"')
