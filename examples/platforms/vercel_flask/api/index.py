"""A Flask application as a Vercel function; `vercel.json` sends every path to it."""

from __future__ import annotations

from itertools import count
from typing import Any

from flask import Flask, g

from upstash_middleware import CacheRule
from upstash_middleware.flask import UpstashMiddleware

app = Flask(__name__)
UpstashMiddleware(  # reads UPSTASH_REDIS_REST_* or KV_REST_API_*, which Vercel's store sets
    app,
    default_limit="10/minute",  # by the address that Vercel writes, without a setting
    cache=[CacheRule("/page", ttl=60)],
)

rendered = count(1)


@app.get("/limited")
def limited() -> dict[str, Any]:
    """Tell whom the request counts for."""
    return {"identifier": g.rate_limit.identifier}


@app.get("/page")
def page() -> dict[str, int]:
    """Render a page; the number in it tells whether it was rendered anew."""
    return {"render": next(rendered)}
