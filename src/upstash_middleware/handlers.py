"""An application's handlers: what one is called, and whether it is exempt; no framework here."""

from __future__ import annotations

import functools
import hashlib
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

H = TypeVar("H", bound="Callable[..., Any]")

REFRESH = "upstash_middleware.refresh"
"""Marks, in a scope or an environ, a request that the cache makes in nobody's name."""
LONGEST_NAME = 64
_EXEMPT = "_upstash_middleware_exempt"
_marked: set[str] = set()
"""The names of the handlers that are marked, so that who asks knows when there is none."""


def exempt(handler: H) -> H:
    """Mark a handler as exempt: no limit of this package counts a request for it.

    That holds for limits that stand before the handler and, where the framework's own middleware
    classes are used, for theirs, which then look the request's route up before they count.
    """
    setattr(handler, _EXEMPT, True)
    _marked.add(handler_name(handler))
    return handler


def any_exempt() -> bool:
    """Whether any handler of this process is marked, so that routes need looking up at all."""
    return bool(_marked)


def is_exempt(handler: object) -> bool:
    """Whether a handler, or what it wraps, is marked; what wraps it may lack the mark."""
    while handler is not None:
        if getattr(handler, _EXEMPT, False):
            return True
        handler = getattr(handler, "__wrapped__", None)
    return False


def handler_name(handler: object, owner: type | None = None) -> str:
    """Return the name under which a limit in front of a handler counts: ``shop.views.login``.

    ``owner`` is the class on whose object a method is called; an inherited one counts for each
    class by itself. Printable ASCII without colons, 64 characters at most.
    """
    handler, owner = _without_partial(handler, owner)
    name = getattr(handler, "__name__", type(handler).__name__)
    if owner is not None:
        text = f"{owner.__module__}.{owner.__qualname__}.{name}"
    else:
        qualified = getattr(handler, "__qualname__", name)
        # A framework that makes functions of classes renames them, in `__name__` alone.
        own = qualified if qualified.rpartition(".")[2] == name else name
        text = f"{getattr(handler, '__module__', '')}.{own}"
    return _fitting(text)


def identity(handler: object, owner: type | None = None) -> object:
    """Return what tells one handler from another of the same name."""
    handler, owner = _without_partial(handler, owner)
    import inspect  # noqa: PLC0415 - slow to import, and not asked for by each request

    function = inspect.unwrap(handler) if callable(handler) else handler
    return function if owner is None else (owner, function)


def owner_of(handler: object, args: tuple[Any, ...]) -> type | None:
    """Return the class on whose object a method is called, None for a plain function."""
    name = getattr(handler, "__name__", "")
    if args and name and hasattr(type(args[0]), name):
        return type(args[0])
    return None


def _without_partial(handler: object, owner: type | None) -> tuple[object, type | None]:
    """See through what Django's ``method_decorator`` makes for each request: a bound method."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if isinstance(handler, MethodType):
        return handler.__func__, owner or type(handler.__self__)
    return handler, owner


def _fitting(text: str) -> str:
    plain = text.encode("unicode_escape").decode("ascii").replace(":", "_")
    if len(plain) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    return f"{plain[-(LONGEST_NAME - 13) :]} {digest}"
