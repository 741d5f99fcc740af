"""Purging and RFC 9111 §4.4: what it reaches, what it costs, and what cannot outrun it."""

from __future__ import annotations

import re

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.errors import CommandError, ConnectionLost
from upstash_middleware.events import CacheStored
from upstash_middleware.messages import HTTPRequest

DAY = 24 * 3600


def warm(site: Site, *asked: HTTPRequest) -> None:
    """Fill the cache, and say that it is filled."""
    for each in asked:
        site.visit(each)
        assert site.visit(each).hit


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("asked", "url"),
    [
        (request("/a"), "/a"),
        (request("/a"), "http://shop.test/a"),
        (request("/a"), "https://other.test/a#part"),
        (request("/a", query="x=1&y"), "/a?x=1&y"),
        (request("/a", query="x=%C3%A9"), "/a?x=é"),
        (request("/caf\u00e9"), "/caf\u00e9"),
        (request("/caf\u00e9"), "/caf%c3%a9"),
        (HTTPRequest("GET", "/a~", host="shop.test", sent_path="/a%7E"), "/a~"),
        (request("/"), "http://shop.test"),
    ],
)
def test_a_url_is_purged_by_its_path_or_whole_under_every_host(site, asked, url, soft):
    """In one round trip, for one command."""
    warm(site, asked, request("/b"))
    before = len(site.store.billed)
    site.purge(url, soft=soft)
    assert site.store.billed[before:] == (["EVALSHA", "MGET", "SET"] if soft else ["SET"])
    assert not site.visit(asked).hit
    assert site.visit(request("/b")).hit


def test_a_url_is_purged_with_all_its_variants(site):
    """One command, however many there are."""
    site.app = lambda _: reply(cache_control="max-age=60", vary="Foo")
    asked = [request(foo=str(number)) for number in range(5)]
    warm(site, *asked)
    site.purge("/page")
    assert not any(site.visit(each).hit for each in asked)


def test_a_variants_tag_purges_it_also_if_it_was_read_during_the_purge(site, monkeypatch):
    """And is then read beside the tags of another variant, which are those that were read last."""
    site.app = lambda asked: reply(
        cache_control="max-age=60", vary="Foo", cache_tag=f"tag{asked.headers.get('foo')}"
    )
    one, other = request(foo="1"), request(foo="2")
    warm(site, one, other)
    perform = site.store.perform

    def read_between(command):
        done = perform(command)
        monkeypatch.undo()
        for _ in range(2):
            assert site.visit(one).hit, "the purge has begun, and has not ended"
        return done

    monkeypatch.setattr(site.store, "perform", read_between)
    site.purge(tags=("tag1",))
    for _ in range(2):
        assert site.visit(other).hit
    assert not site.visit(one).hit


DEEP = ("/a/b/c/d/e/f", "/a/b/c/d/e", "/a/b/c/d/", "/a/b/x", "/a", "/ab/c")


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("directory", "kept"),
    [
        ("/a/", ["/a", "/ab/c"]),
        ("https://shop.test/a/", ["/a", "/ab/c"]),
        ("/a/b/", ["/a", "/ab/c"]),
        ("/a/b/c/", ["/a/b/x", "/a", "/ab/c"]),
        ("/a/b/c/d/", ["/a/b/x", "/a", "/ab/c"]),
        ("/a%2Fb/", list(DEEP)),
    ],
)
def test_a_directory_is_purged_by_one_command_with_all_that_is_in_it(site, directory, kept, soft):
    """Of a URL, the four outermost; a URL is in a directory if it begins with it."""
    pages = [request(path, query="x=1") for path in DEEP]
    warm(site, *pages)
    before = len(site.store.billed)
    site.purge(directories=(directory,), soft=soft)
    assert site.store.billed[before:] == (["EVALSHA", "MGET", "SET"] if soft else ["SET"])
    assert [page.path for page in pages if site.visit(page).hit] == kept


@pytest.mark.parametrize("soft", [False, True])
def test_a_rule_is_purged_by_one_command_with_all_that_it_covers(soft):
    """By its path; what an earlier rule covers is that one's."""
    site = Site((CacheRule("/a/b", ttl=60), CacheRule("/a/{id}", ttl=60), CacheRule("/c", ttl=60)))
    site.app = lambda _: reply()
    pages = [request(path) for path in ("/a/b", "/a/1", "/a/2", "/c")]
    warm(site, *pages)
    before = len(site.store.billed)
    site.purge(rules=("/a/{id}",), soft=soft)
    assert site.store.billed[before:] == (["EVALSHA", "MGET", "SET"] if soft else ["SET"])
    assert [page.path for page in pages if site.visit(page).hit] == ["/a/b", "/c"]


def test_what_was_stored_under_another_rule_is_not_found(site):
    """Its rule's purges are not known any more: a deploy can change a rule's path."""
    warm(site, request())
    after = Site((CacheRule("/page"),), site.clock, site.store)
    after.app = site.app
    assert not after.visit().hit
    assert after.visit().hit


def test_a_process_without_rules_purges_a_rule_by_its_path(site):
    """A worker that serves no requests."""
    warm(site, request())
    Site((), site.clock, site.store, lambda size: b"w" * size).purge(rules=("/{rest:path}",))
    assert not site.visit().hit


@pytest.mark.parametrize(
    ("what", "right"),
    [
        ({"directories": ("/a",)}, "write '/a/'"),
        ({"directories": ("/a/?x",)}, "write '/a/'"),
        ({"directories": ("/a//",)}, "write '/a/'"),
        ({"directories": ("a/",)}, "a path such as '/products/'"),
        ({"directories": ("/",)}, "purge everything instead"),
        ({"directories": ("/a/b/c/d/e/",)}, "purge '/a/b/c/d/', or give the responses a tag"),
        ({"rules": ("/a",)}, "the rules' paths are '/{rest:path}'"),
    ],
)
def test_a_directory_or_a_rule_that_is_none_is_refused(site, what, right):
    """With what would be right; nothing else of the call is purged."""
    warm(site, request())
    with pytest.raises(ValueError, match=re.escape(right)):
        site.purge("/page", **what)
    assert site.visit().hit


@pytest.mark.parametrize("soft", [False, True])
def test_everything_is_purged_by_one_command(site, soft):
    """Of this prefix."""
    warm(site, request("/a"), request("/b"))
    site.purge(everything=True, soft=soft)
    assert not site.visit(request("/a")).hit
    assert not site.visit(request("/b")).hit


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("field", ["cache_tag", "surrogate_key"])
def test_a_tag_purges_its_colon_descendants_and_nothing_else(site, field, soft):
    """Hard: two commands in one round trip."""
    site.app = lambda asked: reply(
        cache_control="max-age=60", **{field: asked.path.strip("/").replace("/", ":")}
    )
    pages = [request(path) for path in ("/product", "/product/7", "/product/7/big", "/products")]
    warm(site, *pages)
    before = len(site.store.billed)
    site.purge(tags=("product:7",), soft=soft)
    hard_bill = ["SET", "SET"]
    assert site.store.billed[before:] == (["SET", "EVALSHA", "MGET", "SET"] if soft else hard_bill)
    assert [site.visit(page).hit for page in pages] == [True, False, False, True]
    site.purge(tags=("product",), soft=soft)
    assert [site.visit(page).hit for page in pages] == [False, False, False, True]


def test_a_rules_tags_are_filled_in_from_the_path():
    """They are known before the application is called, so one SET stores."""
    site = Site((CacheRule("/products/{id}", ttl=60, tags=("product:{id}",)),))
    site.app = lambda _: reply()
    assert site.visit(request("/products/7")).billed == ["MGET", "SET"]
    warm(site, request("/products/8"))
    site.purge(tags=("product:7",))
    assert not site.visit(request("/products/7")).hit
    assert site.visit(request("/products/8")).hit


def test_a_tag_that_became_known_with_the_response_is_remembered(site):
    """The second store needs no script any more."""
    site.app = lambda _: reply(cache_control="max-age=60", cache_tag="t")
    assert site.visit().billed == ["MGET", "EVALSHA", "MGET", "SET"]
    site.purge("/page")
    assert site.visit().billed == ["MGET", "SET"]


def test_the_purge_of_an_unrelated_tag_costs_another_process_one_read_at_most(site):
    """Tags are looked at only where some tag was purged."""
    site.app = lambda _: reply(cache_control="max-age=60", cache_tag="t")
    site.visit()
    other = site.another_process()
    assert other.visit().billed == ["MGET"]
    site.purge(tags=("u",))
    assert other.another_process().visit().billed == ["MGET", "MGET"]
    assert other.visit().billed == ["MGET"]


@pytest.mark.parametrize(
    "what",
    [
        {"everything": True},
        {"tags": ("t",)},
        {"tags": ("x",)},
        {"directories": ("/shop/",)},
        {"rules": ("/shop/page",)},
        {"urls": True},
    ],
)
@pytest.mark.parametrize("soft", [False, True])
def test_a_render_that_began_before_a_purge_is_dead_on_arrival(what, soft):
    """Whether its tag (t) was known before, or came with the response (x)."""
    site = Site((CacheRule("/shop/page", ttl=60, tags=("t",)),))
    exchange = site.begin(request("/shop/page"))
    exchange.head(reply(cache_tag="x")[0])
    exchange.chunk(b"old")
    what = dict(what)
    site.purge(*(["/shop/page"] if what.pop("urls", False) else []), soft=soft, **what)
    site.finish(exchange)
    assert not site.visit(request("/shop/page")).hit


def test_a_hard_purge_after_a_soft_one_is_hard(site):
    """And a soft one after a hard one brings nothing back."""
    site.app = lambda _: reply(cache_control="max-age=60")
    warm(site, request())
    site.purge("/page")
    site.purge("/page", soft=True)
    assert "uri-miss" in site.visit().cache_status
    site.purge("/page", soft=True)
    assert "stale" in site.visit().cache_status
    site.purge("/page", soft=True)
    site.purge("/page")
    assert "uri-miss" in site.visit().cache_status


def test_no_entry_comes_back_when_the_epoch_that_killed_it_expires():
    """It expires first, even when a slow render stored it late."""
    site = Site(options={"max_keep": 7 * DAY, "grace": 100 * DAY})
    site.app = lambda _: reply(cache_control=f"max-age={100 * DAY}")
    exchange = site.begin(request())
    exchange.head(site.app(request())[0])
    site.purge("/page")
    site.clock.advance(6.9 * DAY)
    site.finish(exchange)
    for _ in range(20):
        site.clock.advance(0.05 * DAY)
        exchange = site.begin(request())
        assert exchange.response is None
        exchange.finish(complete=False)


def test_a_render_slower_than_epochs_live_is_not_stored():
    """Nobody could say any more what was purged meanwhile."""
    site = Site(options={"max_keep": 100})
    exchange = site.begin(request())
    exchange.head(reply(cache_control="max-age=600")[0])
    site.clock.advance(101)
    site.finish(exchange)
    assert not site.store.values


def test_a_purge_that_may_not_have_been_carried_out_raises(site):
    """Its caller must know."""
    site.store.broken = ConnectionLost("lost")
    with pytest.raises(ConnectionLost):
        site.purge("/page")
    site.store.broken = None
    site.store.perform = lambda _: CommandError("NOPERM read-only token")
    with pytest.raises(CommandError):
        site.purge("/page")


def test_a_purge_of_nothing_asks_nothing(site):
    """A computed list may be empty."""
    site.purge()
    assert site.store.round_trips == 0


@pytest.mark.parametrize("url", ["page", "", "ftp://shop.test/a", "http:///a"])
def test_a_url_to_purge_that_is_none_is_refused(site, url):
    """With what would be right."""
    with pytest.raises(ValueError, match=r"should be a path such as '/products/7'"):
        site.purge(url)


def test_too_many_tags_are_refused_whole(site):
    """Not cut: a page that one of its tags does not purge is worse than none."""
    tags = ",".join(f"t{number}" for number in range(129))
    site.app = lambda _: reply(cache_control="max-age=60", cache_tag=tags)
    site.visit()
    assert not site.visit().hit


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "M-SEARCH", "FOO"])
def test_a_successful_unsafe_request_invalidates_its_target(site, method):
    """RFC 9111 §4.4: methods of unknown safety included; one command after the response."""
    warm(site, request())
    site.app = lambda asked: reply(cache_control="max-age=60")
    answer = site.visit(request(method=method))
    assert answer.billed == ["SET"]
    assert not site.visit().hit


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_unsafe_request_that_failed_invalidates_nothing(site, status):
    """RFC 9111 §4.4: only a non-error status code does."""
    warm(site, request())
    app, site.app = site.app, lambda _: reply(status=status)
    assert site.visit(request(method="POST")).round_trips == 0
    site.app = app
    assert site.visit().hit


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"])
def test_a_safe_request_invalidates_nothing(site, method):
    """RFC 9110 §9.2.1."""
    warm(site, request())
    assert site.visit(request(method=method)).round_trips == 0


@pytest.mark.parametrize("field", ["location", "content_location"])
@pytest.mark.parametrize(
    ("value", "invalidated"),
    [
        ("/other", True),
        ("other", True),
        ("http://shop.test/other", True),
        ("http://SHOP.test:80/other", True),
        ("https://shop.test/other", False),
        ("http://evil.test/other", False),
        ("//evil.test/other", False),
        ("http://[", False),
    ],
)
def test_location_of_the_same_origin_is_invalidated_too(site, field, value, invalidated):
    """RFC 9111 §4.4: of another origin it must not be."""
    warm(site, request("/other"))
    app, site.app = site.app, lambda _: reply(status=201, **{field: value})
    site.visit(request(method="POST"))
    site.app = app
    assert site.visit(request("/other")).hit is not invalidated


def test_what_no_rule_covers_is_not_invalidated():
    """It costs no round trip."""
    site = Site((CacheRule("/products/{id}"),))
    assert site.visit(request("/cart", method="POST")).round_trips == 0
    assert site.visit(request("/products/7", method="POST")).round_trips == 1


def test_the_invalidation_is_carried_out_though_the_client_left(site):
    """What the application did is done."""
    warm(site, request())
    site.visit(request(method="POST"), complete=False)
    assert not site.visit().hit


def test_an_invalidation_that_fails_costs_the_response_nothing(site):
    """It is told to the observer."""
    site.store.broken = ConnectionLost("lost")
    assert site.visit(request(method="POST")).status == 200
    assert [event.during for event in site.events] == ["invalidation"]


@pytest.fixture
def posted() -> Site:
    """A conforming site, whose answer to a POST is the target's new state."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda asked: reply(
        asked.method.encode(), content_location="/page", cache_control="max-age=60"
    )
    return site


def test_the_response_to_a_post_answers_a_later_get_where_it_says_so(posted):
    """RFC 9110 §9.3.3, RFC 9111 §3: with explicit freshness and its own Content-Location."""
    warm(posted, request())
    answer = posted.visit(request(method="POST"))
    assert answer.cache_status == "upstash-middleware; fwd=method"
    assert (posted.visit().hit, posted.visit().body) == (True, b"POST")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"content_location": "/other", "cache_control": "max-age=60"},
        {"content_location": "http://other.test/page", "cache_control": "max-age=60"},
        {"content_location": "/page"},
        {"content_location": "/page", "last_modified": "Tue, 14 Nov 2000 22:11:40 GMT"},
        {"content_location": "/page", "cache_control": "max-age=60, no-store"},
        {"content_location": "/page", "cache_control": "max-age=60", "vary": "Foo"},
        {"content_location": "/page", "cache_control": "max-age=60", "status": 500},
        {"content_location": "/page", "cache_control": "max-age=60", "cache_tag": "new"},
    ],
)
def test_any_other_response_to_a_post_is_not_stored(posted, fields):
    """And the target is invalidated where it was successful."""
    posted.app = lambda _: reply(**fields)
    posted.visit(request(method="POST"))
    assert not posted.visit().hit


@pytest.mark.parametrize("bypass", ["header:x-preview", lambda asked: "x-preview" in asked.headers])
def test_the_response_to_a_post_that_bypasses_the_cache_is_not_stored(posted, bypass):
    rule = CacheRule("/page", bypass=bypass)
    site = Site((rule,), options={"profile": "conforming"})
    site.app = posted.app
    warm(site, request())
    site.visit(request(method="POST", x_preview="1"))
    assert not site.visit().hit
    site.visit(request(method="POST"))
    assert (site.visit().hit, site.visit().body) == (True, b"POST")


def test_it_is_reported_whether_the_response_to_a_post_was_stored(posted):
    """It is not if a purge of the page came first, or if its tags have epochs to be read."""
    posted.visit(request(method="POST"))
    exchange = posted.begin(request(method="POST"))
    exchange.head(posted.app(request(method="POST"))[0])
    exchange.chunk(b"POST")
    posted.purge("/page")
    posted.finish(exchange)
    posted.app = lambda _: reply(
        content_location="/page", cache_control="max-age=60", cache_tag="new"
    )
    posted.visit(request(method="POST"))
    told = [event for event in posted.events if isinstance(event, CacheStored)]
    assert [(event.stored, event.detail) for event in told] == [
        (True, ""),
        (False, "the URL was purged meanwhile"),
        (False, "only the invalidation was possible"),
    ]


def test_a_post_that_was_cut_short_invalidates_and_stores_nothing(posted):
    """RFC 9111 §3.3."""
    warm(posted, request())
    posted.visit(request(method="POST"), complete=False)
    assert not posted.visit().hit


def test_what_else_a_post_names_is_invalidated_too(posted):
    """RFC 9111 §4.4."""
    warm(posted, request("/other"))
    app = posted.app
    posted.app = lambda asked: reply(
        content_location="/page", location="/other", cache_control="max-age=60"
    )
    posted.visit(request(method="POST"))
    posted.app = app
    assert posted.visit().hit
    assert not posted.visit(request("/other")).hit


def test_a_purge_during_a_post_is_not_outlived_by_its_response(posted):
    """Its response may be made from data older than that."""
    exchange = posted.begin(request(method="POST"))
    exchange.head(posted.app(request())[0])
    exchange.chunk(b"old")
    posted.purge("/page")
    posted.finish(exchange)
    assert not posted.visit().hit


def test_a_render_that_began_before_a_post_does_not_outlive_it(posted):
    """RFC 9111 §4.4: it may show the state before."""
    get = posted.begin(request())
    get.head(posted.app(request())[0])
    posted.visit(request(method="POST"))
    posted.finish(get)
    assert not posted.visit().hit


def test_a_post_invalidates_though_its_lookup_failed(posted):
    """Or its rule bypasses it."""
    warm(posted, request())
    posted.store.broken = ConnectionLost("lost")
    exchange = posted.begin(request(method="POST"))
    posted.store.broken = None
    exchange.head(reply()[0])
    posted.finish(exchange)
    assert not posted.visit().hit


def test_a_request_without_a_host_invalidates_too(site):
    """HTTP/1.0 needs none."""
    warm(site, request(host=""))
    site.visit(request(method="POST", host=""))
    assert not site.visit(request(host="")).hit


def test_who_asks_before_an_invalidation_is_carried_out_does_not_get_what_was_before_it():
    """A client may ask again as soon as it has the last byte; RFC 9111 §4.4."""
    site = Site(options={"collapse": 0})
    warm(site, request(), request("/other"))
    changes = [site.begin(request(method="POST")) for _ in range(2)]
    for change in changes:
        change.head(reply(status=201, location="/other")[0])
    for change in changes:
        assert site.begin(request()).response is None
        assert site.begin(request("/other")).response is None
        site.finish(change)
    assert not site.visit().hit
    assert site.visit().hit


def test_an_invalidation_that_is_never_carried_out_is_not_waited_for_for_ever(site):
    """Whoever should have done so has dropped it."""
    site.app = lambda _: reply(cache_control="max-age=600")
    warm(site, request())
    site.begin(request(method="POST")).head(reply()[0])
    site.clock.advance(61)
    assert site.visit().hit


def test_every_key_that_a_purge_writes_starts_with_the_prefix(site):
    """So that applications with prefixes of their own can share a database."""
    site.visit()
    for what in ({"everything": True}, {"tags": ("late",)}, {"tags": ("late",), "soft": True}):
        site.purge(**what)
    site.purge("/page")
    assert len(site.store.values) >= 4
    assert [key for key in site.store.values if not key.startswith("test:cache:")] == []
