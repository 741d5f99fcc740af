"""Starlette: the classes as its ``add_middleware`` takes them, and the decorators."""

from __future__ import annotations

from typing import assert_type

from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from upstash_middleware import Decision, HTTPRequest, RateLimitRule
from upstash_middleware.starlette import (
    CacheHandle,
    CacheMiddleware,
    RateLimitMiddleware,
    RequestDenied,
    UpstashMiddleware,
    cached,
    exempt,
    limit,
    never_cached,
    user,
)


def session(request: HTTPRequest) -> str | None:
    scope: Scope = request.native
    assert_type(scope, Scope)
    return HTTPConnection(scope).cookies.get("session")


@limit("5/minute", by=session)
def visited(request: Request) -> Response:
    return Response()


@limit("5/minute", by=user, cost=2)
async def tea(request: Request) -> PlainTextResponse:
    return PlainTextResponse("tea")


@limit("5/minute")
def cake(request: Request) -> Response:
    return Response()


@cached(60, tags=("product:{id}",))
async def product(request: Request) -> PlainTextResponse:
    return PlainTextResponse("product")


@exempt
@never_cached
async def health(request: Request) -> PlainTextResponse:
    return PlainTextResponse("well")


class Page(HTTPEndpoint):
    @limit("5/minute", name="page")
    async def get(self, request: Request) -> Response:
        return Response()


async def calls(page: Page, request: Request) -> None:
    assert_type(await tea(request), PlainTextResponse)
    assert_type(cake(request), Response)
    assert_type(await product(request), PlainTextResponse)
    assert_type(await health(request), PlainTextResponse)
    assert_type(await page.get(request), Response)
    await tea()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    handle: CacheHandle = request.state.cache
    assert_type(await handle.purge("/tea", tags=("a",), everything=False, soft=True), None)
    assert_type(handle.purge_sync(tags=("a",)), None)
    await handle.purge(tags=["a"])
    handle.purge_sync(tags=["a"])
    await handle.purge(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def answer(request: Request, error: RequestDenied) -> Response:
    assert_type(error.decision, Decision)
    return Response(status_code=error.status_code)


limit("5/minute", path="/tea")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
limit(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
limit("5/minute", shadow="no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

app = Starlette(middleware=[Middleware(CacheMiddleware, cache=[{"path": "/", "ttl": 1}])])
app.add_middleware(UpstashMiddleware, rate_limits=[RateLimitRule("/a", "1/min")], deadline=0.5)
app.add_middleware(RateLimitMiddleware, default_limit="100/minute")
app.add_middleware(RateLimitMiddleware, defualt_limit="1/min")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
