"""A Starlette application for uvicorn or granian with several workers, behind one proxy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from upstash_middleware import CacheRule
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from starlette.requests import Request


async def limited(request: Request) -> JSONResponse:
    """Tell whom the request counts for, and which process has answered."""
    decision = request.state.rate_limit
    return JSONResponse({"identifier": decision.identifier, "process": os.getpid()})


async def page(_: Request) -> PlainTextResponse:
    """Render a page, and tell where."""
    return PlainTextResponse(f"rendered in {os.getpid()}")


app = Starlette(routes=[Route("/limited", limited), Route("/page", page)])
app.add_middleware(
    UpstashMiddleware,
    client_ip=1,
    default_limit="log 30/hour",
    cache=[CacheRule("/page", ttl=60)],
)
