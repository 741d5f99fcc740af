"""How decorators find values, such as identifiers and keys, in the arguments of a call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def from_arguments(
    given: Any, function: Any
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any]:
    """Return what finds a value for a call of a function; ``given`` is the value, or finds it.

    Raises ConfigurationError where it has a parameter that the function does not have.
    """
    # A proxy of Werkzeug's, as flask.request is, can be called where what it stands for can be.
    if not callable(given) or type(given).__module__ == "werkzeug.local":
        return lambda _args, _kwargs: given
    own = inspect.signature(function)
    try:
        wanted = inspect.signature(given).parameters
    except ValueError:  # of some that are written in C
        return lambda args, kwargs: given(*args, **kwargs)
    if any(each.kind in {each.VAR_POSITIONAL, each.VAR_KEYWORD} for each in wanted.values()):
        return lambda args, kwargs: given(*args, **kwargs)
    for name, each in wanted.items():
        if name not in own.parameters and each.default is each.empty:
            raise ConfigurationError(
                f"{given!r} has the parameter {name!r}, which "
                f"{getattr(function, '__qualname__', function)}{own} does not have"
            )
    by_place = [each for each in wanted.values() if each.kind is each.POSITIONAL_ONLY]
    by_name = [name for name in wanted if name in own.parameters and wanted[name] not in by_place]

    def find(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        bound = own.bind(*args, **kwargs)
        bound.apply_defaults()
        placed = [bound.arguments.get(each.name, each.default) for each in by_place]
        return given(*placed, **{name: bound.arguments[name] for name in by_name})

    return find
