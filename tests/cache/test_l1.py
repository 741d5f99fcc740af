"""The layer in this process: what it spares, what it never sends, and when it hears of a purge."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.cache.exchanges import Answered
from upstash_middleware.drivers import run
from upstash_middleware.errors import ConfigurationError, NotConnected
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from upstash_middleware.messages import HTTPRequest

MEBIBYTE = 1024 * 1024
FREE: tuple[int, list[str]] = (0, [])


def site_with_l1(*rules: CacheRule, **options: object) -> Site:
    """Make a site that holds a mebibyte for five seconds."""
    given = {"l1_bytes": MEBIBYTE, "l1_seconds": 5.0, **options}
    return Site(rules or (CacheRule("/{rest:path}"),), options=given)


@pytest.fixture
def site() -> Site:
    return site_with_l1()


def fill(site: Site, *asked: HTTPRequest) -> None:
    """Store what these requests get, and have it found."""
    for each in asked or (request(),):
        site.visit(each)
        assert site.visit(each).billed == ["MGET"]


def cost(site: Site, asked: HTTPRequest | None = None) -> tuple[int, list[str]]:
    """Return round trips and commands of a visit that is a hit."""
    answer = site.visit(asked)
    assert answer.hit
    return answer.round_trips, answer.billed


def test_a_hit_costs_no_round_trip_and_no_command(site):
    """After the one that found it on Redis."""
    fill(site)
    answer = site.visit()
    assert (answer.round_trips, answer.billed, answer.body) == (0, [], b"page")
    assert answer.cache_status == "upstash-middleware; hit; ttl=60"
    site.clock.advance(3)
    assert site.visit().headers.get("age") == "3"


def test_it_is_off_unless_it_is_asked_for():
    """Then every hit is looked up."""
    site = Site()
    fill(site)
    assert cost(site) == (1, ["MGET"])


def test_a_purge_made_elsewhere_is_heard_of_within_its_seconds(site):
    """Not before, which is what it trades."""
    fill(site)
    site.another_process().purge("/page")
    site.clock.advance(4.9)
    assert cost(site) == FREE
    site.clock.advance(0.1)
    assert not site.visit().hit


def test_its_seconds_count_from_the_lookup_and_not_from_the_last_use(site):
    """So a page that is asked for all the time is looked up as often as any."""
    fill(site)
    for _ in range(4):
        site.clock.advance(1)
        assert cost(site) == FREE
    site.clock.advance(1)
    assert cost(site) == (1, ["MGET"])
    assert cost(site) == FREE


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "what",
    [
        {"urls": True},
        {"tags": ("t",)},
        {"tags": ("x",)},
        {"directories": ("/shop/",)},
        {"rules": ("/{rest:path}",)},
        {"everything": True},
    ],
)
def test_a_purge_made_in_this_process_is_heard_of_at_once(what, soft):
    """By URL, by a tag of the rule or the response, by directory, by rule, or everything."""
    site = site_with_l1(CacheRule("/{rest:path}", tags=("t",)))
    site.app = lambda _: reply(cache_control="max-age=60", cache_tag="x:y")
    fill(site, request("/shop/7"))
    urls = ("/shop/7",) if "urls" in what else ()
    site.purge(*urls, soft=soft, **{k: v for k, v in what.items() if k != "urls"})
    assert not site.visit(request("/shop/7")).hit


def test_a_purge_leaves_what_it_is_not_about(site):
    """Neither another URL nor another tag, directory or rule."""
    fill(site, request("/a"), request("/b"))
    site.purge("/a", tags=("other",), directories=("/b/",))
    assert cost(site, request("/b")) == FREE


def test_a_purge_that_failed_is_heard_of_all_the_same(site):
    """It may have been carried out."""
    fill(site)
    site.store.broken = NotConnected("down")
    with pytest.raises(NotConnected):
        site.purge("/page")
    site.store.broken = None
    assert site.visit().billed == ["MGET"]


def test_a_lookup_that_began_before_a_purge_leaves_nothing_behind(site):
    """What it read may be what was purged while the answer was on its way."""
    site.visit()
    lookup = site.cache.begin(request())
    pipeline = lookup.send(None)
    replies = site.store.execute(pipeline)
    site.purge("/page")
    with pytest.raises(StopIteration):
        lookup.send(replies)
    assert not site.visit().hit


def test_an_unsafe_request_has_nothing_used_that_it_may_have_changed(site):
    """RFC 9111 §4.4: neither before the invalidation has been told to Redis nor after."""
    fill(site)
    exchange = site.begin(request(method="POST"))
    exchange.head(reply()[0])
    assert site.visit().billed[0] == "MGET"
    site.finish(exchange)
    assert not site.visit().hit


def test_it_never_serves_beyond_freshness():
    """RFC 9111 §4.2: however many seconds it was given."""
    site = site_with_l1(l1_seconds=60.0)
    site.app = lambda _: reply(cache_control="max-age=3")
    fill(site)
    site.clock.advance(2.9)
    assert cost(site) == FREE
    site.clock.advance(0.1)
    assert not site.visit().hit


def test_what_is_usable_stale_is_looked_up_and_refreshed():
    """RFC 5861 §3: a refresh records the epochs of now."""
    site = site_with_l1(background_refresh=True, l1_seconds=60.0)
    site.app = lambda _: reply(cache_control="max-age=3, stale-while-revalidate=60")
    fill(site)
    site.clock.advance(4)
    exchange = site.begin(request())
    assert isinstance(exchange, Answered)
    assert exchange.refresh is not None
    site.finish(exchange.refresh.exchange, complete=False)


def test_each_variant_is_held_for_those_that_it_is_for(site):
    """RFC 9111 §4.1."""
    site.app = lambda asked: reply(
        (asked.headers.get("foo") or "-").encode(), cache_control="max-age=60", vary="Foo"
    )
    asked = [request(), request(foo=""), request(foo="1"), request(foo="2")]
    for each in asked:
        site.visit(each)
    assert all(site.visit(each).hit for each in asked)
    for each in asked:
        answer = site.visit(each)
        assert (answer.round_trips, answer.body) == (0, (each.headers.get("foo") or "-").encode())


def test_a_resource_that_begins_to_vary_is_not_used_for_all(site):
    """The response without Vary is forgotten as soon as this process stores one with it."""
    fill(site)
    site.purge("/page")
    site.app = lambda _: reply(b"mine", cache_control="max-age=60", vary="Foo")
    site.visit(request(foo="1"))
    site.visit(request(foo="1"))
    assert not site.visit(request(foo="2")).hit


def test_head_ranges_and_conditions_are_answered_as_from_redis(site):
    """RFC 9110 §9.3.2, §13, §14."""
    site.app = lambda _: reply(b"0123456789", cache_control="max-age=60", etag='"a"')
    fill(site)
    for asked, status, body in (
        (request(method="HEAD"), 200, b""),
        (request(range="bytes=2-3"), 206, b"23"),
        (request(range="bytes=20-"), 416, b""),
        (request(if_none_match='"a"'), 304, b""),
    ):
        answer = site.visit(asked)
        assert (answer.status, answer.body, answer.round_trips) == (status, body, 0)


def test_a_client_that_may_command_the_cache_is_obeyed():
    """RFC 9111 §5.2.1.4; and what that stores is what others get."""
    site = site_with_l1(profile="conforming")
    fill(site)
    site.app = lambda _: reply(b"new", cache_control="max-age=60")
    assert not site.visit(request(cache_control="no-cache")).hit
    assert site.visit().body == b"new"


def broken_later(control: str, seconds: float, **options: object) -> Site:
    """Make a site whose Redis fails so many seconds after a page was found on it."""
    site = site_with_l1(**options)
    site.app = lambda _: reply(cache_control=control)
    fill(site)
    site.clock.advance(seconds)
    site.store.broken = NotConnected("down")
    site.app = lambda _: reply(b"new")
    return site


@pytest.mark.parametrize(
    ("control", "seconds", "used"),
    [
        ("max-age=60", 4.9, True),
        ("max-age=60", 5, False),
        ("max-age=60, stale-if-error=30", 34.9, True),
        ("max-age=60, stale-if-error=30", 35, False),
        ("max-age=3, stale-if-error=30", 32.9, True),
        ("max-age=3, stale-if-error=30", 33, False),
        ("max-age=60, stale-if-error=30, must-revalidate", 5, False),
    ],
)
def test_while_the_store_fails_stale_if_error_bounds_what_is_used(control, seconds, used):
    """RFC 5861 §4; seconds without news of purges count as stale ones."""
    answer = broken_later(control, seconds).visit()
    assert (answer.hit, answer.body) == ((True, b"page") if used else (False, b"new"))
    if used and seconds >= 5:
        assert 'detail="the store did not answer"' in answer.cache_status


def test_a_client_that_wants_it_newer_does_not_get_it_stale():
    """RFC 9111 §5.2.1.4."""
    site = broken_later("max-age=60, stale-if-error=30", 10, profile="conforming")
    assert site.visit(request(cache_control="no-cache")).body == b"new"


def test_what_was_heard_to_be_purged_is_not_used_while_the_store_fails(site):
    """The lookup that found it gone has forgotten it."""
    site.app = lambda _: reply(cache_control="max-age=60, stale-if-error=600")
    fill(site)
    site.another_process().purge("/page")
    site.clock.advance(5)
    site.app = lambda _: reply(b"new")
    assert not site.visit().hit
    site.store.broken = NotConnected("down")
    assert site.visit().body == b"new"


def held(site: Site, pages: int) -> list[int]:
    """Return which of these pages are hits for nothing."""
    return [n for n in range(pages) if site.visit(request(f"/{n}")).round_trips == 0]


def test_it_takes_no_more_bytes_than_it_was_given():
    """The longest unused is forgotten first; what is too large by itself is not held."""
    site = site_with_l1(l1_bytes=50_000, l1_seconds=60.0)
    site.app = lambda asked: reply(
        bytes(100_000 if asked.path == "/large" else 10_000),
        cache_control="max-age=60",
        content_type="image/png",
    )
    fill(site, *(request(f"/{number}") for number in range(5)), request("/large"))
    assert cost(site, request("/large"))[0] == 1
    assert cost(site, request("/2")) == FREE
    fill(site, request("/9"))
    assert [cost(site, request(path))[0] for path in ("/9", "/2", "/4", "/3")] == [0, 0, 0, 1]


def test_what_it_says_to_take_is_what_it_takes(monkeypatch):
    """Measured: small pages, where the objects around the bytes count for most."""
    monkeypatch.setattr("upstash_middleware.core.cache.cache.REMEMBERED_BYTES", 0)
    site = site_with_l1(l1_bytes=MEBIBYTE, l1_seconds=60.0)
    site.app = lambda _: reply(
        b"x" * 100, cache_control="max-age=60", cache_tag="a:b, c", etag='"a"', content_type="text"
    )
    for number in range(400):
        site.visit(request(f"/{number}"))
    exchanges = [request(f"/{number}") for number in range(400)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for each in exchanges:
            run(site.cache.begin(each), site.store)
        site.events.clear()
        site.store.billed.clear()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1.2 * MEBIBYTE


def test_threads_may_visit_purge_and_store_at_once():
    """No visit fails, and no byte is another page's."""
    site = site_with_l1(l1_bytes=30_000)
    site.app = lambda asked: reply(asked.path.encode(), cache_control="max-age=60")
    wrong: list[object] = []

    def visit(seed: int) -> None:
        try:
            for step in range(300):
                path = f"/{(step * seed) % 11}"
                answer = site.visit(request(path))
                wrong.extend([answer.body] if answer.body != path.encode() else [])
                if step % 7 == 0:
                    site.purge(path)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shall tell
            wrong.append(error)

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("cache_l1_bytes", -1, "a whole number of bytes"),
        ("cache_l1_bytes", True, "a whole number of bytes"),
        ("cache_l1_bytes", 1.5, "a whole number of bytes"),
        ("cache_l1_seconds", 0, "a number of seconds above 0 and at most 60"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(name, value, right):
    """When the middleware is made."""
    with pytest.raises(ConfigurationError, match=f"^{name}: {value!r} should be {right}"):
        settings_from({name: value}, {})
