"""RFC 9211: what Cache-Status says, in every way that a request can take."""

from __future__ import annotations

import re

import pytest

from tests.cache.world import Answer, Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.errors import NotConnected

# One member of a List: a Token with parameters (RFC 8941 §3.1, §3.1.2).
MEMBER = re.compile(
    r"[A-Za-z*][!#$%&'*+.^_`|~:/A-Za-z0-9-]*"
    r"(?:; [a-z*][a-z0-9_.*-]*"
    r"(?:=(?:-?\d{1,15}|[A-Za-z*][!#$%&'*+.^_`|~:/A-Za-z0-9-]*|\"(?:[ !#-\[\]-~]|\\[\"\\])*\"))?)*"
)


def parameters(answer: Answer) -> dict[str, str]:
    """Return the parameters of our member, a Boolean's as an empty text."""
    assert MEMBER.fullmatch(answer.cache_status), answer.cache_status
    name, *pairs = answer.cache_status.split("; ")
    assert name == "upstash-middleware"
    found = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    assert ("hit" in found) != ("fwd" in found)
    assert "hit" not in found or not {"fwd-status", "stored", "collapsed"} & set(found)
    return found


@pytest.fixture
def site() -> Site:
    """A conforming site with a page that can be validated."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(b"0123456789", cache_control="max-age=60", etag='"a"')
    return site


def test_what_is_made_from_a_stored_response_is_a_hit(site):
    """RFC 9211 §2.1: a 304, a 206, and the answer to HEAD too."""
    site.visit()
    for asked, status in (
        (request(), 200),
        (request(method="HEAD"), 200),
        (request(if_none_match='"a"'), 304),
        (request(range="bytes=0-1"), 206),
    ):
        answer = site.visit(asked)
        assert answer.status == status
        assert parameters(answer) == {"hit": "", "ttl": "60"}


def test_the_most_specific_reason_is_given(site):
    """RFC 9211 §2.2."""
    assert parameters(site.visit())["fwd"] == "uri-miss"
    assert parameters(site.visit(request(cache_control="no-cache")))["fwd"] == "request"
    assert parameters(site.visit(request(method="PUT")))["fwd"] == "method"
    assert parameters(site.visit())["fwd"] == "uri-miss"
    site.clock.advance(61)
    assert parameters(site.visit())["fwd"] == "stale"
    site.app = lambda _: reply(cache_control="max-age=60", vary="Foo")
    site.visit(request("/other", foo="1"))
    assert parameters(site.visit(request("/other", foo="2")))["fwd"] == "vary-miss"
    site.store.broken = NotConnected("refused")
    assert parameters(site.visit())["fwd"] == "bypass"


def test_a_request_that_the_rule_bypasses_says_so():
    """RFC 9211 §2.2."""
    site = Site((CacheRule("/page", bypass=lambda _: True),))
    assert parameters(site.visit()) == {"fwd": "bypass", "detail": '"bypass of the rule"'}


def test_what_the_application_answered_is_told_where_it_is_not_what_is_sent(site):
    """RFC 9211 §2.3: a 304 to us, while the client gets the whole."""
    site.visit()
    site.clock.advance(61)
    site.app = lambda _: reply(b"", 304, etag='"a"', cache_control="max-age=60")
    found = parameters(site.visit())
    assert found == {"fwd": "stale", "fwd-status": "304", "ttl": "60", "stored": ""}


def test_what_is_left_of_its_freshness_is_told_and_is_negative_when_it_is_stale():
    """RFC 9211 §2.4: assigned by a rule too."""
    rule = CacheRule("/page", ttl=10, stale_while_revalidate=60)
    site = Site((rule,), options={"background_refresh": True})
    site.app = lambda _: reply()
    site.visit()
    site.clock.advance(3)
    assert parameters(site.visit())["ttl"] == "7"
    site.clock.advance(9)
    assert parameters(site.visit()) == {"hit": "", "ttl": "-2"}


@pytest.mark.parametrize("control", ["no-store", "private", "max-age=0"])
def test_stored_is_said_of_what_was_stored_alone(control):
    """RFC 9211 §2.5, §2.8: else the detail says why not."""
    site = Site()
    assert "stored" in parameters(site.visit(request("/stored")))
    site.app = lambda _: reply(cache_control=control)
    found = parameters(site.visit())
    assert "stored" not in found
    assert re.fullmatch(r'".+"', found["detail"])


def test_a_response_that_the_cache_makes_by_itself_has_no_member(site):
    """RFC 9211 §2: a 504 is based upon no stored response."""
    answer = site.visit(request(cache_control="only-if-cached"))
    assert answer.status == 504
    assert "cache-status" not in answer.headers


def test_the_key_is_told_where_it_is_asked_for():
    """RFC 9211 §2.7."""
    site = Site(options={"shows_keys": True})
    key = 'key="test:cache:entry:http://shop.test/page"'
    assert site.visit().cache_status == f"upstash-middleware; fwd=uri-miss; stored; {key}"
    assert site.visit().cache_status == f"upstash-middleware; hit; ttl=60; {key}"
    site.clock.advance(100)
    site.app = lambda _: reply(cache_control="no-store")
    assert f'fwd=uri-miss; {key}; detail="no-store"' in site.visit().cache_status
