"""Helpers for arguments: which ones a caller passed, and values computed from them."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")


def passing_to(implementation: Callable[..., Any] | str) -> Callable[[F], F]:
    """Return a decorator for a function that passes on only the arguments that were given.

    The decorated function supplies the signature and documentation, and is never called. It matters
    whether an argument was given, because a rule file or the environment may set the others.

    Args:
        implementation: A function, or the name of a method of the same object.
    """

    def decorate(signature: F) -> F:
        @wraps(signature)
        def function(*args: Any, **given: Any) -> Any:
            if isinstance(implementation, str):
                return getattr(args[0], implementation)(*args[1:], **given)
            return implementation(*args, **given)

        return cast("F", function)

    return decorate


def defaults_of(function: Any) -> dict[str, Any]:
    """Return the defaults of the keyword arguments that ``passing_to`` passes on, by name."""
    return dict(inspect.unwrap(function).__kwdefaults__)


def from_arguments(
    given: Any, function: Any
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], Any]:
    """Return a function that computes a value from the arguments of a call of ``function``.

    ``given`` is the value, or a function whose parameters have names of ``function``'s.

    Raises ConfigurationError if ``given`` has a parameter that ``function`` does not have.
    """
    # A Werkzeug proxy such as flask.request is callable if its object is.
    if not callable(given) or type(given).__module__ == "werkzeug.local":
        return lambda _args, _kwargs: given
    own = inspect.signature(function)
    try:
        wanted = inspect.signature(given).parameters
    except ValueError:  # some functions in C have no signature
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
