"""Django cancels a request whose client has left, by asyncio itself: nothing may be left behind."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING, Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings

from tests.asgi.fakes import http_scope
from tests.django.project import Urls
from tests.upstash.support import pipeline
from upstash_middleware.core.ratelimit import Concurrency, RateLimitRule
from upstash_middleware.django import limit
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
    upstash.set_faults(latency_ms=4)
    await asyncio.gather(*(_visit(handler, number / 1000) for number in range(30)))
    upstash.set_faults()


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

    await handler(http_scope(), receive, send)


async def whole(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"page")


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # the request's, Django's own
@pytest.mark.parametrize("refused", [0, 1], ids=["the head", "the body"])
@pytest.mark.parametrize("view", [whole, streaming])
@pytest.mark.parametrize("guard", ["middleware", "limit"])
def test_a_server_that_refuses_what_is_sent_gets_nothing_closed_and_the_slot_is_given_back(
    upstash: LocalUpstash, guard: str, view: Any, refused: int
) -> None:
    """ASGI, version 2.4: ``send`` raises where the client has left, and Django closes nothing."""
    limited = limit("1 at once", name="r", deadline=PATIENCE)(view) if guard == "limit" else view
    settings = {
        "MIDDLEWARE": ["upstash_middleware.django.RateLimitMiddleware"] * (guard == "middleware"),
        "ROOT_URLCONF": Urls(anything=limited),
        "UPSTASH_MIDDLEWARE": {"deadline": PATIENCE},
    }
    if guard == "middleware":
        settings["UPSTASH_MIDDLEWARE"] = {"default_limit": "1 at once", "deadline": PATIENCE}

    async def statuses() -> None:
        handler = ASGIHandler()
        sent: list[Any] = []

        async def refusing(message: Any) -> None:
            if len(sent) == refused:
                raise OSError("the client has left")
            sent.append(message)

        with pytest.raises(OSError, match="left"):
            await _ask(handler, refusing)
        until = time.monotonic() + PATIENCE
        while True:
            sent = []
            await _ask(handler, _into(sent))
            if sent[0]["status"] == 200:
                return
            assert time.monotonic() < until, "the slot stayed taken"
            gc.collect()  # Django's own circles hold the response
            await asyncio.sleep(0.01)

    with override_settings(**settings):
        asyncio.run(statuses())


def _into(sent: list[Any]) -> Any:
    async def send(message: Any) -> None:
        sent.append(message)

    return send


async def _ask(handler: ASGIHandler, send: Any) -> None:
    told = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        return told.pop() if told else await asyncio.Event().wait()  # type: ignore[return-value]

    await handler(http_scope(), receive, send)
