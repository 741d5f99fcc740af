"""A version of the application in the keys, and what becomes of the version before."""

from __future__ import annotations

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.cache.exchanges import Answered
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import ResponseHead
from upstash_middleware.settings import settings_from


def version_two(site: Site, body: bytes = b"two", **options: object) -> Site:
    """Deploy the next version, which knows of the one before."""
    given = {"version": "2", "previous_version": "1", "background_refresh": True, **options}
    deployed = site.another_process(**given)
    deployed.app = lambda _: reply(body, cache_control="max-age=60", etag='"same"')
    return deployed


@pytest.fixture
def site() -> Site:
    """The first version, with a page stored."""
    site = Site(options={"version": "1"})
    site.app = lambda _: reply(b"one", cache_control="max-age=60", etag='"same"')
    site.visit()
    assert site.visit().hit
    return site


def test_a_version_uses_nothing_of_another(site):
    """Each has keys of its own; also beside those without a version."""
    for options in ({"version": "2"}, {"version": ""}):
        other = site.another_process(**options)
        other.app = lambda _: reply(b"two", cache_control="max-age=60")
        assert other.visit().body == b"two"
        assert other.visit().billed == ["MGET"]
    assert site.visit().body == b"one"


def test_a_purge_is_for_every_version(site):
    """The epochs have no version."""
    other = site.another_process(version="2")
    other.visit()
    other.purge("/page")
    assert not site.visit().hit


def test_what_the_previous_version_stored_is_used_while_it_is_refreshed_once(site):
    """After one more read; nothing of it is used any more when the new one is stored."""
    two = version_two(site)
    exchange = two.begin(request())
    assert isinstance(exchange, Answered)
    assert exchange.refresh is not None
    answer = two.visit()
    assert (answer.hit, answer.body, answer.billed) == (True, b"one", ["MGET", "MGET"])
    assert 'ttl=60; detail="of the previous version"' in answer.cache_status
    assert two.rendered == 0
    refresh = exchange.refresh
    assert "if-none-match" not in refresh.request.headers
    head, body = two.app(refresh.request)
    assert isinstance(refresh.exchange.head(head), ResponseHead)
    refresh.exchange.chunk(body)
    two.finish(refresh.exchange)
    answer = two.visit()
    assert (answer.hit, answer.body, answer.billed) == (True, b"two", ["MGET"])
    assert site.visit().body == b"one"


def test_a_hit_costs_no_second_read_and_a_miss_of_both_one(site):
    """As long as the setting stands."""
    two = version_two(site)
    assert two.visit(request("/new")).billed == ["MGET", "MGET", "SET"]
    assert two.visit(request("/new")).billed == ["MGET"]


@pytest.mark.parametrize("what", [{"urls": True}, {"everything": True}])
def test_what_was_purged_is_not_used_of_the_previous_version_either(site, what):
    """By whichever version."""
    two = version_two(site)
    two.purge(*(["/page"] if "urls" in what else []), everything="everything" in what)
    assert two.visit().body == b"two"


def test_without_a_refresh_the_request_gets_the_new_versions_own(site):
    """And the old response stands in only for an error (RFC 5861 §4)."""
    two = version_two(site, background_refresh=False)
    two.app = lambda _: reply(b"broken", 503)
    assert two.visit().body == b"one"
    two.app = lambda _: reply(b"two", cache_control="max-age=60")
    two.clock.advance(6)
    assert two.visit(request(if_none_match='"same"')).body == b"two"
    assert two.forwarded is not None
    assert two.visit().billed == ["MGET"]


def test_an_old_response_that_varies_by_cookie_is_nobody_elses_to_refresh(site):
    """Only its bearer can fetch it anew."""
    site.app = lambda _: reply(b"ann's", cache_control="max-age=60", vary="Cookie")
    site.visit(request("/mine", cookie="s=ann"))
    two = version_two(site, b"new")
    assert two.visit(request("/mine", cookie="s=bob")).body == b"new"
    answer = two.visit(request("/mine", cookie="s=ann"))
    assert (answer.hit, answer.body) == (False, b"new")


def test_a_head_or_a_304_of_the_new_version_confirms_nothing_of_the_old(site):
    """RFC 9111 §4.3.4, §4.3.5 are about one application's responses."""
    two = version_two(site, background_refresh=False)
    two.app = lambda _: reply(b"", 304, etag='"same"', cache_control="max-age=60")
    assert two.visit(request(if_none_match='"same"')).status == 304
    two.app = lambda _: reply(b"", etag='"same"', cache_control="max-age=60", content_length="3")
    two.visit(request(method="HEAD"))
    two.app = lambda _: reply(b"two", cache_control="max-age=60")
    assert two.visit().body == b"two"


def test_a_private_cache_finds_the_previous_versions_of_its_user_alone():
    """The key of the version before is narrowed in the same way."""
    site = Site(
        (CacheRule("/page", user=lambda seen: seen.headers.get("x-user")),),
        options={"version": "1"},
    )
    site.app = lambda _: reply(b"ann's", cache_control="private, max-age=60")
    site.visit(request(x_user="ann"))
    two = version_two(site)
    two.app = lambda _: reply(b"broken", 503)
    assert two.visit(request(x_user="bob")).body == b"broken"
    assert two.visit(request(x_user="ann")).body == b"ann's"


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ({"cache_version": "a/b"}, "should be text such as"),
        ({"cache_version": ""}, "should be text such as"),
        ({"cache_previous_version": "1"}, "should differ from cache_version"),
        ({"cache_version": "1", "cache_previous_version": "1"}, "should differ from"),
    ],
)
def test_a_wrong_version_is_named_with_what_would_be_right(given, right):
    """When the middleware is made."""
    with pytest.raises(ConfigurationError, match=right):
        settings_from(given, {})
