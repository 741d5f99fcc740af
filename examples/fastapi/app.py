"""A small tea shop in FastAPI: an API with a limit, a cached catalogue, and logins."""

import hashlib
import os
import time
from itertools import count
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, Field

from upstash_middleware import CacheRule, Data, RateLimitRule, Session
from upstash_middleware.fastapi import UpstashMiddleware, data, session

app = FastAPI(title="Tea shop")

# By default, clients are identified by the address of the connection. Behind a proxy, this is the
# proxy's address for all clients: set client_ip=1.
app.add_middleware(
    UpstashMiddleware,
    default_limit="100/minute",
    rate_limits=[
        RateLimitRule("/api/generate", "10/10s", methods=["POST"]),
        RateLimitRule("/", "1000/minute lease 10s"),
    ],
    cache=[CacheRule("/catalogue/{slug}", ttl=60, tags=("product:{slug}",))],
    sessions={"secret_key": os.environ.get("SECRET_KEY", "not secret: an example")},
)

CurrentSession = Annotated[Session, Depends(session)]


class Product(BaseModel):
    """What the shop sells."""

    name: str
    price: float


class Edit(BaseModel):
    """What can be changed about a product."""

    price: float = Field(ge=0)


class Login(BaseModel):
    """Who logs in; a real shop would ask for a password too."""

    name: str = Field(min_length=1)


PRODUCTS = {
    "tea": Product(name="Tea", price=4.0),
    "coffee": Product(name="Coffee", price=6.5),
    "cocoa": Product(name="Cocoa", price=5.0),
}

PAGE = """<!doctype html>
<html lang="en">
<title>{product.name}</title>
<h1>{product.name}</h1>
<p>{product.price:.2f} a packet</p>
<p>Rendered at {rendered_at}, render number {number}.</p>
</html>
"""

rendered, calculated = count(1), count(1)


@app.get("/", response_class=PlainTextResponse)
async def index() -> str:
    """Say what there is to try."""
    return (
        "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"
        "GET /cheapest is calculated once until a price changes.\n"
        "Or POST /login {'name': 'ada'}, GET /account, and POST /logout.\n"
    )


@app.post("/api/generate")
async def generate(request: Request) -> dict[str, str]:
    """Pretend to be the expensive endpoint that the limit is there for."""
    remaining = request.state.rate_limit.remaining
    left = "an unknown number" if remaining is None else remaining
    return {"text": f"A haiku about tea. You may ask {left} more times for now."}


@app.get("/catalogue/{slug}")
async def show(slug: str) -> HTMLResponse:
    """Render a product's page; the number on it tells whether it was rendered anew."""
    at = time.strftime("%H:%M:%S")
    page = PAGE.format(product=_product(slug), rendered_at=at, number=next(rendered))
    etag = hashlib.sha256(page.encode()).hexdigest()[:16]
    return HTMLResponse(page, headers={"ETag": f'"{etag}"'})


@app.put("/catalogue/{slug}", status_code=204)
async def edit(slug: str, change: Edit, request: Request) -> None:
    """Change a product's price, and purge what was made of it."""
    _product(slug).price = change.price
    await request.state.cache.purge(tags=(f"product:{slug}", "prices"))


@app.get("/cheapest")
async def cheapest(data: Annotated[Data, Depends(data)]) -> dict[str, Product | int]:
    """Say what is cheapest; of all processes one calculates it, once until a price changes."""

    async def calculate() -> dict[str, Product | int]:
        product = min(PRODUCTS.values(), key=lambda each: each.price)
        return {"product": product, "calculation": next(calculated)}

    kind = dict[str, Product | int]
    return await data.get_or_set("cheapest", 60, calculate, tags=["prices"], type=kind)


@app.post("/login", status_code=204)
async def log_in(login: Login, session: CurrentSession) -> None:
    """Log a customer in, with a new session id."""
    session["name"] = login.name
    session.bind(login.name)


@app.get("/account")
async def account(session: CurrentSession) -> dict[str, str]:
    """Show a customer's account."""
    if not session.available:
        raise HTTPException(503, "Upstash cannot be reached; you stay logged in")
    if "name" not in session:
        raise HTTPException(401, "log in first: POST /login {'name': 'ada'}")
    return {"name": session["name"]}


@app.post("/logout", status_code=204)
async def log_out(session: CurrentSession) -> None:
    """Log the customer out; a copy of the cookie is worth nothing from now on."""
    session.clear()


def _product(slug: str) -> Product:
    if slug not in PRODUCTS:
        raise HTTPException(404)
    return PRODUCTS[slug]
