"""A Starlette application as an AWS Lambda function, behind API Gateway or a function URL."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING

from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from upstash_middleware import CacheRule
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from starlette.requests import Request

rendered = count(1)


async def limited(request: Request) -> JSONResponse:
    """Tell whom the request counts for, and how many more may come."""
    decision = request.state.rate_limit
    return JSONResponse({"identifier": decision.identifier, "remaining": decision.remaining})


async def generate(request: Request) -> PlainTextResponse:
    """Take as many units as the work turned out to be worth."""
    request.state.rate_limit.charge(4)
    return PlainTextResponse("generated")


async def page(_: Request) -> PlainTextResponse:
    """Render a page; the number on it tells whether it was rendered anew."""
    return PlainTextResponse(f"render number {next(rendered)}")


app = Starlette(
    routes=[
        Route("/limited", limited),
        Route("/generate", generate, methods=["POST"]),
        Route("/page", page),
    ]
)

# On Lambda, the client's address is read from the event, without a setting. The event of
# a load balancer has no address: the load balancer writes it into X-Forwarded-For.
client_ip = "aws" if os.environ.get("BEHIND") == "alb" else None

app.add_middleware(
    UpstashMiddleware,
    client_ip=client_ip,
    default_limit="10/minute",
    cache=[CacheRule("/page", ttl=60, stale_while_revalidate=60)],
)

# With a lifespan, Mangum would start and end the application for each event, and each event would
# open a connection to Upstash. Media types that are not listed as text are encoded in base64, which
# a REST API sends to the client unchanged.
handler = Mangum(
    app,
    lifespan="off",
    text_mime_types=[*DEFAULT_TEXT_MIME_TYPES, "application/problem+json"],
)
