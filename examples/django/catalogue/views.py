"""The shop's pages and its API."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING, cast

from django.http import HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views import View
from django.views.decorators.http import require_GET, require_POST

from catalogue.models import Product
from upstash_middleware.django import data

if TYPE_CHECKING:
    from django.http import HttpRequest

    from upstash_middleware.django import RateLimitedRequest
    from upstash_middleware.django.sessions import SessionStore

rendered, calculated = count(1), count(1)


@require_GET
def index(_: HttpRequest) -> HttpResponse:
    """Say what there is to try."""
    text = (
        "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"
        "GET /cheapest is calculated once until a price changes.\n"
        "Or POST /login {'name': 'ada'}, GET /account, and POST /logout.\n"
    )
    return HttpResponse(text, content_type="text/plain")


@require_POST
def generate(request: RateLimitedRequest) -> JsonResponse:
    """Pretend to be the expensive endpoint that the limit is there for."""
    remaining = request.rate_limit.remaining
    left = "an unknown number" if remaining is None else remaining
    return JsonResponse({"text": f"A haiku about tea. You may ask {left} more times for now."})


class ProductView(View):
    """A product's page."""

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        """Render it; the number on it tells whether it was rendered anew."""
        product = get_object_or_404(Product, slug=slug)
        seen = {"rendered_at": time.strftime("%H:%M:%S"), "number": next(rendered)}
        return render(request, "catalogue/product.html", {"product": product, **seen})

    def put(self, request: HttpRequest, slug: str) -> HttpResponse:
        """Change the price; saving the product purges every page that shows it."""
        product = get_object_or_404(Product, slug=slug)
        price = _price(request.body)
        if price is None:
            return HttpResponseBadRequest("give a price, as in {'price': 5.5}")
        product.price = price
        product.save()
        return HttpResponse(status=204)


@require_GET
def cheapest(_: HttpRequest) -> JsonResponse:
    """Say what is cheapest."""
    return JsonResponse(_cheapest())


@data.memoize("1 minute", tags=["prices"])
def _cheapest() -> dict[str, object]:
    """Of all processes one asks the database, once until a price changes."""
    product = Product.objects.order_by("price")[0]
    return {"name": product.name, "price": product.price, "calculation": next(calculated)}


@require_POST
def log_in(request: HttpRequest) -> HttpResponse:
    """Log a customer in; a real shop would use django.contrib.auth."""
    try:
        name = json.loads(request.body)["name"]
    except (ValueError, LookupError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        return HttpResponseBadRequest("give a name, as in {'name': 'ada'}")
    session = cast("SessionStore", request.session)
    session["name"] = name
    session.bind(name)
    return HttpResponse(status=204)


@require_GET
def account(request: HttpRequest) -> HttpResponse:
    """Show a customer's account."""
    session = cast("SessionStore", request.session)
    name = session.get("name")
    if not session.available:
        return HttpResponse("Upstash cannot be reached; you stay logged in", status=503)
    if name is None:
        return HttpResponse("log in first: POST /login {'name': 'ada'}", status=401)
    return JsonResponse({"name": name})


@require_POST
def log_out(request: HttpRequest) -> HttpResponse:
    """Log the customer out; a copy of the cookie is worth nothing from now on."""
    request.session.flush()
    return HttpResponse(status=204)


def _price(body: bytes) -> Decimal | None:
    try:
        price = json.loads(body)["price"]
    except (ValueError, LookupError, TypeError):
        return None
    is_number = isinstance(price, int | float) and not isinstance(price, bool)
    return Decimal(str(price)) if is_number and 0 <= price < 1_000_000 else None
