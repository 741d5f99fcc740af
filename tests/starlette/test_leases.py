"""Requests that wait for the slice that another request's call brings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash


def test_a_cancelled_request_lets_those_go_on_that_wait_for_its_slice(
    upstash: LocalUpstash,
) -> None:
    """They make calls of their own at once, not after half of the time that a call may take."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("page"))])
    app.add_middleware(
        UpstashMiddleware, default_limit="fixed 1000/hour lease 10s", redis=upstash, deadline=60
    )

    async def requests() -> int:
        transport = httpx.ASGITransport(app, client=("203.0.113.7", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as client:
            for _ in range(9):
                await client.get("/")
            with upstash.faults(latency_ms=1000):
                asking = asyncio.create_task(client.get("/"))
                await asyncio.sleep(0.1)
                waiting = asyncio.create_task(client.get("/"))
                await asyncio.sleep(0.1)
                asking.cancel()
                return (await asyncio.wait_for(waiting, 20)).status_code

    assert asyncio.run(requests()) == 200
