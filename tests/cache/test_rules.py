"""Cache rules: what they match, and what is said of values that mean nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule, rule_from_mapping
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import UserCodeFailed

if TYPE_CHECKING:
    from upstash_middleware.messages import HTTPRequest


def test_the_first_rule_that_matches_counts():
    """In the order in which they were given."""
    site = Site((CacheRule("/products/{id}", ttl=10), CacheRule("/{rest:path}", ttl=1000)))
    site.app = lambda _: reply()
    site.visit(request("/products/7"))
    assert site.visit(request("/products/7")).cache_status.endswith("hit; ttl=10")


def test_a_request_that_no_rule_matches_passes_untouched():
    """Neither a round trip nor a field."""
    site = Site((CacheRule("/products/{id}"),))
    answer = site.visit(request("/cart"))
    assert answer.round_trips == 0
    assert "cache-status" not in answer.headers


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"path": "products"}, r"cache\[2\]|path pattern 'products' can never match"),
        ({}, r"cache\[2\]\.path is missing"),
        ({"path": 7}, r"cache\[2\]\.path = 7 should be text"),
        ({"path": "/a", "ttl": -1}, r"cache\[2\]\.ttl = -1 should be a number of seconds above 0"),
        (
            {"path": "/a", "ttl": "60"},
            r"cache\[2\]\.ttl = '60' should be a number of seconds above 0",
        ),
        (
            {"path": "/a", "ttl": True},
            r"cache\[2\]\.ttl = True should be a number of seconds above 0",
        ),
        ({"path": "/a", "tags": "product"}, r"cache\[2\]\.tags = 'product' should be a sequence"),
        ({"path": "/a", "tags": [""]}, r"cache\[2\]\.tags: '' should be non-empty text"),
        ({"path": "/a", "tags": ["p:{id}"]}, r"cache\[2\]\.tags: 'p:\{id\}' contains \{id\}"),
        ({"path": "/a", "tags": ["p:{"]}, r"cache\[2\]\.tags: 'p:\{': "),
        (
            {"path": "/{id}", "tags": ["p:{id:d}"]},
            r"cache\[2\]\.tags: 'p:\{id:d\}' cannot be filled",
        ),
        (
            {"path": "/a", "grace": -1},
            r"cache\[2\]\.grace = -1 should be a number of seconds from 0",
        ),
        ({"path": "/a", "ttl": {404: 0}}, r"cache\[2\]\.ttl\[404\] = 0 should"),
        ({"path": "/a", "ttl": {"4xx": 5}}, r"cache\[2\]\.ttl: '4xx' should be a status from 200"),
        ({"path": "/a", "ttl": {429: 5}}, r"cache\[2\]\.ttl: responses with status 429 are never"),
        ({"path": "/a", "ignore_cookies": "_ga"}, r"cache\[2\]\.ignore_cookies = '_ga' should be"),
        ({"path": "/a", "ignore_cookies": ["a b"]}, r"cache\[2\]\.ignore_cookies: 'a b' should be"),
        (
            {"path": "/a", "ignore_cookies": ["a"], "vary_cookies": ["a"]},
            r"cache\[2\]\.ignore_cookies: 'a' selects responses by vary_cookies; leave out one",
        ),
        (
            {"path": "/a", "keep_query": [], "ignore_query": ["a"]},
            r"cache\[2\]\.ignore_query = \('a',\): with keep_query, .*; leave out one of them",
        ),
        (
            {"path": "/a", "ttl": {}},
            r"cache\[2\]\.ttl = \{\} should be numbers of seconds by status",
        ),
        ({"path": "/a", "errors_per_minute": -1}, r"cache\[2\]\.errors_per_minute = -1 should be"),
        (
            {"path": "/a", "max_body": 10**7},
            r"cache\[2\]\.max_body = 10000000 should be a whole number from 0 to 9437184,",
        ),
        (
            {"path": "/a", "bypass": "sessionid"},
            r"cache\[2\]\.bypass: 'sessionid' should be 'cookie",
        ),
        (
            {"path": "/a", "bypass": ["form:a"]},
            r"cache\[2\]\.bypass: 'form:a' should be 'cookie:NA",
        ),
        ({"path": "/a", "bypass": "cookie:a b"}, r"cache\[2\]\.bypass: cookie\('a b'\): a name"),
        ({"path": "/a", "bypass": 7}, r"cache\[2\]\.bypass = 7 should be text such as 'cookie:"),
        ({"path": "/a", "tll": 60}, r"cache\[2\]\.tll: there is no such setting; known: path, "),
        ({"path": "/a", "vary_cookies": ["a=b"]}, r"cache\[2\]\.vary_cookies: 'a=b' should be the"),
        (
            {"path": "/a", "narrow_vary_cookie": True},
            r"cache\[2\]\.narrow_vary_cookie = True needs vary_cookies",
        ),
        (
            {"path": "/{rest:path}", "vary_cookies": ["a"], "narrow_vary_cookie": True},
            r"cache\[2\]\.narrow_vary_cookie = True: the path '/\{rest:path\}' matches the whole",
        ),
        ({"path": "/a", "vary_cookies": 7}, r"cache\[2\]\.vary_cookies = 7 should be a sequence"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_name(rule, message):
    """With what was given and what would be right."""
    with pytest.raises(ConfigurationError, match=message):
        rule_from_mapping(rule, setting="cache[2]")


def test_a_name_of_another_package_is_answered_with_the_one_it_has_here():
    given: dict[str, Any] = {"timeout": 60}
    with pytest.raises(ConfigurationError) as raised:
        CacheRule("/a", **given)
    assert str(raised.value) == "CacheRule.timeout: there is no such setting; did you mean 'ttl'?"


def test_a_mapping_makes_the_same_rule_as_the_class():
    """Lists stand for tuples, as TOML and Django's settings have them."""
    mapping = {"path": "/p/{id}", "ttl": 60, "tags": ["p:{id}"]}
    assert rule_from_mapping(mapping) == CacheRule("/p/{id}", ttl=60, tags=("p:{id}",))


@pytest.mark.parametrize(
    ("status", "fresh"), [(200, 60), (404, 30), (503, 5), (302, 7), (410, None), (500, None)]
)
def test_a_rule_says_for_each_status_how_long_it_is_fresh(status, fresh):
    """In TOML the statuses are text."""
    given = {"path": "/page", "ttl": {200: 60, "404": 30, 503: 5, "302": 7}}
    site = Site((rule_from_mapping(given),))
    site.app = lambda _: reply(status=status)
    site.visit()
    if fresh is None:
        assert not site.visit().hit
    else:
        site.clock.advance(fresh - 1)
        assert site.visit().hit
        site.clock.advance(2)
        assert not site.visit().hit


@pytest.mark.parametrize(("grace", "asked_with"), [(100, '"a"'), (5, None), (0, None)])
def test_a_rule_says_how_long_what_is_stale_is_kept(grace, asked_with):
    site = Site((CacheRule("/page", ttl=10, grace=grace),), options={"grace": 50.0})
    site.app = lambda _: reply(etag='"a"')
    site.visit()
    site.clock.advance(70)
    site.visit()
    assert site.forwarded is not None
    assert site.forwarded.headers.get("if-none-match") == asked_with


def test_an_unknown_profile_is_refused_by_name():
    """At construction."""
    with pytest.raises(ConfigurationError, match="'safest' should be one of 'safe', 'conforming'"):
        Site(options={"profile": "safest"})


@pytest.mark.parametrize(
    ("settings", "one", "other", "same"),
    [
        ({"ignore_query": ("utm_*", "ref")}, "a=1&utm_source=x", "a=1&ref=y", True),
        ({"ignore_query": ("utm_*",)}, "utm_source=x", "", True),
        ({"ignore_query": ("utm_*",)}, "%75tm_x=1", "", True),
        ({"ignore_query": ("utm_*",)}, "a=1", "a=2", False),
        ({"keep_query": ("a",)}, "a=1&b=2", "b=3&a=1", True),
        ({"keep_query": ("a",)}, "a=1", "a=2", False),
        ({"keep_query": ()}, "a=1", "", True),
        ({"sort_query": True}, "a=1&b=2", "b=2&a=1", True),
        ({"sort_query": True}, "a=1&a=2", "a=2&a=1", False),
        ({}, "a=1&b=2", "b=2&a=1", False),
    ],
)
def test_a_rule_says_which_query_parameters_select(settings, one, other, same):
    """And a purge of either URL reaches both."""
    site = Site((CacheRule("/page", ttl=60, **settings),))
    site.app = lambda _: reply()
    site.visit(request(query=one))
    assert site.visit(request(query=other)).hit is same
    site.visit(request(query=one))
    site.purge(f"/page?{other}")
    assert site.visit(request(query=one)).hit is not same


def test_fields_that_a_rule_names_always_select():
    """Whatever Vary says."""
    site = Site((CacheRule("/page", ttl=60, vary_headers=("X-Tenant",)),))
    site.app = lambda asked: reply((asked.headers.get("x-tenant") or "").encode())
    site.visit(request(x_tenant="a"))
    assert site.visit(request(x_tenant="a")).hit
    assert not site.visit(request(x_tenant="b")).hit
    assert not site.visit().hit


def test_a_user_has_a_cache_of_their_own():
    """Where private responses, cookies and credentials are no hindrance."""
    site = Site((CacheRule("/page", user=lambda asked: asked.headers.get("authorization")),))
    site.app = lambda asked: reply(
        (asked.headers.get("authorization") or "nobody").encode(),
        cache_control="private, max-age=60",
    )
    for name in ("ann", "bob"):
        asked = request(authorization=name, cookie="s=1")
        site.visit(asked)
        answer = site.visit(asked)
        assert (answer.hit, answer.body) == (True, name.encode())
    site.visit()
    assert not site.visit().hit
    assert not any("ann" in key for key in site.store.values)


def test_a_user_may_be_known_by_an_async_function():
    """As extractors of identifiers may."""

    async def who(asked):
        return asked.headers.get("x-user")

    site = Site((CacheRule("/page", ttl=60, user=who),))
    site.app = lambda _: reply()
    site.visit(request(x_user="ann"))
    assert site.visit(request(x_user="ann")).hit
    assert not site.visit(request(x_user="bob")).hit


def test_a_request_that_a_rule_bypasses_is_neither_looked_up_nor_stored():
    """Cache-Status says so."""
    site = Site((CacheRule("/page", ttl=60, bypass=lambda asked: "x" in asked.headers),))
    site.app = lambda _: reply()
    answer = site.visit(request(x="1"))
    bypassed = 'upstash-middleware; fwd=bypass; detail="bypass of the rule"'
    assert (answer.round_trips, answer.cache_status) == (0, bypassed)
    site.visit()
    assert site.visit().hit


@pytest.mark.parametrize("name", ["user", "bypass"])
def test_a_function_of_the_rule_that_raises_costs_the_response_nothing(name):
    """The request goes past the cache, and the observer is told which rule it was."""

    def broken(_):
        raise ZeroDivisionError

    functions: dict[str, Any] = {name: broken}
    site = Site((CacheRule("/page", ttl=60, **functions),))
    answer = site.visit()
    assert (answer.status, answer.round_trips) == (200, 0)
    (event,) = site.events
    assert isinstance(event, UserCodeFailed)
    assert event.where == f"cache[0].{name}"


def test_a_rule_may_have_an_etag_made_for_bodies_without_one():
    """Strong, and the same for the same bytes."""
    site = Site((CacheRule("/{rest:path}", ttl=60, etag=True),))
    site.app = lambda asked: reply(b"own", etag='"own"') if asked.path == "/own" else reply()
    tags = []
    for path in ("/a", "/b", "/own"):
        site.visit(request(path))
        tags.append(site.visit(request(path)).headers.get("etag"))
    assert tags[0] == tags[1] != tags[2] == '"own"'
    assert site.visit(request("/a", if_none_match=tags[0] or "")).status == 304


def test_what_is_sent_downstream_is_apart_from_what_is_obeyed_here():
    """For what is stored; an error keeps its own directives."""
    site = Site((CacheRule("/page", ttl=60, downstream="max-age=5"),))
    site.app = lambda _: reply(expires="Tue, 14 Nov 2023 23:13:20 GMT")
    for hit in (False, True):
        answer = site.visit()
        assert answer.hit is hit
        assert answer.headers.lines("cache-control") == ["max-age=5"]
        assert "expires" not in answer.headers
    site.app = lambda _: reply(status=500)
    assert "cache-control" not in site.visit(request(query="x")).headers


@pytest.mark.parametrize(
    ("vary", "sent"),
    [(None, "x-tenant, Cookie"), ("Accept", "Accept, x-tenant, Cookie"), ("*", "*")],
)
def test_what_is_sent_downstream_names_what_selects_it_here(vary: str | None, sent: str):
    rule = CacheRule(
        "/page", ttl=60, downstream="max-age=5", vary_headers=("X-Tenant",), vary_cookies=("theme",)
    )
    site = Site((rule,))
    site.app = lambda _: reply(vary=vary) if vary else reply()
    for _ in range(2):
        answer = site.visit()
        stored = answer.headers.lines("cache-control") == ["max-age=5"]
        assert answer.headers.lines("vary") == ([sent] if stored else [vary])
        assert stored == (vary != "*")


def test_what_is_sent_downstream_of_a_private_cache_is_private():
    def ada(_: HTTPRequest) -> str:
        return "ada"

    for shared in ("max-age=5", 'private="set-cookie", max-age=5', 'ext="a, private, b"'):
        with pytest.raises(ConfigurationError, match="write 'private, "):
            CacheRule("/page", ttl=60, downstream=shared, user=ada)
    CacheRule("/page", ttl=60, downstream="private, max-age=5", user=ada)


def test_a_rule_may_have_a_ttl_for_what_is_not_there():
    """Each error that has one is stored, and no other."""
    site = Site((CacheRule("/page", ttl={200: 60, 404: 5, 410: 5}),))
    for status, hit in ((404, True), (410, True), (500, False), (403, False)):
        site.app = lambda asked: reply(status=int(asked.query))
        site.visit(request(query=str(status)))
        assert site.visit(request(query=str(status))).hit is hit
    site.clock.advance(5)
    assert not site.visit(request(query="404")).hit
