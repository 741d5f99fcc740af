"""slowapi#3, #130: a limiter that asks its store from the event loop stops every other task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware import CacheRule
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash

SLOW = 0.5
TICK = 0.02


def app(
    calls: list[str], *outside: Middleware, rendering: float = 0.0, **settings: Any
) -> Starlette:
    async def page(request: Request) -> PlainTextResponse:
        calls.append(request.url.path)
        await anyio.sleep(rendering)
        return PlainTextResponse("page")

    ours = Middleware(UpstashMiddleware, deadline=20, cache_deadline=20, **settings)
    return Starlette(routes=[Route("/page", page)], middleware=[*outside, ours])


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_other_tasks_run_while_upstash_is_slow(
    upstash: LocalUpstash, upstash_faults: Callable[..., None]
):
    """Both halves ask, and the loop goes on."""
    upstash_faults(latency_ms=SLOW * 1000)
    served = app([], default_limit="100/minute", cache=[CacheRule("/page", ttl=60)])
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await anyio.sleep(TICK)
            ticks += 1

    transport = httpx.ASGITransport(served)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(tick)
        answer = await client.get("/page", timeout=30)
        group.cancel_scope.cancel()
    assert answer.headers["x-ratelimit-remaining"] == "99"
    assert ticks > 3, "else the loop has waited for Upstash"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_fifty_concurrent_misses_call_the_application_once(upstash: LocalUpstash):
    """hishel#338, fastapi-cache#203, flask-caching#61: it was called fifty times."""
    calls: list[str] = []
    served = app(calls, cache=[CacheRule("/page", ttl=60)], cache_collapse=50, rendering=0.3)
    answers: list[httpx.Response] = []
    transport = httpx.ASGITransport(served)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:

        async def visit() -> None:
            answers.append(await client.get("/page", timeout=30))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(visit)
    assert [answer.text for answer in answers] == ["page"] * 50
    assert len(calls) == 1


@pytest.mark.usefixtures("upstash")
def test_a_script_of_another_origin_can_read_how_its_limit_stands():
    """On a denial too, where the CORS middleware stands outside and exposes the fields."""
    names = ["Retry-After", "RateLimit", "RateLimit-Policy", "X-RateLimit-Remaining"]
    cors = Middleware(CORSMiddleware, allow_origins=["https://app.test"], expose_headers=names)
    with TestClient(app([], cors, default_limit="1/hour")) as client:
        answers = [client.get("/page", headers={"origin": "https://app.test"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    for answer in answers:
        exposed = {
            each.strip() for each in answer.headers["access-control-expose-headers"].split(",")
        }
        assert exposed == set(names)
        assert answer.headers["access-control-allow-origin"] == "https://app.test"
    assert {name for name in names if name in answers[1].headers} == set(names)
