"""RFC 5861 §3: a stale response goes out at once and is fetched anew behind it, for nobody."""

from __future__ import annotations

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

CACHE = {"cache": [CacheRule("/{page}")]}
PERSONAL = (
    ("cookie", "session=theirs"),
    ("if-none-match", '"old"'),
    ("range", "bytes=0-1"),
    ("accept-language", "de"),
)


class Pages:
    """A handler that numbers its pages, and keeps what it was asked with."""

    def __init__(self, *, fail_from: int = 100) -> None:
        self.seen: list[Seen] = []
        self.fail_from = fail_from

    def __call__(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        if len(self.seen) >= self.fail_from:
            raise RuntimeError("the database is away")
        fields = (
            ("content-type", "text/plain"),
            ("cache-control", "max-age=10, stale-while-revalidate=60"),
            ("vary", "accept-language"),
        )
        return Reply(f"page {len(self.seen)}".encode(), headers=fields)


def test_a_stale_page_is_sent_at_once_and_fetched_anew_behind_it(serve, clock):
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", CACHE))
    german = (("accept-language", "de"),)
    assert site.request("GET", "/tea?size=2", german).body == b"page 1"
    clock.advance(20)
    stale = site.request("GET", "/tea?size=2", german)
    assert stale.body == b"page 1"
    assert "hit" in (stale.header("cache-status") or "")
    assert len(pages.seen) == 2
    fresh = site.request("GET", "/tea?size=2", german)
    assert fresh.body == b"page 2"
    assert "hit" in (fresh.header("cache-status") or "")
    assert len(pages.seen) == 2


def test_the_refresh_is_asked_for_in_nobodys_name(serve, clock):
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", CACHE))
    site.request("GET", "/tea", (("accept-language", "de"),))
    clock.advance(20)
    site.request("HEAD", "/tea", PERSONAL)
    refresh = pages.seen[-1]
    assert len(pages.seen) == 2
    assert (refresh.method, refresh.path, refresh.body) == ("GET", "/tea", b"")
    assert not refresh.header("cookie")
    assert refresh.header("range") is None
    assert refresh.header("if-none-match") is None
    assert refresh.header("accept-language") == "de"


def test_a_refresh_is_not_charged_to_a_limit(serve, clock, upstash):
    site = serve(
        Pages(), ("RateLimitMiddleware", {"default_limit": "3/hour"}), ("CacheMiddleware", CACHE)
    )
    site.request("GET", "/tea")
    clock.advance(20)
    site.request("GET", "/tea")
    assert site.request("GET", "/tea").status == 200
    assert site.request("GET", "/tea").status == 429


def test_a_refresh_that_fails_costs_nobody_a_response(serve, clock):
    pages = Pages(fail_from=2)
    site = serve(pages, ("CacheMiddleware", CACHE))
    site.request("GET", "/tea")
    clock.advance(20)
    assert [site.request("GET", "/tea").body for _ in range(2)] == [b"page 1"] * 2
    assert len(pages.seen) >= 2


def test_without_refreshing_in_the_background_the_finder_waits_for_the_new_page(serve, clock):
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", {**CACHE, "cache_refresh": False}))
    site.request("GET", "/tea")
    clock.advance(20)
    assert site.request("GET", "/tea").body == b"page 2"
