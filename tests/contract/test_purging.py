"""What was purged is not served again, whatever it was purged by, and nothing else is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.errors import ConfigurationError, UpstashError

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served

RULE = CacheRule("/products/{id}", ttl=60, tags=("product:{id}",))
CACHE = ("CacheMiddleware", {"cache": [RULE]})


class Shop:
    """Products by number; each page tells how often it was rendered."""

    def __init__(self, **purge: Any) -> None:
        self.renders: dict[str, int] = {}
        self._urls: tuple[str, ...] = purge.pop("urls", ())
        self._purge = purge

    def __call__(self, request: Seen) -> Reply:
        if request.method == "POST":
            assert request.purge is not None
            request.purge(*self._urls, **self._purge)
            return Reply(b"", 204, ())
        key = f"{request.path} {request.header('accept-language')}"
        self.renders[key] = self.renders.get(key, 0) + 1
        vary = ("vary", "Accept-Language")
        body = f"{key} {self.renders[key]}".encode()
        return Reply(body, headers=(("content-type", "text/plain"), vary))


def render(served: Served, number: int, language: str = "de") -> int:
    answer = served.request("GET", f"/products/{number}", (("accept-language", language),))
    return int(answer.body.split()[-1])


def test_by_url_from_the_handler_with_all_variants(serve: Serve):
    served = serve(Shop(urls=("/products/1",)), CACHE)
    for number, language in ((1, "de"), (1, "en"), (2, "de")):
        render(served, number, language)
    assert render(served, 1) == 1, "it was stored"
    assert served.request("POST", "/edit").status == 204
    assert render(served, 1, "de") == 2
    assert render(served, 1, "en") == 2
    assert render(served, 2, "de") == 1, "others stay"


@pytest.mark.parametrize("host", ["shop.example", "www.shop.example"])
def test_by_path_under_whatever_host_it_was_stored(serve: Serve, host: str):
    served = serve(Shop(urls=("/products/1",)), CACHE)
    first = served.request("GET", "/products/1", host=host)
    served.request("POST", "/edit", host="admin.example")
    second = served.request("GET", "/products/1", host=host)
    assert first.body != second.body


@pytest.mark.parametrize(
    ("tag", "purged"), [("product:1", {1}), ("product", {1, 2}), ("product:12", set())]
)
def test_by_tag_which_takes_its_colon_descendants_along(serve: Serve, tag: str, purged: set[int]):
    served = serve(Shop(tags=(tag,)), CACHE)
    for number in (1, 2):
        render(served, number)
    served.request("POST", "/edit")
    assert {number for number in (1, 2) if render(served, number) == 2} == purged


def test_by_a_tag_that_only_the_response_names(serve: Serve):
    shop = Shop(tags=("summer",))

    def tagging(request: Seen) -> Reply:
        reply = shop(request)
        return Reply(reply.body, reply.status, (*reply.headers, ("cache-tag", "summer, sale")))

    served = serve(tagging, CACHE)
    assert [render(served, 1), render(served, 1)] == [1, 1]
    served.request("POST", "/edit")
    assert render(served, 1) == 2


@pytest.mark.parametrize(
    ("what", "purged"),
    [
        ({"directories": ("/products/",)}, {1, 2}),
        ({"rules": ("/products/{id}",)}, {1, 2}),
        ({"directories": ("/products/1/",)}, set()),
    ],
)
def test_by_directory_and_by_rule(serve: Serve, what: dict[str, Any], purged: set[int]):
    served = serve(Shop(**what), ("CacheMiddleware", {"cache": [RULE], "purge_directories": True}))
    for number in (1, 2):
        render(served, number)
    assert render(served, 1) == 1, "it was stored"
    served.request("POST", "/edit")
    assert {number for number in (1, 2) if render(served, number) == 2} == purged


@pytest.mark.parametrize("what", ["directories", "rules"])
def test_where_lookups_do_not_read_them_a_purge_of_a_directory_or_rule_raises(
    serve: Serve, what: str
):
    """It would reach nothing."""
    raised: list[ConfigurationError] = []

    def editing(request: Seen) -> Reply:
        assert request.purge is not None
        try:
            request.purge(**{what: ("/products/",)})
        except ConfigurationError as error:
            raised.append(error)
        return Reply()

    serve(editing, CACHE).request("GET", "/other")
    assert "purge_directories" in str(raised[0])


def test_everything(serve: Serve):
    served = serve(Shop(everything=True), CACHE)
    for number in (1, 2):
        render(served, number)
    served.request("POST", "/edit")
    assert [render(served, number) for number in (1, 2)] == [2, 2]


def test_a_successful_unsafe_request_invalidates_its_own_url(serve: Serve):
    """RFC 9111 §4.4."""

    def shop(request: Seen) -> Reply:
        return Reply(b"edited" if request.method == "PUT" else request.body or b"page")

    served = serve(shop, CACHE)
    served.request("GET", "/products/1")
    assert "; hit" in (served.request("GET", "/products/1").header("cache-status") or "")
    served.request("PUT", "/products/1")
    assert "; hit" not in (served.request("GET", "/products/1").header("cache-status") or "")


@pytest.mark.parametrize(
    ("more", "location", "left"),
    [({}, "", True), ({}, "/products/1", False), ({"keep_query": ()}, "", False)],
)
def test_a_query_is_a_part_of_the_url_that_an_unsafe_request_invalidates(
    serve: Serve, more: dict[str, Any], location: str, left: bool
):
    """RFC 9111 §4.4 speaks of the target URI; Location, or the rule, says what else is meant."""

    def shop(request: Seen) -> Reply:
        if request.method == "POST" and location:
            return Reply(b"", 303, (("location", location),))
        return Reply(b"page")

    served = serve(shop, ("CacheMiddleware", {"cache": [{"path": "/{p}/{id}", "ttl": 60, **more}]}))
    served.request("GET", "/products/1")
    served.request("POST", "/products/1?a=1")
    status = served.request("GET", "/products/1").header("cache-status") or ""
    assert ("; hit" in status) is left


def test_a_failed_unsafe_request_invalidates_nothing(serve: Serve):
    """RFC 9111 §4.4: only a non-error response does."""
    served = serve(lambda request: Reply(b"", 400 if request.method == "PUT" else 200), CACHE)
    served.request("GET", "/products/1")
    served.request("PUT", "/products/1")
    assert "; hit" in (served.request("GET", "/products/1").header("cache-status") or "")


def test_a_purge_while_the_page_is_being_rendered_makes_that_render_dead_on_arrival(serve: Serve):
    """A render that began before the purge may have read what is no longer true."""
    renders: list[int] = []

    def slow(request: Seen) -> Reply:
        renders.append(len(renders) + 1)
        if len(renders) == 1:
            assert request.purge is not None
            request.purge("/products/1")
        return Reply(b"render %d" % renders[-1])

    served = serve(slow, CACHE)
    assert served.request("GET", "/products/1").body == b"render 1"
    assert served.request("GET", "/products/1").body == b"render 2"
    assert served.request("GET", "/products/1").body == b"render 2"


def test_a_purge_that_upstash_did_not_hear_of_raises_in_the_handler(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
):
    heard: list[BaseException] = []

    def editing(request: Seen) -> Reply:
        assert request.purge is not None
        try:
            request.purge("/products/1")
        except UpstashError as error:
            heard.append(error)
        return Reply()

    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:9")
    served = serve(editing, CACHE)
    assert served.request("POST", "/edit").status == 200
    assert len(heard) == 1
