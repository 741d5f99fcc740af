"""A small tea shop in Starlette: an API with a limit, a cached catalogue, and logins."""

from __future__ import annotations

import hashlib
import os
import time
from itertools import count
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.starlette import UpstashMiddleware, session

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

rendered, calculated = count(1), count(1)


async def index(_: Request) -> Response:
    """Say what there is to try."""
    return PlainTextResponse(
        "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"
        "GET /cheapest is calculated once until a price changes.\n"
        "Or POST /login {'name': 'ada'}, GET /account, and POST /logout.\n"
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
    """Change a product's price, and purge what was made of it."""
    product = _product(request)
    price = (await request.json()).get("price")
    if not isinstance(price, int | float) or price < 0:
        raise HTTPException(400, "give a price, as in {'price': 5.5}")
    product["price"] = price
    await request.state.cache.purge(tags=(f"product:{request.path_params['slug']}", "prices"))
    return Response(status_code=204)


async def cheapest(request: Request) -> Response:
    """Say what is cheapest; of all processes one calculates it, once until a price changes."""

    async def calculate() -> dict[str, object]:
        product = min(PRODUCTS.values(), key=lambda each: float(str(each["price"])))
        return {**product, "calculation": next(calculated)}

    data = request.state.data
    return JSONResponse(await data.get_or_set("cheapest", 60, calculate, tags=["prices"]))


async def log_in(request: Request) -> Response:
    """Log a customer in; a real shop would ask for a password too."""
    name = (await request.json()).get("name")
    if not isinstance(name, str) or not name:
        raise HTTPException(400, "give a name, as in {'name': 'ada'}")
    request.session["name"] = name
    session(request).bind(name)
    return Response(status_code=204)


async def account(request: Request) -> Response:
    """Show a customer's account."""
    if not session(request).available:
        raise HTTPException(503, "Upstash cannot be reached; you stay logged in")
    if "name" not in request.session:
        raise HTTPException(401, "log in first: POST /login {'name': 'ada'}")
    return JSONResponse({"name": request.session["name"]})


async def log_out(request: Request) -> Response:
    """Log the customer out; a copy of the cookie is worth nothing from now on."""
    request.session.clear()
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
        Route("/cheapest", cheapest),
        Route("/login", log_in, methods=["POST"]),
        Route("/account", account),
        Route("/logout", log_out, methods=["POST"]),
    ],
    middleware=[
        # By default, clients are identified by the address of the connection. Behind a proxy, this
        # is the proxy's address for all clients: set client_ip=1.
        Middleware(
            UpstashMiddleware,
            default_limit="100/minute",
            rate_limits=[
                RateLimitRule("/api/generate", "10/10s", methods=["POST"]),
                RateLimitRule("/", "1000/minute lease 10s"),
            ],
            cache=[CacheRule("/catalogue/{slug}", ttl=60, tags=("product:{slug}",))],
            sessions={"secret_key": os.environ.get("SECRET_KEY", "not secret: an example")},
        )
    ],
)
