"""The shop's pages and its API."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from itertools import count
from typing import TYPE_CHECKING

from django.http import HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.views import View
from django.views.decorators.http import require_GET, require_POST

from catalogue.models import Product

if TYPE_CHECKING:
    from django.http import HttpRequest

    from upstash_middleware.django import RateLimitedRequest

rendered = count(1)


@require_GET
def index(_: HttpRequest) -> HttpResponse:
    """Say what there is to try."""
    text = "Try POST /api/generate, GET /catalogue/tea, and PUT /catalogue/tea {'price': 5.5}.\n"
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


def _price(body: bytes) -> Decimal | None:
    try:
        price = json.loads(body)["price"]
    except (ValueError, LookupError, TypeError):
        return None
    is_number = isinstance(price, int | float) and not isinstance(price, bool)
    return Decimal(str(price)) if is_number and 0 <= price < 1_000_000 else None
