"""Django cancels a request whose client has left, by asyncio itself: nothing may be left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings

from tests.django.project import Urls
from tests.upstash.support import pipeline
from upstash_middleware.core.ratelimit import Concurrency, RateLimitRule
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from django.http import HttpRequest

    from upstash_middleware.local import LocalUpstash

PATIENCE = 20.0


async def slow(_request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0.004)
    return HttpResponse(b"page")


async def streaming(_request: HttpRequest) -> StreamingHttpResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            await asyncio.sleep(0.002)
            yield b"piece"

    return StreamingHttpResponse(pieces())


@pytest.mark.parametrize("view", [slow, streaming])
def test_clients_that_leave_at_any_moment_give_their_slots_back(
    upstash: LocalUpstash, view: Any
) -> None:
    arguments = {
        "rate_limits": [RateLimitRule(limits=[Concurrency(1000)], name="r")],
        "default_limit": None,
        "deadline": PATIENCE,
    }
    settings = {
        "MIDDLEWARE": ["upstash_middleware.django.RateLimitMiddleware"],
        "ROOT_URLCONF": Urls(anything=view),
        "UPSTASH_MIDDLEWARE": arguments,
    }
    with override_settings(**settings):
        asyncio.run(_clients_that_leave(upstash))
    client = Client(Credentials(upstash.url, upstash.token), deadline=PATIENCE)
    keys: Any = client.execute(pipeline(("KEYS", "*:slots")))[0]
    assert keys, "else nothing has been taken at all"
    assert client.execute(pipeline(("MGET", *keys)))[0] in ([b""], [None])
    client.close()


async def _clients_that_leave(upstash: LocalUpstash) -> None:
    handler = ASGIHandler()
    await _visit(handler, 10.0)
    upstash.set_weather(latency_ms=4)
    await asyncio.gather(*(_visit(handler, number / 1000) for number in range(30)))
    upstash.set_weather()


async def _visit(handler: ASGIHandler, leaves_after: float) -> None:
    """Send a request and leave after so many seconds, or when it is answered."""
    told = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if told:
            return told.pop()
        await asyncio.sleep(leaves_after)
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        await asyncio.sleep(0)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example")],
        "client": ("203.0.113.9", 1),
        "server": ("127.0.0.1", 80),
    }
    await handler(scope, receive, send)
