"""RFC 9111 §4.2.4 and RFC 5861: when a stale response may be used, and when it must not."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Served
    from upstash_middleware.local import LocalUpstash

RULE = CacheRule("/page", ttl=2, stale_while_revalidate=600, stale_if_error=600)
FORBIDDING = (
    "max-age=2, must-revalidate",
    "max-age=2, proxy-revalidate",
    "max-age=2, no-cache",
    "s-maxage=2",
    "s-maxage=2, stale-if-error=600",
    "max-age=2, must-revalidate, stale-if-error=600, stale-while-revalidate=600",
)


class Failing:
    """A handler that numbers its pages, and fails from when it is told to."""

    def __init__(self, control: str, how: str = "answers 503") -> None:
        self.control = control
        self.how = how
        self.broken = False
        self.renders = 0

    def __call__(self, seen: Seen) -> Reply:
        self.renders += 1
        if self.broken and self.how == "raises":
            raise RuntimeError(seen.path)
        if self.broken and self.how != "is not stored":
            return Reply(b"error", int(self.how.removeprefix("answers ")))
        fields = (("content-type", "text/plain"), ("etag", '"1"'))
        control = "no-store" if self.broken else self.control
        headers = (*fields, ("cache-control", control))
        return Reply(b"page %d" % self.renders, headers=headers)


@pytest.mark.parametrize("profile", ["safe", "conforming"])
@pytest.mark.parametrize("how", ["raises", "answers 503"])
@pytest.mark.parametrize("control", FORBIDDING)
def test_a_response_that_forbids_stale_use_never_stands_in_for_an_error(
    serve: Serve, upstash: LocalUpstash, profile: str, how: str, control: str
):
    """RFC 9111 §4.2.4, §5.2.2.2, §5.2.2.4, §5.2.2.8, §5.2.2.10, whatever the rule allows."""
    page = Failing(control, how)
    site = serve(page, ("CacheMiddleware", {"cache": [RULE], "cache_profile": profile}))
    assert site.request("GET", "/page").body == b"page 1"
    page.broken = True
    upstash.advance(10)
    assert site.request("GET", "/page").status >= 500


@pytest.mark.parametrize("profile", ["safe", "conforming"])
@pytest.mark.parametrize("control", FORBIDDING)
def test_a_response_that_forbids_stale_use_is_not_used_while_it_is_revalidated(
    serve: Serve, upstash: LocalUpstash, profile: str, control: str
):
    """RFC 9111 §4.2.4: a rule's ``stale_while_revalidate`` is for responses that do not say."""
    page = Failing(control)
    site = serve(page, ("CacheMiddleware", {"cache": [RULE], "cache_profile": profile}))
    site.request("GET", "/page")
    upstash.advance(10)
    assert site.request("GET", "/page").body == b"page 2"


@pytest.mark.parametrize(("profile", "body"), [("safe", b"page 1"), ("conforming", b"page 2")])
def test_s_maxage_beside_an_explicit_stale_while_revalidate(
    serve: Serve, upstash: LocalUpstash, profile: str, body: bytes
):
    """The profile ``safe`` obeys what content delivery networks obey, and RFC 9111 forbids."""
    page = Failing("s-maxage=2, stale-while-revalidate=600")
    site = serve(page, ("CacheMiddleware", {"cache": [RULE], "cache_profile": profile}))
    site.request("GET", "/page")
    upstash.advance(10)
    assert site.request("GET", "/page").body == body


SEVERAL = 20


def hits(site: Served, count: int = SEVERAL) -> list[tuple[int, bytes]]:
    answers = [site.request("GET", "/page") for _ in range(count)]
    return [(answer.status, answer.body) for answer in answers]


@pytest.mark.parametrize("how", ["raises", "answers 503", "answers 404", "is not stored"])
def test_a_background_revalidation_that_failed_is_not_tried_again_at_once(
    serve: Serve, upstash: LocalUpstash, how: str
):
    page = Failing("max-age=2, stale-while-revalidate=600", how)
    site = serve(page, ("CacheMiddleware", {"cache": [RULE]}))
    site.request("GET", "/page")
    page.broken = True
    upstash.advance(10)
    assert hits(site) == [(200, b"page 1")] * SEVERAL
    assert page.renders == 2
    upstash.advance(10)
    assert hits(site) == [(200, b"page 1")] * SEVERAL
    assert page.renders == 3
    page.broken = False
    upstash.advance(10)
    assert hits(site, 2) == [(200, b"page 1"), (200, b"page 4")]


@pytest.mark.parametrize("how", ["raises", "answers 503"])
def test_an_application_that_failed_is_not_asked_again_at_once_where_a_stale_response_stands_in(
    serve: Serve, upstash: LocalUpstash, how: str
):
    """RFC 5861 §4."""
    page = Failing("max-age=2, stale-if-error=600", how)
    rule = CacheRule("/page")
    site = serve(page, ("CacheMiddleware", {"cache": [rule]}))
    site.request("GET", "/page")
    page.broken = True
    upstash.advance(10)
    assert hits(site) == [(200, b"page 1")] * SEVERAL
    assert page.renders == 2
    status = site.request("GET", "/page").header("cache-status") or ""
    assert "; hit; " in status
    assert 'detail="stale-if-error"' in status
    upstash.advance(10)
    assert hits(site) == [(200, b"page 1")] * SEVERAL
    assert page.renders == 3
    page.broken = False
    upstash.advance(10)
    assert hits(site, 2) == [(200, b"page 4")] * 2


@pytest.mark.parametrize("how", ["raises", "answers 503"])
@pytest.mark.parametrize("control", ["stale-while-revalidate=600", "stale-if-error=600"])
def test_with_a_lock_one_process_in_all_asks_an_application_that_fails(
    serve: Serve, upstash: LocalUpstash, how: str, control: str
):
    page = Failing(f"max-age=2, {control}", how)
    layer = ("CacheMiddleware", {"cache": [RULE], "cache_lock": True})
    one, other = serve(page, layer), serve(page, layer)
    one.request("GET", "/page")
    page.broken = True
    upstash.advance(10)
    assert hits(one, 3) + hits(other, 3) == [(200, b"page 1")] * 6
    assert page.renders == 2
    upstash.advance(10)
    assert hits(other, 3) + hits(one, 3) == [(200, b"page 1")] * 6
    assert page.renders == 3


@pytest.mark.parametrize("how", ["raises", "answers 503"])
def test_requests_that_wait_for_an_application_that_fails_get_the_stale_response(
    serve: Serve, upstash: LocalUpstash, how: str
):
    """They do not ask it themselves."""
    page = Failing("max-age=2, stale-if-error=600", how)
    site = serve(page, ("CacheMiddleware", {"cache": [RULE], "cache_collapse": 50.0}))
    site.request("GET", "/page")
    page.broken = True
    upstash.advance(10)
    with ThreadPoolExecutor(8) as clients:
        bodies = [each.body for each in clients.map(lambda _: page_of(site), range(8))]
    assert bodies == [b"page 1"] * 8
    assert page.renders == 2


def page_of(site: Served) -> Answer:
    return site.request("GET", "/page")


@pytest.mark.parametrize("streams", [False, True])
def test_one_request_revalidates_in_the_background_however_long_that_takes(
    serve: Serve, upstash: LocalUpstash, streams: bool
):
    """RFC 5861 §3; also where the page streams, for which nobody waits."""
    entered, go_on = threading.Event(), threading.Event()
    renders: list[str] = []

    def page(seen: Seen) -> Reply:
        renders.append(seen.path)
        if len(renders) > 1:
            entered.set()
            go_on.wait(20)
        body = b"page %d" % len(renders)
        control = ("cache-control", "max-age=30, stale-while-revalidate=600")
        headers = (("content-type", "text/plain"), control)
        return Reply(iter([body]) if streams else body, headers=headers)

    site = serve(page, ("CacheMiddleware", {"cache": [RULE]}))
    site.request("GET", "/page")
    upstash.advance(40)
    with ThreadPoolExecutor(1) as client:
        first = client.submit(site.request, "GET", "/page")
        assert entered.wait(20)
        assert hits(site) == [(200, b"page 1")] * SEVERAL
        go_on.set()
        assert first.result(20).body == b"page 1"
    assert len(renders) == 2
    assert hits(site, 2) == [(200, b"page 2")] * 2


@pytest.mark.parametrize("control", ["max-age=2", "no-store"])
def test_a_background_revalidation_ends_where_its_response_will_not_be_stored(
    serve: Serve, upstash: LocalUpstash, control: str
):
    """The response may be endless; nobody is there to leave."""
    pieces: list[int] = []

    def endless() -> Iterator[bytes]:
        for number in range(2000):
            pieces.append(number)
            yield b"a" * 100

    def page(seen: Seen) -> Reply:
        del seen
        text = ("content-type", "text/plain")
        if pieces or not stored:
            stored.append(True)
            swr = ("cache-control", "max-age=2, stale-while-revalidate=600")
            return Reply(b"page", headers=(text, swr))
        return Reply(endless(), headers=(text, ("cache-control", control)))

    stored: list[bool] = []
    layer = {"cache": [CacheRule("/page")], "cache_max_body": 1000}
    site = serve(page, ("CacheMiddleware", layer))
    for _ in range(2):
        assert site.request("GET", "/page").body == b"page"
        upstash.advance(10)
    assert 0 < len(pieces) < 100
