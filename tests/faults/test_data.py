"""Every fault while a value is read, and while one is stored, in handlers of each framework.

No fault becomes an exception in a handler that did not say ``strict=True``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from django.core.cache import caches
from django.http import JsonResponse
from django.test import Client, override_settings
from django.urls import path
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import tests.django.project  # noqa: F401 - configures Django
from tests.faults.matrix import FAULTS, SHORT, Fault, Operation, Outcome, expected
from tests.faults.test_matrix import (
    PATIENCE,
    World,
    check_log,
    check_redis,
    check_time,
    log_lines,
    world,
)
from upstash_middleware import SyncData, UpstashError, django, flask
from upstash_middleware import starlette as of_starlette

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

__all__ = ["world"]

OLD, NEW = ["old"], ["new"]
Get = Callable[[str], tuple[int, Any]]
"""Sends a request to ``read``, ``store`` or ``strict``; returns the response's status and JSON."""


def asked(act: Callable[[], Any]) -> Any:
    """Return what a call returns, or that it raised an UpstashError, for a handler's response."""
    try:
        return act()
    except UpstashError:
        return "an UpstashError"


@contextmanager
def starlette_site(settings: dict[str, Any]) -> Iterator[Get]:
    async def read(request: Request) -> JSONResponse:
        return JSONResponse(await request.state.data.get("a"))

    async def store(request: Request) -> JSONResponse:
        strict = request.url.path == "/strict"
        try:
            return JSONResponse(await request.state.data.set("a", NEW, ttl=600, strict=strict))
        except UpstashError:
            return JSONResponse("an UpstashError")

    app = Starlette(routes=[Route("/read", read), Route("/store", store), Route("/strict", store)])
    app.add_middleware(of_starlette.UpstashMiddleware, default_limit=None, **settings)

    def get(target: str) -> tuple[int, Any]:
        response = client.get(f"/{target}")
        return response.status_code, response.json()

    with TestClient(app, raise_server_exceptions=False) as client:
        yield get


@contextmanager
def flask_site(settings: dict[str, Any]) -> Iterator[Get]:
    app = Flask("shop")
    flask.UpstashMiddleware(app, default_limit=None, **settings)

    @app.get("/read")
    def read() -> Any:
        return app.json.response(flask.data.get("a"))

    @app.get("/<any(store, strict):how>")
    def store(how: str) -> Any:
        strict = how == "strict"
        return app.json.response(asked(lambda: flask.data.set("a", NEW, ttl=600, strict=strict)))

    def get(target: str) -> tuple[int, Any]:
        response = app.test_client().get(f"/{target}")
        return response.status_code, response.json

    yield get


def _read(_request: Any) -> JsonResponse:
    return JsonResponse(django.data.get("a"), safe=False)


def _store(_request: Any, how: str) -> JsonResponse:
    strict = how == "strict"
    done = asked(lambda: django.data.set("a", NEW, ttl=600, strict=strict))
    return JsonResponse(done, safe=False)


def _read_cache(_request: Any) -> JsonResponse:
    return JsonResponse(caches["store"].get("a"), safe=False)


def _store_cache(_request: Any, how: str) -> JsonResponse:
    return JsonResponse(asked(lambda: caches[how].set("a", NEW)), safe=False)


urlpatterns = [
    *(path("data/read", _read), path("data/<how>", _store)),
    *(path("cache/read", _read_cache), path("cache/<how>", _store_cache)),
]


@contextmanager
def django_site(settings: dict[str, Any], start: str = "data") -> Iterator[Get]:
    backend = {"BACKEND": "upstash_middleware.django.cache.UpstashCache", "TIMEOUT": 600}
    aliases = {"store": backend, "strict": {**backend, "OPTIONS": {"strict": True}}}
    client = Client(raise_request_exception=False)

    def get(target: str) -> tuple[int, Any]:
        response = client.get(f"/{start}/{target}")
        return response.status_code, response.json()

    with override_settings(
        ROOT_URLCONF=__name__,
        UPSTASH_MIDDLEWARE={"default_limit": None, **settings},
        MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
        CACHES={"default": backend, **aliases},
    ):
        yield get


SITES: dict[str, Callable[[dict[str, Any]], AbstractContextManager[Get]]] = {
    "starlette": starlette_site,
    "flask": flask_site,
    "django": django_site,
    "django's CACHES": partial(django_site, start="cache"),
}


class Shop:
    """A site with a value, and what happens to that."""

    def __init__(self, framework: str, world: World, closing: ExitStack) -> None:
        self.framework = framework
        self._address: dict[str, Any] = {
            "url": world.upstash.url,
            "token": world.upstash.token,
            "prefix": world.prefix,
            "breaker": False,
        }
        self._closing = closing
        kind, self._key = ("django", ":1:a") if "CACHES" in framework else ("data", "a")
        self._patient = closing.enter_context(
            SyncData(kind=kind, deadline=PATIENCE, cache_deadline=PATIENCE, **self._address)
        )
        self._patient.set(self._key, OLD, ttl=600)

    def site(self, fault: Fault) -> Get:
        """Return the site, with the deadline that suits a fault."""
        seconds = SHORT if fault.costs_deadline else PATIENCE
        settings = {"deadline": seconds, "cache_deadline": seconds, **self._address}
        return self._closing.enter_context(SITES[self.framework](settings))

    def state(self) -> str:
        """Return what the value is, once all is well again."""
        return {str(OLD): "unchanged", str(NEW): "stored"}[str(self._patient.get(self._key))]


@pytest.fixture(params=SITES)
def shop(request: pytest.FixtureRequest, world: World) -> Iterator[Shop]:
    with ExitStack() as closing:
        yield Shop(request.param, world, closing)


@pytest.mark.parametrize("name", FAULTS)
def test_while_a_value_is_read(
    shop: Shop, world: World, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    fault = FAULTS[name]
    get = shop.site(fault)
    with log_lines(caplog) as lines:
        world.happens(fault)
        began = time.monotonic()
        status, value = get("read")
        took = time.monotonic() - began
    world.clears(fault)
    check_log(lines, fault, Operation.DATA_GET)
    check_time(took, fault)
    assert value in (OLD, None)
    got = Outcome(status=status, lines=len(lines), value="there" if value else "missing")
    assert got == expected(name, Operation.DATA_GET, "open")
    check_redis(world)


@pytest.mark.parametrize(
    "operation", [Operation.DATA_SET, Operation.DATA_SET_STRICT], ids=lambda each: each.name
)
@pytest.mark.parametrize("name", FAULTS)
def test_while_a_value_is_stored(
    shop: Shop,
    world: World,
    caplog: pytest.LogCaptureFixture,
    name: str,
    operation: Operation,
) -> None:
    fault = FAULTS[name]
    get = shop.site(fault)
    with log_lines(caplog) as lines:
        world.happens(fault)
        began = time.monotonic()
        status, said = get("strict" if operation is Operation.DATA_SET_STRICT else "store")
        took = time.monotonic() - began
    world.clears(fault)
    check_log(lines, fault, operation)
    check_time(took, fault)
    wanted = expected(name, operation, "open")
    if said is None:  # Django's ``set`` returns nothing
        assert shop.framework == "django's CACHES"
        assert wanted.told in {"True", "False"}
        said = wanted.told
    got = Outcome(status=status, lines=len(lines), told=str(said), value_after=shop.state())
    assert got == wanted
    check_redis(world)
