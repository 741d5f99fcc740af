"""Lists of the messages that users may see, read from the source, for docs/messages.md."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from documentation.site import ROOT, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE: Final = ROOT / "src" / "upstash_middleware"

_RULE_ERRORS: Final = frozenset({"_rule_error", "_field_error"})
"""The functions for mistakes in a rule, whose last argument is the message."""
_CONFIGURATION: Final = _RULE_ERRORS | {"ConfigurationError", "MissingCredentials"}
_VALUES: Final = frozenset(
    {"NotStorable", "TypeError", "UndecodableReply", "ValueError", "RuntimeError"}
)
_LOGS: Final = frozenset({"debug", "info", "warning", "error", "exception"})

# By the beginning of the module's path; the first that fits.
_CONFIGURATION_TOPICS: Final = {
    "Credentials and the connection": ("upstash/", "redis.py"),
    "Rate limits": ("core/ratelimit/", "limiter.py", "arguments.py"),
    "Identifiers and client addresses": ("core/identify.py",),
    "Paths": ("core/patterns.py",),
    "The cache": ("core/cache/",),
    "Sessions": ("core/sessions.py", "flask_sessions.py", "django/sessions.py"),
    "The data cache": ("core/data.py", "data.py", "flask_caching_backend.py", "django/cache.py"),
    "Decorators": ("decorators.py",),
    "Starlette, FastAPI and ASGI": ("asgi.py", "starlette.py", "fastapi.py"),
    "Flask": ("flask.py",),
    "Django": ("django/",),
    "The command line": ("cli/",),
    "All settings": ("",),
}
_VALUE_TOPICS: Final = {
    "Values of sessions and of the data cache": (
        "core/values.py",
        "core/data.py",
        "data.py",
        "core/sessions.py",
        "flask_caching_backend.py",
        "django/cache.py",
        "django/values.py",
        "django/sessions.py",
        "redis.py",
    ),
    "Limits from code": ("limiter.py", "core/identify.py", "core/ratelimit/", "fastapi.py"),
    "Purging and warming": ("core/cache/", "warming.py"),
    "The local Upstash": ("local/",),
    "Commands": ("upstash/protocol.py",),
    "Frameworks": ("",),
}
_NAMES: Final = {
    "SETTING": "UPSTASH_MIDDLEWARE",
    "CONFIG": "UPSTASH_MIDDLEWARE",
    "DENIED_VIEW": "UPSTASH_MIDDLEWARE_DENIED_VIEW",
    "_DJANGO_SETTINGS": "DJANGO_SETTINGS_MODULE",
    "ENABLED_VARIABLE": "UPSTASH_MIDDLEWARE_ENABLED",
}
"""Constants that messages contain, and their values."""
# Messages within this package, which no user sees: they become others.
_INTERNAL: Final = frozenset({"too long", "it is truncated"})


class Message(NamedTuple):
    """A message in the source."""

    module: str
    """Its path below the package."""
    text: str
    """Its text, with … for what is filled in."""


def messages_of(calls: frozenset[str]) -> Iterator[Message]:
    """Return the first texts of all calls of these names, in the order of modules and lines."""
    for file in sorted(SOURCE.rglob("*.py")):
        module = file.relative_to(SOURCE).as_posix()
        found = [
            (node.lineno, _text(node.args[-1 if _name(node.func) in _RULE_ERRORS else 0]))
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call) and node.args and _name(node.func) in calls
        ]
        for _, text in sorted(found):
            if len(re.findall(r"\w{2,}", text)) > 1 and text not in _INTERNAL:
                yield Message(module, text)


def logged() -> list[Message]:
    """Return the format strings of all log records."""
    return [message for message in messages_of(_LOGS) if "local/" not in message.module]


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _text(node: ast.expr) -> str:
    """Return the text of an expression, with … for each part that is filled in."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(values):
            return "".join(_text(value) for value in values)
        case ast.FormattedValue(ast.Name(name)):
            return _NAMES.get(name, "…")
        case ast.BinOp(left, ast.Add(), right):
            return _text(left) + _text(right)
        case ast.IfExp(_, first, second) if _text(first) != "…" or _text(second) != "…":
            return "…"
        case _:
            return "…"


def _by_topic(calls: frozenset[str], topics: dict[str, tuple[str, ...]]) -> str:
    rows: dict[str, dict[str, None]] = {topic: {} for topic in topics}
    for message in messages_of(calls):
        topic = next(name for name, paths in topics.items() if message.module.startswith(paths))
        rows[topic][_cleaned(message.text)] = None
    return "\n\n".join(
        f"### {topic}\n\n" + "\n".join(f"- `{text}`" for text in texts)
        for topic, texts in rows.items()
        if texts
    )


def _cleaned(text: str) -> str:
    """Return a message as one line that can be within backquotes."""
    text = re.sub(r"…(\W{0,2}…)+", "…", text.replace("`", "'"))
    return re.sub(r"\s+", " ", text).strip()


def checks() -> str:
    """Return Django's system checks: identifier, message and hint."""
    rows = []
    for file in ("django/checks.py",):
        for node in ast.walk(ast.parse((SOURCE / file).read_text())):
            if (
                isinstance(node, ast.Call)
                and _name(node.func) in {"Error", "Warning"}
                and node.args
            ):
                given = {each.arg: each.value for each in node.keywords}
                if "id" in given:
                    identifier = _text(given["id"]).removeprefix("upstash_middleware.")
                    hint = _text(given["hint"]) if "hint" in given else ""
                    rows.append((f"`{identifier}`", _escaped(_text(node.args[0])), _escaped(hint)))
    return table(("check", "message", "what to do"), sorted(rows))


def _escaped(text: str) -> str:
    return _cleaned(text).replace("|", "\\|").replace("<", "&lt;")


LISTS: Final[dict[str, Callable[[], str]]] = {
    "configuration": lambda: _by_topic(_CONFIGURATION, _CONFIGURATION_TOPICS),
    "values": lambda: _by_topic(_VALUES, _VALUE_TOPICS),
    "command line": lambda: "\n".join(
        f"- `{_cleaned(message.text)}`" for message in messages_of(frozenset({"UsageError"}))
    ),
    "checks": checks,
}
