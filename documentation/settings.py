"""docs/settings.md as text, made from the settings' own annotations, defaults and docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any, Final

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from upstash_middleware import settings
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.ratelimit import RateLimitRule

_HEADING: Final = """# Settings

`make docs-tables` writes this page from the code, and a test holds it to that.

All settings are keyword arguments of `UpstashMiddleware`, `RateLimitMiddleware` and
`CacheMiddleware`, and keys of the mapping `UPSTASH_MIDDLEWARE` in Django's settings and in Flask's
`app.config`. A `Duration` is a number of seconds, a `timedelta`, or text such as `"60s"`,
`"5 minutes"` or `"1.5h"`. What is unknown or wrong is an error when the application is made,
which names the setting, the value it got, and what would be right.
"""
_RATE_LIMITS: Final = """
## Rate-limit rules

Each of `rate_limits` is a `RateLimitRule`, or a mapping with these as keys; `default_limit` takes
one too, or only its limits.
"""
_CACHE: Final = """
## Cache rules

Each of `cache` is a `CacheRule`, or a mapping with these as keys. The first that covers a request
counts.
"""
_DEFAULTS_IN_WORDS: Final = {"by": "`client_ip()`", "breaker_slow": "half of `deadline`"}


def document() -> str:
    """Return the whole page."""
    return "".join(
        [
            _HEADING,
            _table(settings.Arguments, {name: d for name, (_, d) in settings._SETTINGS.items()}),
            _RATE_LIMITS,
            _table(RateLimitRule, _defaults(RateLimitRule)),
            _CACHE,
            _table(CacheRule, _defaults(CacheRule)),
        ]
    )


def _defaults(rule: type[Struct]) -> dict[str, Any]:
    return {each.name: each.default for each in fields(rule) if each.name != "setting"}


def _table(of: type[Any], defaults: dict[str, Any]) -> str:
    rows = [("setting", "type", "default", "meaning"), ("---", "---", "---", "---")]
    for name, (annotation, meaning) in documented(of).items():
        if name in defaults:
            rows.append((f"`{name}`", f"`{annotation}`", _said(name, defaults[name]), meaning))
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _said(name: str, default: Any) -> str:
    if name in _DEFAULTS_IN_WORDS:
        return _DEFAULTS_IN_WORDS[name]
    return "required" if default is NODEFAULT else f"`{default!r}`"


def documented(of: type[Any]) -> dict[str, tuple[str, str]]:
    """Return each annotated name with its annotation and the text that stands below it."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    if not isinstance(made, ast.ClassDef):
        raise TypeError(f"{of!r} should be a class")
    found = {}
    for line, below in zip(made.body, [*made.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found[line.target.id] = (ast.unparse(line.annotation), _text(below))
    return found


def _text(below: ast.stmt | None) -> str:
    if not isinstance(below, ast.Expr) or not isinstance(below.value, ast.Constant):
        return ""
    return " ".join(str(below.value.value).split()).replace("``", "`")
