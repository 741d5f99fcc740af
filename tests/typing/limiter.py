"""Limiters: what their methods return, and what decorating a function leaves of its type."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import assert_type

from django.conf import settings
from django.http import HttpRequest
from flask import request
from starlette.applications import Starlette
from starlette.websockets import WebSocket

from upstash_middleware import Decision, Identifier, Limiter, RateLimited, SyncLimiter

messages = Limiter("5/minute", name="messages", app=Starlette(), dynamic=True)
resets = SyncLimiter("5/hour", name="password resets", app=settings, on_error="closed")
mails = SyncLimiter("500/s", name="mails", lease="1s")
jobs = SyncLimiter("9/s", name="jobs", url="https://x.example", token="t", prefix="shop")
assert_type(Limiter.of(Starlette(), "default"), Limiter)
Limiter("5/minute")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Limiter(len, name="a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Limiter("5/minute", name="a", by="user")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def user_of(user: str) -> str:
    return user


@messages(by=user_of, cost=2)
async def generate(user: str, words: int) -> list[str]:
    return [user] * words


@jobs(by="api.example.com", timeout="1 minute")
def fetch(url: str) -> bytes:
    return url.encode()


async def calls(websocket: WebSocket, seen: HttpRequest) -> None:
    assert_type(await messages.hit("alice"), Decision)
    assert_type(await messages.try_hit(7, cost=3), Decision)
    assert_type(await messages.peek(websocket), Decision)
    assert_type(await messages.wait(Identifier("user", "7"), timeout=5), Decision)
    assert_type(await messages.reset("alice"), None)
    assert_type(messages("alice"), AbstractAsyncContextManager[Decision])
    assert_type(resets.hit(seen), Decision)
    assert_type(resets.peek(request), Decision)
    assert_type(resets("alice", timeout=5), AbstractContextManager[Decision])
    resets.set_limit(None)
    assert_type(await generate("alice", words=2), list[str])
    assert_type(fetch("/"), bytes)
    fetch(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await generate("alice")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    resets.hit(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    resets.wait("alice")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def denied(error: RateLimited) -> None:
    assert_type(error.decision, Decision)
    assert_type(error.retry_after, float | None)
