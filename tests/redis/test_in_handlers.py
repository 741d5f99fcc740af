"""The application's own Redis commands in handlers, over the middleware's connections."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import pytest
from django.test import override_settings
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import tests.django.project  # noqa: F401 - configures Django
from upstash_middleware import django, flask, starlette

if TYPE_CHECKING:
    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash


def test_starlette(upstash: LocalUpstash) -> None:
    async def count(request: Request) -> PlainTextResponse:
        await request.state.upstash.set("seen", "yes", ex=60)
        return PlainTextResponse(str(await request.state.upstash.incr("visits")))

    app = Starlette(routes=[Route("/", count)])
    app.add_middleware(starlette.UpstashMiddleware, default_limit="100/minute")
    with TestClient(app) as client:
        assert [client.get("/").text for _ in range(3)] == ["1", "2", "3"]


def test_flask(upstash: LocalUpstash) -> None:
    app = Flask("own_data")
    flask.UpstashMiddleware(app, default_limit="100/minute")

    @app.get("/")
    def count() -> str:
        return str(flask.redis.incr("visits"))

    with app.test_client() as client:
        assert [client.get("/").text for _ in range(3)] == ["1", "2", "3"]


def test_django(upstash: LocalUpstash) -> None:
    async def asynchronously() -> Any:
        return await django.aredis.incr("visits")

    with override_settings(UPSTASH_MIDDLEWARE={"default_limit": "100/minute"}):
        assert [django.redis.incr("visits") for _ in range(2)] == [1, 2]
        assert asyncio.run(asynchronously()) == 3


def test_a_copy_of_the_client_of_handlers_is_the_same_client(upstash: LocalUpstash) -> None:
    async def count(request: Request) -> PlainTextResponse:
        await copy.copy(request.state.upstash).incr("visits")
        return PlainTextResponse(await request.state.upstash.get("visits"))

    app = Starlette(routes=[Route("/", count)])
    app.add_middleware(starlette.UpstashMiddleware, default_limit="100/minute")
    with TestClient(app) as client:
        assert client.get("/").text == "1"


def test_commands_share_connections_but_no_request_with_the_middleware(
    upstash: LocalUpstash,
) -> None:
    async def several(request: Request) -> PlainTextResponse:
        await asyncio.gather(*(request.state.upstash.incr("visits") for _ in range(500)))
        return PlainTextResponse(await request.state.upstash.get("visits"))

    app = Starlette(routes=[Route("/", several)])
    app.add_middleware(starlette.RateLimitMiddleware, default_limit="100/minute")
    with TestClient(app) as client:
        client.get("/")
        upstash.reset_bill()
        assert client.get("/").text == "1000"
        bill = upstash.bill()
    assert bill.requests < 400  # the limit's, and fewer than one for each command


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_there_wherever_the_middleware_is(upstash: LocalUpstash, enabled: bool) -> None:
    async def ping(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.state.upstash.ping())

    app = Starlette(routes=[Route("/", ping)])
    app.add_middleware(starlette.RateLimitMiddleware, default_limit="100/minute", enabled=enabled)
    with TestClient(app) as client:
        assert client.get("/").text == "PONG"
