"""Data in handlers of each framework, over the middleware's runtime; one purge for all."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import path
from fastapi import Depends, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from werkzeug.test import Client as WSGIClient

import tests.django.project  # noqa: F401 - configures Django
from upstash_middleware import CacheRule, ConfigurationError, Data, SyncData, django, flask, wsgi
from upstash_middleware import fastapi as of_fastapi
from upstash_middleware import starlette as of_starlette

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

CACHE: dict[str, Any] = {
    "cache": [CacheRule("/page", ttl=60, tags=["product:7"])],
    "deadline": 20,
    "cache_deadline": 20,
}


class Database:
    """Counts how often it is queried."""

    def __init__(self) -> None:
        self.queries = 0

    def query(self) -> int:
        self.queries += 1
        return self.queries


def test_starlette_and_one_purge_for_pages_and_data(upstash: LocalUpstash):
    database = Database()

    async def page(request: Request) -> PlainTextResponse:
        value = await request.state.data.get_or_set(
            "product:7", 60, database.query, tags=["product:7"]
        )
        return PlainTextResponse(str(value))

    async def change(request: Request) -> PlainTextResponse:
        await request.state.cache.purge(tags=["product:7"])
        return PlainTextResponse("")

    async def change_data(request: Request) -> PlainTextResponse:
        await request.state.data.purge(tags=["product"])
        return PlainTextResponse("")

    async def clear_pages(request: Request) -> PlainTextResponse:
        await request.state.cache.purge(everything=True)
        return PlainTextResponse("")

    routes = [
        *(Route("/page", page), Route("/other", page), Route("/change", change)),
        *(Route("/change-data", change_data), Route("/clear-pages", clear_pages)),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(
        of_starlette.UpstashMiddleware, default_limit="1000/minute", data_l1_bytes=10_000, **CACHE
    )
    with TestClient(app) as client:
        assert [client.get(url).text for url in ("/page", "/page", "/other")] == ["1"] * 3
        client.get("/change")
        assert [client.get(url).text for url in ("/other", "/page")] == ["2"] * 2
        client.get("/change-data")
        assert [client.get(url).text for url in ("/page", "/other")] == ["3"] * 2
        client.get("/clear-pages")
        assert client.get("/other").text == "3"


def test_an_application_keeps_an_object_of_its_lifespan_that_is_called_data(upstash: LocalUpstash):
    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[dict[str, str]]:
        yield {"data": "its own"}

    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.data)

    app = Starlette(routes=[Route("/", own)], lifespan=lifespan)
    app.add_middleware(of_starlette.UpstashMiddleware, default_limit="100/minute")
    with TestClient(app) as client:
        assert client.get("/").text == "its own"


def test_fastapi(upstash: LocalUpstash):
    app, database = FastAPI(), Database()

    @app.get("/")
    async def value(data: Annotated[Data, Depends(of_fastapi.data)]) -> Any:
        assert isinstance(data, Data)
        return await data.get_or_set("a", 60, database.query)

    with (
        TestClient(app) as client,
        pytest.raises(ConfigurationError, match="add UpstashMiddleware"),
    ):
        client.get("/")
    app = FastAPI(routes=app.router.routes)
    app.add_middleware(of_fastapi.UpstashMiddleware, default_limit="100/minute")
    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(3)] == [1, 1, 1]


def test_flask(upstash: LocalUpstash):
    app, database = Flask("shop"), Database()
    extension = flask.UpstashMiddleware(app, default_limit="1000/minute", **CACHE)

    @flask.data.memoize(60, key="seven", tags=["product:7"])
    def load() -> int:
        return database.query()

    @app.get("/page")
    @app.get("/other")
    def page() -> str:
        assert extension.data is flask.data
        return str(load())

    @app.get("/change")
    def change() -> str:
        flask.purge(tags=["product"])
        return ""

    client = app.test_client()
    assert [client.get(url).text for url in ("/page", "/page", "/other")] == ["1"] * 3
    client.get("/change")
    assert [client.get(url).text for url in ("/page", "/page", "/other")] == ["2"] * 3
    with app.app_context():
        assert flask.data.incr("n", ttl=60) == 1
        flask.data.clear()
        assert load() == 3
    with pytest.raises(RuntimeError, match="application context"):
        flask.data.get("a")


def test_wsgi(upstash: LocalUpstash):
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(environ["upstash_middleware.data"].incr("n", ttl=60)).encode()]

    client = WSGIClient(wsgi.UpstashMiddleware(app, default_limit="100/minute"))
    assert [client.get("/").text for _ in range(3)] == ["1", "2", "3"]


DATABASE = Database()


def _page(_request: Any) -> HttpResponse:
    return HttpResponse(
        str(django.data.get_or_set("a", 60, DATABASE.query, tags=["product:7"])),
        content_type="text/plain",
    )


async def _async_page(_request: Any) -> HttpResponse:
    value = await django.async_data.get_or_set("a", 60, DATABASE.query, tags=["product:7"])
    return HttpResponse(str(value), content_type="text/plain")


urlpatterns = [path("page", _page), path("other", _page), path("async", _async_page)]


@override_settings(
    ROOT_URLCONF=__name__,
    UPSTASH_MIDDLEWARE={"default_limit": "1000/minute", **CACHE},
    MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
)
def test_django(upstash: LocalUpstash):
    DATABASE.queries = 0
    client = Client()
    urls = ("/page", "/page", "/other", "/async")
    assert [client.get(url).content for url in urls] == [b"1"] * 4
    django.purge(tags=["product"])
    assert [client.get(url).content for url in urls] == [b"2"] * 4
    asyncio.run(django.apurge(everything=True))
    assert client.get("/page").content == b"2"
    django.data.clear()
    assert client.get("/other").content == b"3"


def test_django_without_middleware(upstash: LocalUpstash):
    """As in a task worker."""
    with override_settings(UPSTASH_MIDDLEWARE={"prefix": "worker", "deadline": 20}):
        assert isinstance(django.data, SyncData)
        django.data.set("a", 1, ttl=60)
        assert asyncio.run(django.async_data.get("a")) == 1
    with override_settings(UPSTASH_MIDDLEWARE={"prefix": "other", "deadline": 20}):
        assert django.data.get("a") is None


def test_switched_off_handlers_load(upstash: LocalUpstash):
    async def page(request: Request) -> JSONResponse:
        data = request.state.data
        return JSONResponse([await data.get_or_set("a", 60, lambda: 1), await data.get("a")])

    app = Starlette(routes=[Route("/", page)])
    app.add_middleware(of_starlette.UpstashMiddleware, default_limit="1/minute", enabled=False)
    with TestClient(app) as client:
        assert client.get("/").json() == [1, None]


def test_a_rule_called_data_shares_no_key_with_values(upstash: LocalUpstash):
    from upstash_middleware import Redis, SyncLimiter  # noqa: PLC0415

    SyncLimiter("5/hour", name="data").hit("a")
    with Redis() as redis:
        assert not redis.keys("upstash-middleware:data:*")
