"""What a rule's path means: the path that the application routes on, without its prefix.

Cache keys and purges use the URL that clients use, which has the prefix. Hosts are here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Served
    from upstash_middleware import HTTPRequest

LOGIN = RateLimitRule("/login", "2/hour")


def plain(_: Seen) -> Reply:
    return Reply(b"ok")


def limit(*rules: RateLimitRule, default: Any = None) -> tuple[str, Any]:
    return "RateLimitMiddleware", {"rate_limits": rules, "default_limit": default}


def cache(*rules: CacheRule) -> tuple[str, Any]:
    return "CacheMiddleware", {"cache": rules}


def counted() -> Callable[[Seen], Reply]:
    """Return a handler whose pages say how many there have been; a POST purges its body's URL."""
    pages = 0

    def handler(request: Seen) -> Reply:
        nonlocal pages
        if request.method == "POST":
            if request.body:
                assert request.purge is not None
                request.purge(request.body.decode())
            return Reply(b"done")
        pages += 1
        return Reply(f"{pages}".encode())

    return handler


def fate(answer: Answer) -> str:
    """Return what Cache-Status says without parameters that depend on the time."""
    return (answer.header("cache-status") or "").partition("; ")[2].partition(";")[0]


@pytest.mark.parametrize("prefix", ["", "/shop", "/shop/v2"])
def test_a_rule_matches_the_path_below_the_prefix(serve: Serve, prefix: str):
    served = serve(plain, limit(LOGIN))
    answers = [served.request("POST", "/login", root_path=prefix) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]


def test_a_rule_is_not_written_with_the_prefix(serve: Serve):
    served = serve(plain, limit(RateLimitRule("/shop/login", "1/hour")))
    answers = [served.request("POST", "/login", root_path="/shop") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]


def test_one_view_has_one_quota_under_whatever_prefix_it_is_requested(serve: Serve):
    """A server may take the prefix from the client: gunicorn, from the header SCRIPT_NAME."""
    served = serve(plain, limit(LOGIN))
    answers = [served.request("POST", "/login", root_path=f"/z{number}") for number in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]


def test_functions_of_the_request_read_the_same_path_and_the_prefix_beside_it(serve: Serve):
    seen: list[HTTPRequest] = []

    def every(request: HTTPRequest) -> bool:
        seen.append(request)
        return True

    rule = RateLimitRule(None, "9/hour", when=every)
    served = serve(plain, limit(rule))
    served.request("GET", "/t%C3%A9", root_path="/shop")
    (request,) = seen
    assert (request.path, request.root_path) == ("/té", "/shop")
    assert request.raw_path == "/shop/t%C3%A9"


@pytest.mark.parametrize(
    "url", ["/shop/tea", "/shop/tea?utm_source=x", "http://shop.example/shop/tea"]
)
def test_a_page_below_a_prefix_is_purged_by_the_url_that_clients_use(serve: Serve, url: str):
    served = serve(counted(), cache(CacheRule("/tea", ttl=60, ignore_query=("utm_*",))))
    assert [fate(served.request("GET", "/tea", root_path="/shop")) for _ in range(2)] == [
        "fwd=uri-miss",
        "hit",
    ]
    served.request("POST", "/purge", body=b"/tea", root_path="/shop")
    assert fate(served.request("GET", "/tea", root_path="/shop")) == "hit", "of another URL"
    served.request("POST", "/purge", body=url.encode(), root_path="/shop")
    assert served.request("GET", "/tea", root_path="/shop").body == b"2"


def test_the_purge_endpoint_s_path_is_below_the_prefix_too(serve: Serve):
    settings: dict[str, Any] = {"purge_path": "/purge", "purge_token": "a token of 20 characters"}
    served = serve(
        counted(), ("CacheMiddleware", {"cache": [CacheRule("/tea", ttl=60)], **settings})
    )
    served.request("GET", "/tea", root_path="/shop")
    token = (("authorization", f"Bearer {settings['purge_token']}"),)
    purged = served.request("POST", "/purge?url=/shop/tea", token, root_path="/shop")
    assert purged.status == 200
    assert served.request("GET", "/tea", root_path="/shop").body == b"2"


def test_tags_are_filled_in_below_a_prefix(serve: Serve):
    def handler(request: Seen) -> Reply:
        if request.method == "POST":
            assert request.purge is not None
            request.purge(tags=("tea:7",))
        return Reply(b"tea")

    served = serve(handler, cache(CacheRule("/tea/{id}", ttl=60, tags=("tea:{id}",))))
    served.request("GET", "/tea/7", root_path="/shop")
    served.request("POST", "/other", root_path="/shop")
    assert fate(served.request("GET", "/tea/7", root_path="/shop")) != "hit"


def test_an_unsafe_request_below_a_prefix_invalidates_its_url(serve: Serve):
    """RFC 9111 §4.4."""
    served = serve(counted(), cache(CacheRule("/tea", ttl=60)))
    for expected in (b"1", b"2"):
        assert served.request("GET", "/tea", root_path="/shop").body == expected
        assert served.request("GET", "/tea", root_path="/shop").body == expected
        assert fate(served.request("POST", "/tea", root_path="/shop")) == "fwd=method"


@pytest.mark.parametrize("location", ["/shop/tea", "http://shop.example/shop/tea"])
def test_an_unsafe_request_below_a_prefix_invalidates_what_its_location_names(
    serve: Serve, location: str
):
    """RFC 9111 §4.4: a Location of the same origin."""
    pages = counted()

    def handler(request: Seen) -> Reply:
        if request.method == "POST":
            return Reply(b"", 303, (("location", location),))
        return pages(request)

    served = serve(handler, cache(CacheRule("/tea", ttl=60)))
    served.request("GET", "/tea", root_path="/shop")
    served.request("POST", "/basket", root_path="/shop")
    assert served.request("GET", "/tea", root_path="/shop").body == b"2"


def test_one_url_under_two_prefixes_has_two_stored_pages(serve: Serve):
    """Else a client that may choose the prefix could store one view's page as another's."""
    served = serve(counted(), cache(CacheRule("/{rest:path}", ttl=60)))
    served.request("GET", "/products/7")
    forged = served.request("GET", "/7", root_path="/products")
    assert forged.body == b"2"
    again = served.request("GET", "/products/7")
    assert (fate(again), again.body) == ("hit", b"1")


def test_a_purge_of_a_url_purges_it_under_every_prefix(serve: Serve):
    served = serve(counted(), cache(CacheRule("/{rest:path}", ttl=60)))
    before = [
        served.request("GET", path, root_path=prefix).body
        for prefix, path in (("", "/products/7"), ("/products", "/7"))
    ]
    served.request("POST", "/purge", body=b"/products/7")
    after = [
        served.request("GET", path, root_path=prefix).body
        for prefix, path in (("", "/products/7"), ("/products", "/7"))
    ]
    assert set(before).isdisjoint(after)


def denied(served: Served, *targets: str) -> list[bool]:
    return [served.request("POST", target).status == 429 for target in targets]


@pytest.mark.parametrize("other", ["/shop//login", "/shop/%2Flogin", "/shop/login%0A"])
def test_a_path_that_can_be_read_in_two_ways_counts_in_both(serve: Serve, other: str):
    """What is inside may merge slashes or ignore a final line feed; that is not seen here."""
    rules = (RateLimitRule("/shop/login", "2/hour"), RateLimitRule("/shop/{rest:path}", "9/hour"))
    served = serve(plain, limit(*rules))
    assert denied(served, other, "/shop/login", other) == [False, False, True]


@pytest.mark.parametrize("path", ["/shop//%0A", "/shop///%0A", "//shop/%0A", "/shop//%0A%0A"])
def test_a_segment_that_is_only_a_line_feed_is_one(serve: Serve, path: str):
    """Slashes before it may be merged all the same."""
    served = serve(plain, limit(RateLimitRule("/shop/{id}", "1/hour")))
    assert denied(served, path, path) == [False, True]


def test_no_reading_of_a_path_exempts_it_from_the_other(serve: Serve):
    served = serve(plain, limit(RateLimitRule("/api/health", "unlimited"), default="1/hour"))
    assert denied(served, "/api/health", "/api/health") == [False, False]
    assert denied(served, "/api//health", "/api//health") == [False, True]


def test_a_path_that_can_be_read_in_two_ways_bypasses_the_cache(serve: Serve):
    """The rule of the other reading might have kept the page from being stored for everybody."""
    served = serve(counted(), cache(CacheRule("/{rest:path}", ttl=60)))
    answers = [served.request("GET", "/my//account") for _ in range(2)]
    assert [answer.body for answer in answers] == [b"1", b"2"]
    assert 'fwd=bypass; detail="the path can be read in several ways"' in (
        answers[1].header("cache-status") or ""
    )


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "API.Example.COM",
        "api.example.com.",
        "api.example.com:",
        "api.example.com:80",
        "api.example.com.:080",
        "api.example.com:8080",
    ],
)
@pytest.mark.parametrize("rule", ["api.example.com", "Api.Example.com.", "*.example.com"])
def test_a_host_is_the_same_in_every_spelling(serve: Serve, rule: str, host: str):
    """RFC 3986 §3.2.2 and §3.2.3; a rule that names no port is about every port."""
    served = serve(plain, limit(RateLimitRule("/login", "1/hour", hosts=(rule,))))
    statuses = [served.request("POST", "/login", host=each).status for each in ("x.test", host)]
    assert statuses == [200, 200]
    assert served.request("POST", "/login", host="api.example.com").status == 429


@pytest.mark.parametrize(
    ("rule", "host", "same"),
    [
        ("api.example.com:80", "api.example.com", True),
        ("api.example.com:80", "api.example.com:", True),
        ("api.example.com:80", "api.example.com:8080", False),
        ("api.example.com:8080", "api.example.com", False),
        ("api.example.com:8080", "api.example.com.:8080", True),
        ("[::1]:80", "[::1]", True),
        ("api.example.com", "api.example.com.evil.test", False),
        ("*.example.com", "example.com", False),
    ],
)
def test_a_rule_that_names_a_port_is_about_that_port(
    serve: Serve, rule: str, host: str, same: bool
):
    served = serve(plain, limit(RateLimitRule("/login", "1/hour", hosts=(rule,))))
    statuses = [served.request("POST", "/login", host=host).status for _ in range(2)]
    assert statuses == [200, 429 if same else 200]


@pytest.mark.parametrize("setting", ["rate_limits", "cache"])
@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/login/<name>", "/login/{name}"),
        ("/p/<int:id>", "/p/{id}"),
        ("/p/:id", "/p/{id}"),
        ("/p/{id:int}", "/p/{id}"),
        ("/p/*", "/p/{rest:path}"),
    ],
)
def test_a_path_in_another_syntax_is_refused_at_startup(
    serve: Serve, setting: str, path: str, right: str
):
    """In Django's settings a rule is data, which is read at startup."""
    other = {"limits": "1/hour"} if setting == "rate_limits" else {"ttl": 60}
    with pytest.raises((ConfigurationError, ImproperlyConfigured)) as refusal:
        serve(plain, ("UpstashMiddleware", {setting: [{"path": path, **other}]})).request(
            "GET", "/"
        )
    assert setting in str(refusal.value)
    assert f"write {right!r}" in str(refusal.value)
