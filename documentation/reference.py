"""docs/settings.md and docs/reference/names.md as text, made from the code.

Settings are described by their annotations, defaults and docstrings; public names by their
signatures and docstrings. A module's public names are those of its ``__all__``; of one without, the
classes and functions that it defines.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
import textwrap
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from documentation.site import table
from upstash_middleware import settings
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.clock import Duration
from upstash_middleware.core.ratelimit import RateLimitRule

if TYPE_CHECKING:
    from collections.abc import Iterator

# The settings.

_SETTINGS: Final = """# Settings

`make docs-tables` writes this page from the code, and a test holds it to that.

All settings are keyword arguments of `UpstashMiddleware`, `RateLimitMiddleware` and
`CacheMiddleware`, and keys of the mapping `UPSTASH_MIDDLEWARE` in Django's settings and in Flask's
`app.config`. A `Duration` is a number of seconds, a `timedelta`, or text such as `"60s"`,
`"5 minutes"` or `"1.5h"`. What is unknown or wrong is an error when the application is made,
which names the setting, the value it got, and what would be right.

{settings}

## Rate-limit rules

Each of `rate_limits` is a `RateLimitRule`, or a mapping with these as keys; `default_limit` takes
one too, or only its limits. [Leases](leases.md) have fields of their own, `seconds`, `share` and
`from_rate`.

{rate_limits}

## Cache rules

Each of `cache` is a `CacheRule`, or a mapping with these as keys. The first that covers a request
counts.

{cache}
"""
_DEFAULTS_IN_WORDS: Final = {"by": "`client_ip()`", "breaker_slow": "half of `deadline`"}


def settings_page() -> str:
    """Return docs/settings.md."""
    return _SETTINGS.format(
        settings=_settings(settings.Arguments, settings.DEFAULTS),
        rate_limits=_settings(RateLimitRule, _defaults(RateLimitRule)),
        cache=_settings(CacheRule, _defaults(CacheRule)),
    )


def _defaults(rule: type[Struct]) -> dict[str, Any]:
    return {each.name: each.default for each in fields(rule) if each.name != "setting"}


def _settings(of: type[Any], defaults: dict[str, Any]) -> str:
    rows = []
    for name, (annotation, meaning) in _documented(of).items():
        if name in defaults:
            default = "required" if defaults[name] is NODEFAULT else f"`{defaults[name]!r}`"
            default = _DEFAULTS_IN_WORDS.get(name, default)
            row = (f"`{name}`", f"`{annotation}`", default, meaning)
            rows.append(tuple(cell.replace("|", "\\|") for cell in row))
    return table(("setting", "type", "default", "meaning"), rows)


def _documented(of: type[Any]) -> dict[str, tuple[str, str]]:
    """Return each annotated name of a class with its annotation and the text that follows it."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    found = {}
    body = made.body if isinstance(made, ast.ClassDef) else []
    for line, below in zip(body, [*body[1:], None], strict=False):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            text = str(below.value.value) if is_text else ""  # type: ignore[union-attr]
            meaning = " ".join(text.split()).replace("``", "`")
            found[line.target.id] = (ast.unparse(line.annotation), meaning)
    return found


# The names.

MODULES: Final = {
    "upstash_middleware": "What all frameworks share.",
    "upstash_middleware.starlette": "For Starlette, and FastAPI's applications.",
    "upstash_middleware.fastapi": "For FastAPI: limits and caching are dependencies.",
    "upstash_middleware.flask": "For Flask.",
    "upstash_middleware.django": "For Django, sync and async.",
    "upstash_middleware.django.cache": "For Django's setting `CACHES`.",
    "upstash_middleware.django.sessions": "Django's `SESSION_ENGINE`.",
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
_WIDEST: Final = 88


def names_page() -> str:
    """Return docs/reference/names.md."""
    parts, known = [_HEADING], dict[tuple[str, int], str]()
    for module, what in MODULES.items():
        parts.append(f"\n## {module}\n\n{what}\n")
        loaded = import_module(module)
        for name in public_names(module):
            value = getattr(loaded, name)
            heading = ".".join([*module.split(".")[1:], name])
            parts.append(f"\n### `{heading}`\n\n")
            if (same := known.setdefault((name, id(value)), heading)) != heading:
                parts.append(f"The same as `{same}`.\n")
            else:
                parts += _described(name, value)
    return "".join(parts)


def public_names(module: str) -> list[str]:
    """Return what a module offers."""
    loaded = import_module(module)
    own = [
        name
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module
    ]
    return sorted(getattr(loaded, "__all__", own), key=lambda name: (name.lower(), name))


def _described(name: str, value: Any) -> Iterator[str]:
    if type(value).__name__ == "LocalProxy":  # Werkzeug's, which stands for nothing here
        yield "Flask's, with the methods of `upstash_middleware.Session`; `save` is no coroutine.\n"
    elif isinstance(value, type) or callable(value):
        yield f"```text\n{_signature(name, value)}\n```\n\n{_text(value)}\n"
        if isinstance(value, type):
            yield from _members(value)
    elif isinstance(value, str):
        yield f"`{value!r}`\n"
    else:
        yield f"A `{type(value).__name__}`. {_text(value)}\n"


class _Verbatim(str):
    """Text that `inspect` shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(name: str, value: Any) -> str:
    if isinstance(value, type) and issubclass(value, Exception | enum.Enum):
        return f"class {name}({', '.join(base.__name__ for base in value.__bases__)})"
    is_struct = isinstance(value, type) and issubclass(value, Struct)
    written = _documented(value) if is_struct else {}  # a Struct's own annotations are resolved
    signature = inspect.signature(value)
    given: list[str] = []
    for each in signature.parameters.values():
        if each.name in {"self", "cls"}:
            continue
        if each.kind is each.KEYWORD_ONLY and not any(text.startswith("*") for text in given):
            given.append("*")
        annotation = written.get(each.name, (each.annotation,))[0]
        if annotation is not each.empty:
            annotation = _annotation(annotation)
        shown = each.replace(annotation=annotation, default=_default(each.default))
        given.append(str(shown))
    returned = ""
    if not isinstance(value, type):
        returned = f" -> {_annotation(signature.return_annotation)}"
    one = f"{name}({', '.join(given)}){returned}"
    if len(one) <= _WIDEST:
        return one
    return f"{name}(\n" + "".join(f"    {each},\n" for each in given) + f"){returned}"


def _default(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return default
    if callable(default):
        return _Verbatim(default.__name__)
    # What a factory makes has no text of its own.
    return _Verbatim("…") if repr(default).startswith("<") else default


def _annotation(annotation: Any) -> _Verbatim:
    if annotation == Duration:
        return _Verbatim("Duration")
    if isinstance(annotation, type):
        return _Verbatim(annotation.__name__)
    return _Verbatim(re.sub(r"(?:\w+\.)+(\w+)", r"\1", str(annotation)))


def _members(value: type[Any]) -> Iterator[str]:
    if value in _IN_SETTINGS:
        address = f"../settings.md#{_IN_SETTINGS[value]}"
        yield f"\nIts fields are in [the table of settings]({address}).\n"
        return
    if value.__name__.endswith("Middleware"):
        yield "\nIts arguments are [the settings](../settings.md).\n"
        return
    if issubclass(value, enum.Enum):
        yield "\n" + ", ".join(f"`{member.value}`" for member in value) + "\n"
    elif issubclass(value, Struct):
        rows = [
            (f"`{name}`", f"`{typed}`".replace("|", "\\|"), meaning)
            for name, (typed, meaning) in _documented(value).items()
            if meaning and name in value.__struct_fields__
        ]
        if rows:
            yield "\n" + table(("field", "type", "meaning"), rows) + "\n"
    for name, member in inspect.getmembers(value):
        ours = str(getattr(member, "__module__", "")).startswith("upstash_middleware")
        if not name.startswith("_") and ours and callable(member) and member.__doc__:
            yield f"\n```text\n{_signature(f'.{name}', member)}\n```\n\n{_text(member)}\n"


def _text(value: Any) -> str:
    return (inspect.getdoc(value) or "").replace("``", "`")
