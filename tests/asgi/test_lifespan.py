"""At start the credentials are looked for; at the end what was opened is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.asgi.fakes import FakeHalf, FakeRuntime, Server, around, never
from upstash_middleware.errors import MissingCredentials

if TYPE_CHECKING:
    from upstash_middleware.asgi import Receive, Scope, Send

pytestmark = pytest.mark.anyio

STARTUP = {"type": "lifespan.startup"}
SHUTDOWN = {"type": "lifespan.shutdown"}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert await receive() == STARTUP
    await send({"type": "lifespan.startup.complete"})
    assert await receive() == SHUTDOWN
    await send({"type": "lifespan.shutdown.complete"})


def scope() -> Scope:
    return {"type": "lifespan", "state": {}}


async def test_startup_and_shutdown_pass_and_the_client_is_closed_before_the_shutdown_is_over():
    runtime = FakeRuntime(FakeHalf())
    closed: list[tuple[str, int]] = []

    async def send(message) -> None:
        closed.append((message["type"], runtime.closed))

    await around(app, runtime)(scope(), Server(STARTUP, SHUTDOWN).receive, send)
    assert closed == [("lifespan.startup.complete", 0), ("lifespan.shutdown.complete", 1)]


async def test_an_application_whose_shutdown_fails_is_closed_too():
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "queue not empty"})

    runtime = FakeRuntime(FakeHalf())
    server = Server(SHUTDOWN)
    await around(failing, runtime)(scope(), server.receive, server.send)
    assert server.sent == [{"type": "lifespan.shutdown.failed", "message": "queue not empty"}]
    assert runtime.closed == 1


async def test_missing_credentials_fail_the_startup_before_the_application_is_called():
    error = MissingCredentials("set UPSTASH_REDIS_REST_URL and UPSTASH_REDIS_REST_TOKEN")
    server = Server(STARTUP, SHUTDOWN)
    middleware = around(never, FakeRuntime(FakeHalf(), credentials_error=error))
    with pytest.raises(MissingCredentials):
        await middleware(scope(), server.receive, server.send)
    assert server.sent == [{"type": "lifespan.startup.failed", "message": str(error)}]


async def test_an_application_without_a_lifespan_says_so_to_the_server():
    async def http_only(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("http only")

    with pytest.raises(ValueError, match="http only"):
        await around(http_only, FakeRuntime(FakeHalf()))(
            scope(), Server(STARTUP).receive, Server().send
        )


async def test_switched_off_nothing_is_looked_for_or_closed():
    runtime = FakeRuntime(FakeHalf(), enabled=False, credentials_error=MissingCredentials("none"))
    server = Server(STARTUP, SHUTDOWN)
    await around(app, runtime)(scope(), server.receive, server.send)
    assert runtime.closed == 0
