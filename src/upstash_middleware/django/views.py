"""A view as Django calls it: whether it is async, and where its request is; no decisions here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.handler_limits import Place
from upstash_middleware.handlers import owner_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.django.middleware import RateLimitedRequest


def is_async_view(view: Callable[..., Any]) -> bool:
    """Whether calling a view gives something to await; ``dispatch`` of an async class does."""
    if iscoroutinefunction(view):
        return True
    method = view.func if isinstance(view, functools.partial) else view
    return bool(getattr(getattr(method, "__self__", None), "view_is_async", False))


def called(view: object, args: tuple[Any, ...]) -> tuple[RateLimitedRequest, Place]:
    """Return the request that a view, or a class's method, was called with, and which that is.

    A request of Django REST framework's has Django's within it. Raises ConfigurationError for what
    was not called as a view is.
    """
    for index, given in enumerate(args[:2]):
        arg = getattr(given, "_request", given)
        if isinstance(arg, HttpRequest):
            owner = owner_of(view, args) if index else None
            return cast("RateLimitedRequest", arg), Place(view, owner)
    raise ConfigurationError(f"{view!r} was not called with a request, as Django calls a view")
