"""Which view a request will be routed to, asked before Django routes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.urls import Resolver404, get_resolver

from upstash_middleware.handlers import any_exempt, is_exempt

if TYPE_CHECKING:
    from upstash_middleware.messages import Request


def is_exempt_view(view: object) -> bool:
    """Whether a view, or the class that it was made of, is marked by ``exempt``."""
    return is_exempt(view) or is_exempt(getattr(view, "view_class", None))


def is_exempt_request(request: Request) -> bool:
    """Whether the view that a request goes to is marked by ``exempt``.

    By the URL configuration that is known so far: one that middleware further in sets as
    ``request.urlconf`` is not. Costs next to nothing in a project where no view is marked.
    """
    resolver = get_resolver(getattr(request.native, "urlconf", None))
    _ = resolver.url_patterns  # views are marked when this imports them, once
    if not any_exempt():
        return False
    try:
        found = resolver.resolve(request.native.path_info)
    except Resolver404:
        return False
    return is_exempt_view(found.func)
