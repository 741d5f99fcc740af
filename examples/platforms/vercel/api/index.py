"""A FastAPI application as a Vercel function; `vercel.json` sends every path to it."""

from __future__ import annotations

from itertools import count
from typing import Any

from fastapi import FastAPI, Request

from upstash_middleware import CacheRule
from upstash_middleware.fastapi import UpstashMiddleware

app = FastAPI()
app.add_middleware(
    UpstashMiddleware,  # reads UPSTASH_REDIS_REST_* or KV_REST_API_*, which Vercel's store sets
    default_limit="10/minute",  # by the address that Vercel writes, without a setting
    cache=[CacheRule("/page", ttl=60)],
)

rendered = count(1)


@app.get("/limited")
def limited(request: Request) -> dict[str, Any]:
    """Tell whom the request counts for."""
    return {"identifier": request.state.rate_limit.identifier}


@app.get("/page")
def page() -> dict[str, int]:
    """Render a page; the number in it tells whether it was rendered anew."""
    return {"render": next(rendered)}
