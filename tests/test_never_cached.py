"""``never_cached`` without the middleware: other caches are still told not to store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flask
import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import tests.django.project  # noqa: F401 - configures Django
import upstash_middleware.django
import upstash_middleware.fastapi
import upstash_middleware.flask
import upstash_middleware.starlette

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.http import HttpRequest
    from starlette.requests import Request


def from_starlette() -> Mapping[str, str]:
    async def page(_: Request) -> PlainTextResponse:
        return PlainTextResponse("page", headers={"Cache-Control": "max-age=60"})

    marked = upstash_middleware.starlette.never_cached(page)
    return TestClient(Starlette(routes=[Route("/", marked)])).get("/").headers


def from_fastapi() -> Mapping[str, str]:
    app = FastAPI(dependencies=[Depends(upstash_middleware.fastapi.never_cached)])

    @app.get("/")
    def page() -> str:
        return "page"

    return TestClient(app).get("/").headers


def from_flask() -> Mapping[str, str]:
    app = flask.Flask("never_cached")

    @app.get("/")
    @upstash_middleware.flask.never_cached
    def page() -> flask.Response:
        return flask.Response("page", headers={"Cache-Control": "max-age=60"})

    return dict(app.test_client().get("/").headers)


def from_django() -> Mapping[str, str]:
    @upstash_middleware.django.never_cached
    def page(_: HttpRequest) -> HttpResponse:
        return HttpResponse("page", headers={"Cache-Control": "max-age=60"})

    return page(RequestFactory().get("/")).headers


@pytest.mark.parametrize("headers", [from_starlette, from_fastapi, from_flask, from_django])
def test_no_cache_stores_it_and_no_field_of_ours_leaks(
    headers: Callable[[], Mapping[str, str]],
) -> None:
    found = {name.lower(): value for name, value in headers().items()}
    assert found["cache-control"] == "no-store"
    assert "upstash-cache-control" not in found
