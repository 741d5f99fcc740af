"""A wrong setting ends the server at startup, although Starlette creates its middleware late."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from upstash_middleware import ConfigurationError, fastapi, starlette

pytestmark = pytest.mark.anyio

WRONG: dict[str, dict[str, Any]] = {
    "UpstashMiddleware": {"default_limit": "5/minute", "client_pi": 1},
    "RateLimitMiddleware": {"default_limit": "5/fortnight"},
    "CacheMiddleware": {"cache": "everything"},
    "SessionMiddleware": {"idle_timeout": "soon"},
}


def application(name: str, kind: str) -> Any:
    if kind == "FastAPI":
        app = FastAPI()
        app.add_middleware(getattr(fastapi, name), **WRONG[name])
        app.add_middleware(fastapi.UpstashMiddleware, default_limit="100/minute")
        return app
    return Starlette(middleware=[Middleware(getattr(starlette, name), **WRONG[name])])


@pytest.mark.parametrize("kind", ["FastAPI", "Starlette"])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("upstash")
async def test_a_wrong_setting_makes_the_startup_fail(name: str, kind: str):
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    app = application(name, kind)
    with pytest.raises(ConfigurationError) as raised:
        await app({"type": "lifespan", "state": {}}, receive, send)
    assert sent == [{"type": "lifespan.startup.failed", "message": str(raised.value)}]


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.usefixtures("upstash")
def test_without_a_lifespan_each_request_raises(name: str):
    client = TestClient(application(name, "Starlette"))
    lengths = []
    for _ in range(4):
        with pytest.raises(ConfigurationError) as raised:
            client.get("/")
        lengths.append(len(list(traceback.walk_tb(raised.value.__traceback__))))
    assert lengths[1:] == lengths[1:2] * 3, "each traceback is that of its request alone"


@pytest.mark.parametrize("name", WRONG)
def test_around_an_application_it_is_raised_at_once(name: str):
    with pytest.raises(ConfigurationError):
        getattr(starlette, name)(Starlette(), **WRONG[name])
