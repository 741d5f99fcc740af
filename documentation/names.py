"""docs/reference/names.md as text: every public name, from its signature and its docstring.

A module's public names are those of its ``__all__``; of one without, the classes and functions
that it defines.
"""

from __future__ import annotations

import enum
import inspect
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from documentation.regions import table
from documentation.settings import documented
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.clock import Duration
from upstash_middleware.core.ratelimit import RateLimitRule

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULES: Final = {
    "upstash_middleware": "What all frameworks share.",
    "upstash_middleware.starlette": "For Starlette, and FastAPI's applications.",
    "upstash_middleware.fastapi": "For FastAPI: limits and caching are dependencies.",
    "upstash_middleware.flask": "For Flask.",
    "upstash_middleware.django": "For Django, sync and async.",
    "upstash_middleware.django.rest_framework": "For Django REST framework.",
    "upstash_middleware.asgi": "For any ASGI application.",
    "upstash_middleware.wsgi": "For any WSGI application.",
    "upstash_middleware.events": "What observers are told of.",
    "upstash_middleware.prometheus": "Events as [Prometheus's metrics](../observability.md).",
    "upstash_middleware.opentelemetry": "Events as [OpenTelemetry's](../observability.md).",
    "upstash_middleware.local": "[Upstash on your own machine](../local.md).",
}
_HEADING: Final = """# Names

`make docs-tables` writes this page from the code, and a test holds it to that. What is not named
here may change without a word.
"""
_IN_SETTINGS: Final[dict[object, str]] = {
    RateLimitRule: "rate-limit-rules",
    CacheRule: "cache-rules",
}
_STARS: Final[dict[object, str]] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
_WIDEST: Final = 88


def document() -> str:
    """Return the whole page."""
    return "".join([_HEADING, *(part for module in MODULES for part in _module(module))])


def public_names(module: str) -> list[str]:
    """Return what a module offers."""
    loaded = import_module(module)
    own = [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return sorted(getattr(loaded, "__all__", own), key=lambda name: (name.lower(), name))


def heading(module: str, name: str) -> str:
    """Return the heading of a name: with its module, where that is not the package itself."""
    return ".".join([*module.split(".")[1:], name])


def _module(module: str) -> Iterator[str]:
    yield f"\n## {module}\n\n{MODULES[module]}\n"
    loaded = import_module(module)
    for name in public_names(module):
        yield f"\n### `{heading(module, name)}`\n\n"
        yield from _described(module, name, getattr(loaded, name))


def _described(module: str, name: str, value: Any) -> Iterator[str]:
    if (same := _defined_before(module, name, value)) is not None:
        yield f"The same as `{heading(same, name)}`.\n"
    elif isinstance(value, type) or callable(value):
        yield f"```text\n{_signature(name, value)}\n```\n\n{_text(value)}\n"
        if isinstance(value, type):
            yield from _members(value)
    elif isinstance(value, str):
        yield f"`{value!r}`\n"
    else:
        yield f"A `{type(value).__name__}`. {_text(value)}\n"


def _defined_before(module: str, name: str, value: Any) -> str | None:
    for other in MODULES:
        if other == module:
            return None
        if name in public_names(other) and value is getattr(import_module(other), name):
            return other
    return None


def _signature(name: str, value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Exception | enum.Enum):
        return f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    signature = inspect.signature(value)
    if isinstance(value, type) and issubclass(value, Struct):  # its annotations are resolved
        written = documented(value)
        parameters = signature.parameters.values()
        signature = signature.replace(
            parameters=[each.replace(annotation=written[each.name][0]) for each in parameters]
        )
    given = list(_parameters(signature))
    returned = "" if isinstance(value, type) else f" -> {_annotation(signature.return_annotation)}"
    one = f"{name}({', '.join(given)}){returned}"
    if len(one) <= _WIDEST:
        return one
    return f"{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){returned}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    marked = False
    for each in signature.parameters.values():
        if each.name in {"self", "cls"}:
            continue
        if each.kind is each.KEYWORD_ONLY and not marked:
            yield "*"
        marked = marked or each.kind in (each.KEYWORD_ONLY, each.VAR_POSITIONAL)
        stars = _STARS.get(each.kind, "")
        typed = "" if each.annotation is each.empty else f": {_annotation(each.annotation)}"
        yield stars + each.name + typed + _default(each)


def _default(each: inspect.Parameter) -> str:
    if each.default is each.empty:
        return ""
    if callable(each.default):
        return f" = {each.default.__name__}"
    said = repr(each.default)
    # What a factory makes has no text of its own.
    return f" = {'…' if said.startswith('<') else said}"


def _annotation(annotation: Any) -> str:
    if annotation is None:
        return "None"
    if annotation == Duration:
        return "Duration"
    if isinstance(annotation, type):
        return annotation.__name__
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", str(annotation))


def _members(value: type[Any]) -> Iterator[str]:
    if value in _IN_SETTINGS:
        table_of = f"../settings.md#{_IN_SETTINGS[value]}"
        yield f"\nIts fields are in [the table of settings]({table_of}).\n"
        return
    if value.__name__.endswith("Middleware"):
        yield "\nIts arguments are [the settings](../settings.md).\n"
        return
    if issubclass(value, enum.Enum):
        yield "\n" + ", ".join(f"`{member.value}`" for member in value) + "\n"
    elif issubclass(value, Struct):
        yield from _fields(value)
    for name, method in _methods(value):
        yield f"\n```text\n{_signature(f'.{name}', method)}\n```\n\n{_text(method)}\n"


def _fields(value: type[Any]) -> Iterator[str]:
    meanings = documented(value)
    names = [name for name in value.__struct_fields__ if meanings.get(name, ("", ""))[1]]
    rows = [
        (f"`{name}`", f"`{meanings[name][0]}`".replace("|", "\\|"), meanings[name][1])
        for name in names
        if name in meanings
    ]
    if any(meaning for *_, meaning in rows):
        yield "\n" + table(("field", "type", "meaning"), rows) + "\n"


def _methods(value: type[Any]) -> Iterator[tuple[str, Any]]:
    for name, member in inspect.getmembers(value):
        ours = str(getattr(member, "__module__", "")).startswith("upstash_middleware")
        if not name.startswith("_") and ours and callable(member) and member.__doc__:
            yield name, member


def _text(value: Any) -> str:
    return (inspect.getdoc(value) or "").replace("``", "`")
