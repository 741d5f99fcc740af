"""A shop under the middleware, visited a little: so that the console has something to show.

The keys are those that the middleware itself writes, so what the console makes of them holds its
own reading of the formats against the writer.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from upstash_middleware import (
    GCRA,
    CacheRule,
    Concurrency,
    FixedWindow,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    SyncData,
    TokenBucket,
)
from upstash_middleware.starlette import UpstashMiddleware, session

if TYPE_CHECKING:
    from collections.abc import Generator

    from starlette.requests import Request
    from starlette.responses import Response

    from upstash_middleware.core.ratelimit.algorithms import Limit
    from upstash_middleware.local import LocalUpstash

PAGE = """<!doctype html>
<html lang="en">
<title>{name}</title>
<h1>{name}</h1>
<p>A good cup of {name}, and the story of how it came to us over the mountains.</p>
</html>
"""
LIMITS: dict[str, Limit | list[Limit]] = {
    "/api/fixed": FixedWindow(100, 60),
    "/api/sliding": SlidingWindow(1000, 3600),
    "/api/bucket": TokenBucket(20, 5, 10),
    "/api/gcra": GCRA(30, 60),
    "/api/log": SlidingLog(50, 60),
    "/api/slots": [Concurrency(5), FixedWindow(500, 86_400)],
}


def product(request: Request) -> Response:
    """A page that is cached."""
    return HTMLResponse(PAGE.format(name=request.path_params["name"]) * 6)


def prices(request: Request) -> Response:
    """A response with variants."""
    return JSONResponse({"tea": 4.0, "coffee": 6.5}, headers={"Vary": "Accept-Language"})


def api(_: Request) -> Response:
    """What is limited."""
    return PlainTextResponse("done")


def log_in(request: Request) -> Response:
    """Bind the session to a customer."""
    request.session["cart"] = [{"name": "tea", "price": Decimal("4.00")}]
    request.session["since"] = dt.date(1865, 7, 4)
    request.session["language"] = "en"
    session(request).bind("ada")
    return PlainTextResponse("welcome")


def shop() -> Starlette:
    """The application."""
    app = Starlette(
        routes=[
            Route("/products/{name}", product),
            Route("/prices", prices),
            Route("/api/{name}", api, methods=["POST"]),
            Route("/login", log_in, methods=["POST"]),
        ]
    )
    app.add_middleware(
        UpstashMiddleware,
        prefix="shop",
        secret="a long random text of this shop",
        sessions=True,
        default_limit="1000/minute",
        rate_limits=[RateLimitRule(path, limit) for path, limit in LIMITS.items()],
        cache=[
            CacheRule(
                "/products/{name}", ttl=300, stale_while_revalidate=120, tags=("product:{name}",)
            ),
            CacheRule("/prices", ttl=60),
        ],
    )
    return app


def visits(upstash: LocalUpstash, rounds: int = 1) -> Generator[None, None, None]:
    """Visit the shop; pauses after each round."""
    with TestClient(shop(), base_url="http://shop.example") as client:
        client.post("/login").raise_for_status()
        client.cookies.clear()  # the other requests are of visitors who share pages
        for turn in range(rounds):
            for name in ("tea", "coffee", "cocoa", "tea"):
                client.get(f"/products/{name}").raise_for_status()
            for language in ("en", "de"):
                client.get("/prices", headers={"Accept-Language": language})
            for path in LIMITS:
                for _ in range(1 + turn % 3):
                    client.post(path)
            yield


def values(upstash: LocalUpstash) -> None:
    """Some values of the application itself."""
    with SyncData(redis=upstash, prefix="shop") as data:
        data.set("rates", {"EUR": Decimal("1.08"), "on": dt.date(2026, 1, 31)}, ttl=3600)
        data.set("basket:7", ["tea", "cocoa"], ttl="2 days", tags=("basket:7",))
        data.incr("orders", ttl="30 days")
