"""Scopes that servers and test clients send, through the public middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import CacheRule
from upstash_middleware.asgi import UpstashMiddleware

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.anyio


async def test_a_scope_without_its_optional_keys_is_served(upstash: LocalUpstash) -> None:
    """ASGI specification, HTTP connection scope: what is left out has its default."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"tea"})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "asgi": {"version": "3.0"}, "method": "GET", "path": "/tea"}
    middleware = UpstashMiddleware(app, default_limit="5/minute", cache=[CacheRule("/tea", ttl=60)])
    for _ in range(2):
        await middleware(dict(scope), receive, send)
    assert [message["body"] for message in sent if "body" in message] == [b"tea", b"tea"]
