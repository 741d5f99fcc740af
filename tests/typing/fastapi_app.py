"""FastAPI: dependencies, and what a route gets of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Annotated, assert_type

from fastapi import APIRouter, Depends, FastAPI

from upstash_middleware import Decision
from upstash_middleware.fastapi import (
    UpstashMiddleware,
    cached,
    document_limits,
    limit,
    never_cached,
)

app = FastAPI(dependencies=[Depends(limit("100/minute", name="all", lease=1))])
app.add_middleware(UpstashMiddleware, default_limit=None, cache=[{"path": "/", "ttl": 1}])
router = APIRouter(dependencies=[Depends(limit("5/minute")), Depends(never_cached)])


@app.get("/tea", dependencies=[Depends(cached(ttl=60, tags=("tea",)))])
async def tea(decision: Annotated[Decision, Depends(limit("5/minute"))]) -> int | None:
    assert_type(decision, Decision)
    return decision.remaining


assert_type(limit("5/minute"), Callable[..., AsyncIterator[Decision]])
assert_type(cached(60), Callable[..., Awaitable[None]])


def current_user() -> str:
    return "ada"


app.get("/cake", dependencies=[Depends(limit("5/minute", by=Depends(current_user)))])
limit("5/minute", methods=["GET"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
document_limits(app)
cached("5 minutes", stale_if_error=timedelta(hours=1))
cached([60])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
