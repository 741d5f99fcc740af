"""``@cached`` and ``@never_cached`` in Django, told to the middleware outside."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.http import HttpResponse, HttpResponsePermanentRedirect
from django.test import AsyncClient
from django.utils.decorators import method_decorator
from django.views import View

from tests.django.test_limit import plain, project
from upstash_middleware.django import cached, limit, never_cached, purge

if TYPE_CHECKING:
    from django.http import HttpRequest
    from django.test import Client

pytestmark = pytest.mark.usefixtures("upstash")

EVERYTHING = {
    "cache": [{"path": "/{rest:path}"}],
    "deadline": 20.0,
    "cache_deadline": 20.0,
}
BY_DEFAULT = {"cache": [{"path": "/{rest:path}", "ttl": 60}]}


def second(client: Client, path: str) -> str:
    """Return the Cache-Status of the second of two requests."""
    client.get(path)
    status: str = client.get(path)["Cache-Status"]
    return status


def product(_: HttpRequest, **parts: str) -> HttpResponse:
    return HttpResponse(parts["id"])


def missing(_: HttpRequest) -> HttpResponse:
    return HttpResponse(status=404)


@method_decorator(cached(60), name="dispatch")
class Page(View):
    """Cached as a class."""

    def get(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse("page")


def test_what_says_so_is_stored_and_nothing_else():
    views = {"page": cached(60)(plain), "class": Page.as_view(), "other": plain}
    errors = {"missing": cached(60)(missing), "limited": limit("9/hour")(cached(60)(plain))}
    with project("CacheMiddleware", mapping=EVERYTHING, **views, **errors) as client:
        for path in ("/page", "/class", "/limited"):
            assert "; hit; ttl=" in second(client, path)
        assert "Upstash-Cache-Control" not in client.get("/page")
        for path in ("/other", "/missing"):
            assert "no freshness lifetime" in second(client, path)


def test_it_is_purged_by_tags_filled_from_the_urls_parts():
    view = cached(60, tags=("product:{id}",))(product)
    with project("CacheMiddleware", mapping=EVERYTHING, **{"p/<id>": view}) as client:
        assert "; hit" in second(client, "/p/7")
        assert "; hit" in second(client, "/p/8")
        purge(tags=["product:7"])
        assert "fwd=" in client.get("/p/7")["Cache-Status"]
        assert "; hit" in client.get("/p/8")["Cache-Status"]


def test_a_part_of_the_path_that_makes_too_long_a_tag_is_stored_nowhere():
    """Which is known before the tag is expanded: each colon of it is an ancestor."""
    view = cached(60, tags=("product:{id}",))(product)
    with project("CacheMiddleware", mapping=EVERYTHING, **{"p/<id>": view}) as client:
        began = time.process_time()
        assert "a tag of more than 1024 bytes" in second(client, "/p/" + ":" * 8000)
        assert time.process_time() - began < 1


@pytest.mark.anyio
async def test_an_async_view_is_stored_too():
    @cached(60)
    async def page(_: HttpRequest) -> HttpResponse:
        return HttpResponse("page")

    with project("CacheMiddleware", mapping=EVERYTHING, page=page):
        client = AsyncClient()
        await client.get("/page")
        assert "; hit" in (await client.get("/page"))["Cache-Status"]


def test_what_is_never_cached_goes_around_a_rule_that_stores_all():
    views = {"page": plain, "never": never_cached(plain)}
    with project("CacheMiddleware", mapping=BY_DEFAULT, **views) as client:
        assert "; hit" in second(client, "/page")
        assert "no-store" in second(client, "/never")
        assert client.get("/never")["Cache-Control"] == "no-store"


def test_without_a_cache_outside_it_is_said(caplog: pytest.LogCaptureFixture):
    def lonely(_: HttpRequest) -> HttpResponse:
        return HttpResponse("page")

    with project(page=cached(60)(lonely)) as client:
        client.get("/page")
    assert "lonely" in caplog.text
    assert "stores nothing" in caplog.text


def to_page(_: HttpRequest) -> HttpResponse:
    return HttpResponsePermanentRedirect("/page")


def test_djangos_test_client_follows_a_stored_redirect() -> None:
    """It reads ``response.url``, as middleware and code around a view may."""
    with project("CacheMiddleware", mapping=BY_DEFAULT, old=to_page, page=plain) as client:
        for _ in range(2):
            response = client.get("/old", follow=True)
            assert response.redirect_chain == [("/page", 301)]
        hit: Any = client.get("/old")
        assert "; hit; " in hit["Cache-Status"]
        assert hit.url == "/page"


def test_a_page_that_gzip_middleware_compresses_inside_of_the_cache_is_compressed_once() -> None:
    def page(_: HttpRequest) -> HttpResponse:
        return HttpResponse("page " * 200)

    spellings = ["gzip, deflate, br, zstd", "gzip", "deflate, gzip;q=0.5"]
    with project("CacheMiddleware", mapping=BY_DEFAULT, page=page) as client:
        settings.MIDDLEWARE.append("django.middleware.gzip.GZipMiddleware")
        answers = [client.get("/page", headers={"accept-encoding": each}) for each in spellings]
    assert [answer["Content-Encoding"] for answer in answers] == ["gzip"] * 3
    assert ["; hit" in answer["Cache-Status"] for answer in answers] == [False, True, True]
