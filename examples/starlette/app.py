"""A small tea shop in Starlette: an API that is limited, and a catalogue that is cached."""

from __future__ import annotations

import hashlib
import time
from itertools import count
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from starlette.requests import Request

PRODUCTS = {
    "tea": {"name": "Tea", "price": 4.0},
    "coffee": {"name": "Coffee", "price": 6.5},
    "cocoa": {"name": "Cocoa", "price": 5.0},
}

PAGE = """<!doctype html>
<html lang="en">
<title>{name}</title>
<h1>{name}</h1>
<p>{price:.2f} a packet</p>
<p>Rendered at {rendered_at}, render number {number}.</p>
</html>
"""

rendered = count(1)


async def index(_: Request) -> Response:
    """Say what there is to try."""
    return PlainTextResponse(
        "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"
    )


async def generate(request: Request) -> Response:
    """Pretend to be the expensive endpoint that the limit is there for."""
    remaining = request.state.rate_limit.remaining
    left = "an unknown number" if remaining is None else remaining
    return JSONResponse({"text": f"A haiku about tea. You may ask {left} more times for now."})


async def show(request: Request) -> Response:
    """Render a product's page; the number on it tells whether it was rendered anew."""
    product = _product(request)
    at = time.strftime("%H:%M:%S")
    page = PAGE.format(**product, rendered_at=at, number=next(rendered))
    etag = hashlib.sha256(page.encode()).hexdigest()[:16]
    return HTMLResponse(page, headers={"ETag": f'"{etag}"'})


async def edit(request: Request) -> Response:
    """Change a product's price, and purge every page that shows the product."""
    product = _product(request)
    price = (await request.json()).get("price")
    if not isinstance(price, int | float) or price < 0:
        raise HTTPException(400, "give a price, as in {'price': 5.5}")
    product["price"] = price
    await request.state.cache.purge(tags=(f"product:{request.path_params['slug']}",))
    return Response(status_code=204)


def _product(request: Request) -> dict[str, object]:
    try:
        return PRODUCTS[request.path_params["slug"]]
    except KeyError:
        raise HTTPException(404) from None


app = Starlette(
    routes=[
        Route("/", index),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/catalogue/{slug}", show),
        Route("/catalogue/{slug}", edit, methods=["PUT"]),
    ],
    middleware=[
        # Clients are told apart by the address that the connection comes from. Behind a proxy
        # that is the proxy's for everybody: say client_ip=1 then.
        Middleware(
            UpstashMiddleware,
            default_limit="100/minute",
            rate_limits=[RateLimitRule("/api/generate", "10/10s", methods=["POST"])],
            cache=[CacheRule("/catalogue/{slug}", ttl=60, tags=("product:{slug}",))],
        )
    ],
)
