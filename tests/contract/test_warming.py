"""Warming: pages are rendered through the application, in its process, so that they are stored."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, RateLimitRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve

ORIGIN = "http://shop.example"
CACHE = ("CacheMiddleware", {"cache": [CacheRule("/products/{id}", ttl=60)]})


class Shop:
    """Pages that say how often they were rendered, and how many were being rendered at once."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.busy = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, request: Seen) -> Reply:
        with self.lock:
            self.seen.append(request)
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(0.02)
        with self.lock:
            self.busy -= 1
        if request.path == "/products/fails":
            raise RuntimeError("no such product")
        fields = {
            "/products/private": (("cache-control", "private"),),
            "/products/varies": (("vary", "Accept-Language"),),
        }
        body: Any = [b"a", b"b"] if request.path == "/products/streams" else b"page"
        return Reply(body, headers=fields.get(request.path, ()))


def test_what_is_warmed_is_a_hit_for_the_next_visitor(serve: Serve):
    shop = Shop()
    served = serve(shop, CACHE)
    (warmed,) = served.warm(f"{ORIGIN}/products/7?a=%C3%A9&b=1")
    assert (warmed.outcome, warmed.status, warmed.why) == ("stored", 200, "")
    answer = served.request("GET", "/products/7?a=%C3%A9&b=1")
    assert "; hit" in (answer.header("cache-status") or "")
    assert len(shop.seen) == 1
    assert served.warm(f"{ORIGIN}/products/7?a=%C3%A9&b=1")[0].outcome == "hit"


def test_each_url_is_reported_in_order_with_why_it_was_not_stored(serve: Serve):
    served = serve(Shop(), CACHE)
    paths = ("/products/1", "/products/private", "/about", "/products/streams", "/products/2")
    warmed = served.warm(*(ORIGIN + path for path in paths))
    assert [each.url.removeprefix(ORIGIN) for each in warmed] == [*paths]
    outcomes = ["stored", "not stored", "not stored", "stored", "stored"]
    assert [each.outcome for each in warmed] == outcomes
    assert [each.why for each in warmed][1:3] == ["private", "no cache rule covers it"]
    assert [each.is_stored for each in warmed] == [each == "stored" for each in outcomes]


def test_the_reason_is_the_whole_one_with_its_commas(serve: Serve):
    """As a request of a visitor with a cookie would get it in Cache-Status."""
    served = serve(Shop(), CACHE)
    (warmed,) = served.warm(f"{ORIGIN}/products/1", headers={"Cookie": "visitor=7"})
    why = "request with cookies, and no Vary: Cookie"
    assert (warmed.outcome, warmed.why) == ("not stored", why)


def test_what_fails_does_not_keep_others_from_being_warmed(serve: Serve, backend: Any):
    """Where the framework answers with a 500, its status says so."""
    served = serve(Shop(), CACHE)
    failed, stored = served.warm(f"{ORIGIN}/products/fails", f"{ORIGIN}/products/1")
    assert not failed.is_stored
    assert failed.status == 500 or "RuntimeError: no such product" in failed.why
    assert stored.outcome == "stored"


def test_header_fields_select_the_variant(serve: Serve):
    served = serve(Shop(), CACHE)
    fields = {"Accept-Language": "de"}
    assert served.warm(f"{ORIGIN}/products/varies", headers=fields)[0].outcome == "stored"
    for language, hit in (("de", True), ("en", False)):
        answer = served.request("GET", "/products/varies", (("accept-language", language),))
        assert ("; hit" in (answer.header("cache-status") or "")) is hit


def test_no_more_requests_are_under_way_than_are_allowed(serve: Serve):
    shop = Shop()
    served = serve(shop, CACHE)
    urls = [f"{ORIGIN}/products/{number}" for number in range(12)]
    assert all(each.is_stored for each in served.warm(*urls, concurrency=2))
    assert shop.most == 2


def everyone(_: object) -> str:
    return "everyone"


@pytest.mark.parametrize("outside", [True, False], ids=["middleware", "handler"])
def test_no_limit_counts_it(serve: Serve, outside: bool):
    """Neither one of the middleware nor one in front of the handler."""
    rule = RateLimitRule("/{rest:path}", "2/hour", by=everyone)
    layers = [("RateLimitMiddleware", {"rate_limits": [rule], "default_limit": None})] * outside
    at_handler = [] if outside else [("2/hour", {"by": everyone})]
    served = serve(Shop(), *layers, CACHE, limits=at_handler)
    urls = [f"{ORIGIN}/products/{number}" for number in range(4)]
    assert [each.outcome for each in served.warm(*urls)] == ["stored"] * 4
    statuses = [served.request("GET", "/other").status for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_mounted_application_is_warmed_by_the_urls_that_clients_use(serve: Serve):
    served = serve(Shop(), CACHE)
    (warmed,) = served.warm(f"{ORIGIN}/shop/products/7", root_path="/shop")
    assert warmed.outcome == "stored"
    answer = served.request("GET", "/products/7", root_path="/shop")
    assert "; hit" in (answer.header("cache-status") or "")


@pytest.mark.parametrize(
    ("urls", "options", "problem"),
    [
        (("/products/7",), {}, "give the whole URL"),
        (("ftp://shop.example/",), {}, "give the whole URL"),
        ((f"{ORIGIN}/a",), {"root_path": "/shop"}, "does not begin with '/shop'"),
        ((f"{ORIGIN}/a",), {"concurrency": 0}, "should be 1 or more"),
    ],
)
def test_what_cannot_be_warmed_is_refused_before_anything_is(
    serve: Serve, urls: tuple[str, ...], options: dict[str, Any], problem: str
):
    shop = Shop()
    served = serve(shop, CACHE)
    with pytest.raises(ValueError, match=problem):
        served.warm(f"{ORIGIN}/products/1", *urls, **options)
    assert shop.seen == []
