"""RFC 9875, cache groups: what belongs to one, and what its invalidation reaches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.world import Answer, Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.drivers import run
from upstash_middleware.messages import HTTPRequest

LONG = [f"{number:02}{'g' * 30}" for number in range(32)]
PAGE = request("/page")


def listed(*names: str) -> str:
    return ", ".join(f'"{name}"' for name in names)


def grouped(of: str | dict[str, str], invalidated: str = "", /, **options: Any) -> Site:
    """Return a site whose pages are in these groups, and whose unsafe requests name others."""
    site = Site(options=options)
    invalidates(site, of, invalidated)
    return site


def invalidates(site: Site, groups: str | dict[str, str], invalidated: str, **more: Any) -> None:
    def app(asked: HTTPRequest) -> Any:
        if asked.method == "POST":
            return reply(b"done", cache_group_invalidation=invalidated, **more)
        of = groups if isinstance(groups, str) else groups[asked.path]
        return reply(b"page", cache_control="max-age=60", cache_groups=of, content_length="4")

    site.app = app


def warm(site: Site, *asked: HTTPRequest) -> None:
    for each in asked:
        site.visit(each)
        assert site.visit(each).hit


def edit(site: Site, host: str = "shop.test", **fields: Any) -> Answer:
    """Send a request that changes something elsewhere."""
    return site.visit(request("/edit", "POST", host=host, **fields))


@pytest.mark.parametrize(
    ("groups", "invalidated", "goes"),
    [
        ('"a"', '"a"', True),
        ('"b", "a"', '"c", "a"', True),
        ('"a";x=1;y', '"a";revalidate', True),
        ('"a";d=@1659578233;t=%"f%c3%bc"', '"a"', True),
        ('"a"', '"A"', False),
        ('"a"', '"a "', False),
        ('"a:b"', '"a"', False),
        ('"a"', '"a:b"', False),
        ('""', '""', True),
        (r'"x\"y\\"', r'"x\"y\\"', True),
        (f'"{"g" * 2000}"', f'"{"g" * 2000}"', True),
        (f'"{"g" * 2000}"', f'"{"g" * 1999}h"', False),
    ],
)
def test_responses_with_the_same_string_are_in_one_group(groups, invalidated, goes):
    """§2.1: character by character, in any position; parameters mean nothing."""
    site = grouped(groups, invalidated)
    warm(site, PAGE)
    edit(site)
    assert site.visit(PAGE).hit is not goes


def test_groups_on_several_lines_are_one_list():
    """RFC 9651 §4.2."""
    site = grouped("")
    lines = [
        (b"cache-control", b"max-age=60"),
        (b"cache-groups", b'"a"'),
        (b"cache-groups", b'"b"'),
    ]

    def app(asked: HTTPRequest) -> Any:
        head, body = reply(cache_group_invalidation='"b"')
        return (
            head if asked.method == "POST" else type(head)(200, type(head.headers)(lines))
        ), body

    site.app = app
    warm(site, PAGE)
    edit(site)
    assert not site.visit(PAGE).hit


@pytest.mark.parametrize(
    ("host", "goes"), [("shop.test", True), ("shop.test:80", True), ("other.test", False)]
)
def test_groups_belong_to_one_origin(host, goes):
    """§2.1: scheme, host and port, of which the scheme's own makes no difference."""
    site = grouped('"a"', '"a"')
    warm(site, PAGE)
    edit(site, host)
    assert site.visit(PAGE).hit is not goes


def test_another_scheme_is_another_origin():
    """§2.1."""
    site = grouped('"a"', '"a"')
    warm(site, PAGE)
    site.visit(HTTPRequest("POST", "/edit", host="shop.test", scheme="https"))
    assert site.visit(PAGE).hit


@pytest.mark.parametrize("field", ["groups", "invalidation"])
@pytest.mark.parametrize(
    "value", ["a", '("a")', '"a', '"a",', '"a" "b"', '"a", b', "1", '"é"', ","]
)
def test_an_invalid_field_is_ignored(value, field):
    """RFC 9651 §4.2: as a whole."""
    site = grouped(value, '"a"') if field == "groups" else grouped('"a"', value)
    warm(site, PAGE)
    edit(site)
    assert site.visit(PAGE).hit


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "QUERY"])
def test_in_the_response_to_a_safe_request_an_invalidation_is_ignored(method):
    """§3."""
    site = grouped('"a"')
    warm(site, PAGE)
    site.app = lambda _: reply(b"", cache_group_invalidation='"a"')
    site.visit(request("/other", method))
    assert site.visit(PAGE).hit


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "FOO"])
@pytest.mark.parametrize("status", [200, 201, 204, 303, 409, 500])
def test_the_response_to_an_unsafe_request_invalidates_groups_whatever_its_status(method, status):
    """§3: it says what it has changed, also where no rule covers its URL."""
    site = Site((CacheRule("/page"),))
    site.app = lambda _: reply(cache_control="max-age=60", cache_groups='"a"')
    warm(site, PAGE)
    site.app = lambda _: reply(b"", status, cache_group_invalidation='"a"')
    site.visit(request("/edit", method))
    assert not site.visit(PAGE).hit


def test_thirty_two_groups_of_thirty_two_characters_are_supported():
    """§2, §3: a hit is still one command, and each of them invalidates."""
    site = grouped(listed(*LONG))
    for name in LONG:
        invalidates(site, listed(*LONG), listed(name))
        warm(site, PAGE)
        assert site.visit(PAGE).billed == ["MGET"]
        edit(site)
        assert not site.visit(PAGE).hit
    for name in LONG:
        invalidates(site, listed(name), listed(*LONG))
        site.purge(everything=True)
        warm(site, PAGE)
        edit(site)
        assert not site.visit(PAGE).hit


def test_a_response_in_more_groups_than_are_supported_is_not_stored():
    """It could not be invalidated by all of them."""
    many = [str(number) for number in range(129)]
    site = grouped(listed(*many[1:]))
    warm(site, PAGE)
    invalidates(site, listed(*many), "")
    answer = site.visit(request("/other"))
    assert 'detail="Cache-Groups names more than 128 groups"' in answer.cache_status
    assert not site.visit(request("/other")).hit
    invalidates(site, listed("g" * 8191), "")
    answer = site.visit(request("/other"))
    assert 'detail="Cache-Groups has more than 8192 characters"' in answer.cache_status


def test_an_invalidation_of_more_groups_than_are_supported_is_ignored_and_says_so():
    """In Cache-Status, where a rule covers the request."""
    many = [str(number) for number in range(129)]
    site = grouped('"1"', listed(*many))
    warm(site, PAGE)
    detail = 'detail="Cache-Group-Invalidation names more than 128 groups"'
    assert edit(site).cache_status == f"upstash-middleware; fwd=method; {detail}"
    assert site.visit(PAGE).hit
    invalidates(site, '"1"', listed(*many[1:]))
    edit(site)
    assert not site.visit(PAGE).hit


def test_an_invalidation_does_not_cascade():
    """§2.2.1: what shares another group with an invalidated response stays."""
    pages = {"/a": '"x", "y"', "/b": '"y", "z"', "/c": '"z"'}
    site = grouped(pages, '"x"')
    warm(site, *map(request, pages))
    edit(site)
    assert [site.visit(request(path)).hit for path in pages] == [False, True, True]


def test_a_request_that_invalidates_a_url_leaves_its_groups_alone():
    """§2.2.1: a MAY, which would take reading what is invalidated."""
    site = grouped({"/a": '"x"', "/b": '"x"'})
    warm(site, request("/a"), request("/b"))
    site.visit(request("/a", "POST"))
    assert not site.visit(request("/a")).hit
    assert site.visit(request("/b")).hit


def test_the_group_of_a_variant_is_invalidated():
    """As a tag of it would be."""
    site = Site()
    site.app = lambda asked: reply(
        cache_control="max-age=60", vary="Foo", cache_groups=listed(asked.headers.get("foo") or "")
    )
    one, other = request(foo="1"), request(foo="2")
    warm(site, one, other)
    site.app = lambda _: reply(cache_group_invalidation='"1"')
    edit(site)
    assert site.visit(other).hit
    assert not site.visit(one).hit


def test_the_field_reaches_the_client_with_every_hit():
    """Other caches on the way have groups of their own."""
    site = grouped('"a";x, "b"')
    warm(site, PAGE)
    assert site.visit(PAGE).headers.get("cache-groups") == '"a";x, "b"'


def test_a_304_may_change_the_groups():
    """RFC 9111 §3.2: the field is updated with the others."""
    site = Site()
    site.app = lambda _: reply(cache_control="max-age=60", etag='"1"', cache_groups='"a"')
    site.visit(PAGE)
    site.clock.advance(61)
    site.app = lambda _: reply(b"", 304, cache_control="max-age=60", etag='"1"', cache_groups='"b"')
    site.visit(PAGE)
    for name, hit in (("a", True), ("b", False)):
        site.app = lambda _, name=name: reply(cache_group_invalidation=listed(name))  # type: ignore[misc]
        edit(site)
        assert (site.begin(PAGE).response is not None) is hit


# --- Tags and groups are apart ------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["a", "a:b", '"a"', "http://shop.test a", "\x1dhttp://shop.test a"])
def test_no_purge_of_a_tag_reaches_a_group(tag):
    """Groups have keys that no tag has."""
    site = grouped('"a"')
    warm(site, PAGE)
    site.purge(tags=(tag,))
    assert site.visit(PAGE).hit


def test_no_invalidation_of_a_group_reaches_a_tag():
    """Although both are called the same."""
    site = grouped("", '"a"')
    site.app = lambda asked: reply(
        cache_control="max-age=60", cache_tag="a", cache_group_invalidation='"a"'
    )
    warm(site, PAGE)
    edit(site)
    assert site.visit(PAGE).hit


def test_a_response_cannot_enter_a_group_by_a_tag():
    """It is not stored; in Surrogate-Key such a character parts tags."""
    site = Site()
    site.app = lambda _: reply(cache_control="max-age=60", cache_tag="\x1dhttp://shop.test a")
    assert "a tag that begins with a control character" in site.visit(PAGE).cache_status
    site.app = lambda asked: reply(
        cache_control="max-age=60",
        surrogate_key="\x1dhttp://shop.test",
        cache_group_invalidation='""',
    )
    warm(site, PAGE)
    edit(site)
    assert site.visit(PAGE).hit


# --- What it costs, and what cannot outrun it ---------------------------------------------------


def test_an_invalidation_is_one_round_trip_with_that_of_the_url():
    """A command for the URL, one for all groups and one for each of them."""
    site = grouped('"a"', '"a", "b", "a"')
    warm(site, PAGE)
    answer = edit(site)
    assert (answer.round_trips, answer.billed) == (1, ["SET", "SET", "SET", "SET"])
    site = Site((CacheRule("/page"),))
    invalidates(site, "", '"a"')
    answer = edit(site)
    assert (answer.round_trips, answer.billed) == (1, ["SET", "SET"])


def test_without_the_fields_nothing_is_read_or_written_for_them():
    """A miss is two commands, an unsafe request one, and no key names a group."""
    site = Site()
    assert site.visit(PAGE).billed == ["MGET", "SET"]
    assert site.visit(PAGE).billed == ["MGET"]
    assert edit(site).billed == ["SET"]
    assert not [key for key in site.store.values if "group" in key]


def test_a_group_that_came_with_the_response_is_stored_by_one_script_and_then_remembered():
    """As a tag of the response is."""
    site = grouped('"a"')
    assert site.visit(PAGE).billed == ["MGET", "EVALSHA", "MGET", "SET"]
    site.purge("/page")
    assert site.visit(PAGE).billed == ["MGET", "SET"]


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
def test_what_was_being_rendered_during_an_invalidation_is_not_used(known):
    """Whether or not the groups were known before the application was called."""
    site = grouped('"a"', '"a"')
    if known:
        warm(site, PAGE)
        site.purge("/page")
    rendering = site.begin(PAGE)
    edit(site.another_process())
    head, body = reply(b"old", cache_control="max-age=60", cache_groups='"a"')
    rendering.head(head)
    rendering.chunk(body)
    site.finish(rendering)
    assert not site.visit(PAGE).hit


@pytest.mark.parametrize("l1", [0, 1_000_000])
def test_the_next_request_sees_the_change_before_upstash_knows_of_it(l1):
    """The invalidation is sent once the response is."""
    site = grouped('"a"', '"a"', l1_bytes=l1)
    warm(site, PAGE)
    change = site.begin(request("/edit", "POST"))
    change.head(site.app(request("/edit", "POST"))[0])
    assert site.begin(PAGE).response is None
    site.finish(change)
    assert not site.visit(PAGE).hit
    assert site.visit(PAGE).hit


def test_an_invalidation_reaches_the_memory_of_this_process():
    """The others follow as they follow any purge."""
    site = grouped('"a"', '"a"', l1_bytes=1_000_000, l1_seconds=60.0)
    warm(site, PAGE)
    assert site.visit(PAGE).billed == []
    edit(site)
    assert not site.visit(PAGE).hit


def test_a_post_that_stores_its_response_invalidates_groups_too():
    """RFC 9110 §9.3.3, in profile conforming."""
    site = grouped({"/page": '"a"', "/other": '"b"'}, profile="conforming")
    warm(site, PAGE, request("/other"))
    site.app = lambda _: reply(
        b"new",
        cache_control="max-age=60",
        content_location="/page",
        cache_group_invalidation='"b"',
    )
    site.visit(request("/page", "POST"))
    answer = site.visit(PAGE)
    assert (answer.hit, answer.body) == (True, b"new")
    assert not site.visit(request("/other")).hit


def test_a_setting_ignores_both_fields():
    """Where those who share an origin do not trust each other (§5)."""
    site = grouped('"a"', '"a"', groups=False)
    warm(site, PAGE)
    assert edit(site).billed == ["SET"]
    assert site.visit(PAGE).hit
    member = site.another_process(groups=True)
    member.visit(PAGE)
    edit(member)
    assert site.visit(PAGE).hit, "it was stored in no group"


def test_an_explanation_names_the_groups_and_which_was_invalidated():
    """Beside the tags, and not among them."""
    site = grouped('"a", "b c"', '"b c"')
    warm(site, PAGE)
    explained = run(site.cache.explain(PAGE), site.store)
    assert (explained.outcome, explained.tags, explained.groups) == ("hit", (), ("a", "b c"))
    edit(site)
    explained = run(site.cache.explain(PAGE), site.store)
    assert explained.why == "the cache group 'b c' has been purged since it was stored"
