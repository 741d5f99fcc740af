"""RFC 9111 §4: requests wait for another one only while its response may yet answer them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Fields, Served
    from upstash_middleware.local import LocalUpstash

TEXT = ("content-type", "text/plain")
FRESH = ("cache-control", "max-age=60")
PATIENCE = 20.0
"""Seconds in which all that is right has happened, and less than anybody would wait in vain."""


def cache(*, ttl: float | None = 60, **more: Any) -> tuple[str, dict[str, Any]]:
    rules = [CacheRule("/{page}", ttl=ttl)]
    return "CacheMiddleware", {"cache": rules, "cache_collapse": 50.0, **more}


@pytest.fixture(params=["in one process", "in two processes"])
def sites(request: pytest.FixtureRequest, serve: Serve) -> Any:
    """Serve a handler once, or twice with nothing in common but Upstash."""

    def sites(handler: Any) -> tuple[Served, Served]:
        if request.param == "in one process":
            site = serve(handler, cache())
            return site, site
        return serve(handler, cache(cache_lock=True)), serve(handler, cache(cache_lock=True))

    return sites


class Held:
    """A handler whose first body does not end before it is released; the others are whole."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self.fields: Fields = (TEXT, *fields)
        self.begun = threading.Event()
        self.released = threading.Event()
        self.renders = 0

    def __call__(self, seen: Seen) -> Reply:
        del seen
        self.renders += 1
        if self.renders > 1:
            return Reply(b"line\n" * 3)
        return Reply(self.lines(), headers=self.fields)

    def lines(self) -> Iterator[bytes]:
        yield b"line\n"
        self.begun.set()
        self.released.wait(3 * PATIENCE)
        yield b"line\n"
        yield b"line\n"


@contextmanager
def being_read(site: Served, page: Held) -> Iterator[None]:
    """Have a client that has not yet been given all of the page."""
    with ThreadPoolExecutor(1) as client:
        leading = client.submit(site.request, "GET", "/page")
        try:
            assert page.begun.wait(PATIENCE)
            yield
        finally:
            page.released.set()
        assert leading.result(PATIENCE).body == b"line\n" * 3


@pytest.mark.parametrize(
    "fields",
    [(), (("content-length", "15"),), (("cache-control", "no-store"),)],
    ids=["endless", "in pieces", "not stored"],
)
def test_nobody_waits_for_a_body_that_another_client_is_reading(sites: Any, fields: Fields):
    page = Held(*fields)
    one, other = sites(page)
    with being_read(one, page), ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(other.request, "GET", "/page") for _ in range(3)]
        assert [answer.result(PATIENCE).body for answer in answers] == [b"line\n" * 3] * 3


class Together:
    """A handler that renders when so many are in it at the same time."""

    def __init__(self, count: int, *fields: tuple[str, str]) -> None:
        self.fields: Fields = (TEXT, *fields)
        self.barrier = threading.Barrier(count)

    def __call__(self, seen: Seen) -> Reply:
        del seen
        self.barrier.wait(PATIENCE)
        return Reply(b"page", headers=self.fields)


def at_once(site: Served, count: int = 3) -> list[int]:
    with ThreadPoolExecutor(count) as clients:
        answers = clients.map(lambda _: site.request("GET", "/page"), range(count))
        return [answer.status for answer in answers]


def test_without_a_ttl_nobody_waits_for_the_first_response(serve: Serve):
    """Whether it may be stored is not known before."""
    site = serve(Together(3), cache(ttl=None))
    assert at_once(site) == [200] * 3
    assert at_once(site) == [200] * 3, "nor for the next ones, as that could not be stored"


@pytest.mark.parametrize(
    "fields",
    [
        (("cache-control", "no-store"),),
        (("cache-control", "private"),),
        (("set-cookie", "session=1"),),
        (("vary", "*"),),
    ],
    ids=str,
)
def test_nobody_waits_again_where_the_last_response_could_not_be_stored(
    serve: Serve, upstash: LocalUpstash, fields: Fields
):
    calls: list[str] = []
    together = Together(3, *fields)

    def page(seen: Seen) -> Reply:
        calls.append(seen.path)
        return Reply(b"page", headers=(TEXT, *fields)) if len(calls) == 1 else together(seen)

    site = serve(page, cache())
    site.request("GET", "/page")
    upstash.advance(1000)
    assert at_once(site) == [200] * 3


def test_requests_wait_again_once_a_response_could_be_stored(serve: Serve, upstash: LocalUpstash):
    renders: list[Fields] = []
    fields: list[Fields] = [(TEXT, ("cache-control", "no-store")), (TEXT, FRESH)]
    entered, go_on = threading.Event(), threading.Event()

    def page(seen: Seen) -> Reply:
        del seen
        renders.append(fields[0] if len(fields) == 1 else fields.pop(0))
        if len(renders) > 2:
            entered.set()
            go_on.wait(PATIENCE)
        return Reply(b"page", headers=renders[-1])

    site = serve(page, cache(ttl=None))
    for _ in range(2):
        site.request("GET", "/page")
    upstash.advance(1000)
    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(site.request, "GET", "/page")
        assert entered.wait(PATIENCE)
        others = [clients.submit(site.request, "GET", "/page") for _ in range(2)]
        threading.Timer(0.1, go_on.set).start()
        answers = [each.result(PATIENCE) for each in (first, *others)]
    assert [answer.body for answer in answers] == [b"page"] * 3
    assert len(renders) == 3


@pytest.mark.parametrize("how", ["raises", "answers 503"])
def test_when_a_response_fails_all_who_waited_for_it_go_on_at_once(serve: Serve, how: str):
    """Not one after another, each behind the failure of the one before."""
    entered, fail = threading.Event(), threading.Event()
    together = Together(3)

    def page(seen: Seen) -> Reply:
        if entered.is_set():
            return together(seen)
        entered.set()
        fail.wait(PATIENCE)
        if how == "raises":
            raise RuntimeError("the database is away")
        return Reply(b"error", 503)

    site = serve(page, cache())
    with ThreadPoolExecutor(4) as clients:
        failing = clients.submit(site.request, "GET", "/page")
        assert entered.wait(PATIENCE)
        others = [clients.submit(site.request, "GET", "/page") for _ in range(3)]
        threading.Timer(0.1, fail.set).start()
        assert failing.result(PATIENCE).status >= 500
        assert [other.result(PATIENCE).status for other in others] == [200] * 3
