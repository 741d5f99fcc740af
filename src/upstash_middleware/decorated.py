"""Which limits stand in front of a handler: decorators, dependencies, ``before_request``.

They are found where a decorated function keeps them, in its closure, so that nothing has to be
called or noted while an application is served.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from upstash_middleware.handler_limits import HandlerLimit, Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def limits_before(handler: Any, others: Iterable[Any] = ()) -> tuple[str, ...]:
    """Return the names under which limits in front of a handler count.

    ``others`` are what the framework calls before it: dependencies, ``before_request`` functions.
    """
    if handler is None:
        return ()
    of_class = (
        getattr(handler, name)
        for name in ("get", "post", "put", "patch", "delete")
        if inspect.isclass(handler) and hasattr(handler, name)
    )
    limits = [limit for function in (handler, *of_class, *others) for limit in _limits_in(function)]
    place = Place(inspect.unwrap(handler))
    return tuple(dict.fromkeys(limit.name_at(place) for limit in limits))


def dependencies(dependant: Any) -> Iterator[Any]:
    """Yield the functions that a FastAPI route depends on, directly or not."""
    for each in getattr(dependant, "dependencies", ()):
        yield each.call
        yield from dependencies(each)


def _limits_in(function: Any) -> Iterator[HandlerLimit]:
    while function is not None:
        if isinstance(function, HandlerLimit):
            yield function
        for cell in getattr(function, "__closure__", None) or ():
            if isinstance(held := _contents(cell), HandlerLimit):
                yield held
        function = getattr(function, "__wrapped__", None)


def _contents(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
