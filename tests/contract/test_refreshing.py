"""RFC 5861 §3: a stale response goes out at once and is fetched anew behind it, for nobody."""

from __future__ import annotations

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

CACHE = {"cache": [CacheRule("/{page}")]}


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


def test_a_stale_page_is_sent_at_once_and_fetched_anew_behind_it(serve, upstash):
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", CACHE))
    german = (("accept-language", "de"),)
    assert site.request("GET", "/tea?size=2", german).body == b"page 1"
    upstash.advance(20)
    stale = site.request("GET", "/tea?size=2", german)
    assert stale.body == b"page 1"
    assert "hit" in (stale.header("cache-status") or "")
    assert len(pages.seen) == 2
    fresh = site.request("GET", "/tea?size=2", german)
    assert fresh.body == b"page 2"
    assert "hit" in (fresh.header("cache-status") or "")
    assert len(pages.seen) == 2


OF_A_VISITOR = (
    ("cookie", "theme=dark; session=theirs"),
    ("authorization", "Bearer theirs"),
    ("x-api-key", "theirs"),
    ("x-auth-token", "theirs"),
    ("x-remote-user", "ada"),
    ("x-anything", "theirs"),
    ("user-agent", "theirs"),
    ("x-forwarded-for", "192.0.2.66"),
    ("if-none-match", '"old"'),
    ("pragma", "theirs"),
    ("range", "bytes=0-1"),
)


def carried(seen: Seen) -> dict[str, str]:
    """Return the fields of a request that say anything."""
    return {name.lower(): value for name, value in seen.headers if value}


@pytest.mark.parametrize("profile", ["safe", "conforming"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_revalidation_carries_what_selects_the_page_and_nothing_else(
    serve, upstash, method, profile
):
    """A field of the visitor would make the page that everybody gets the visitor's own."""
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", {**CACHE, "cache_profile": profile}))
    german = ("accept-language", "de")
    site.request("GET", "/tea", (german,))
    upstash.advance(20)
    site.request(method, "/tea", (*OF_A_VISITOR, german))
    assert len(pages.seen) == 2
    revalidation = pages.seen[-1]
    assert (revalidation.method, revalidation.path, revalidation.body) == ("GET", "/tea", b"")
    assert carried(revalidation) == {"host": "shop.example", "accept-language": "de"}
    fresh = site.request("GET", "/tea", (german,))
    assert fresh.body == b"page 2"
    assert "hit" in (fresh.header("cache-status") or "")


def test_a_revalidation_carries_the_validators_of_the_stored_page(serve, upstash):
    """RFC 9111 §4.3.1."""
    seen: list[Seen] = []

    def page(request: Seen) -> Reply:
        seen.append(request)
        fields = (
            ("content-type", "text/plain"),
            ("cache-control", "max-age=10, stale-while-revalidate=60"),
            ("etag", '"stored"'),
        )
        confirmed = request.header("if-none-match") == '"stored"'
        return Reply(b"" if confirmed else b"page", 304 if confirmed else 200, fields)

    site = serve(page, ("CacheMiddleware", CACHE))
    site.request("GET", "/tea")
    upstash.advance(20)
    site.request("GET", "/tea", OF_A_VISITOR)
    assert carried(seen[-1]) == {"host": "shop.example", "if-none-match": '"stored"'}
    answer = site.request("GET", "/tea")
    assert answer.body == b"page"
    assert "; hit; ttl=" in (answer.header("cache-status") or "")
    assert len(seen) == 2


def test_a_revalidation_carries_the_cookies_that_its_rule_names_and_no_others(serve, upstash):
    seen: list[Seen] = []

    def page(request: Seen) -> Reply:
        seen.append(request)
        return Reply((request.header("cookie") or "none").encode())

    rule = CacheRule("/{page}", ttl=10, stale_while_revalidate=60, vary_cookies=("theme", "size"))
    site = serve(page, ("CacheMiddleware", {"cache": [rule]}))
    site.request("GET", "/tea", (("cookie", "theme=dark"),))
    upstash.advance(20)
    site.request("GET", "/tea", OF_A_VISITOR)
    assert carried(seen[-1]) == {"host": "shop.example", "cookie": "theme=dark"}
    assert site.request("GET", "/tea", (("cookie", "theme=dark"),)).body == b"theme=dark"
    assert len(seen) == 2


def test_a_revalidation_asks_for_the_url_without_what_selects_nothing(serve, upstash):
    seen: list[Seen] = []

    def page(request: Seen) -> Reply:
        seen.append(request)
        return Reply(request.query.encode())

    rule = CacheRule("/{page}", ttl=10, stale_while_revalidate=60, ignore_query=("visitor",))
    site = serve(page, ("CacheMiddleware", {"cache": [rule]}))
    site.request("GET", "/tea?size=2")
    upstash.advance(20)
    site.request("GET", "/tea?visitor=ada&size=2")
    assert len(seen) == 2
    assert seen[-1].query == "size=2"
    assert site.request("GET", "/tea?size=2").body == b"size=2"


def test_a_revalidation_is_for_the_url_that_the_proxy_was_asked_for(serve, upstash):
    """Else links and redirects in the page would be those of another site."""
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", CACHE))
    proxied = (
        ("x-forwarded-host", "www.shop.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-prefix", "/shop"),
        ("forwarded", "for=192.0.2.1;host=www.shop.example, for=192.0.2.2"),
    )
    site.request("GET", "/tea", proxied)
    upstash.advance(20)
    site.request("GET", "/tea", (*proxied, ("x-forwarded-for", "192.0.2.66")))
    assert carried(pages.seen[-1]) == {
        "host": "shop.example",
        "x-forwarded-host": "www.shop.example",
        "x-forwarded-proto": "https",
        "x-forwarded-prefix": "/shop",
        "forwarded": "host=www.shop.example, for=unknown",
    }
    assert site.request("GET", "/tea", proxied).body == b"page 2"


def test_what_a_revalidation_did_not_carry_does_not_select_what_it_brings(serve, upstash):
    """Although the response names it in Vary from now on."""

    def page(request: Seen) -> Reply:
        count.append(1)
        fields = [("cache-control", "max-age=10, stale-while-revalidate=60")]
        if len(count) > 1:
            fields.append(("vary", "X-Tenant"))
        return Reply(f"{request.header('x-tenant') or 'nobody'}".encode(), headers=tuple(fields))

    count: list[int] = []
    site = serve(page, ("CacheMiddleware", CACHE))
    site.request("GET", "/tea")
    upstash.advance(20)
    visitor = (("x-tenant", "ada"),)
    site.request("GET", "/tea", visitor)
    assert len(count) == 2
    assert site.request("GET", "/tea").body == b"nobody"
    assert len(count) == 2
    assert site.request("GET", "/tea", visitor).body == b"ada"


@pytest.mark.parametrize("name", ["X-Api-Key", "Remote-User", "X-Own", "Authorization", "Cookie"])
def test_a_page_that_a_credential_selects_is_validated_before_it_is_used(serve, upstash, name):
    """Only its user can ask for it, so the user's own request does."""
    seen: list[Seen] = []

    def page(request: Seen) -> Reply:
        seen.append(request)
        control = "public, max-age=10, stale-while-revalidate=60"
        return Reply(b"page", headers=(("cache-control", control), ("vary", name)))

    site = serve(page, ("CacheMiddleware", {**CACHE, "credential_fields": ["X-Own"]}))
    ada = ((name.lower(), "ada=1"), ("x-visit", "yes"))
    site.request("GET", "/tea", ada)
    upstash.advance(20)
    assert "; hit" not in (site.request("GET", "/tea", ada).header("cache-status") or "")
    assert [request.header("x-visit") for request in seen] == ["yes", "yes"]


def test_a_refresh_is_not_charged_to_a_limit(serve, upstash):
    site = serve(
        Pages(), ("RateLimitMiddleware", {"default_limit": "3/hour"}), ("CacheMiddleware", CACHE)
    )
    site.request("GET", "/tea")
    upstash.advance(20)
    site.request("GET", "/tea")
    assert site.request("GET", "/tea").status == 200
    assert site.request("GET", "/tea").status == 429


def test_a_handler_reads_an_unchecked_decision_in_a_refresh(serve, upstash):
    pages = Pages()

    def charging(seen: Seen) -> Reply:
        seen.rate_limit.charge(1)
        return pages(seen)

    site = serve(
        charging, ("RateLimitMiddleware", {"default_limit": "30/hour"}), ("CacheMiddleware", CACHE)
    )
    site.request("GET", "/tea")
    upstash.advance(20)
    assert site.request("GET", "/tea").body == b"page 1"
    assert site.request("GET", "/tea").body == b"page 2"
    assert [each.rate_limit.settled_by for each in pages.seen] == ["upstash", "unchecked"]


def test_a_refresh_that_fails_costs_nobody_a_response(serve, upstash):
    pages = Pages(fail_from=2)
    site = serve(pages, ("CacheMiddleware", CACHE))
    site.request("GET", "/tea")
    upstash.advance(20)
    assert [site.request("GET", "/tea").body for _ in range(2)] == [b"page 1"] * 2
    assert len(pages.seen) >= 2


def test_without_refreshing_in_the_background_the_finder_waits_for_the_new_page(serve, upstash):
    pages = Pages()
    site = serve(pages, ("CacheMiddleware", {**CACHE, "cache_refresh": False}))
    site.request("GET", "/tea")
    upstash.advance(20)
    assert site.request("GET", "/tea").body == b"page 2"
