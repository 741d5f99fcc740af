"""A small tea shop in FastAPI: an API that is limited, and a catalogue that is cached."""

import hashlib
import time
from itertools import count

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, Field

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.starlette import UpstashMiddleware

app = FastAPI(title="Tea shop")

# Clients are told apart by the address that the connection comes from. Behind a proxy that is
# the proxy's for everybody: say client_ip=1 then.
app.add_middleware(
    UpstashMiddleware,
    default_limit="100/minute",
    rate_limits=[RateLimitRule("/api/generate", "10/10s", methods=["POST"])],
    cache=[CacheRule("/catalogue/{slug}", ttl=60, tags=("product:{slug}",))],
)


class Product(BaseModel):
    """What the shop sells."""

    name: str
    price: float


class Edit(BaseModel):
    """What can be changed about a product."""

    price: float = Field(ge=0)


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

rendered = count(1)


@app.get("/", response_class=PlainTextResponse)
async def index() -> str:
    """Say what there is to try."""
    return "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"


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
    """Change a product's price, and purge every page that shows the product."""
    _product(slug).price = change.price
    await request.state.cache.purge(tags=(f"product:{slug}",))


def _product(slug: str) -> Product:
    if slug not in PRODUCTS:
        raise HTTPException(404)
    return PRODUCTS[slug]
