"""A limit directly above a cache asks for both in one round trip; no other pair does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client

from tests.django.fakes import CONDITIONAL_GET, OURS, FakeHalf, FakeRuntime, project, whole
from upstash_middleware.runtime import Features

if TYPE_CHECKING:
    from django.http import HttpRequest

LIMIT, CACHE = f"{OURS}RateLimitMiddleware", f"{OURS}CacheMiddleware"


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"page")


def get_sync() -> Any:
    return Client().get("/page")


def get_async() -> Any:
    return asyncio.run(AsyncClient().get("/page"))


class Pair:
    """A limit and a cache, each with a runtime of its own that counts what it was asked."""

    def __init__(self, limit: FakeHalf | None = None, cache: FakeHalf | None = None) -> None:
        self.limit, self.cache = limit or FakeHalf(), cache or FakeHalf()
        self.runtimes = {
            Features.RATE_LIMIT: FakeRuntime(self.limit),
            Features.CACHE: FakeRuntime(self.cache),
        }

    def __str__(self) -> str:
        asked = (len(runtime.begun) for runtime in self.runtimes.values())
        return "limit {}, cache {}".format(*asked)


BOTH_WAYS = pytest.mark.parametrize("get", [get_sync, get_async])


@BOTH_WAYS
def test_the_limit_asks_for_the_cache_too_and_hands_it_the_answer(get: Any) -> None:
    pair = Pair()
    with project(LIMIT, CACHE, runtimes=pair.runtimes, page=page):
        assert get().content == b"page"
    assert str(pair) == "limit 1, cache 0"
    assert len(pair.limit.requests) == len(pair.cache.requests) == 1
    assert pair.limit.chunks == pair.cache.chunks == [b"page"]
    assert pair.limit.finished == pair.cache.finished == [True]


@BOTH_WAYS
def test_a_stored_page_is_found_by_the_limit_s_question(get: Any) -> None:
    pair = Pair(cache=FakeHalf(response=whole(200, b"stored")))
    with project(LIMIT, CACHE, runtimes=pair.runtimes, page=page):
        assert get().content == b"stored"
    assert str(pair) == "limit 1, cache 0"
    assert pair.limit.finished == pair.cache.finished == [True]


@BOTH_WAYS
def test_a_denial_ends_what_was_asked_for_the_cache(get: Any) -> None:
    pair = Pair(limit=FakeHalf(response=whole(429)))
    with project(LIMIT, CACHE, runtimes=pair.runtimes, page=page):
        assert get().status_code == 429
    assert pair.limit.finished == [True]
    assert pair.cache.finished == [False]


@BOTH_WAYS
@pytest.mark.parametrize("middleware", [(LIMIT, CONDITIONAL_GET, CACHE), (CACHE, LIMIT)])
def test_others_ask_for_themselves(get: Any, middleware: tuple[str, ...]) -> None:
    pair = Pair()
    with project(*middleware, runtimes=pair.runtimes, page=page):
        assert get().content == b"page"
    assert str(pair) == "limit 1, cache 1"
    assert pair.limit.finished == pair.cache.finished == [True]
