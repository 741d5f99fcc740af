"""A small tea shop in Flask: an API with a limit, a cached catalogue, and logins."""

from __future__ import annotations

import os
import time
from itertools import count

from flask import Flask, Response, abort, g, render_template_string, request

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.flask import Sessions, UpstashMiddleware, data, purge, session

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "not secret: an example")

# By default, clients are identified by the address of the connection. Behind a proxy, this is the
# proxy's address for all clients: set client_ip=1, or put Werkzeug's ProxyFix outside.
UpstashMiddleware(
    app,
    default_limit="100/minute",
    rate_limits=[
        RateLimitRule("/api/generate", "10/10s", methods=["POST"]),
        RateLimitRule("/", "1000/minute lease 10s"),
    ],
    cache=[CacheRule("/catalogue/{slug}", ttl=60, tags=("product:{slug}",))],
)
Sessions(app)

PRODUCTS = {
    "tea": {"name": "Tea", "price": 4.0},
    "coffee": {"name": "Coffee", "price": 6.5},
    "cocoa": {"name": "Cocoa", "price": 5.0},
}

PAGE = """<!doctype html>
<html lang="en">
<title>{{ product.name }}</title>
<h1>{{ product.name }}</h1>
<p>{{ "%.2f" | format(product.price) }} a packet</p>
<p>Rendered at {{ rendered_at }}, render number {{ number }}.</p>
</html>
"""

rendered, calculated = count(1), count(1)


@app.get("/")
def index() -> Response:
    """Say what there is to try."""
    text = (
        "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"
        "GET /cheapest is calculated once until a price changes.\n"
        "Or POST /login {'name': 'ada'}, GET /account, and POST /logout.\n"
    )
    return Response(text, mimetype="text/plain")


@app.post("/api/generate")
def generate() -> dict[str, str]:
    """Pretend to be the expensive endpoint that the limit is there for."""
    left = "an unknown number" if g.rate_limit.remaining is None else g.rate_limit.remaining
    return {"text": f"A haiku about tea. You may ask {left} more times for now."}


@app.get("/catalogue/<slug>")
def show(slug: str) -> Response:
    """Render a product's page; the number on it tells whether it was rendered anew."""
    product = PRODUCTS.get(slug) or abort(404)
    at = time.strftime("%H:%M:%S")
    page = render_template_string(PAGE, product=product, rendered_at=at, number=next(rendered))
    response = Response(page)
    response.add_etag()
    return response


@app.put("/catalogue/<slug>")
def edit(slug: str) -> tuple[str, int]:
    """Change a product's price, and purge what was made of it."""
    product = PRODUCTS.get(slug) or abort(404)
    price = (request.get_json() or {}).get("price")
    if not isinstance(price, int | float) or price < 0:
        abort(400, "give a price, as in {'price': 5.5}")
    product["price"] = price
    purge(tags=(f"product:{slug}", "prices"))
    return "", 204


@app.get("/cheapest")
@data.memoize("1 minute", tags=["prices"])
def cheapest() -> dict[str, object]:
    """Say what is cheapest; of all processes one calculates it, once until a price changes."""
    product = min(PRODUCTS.values(), key=lambda each: float(str(each["price"])))
    return {**product, "calculation": next(calculated)}


@app.post("/login")
def log_in() -> tuple[str, int]:
    """Log a customer in; a real shop would ask for a password too."""
    name = (request.get_json() or {}).get("name")
    if not isinstance(name, str) or not name:
        abort(400, "give a name, as in {'name': 'ada'}")
    session["name"] = name
    session.bind(name)
    return "", 204


@app.get("/account")
def account() -> dict[str, str]:
    """Show a customer's account."""
    if not session.available:
        abort(503, "Upstash cannot be reached; you stay logged in")
    if "name" not in session:
        abort(401, "log in first: POST /login {'name': 'ada'}")
    return {"name": session["name"]}


@app.post("/logout")
def log_out() -> tuple[str, int]:
    """Log the customer out; a copy of the cookie is worth nothing from now on."""
    session.clear()
    return "", 204
