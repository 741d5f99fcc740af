"""Path patterns of rules: which paths they match, and the values of their placeholders.

``/products/{id}`` matches one segment, ``/files/{rest:path}`` any number of segments. A pattern
matches with or without a trailing slash: frameworks treat it differently, and a limit must apply to
both forms. Each pattern becomes a regular expression without nested or adjacent repetitions, so
that matching does not backtrack.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import SettingDoubted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from upstash_middleware.events import Observer

MANY_REQUESTS = 10_000
"""The number of requests after which a rule that has matched none of them is reported."""

# Regular expressions are kept as text, and compiled at the first use, for quick imports.
_PLACEHOLDER = r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}"

_SYNTAXES = (
    (r"<(?:\w+(?:\([^)]*\))?:)?\w*>", "<name> is the syntax of Flask and Django"),
    (r"(?<=/):\w+[?*+]?(?=/|$)", ":name is the syntax of Express and Rails"),
    (r"(?<=/)\[[^/]*\](?=/|$)", "[name] is the syntax of Next.js"),
    (r"\{\w+:(?!path\})\w*\}", "placeholders have no converters but :path"),
    (r"\*+", "an asterisk is not a wildcard"),
)
"""Placeholders in other syntaxes. As plain text, they would match nothing."""
_SPECIAL = frozenset("<:[*")
"""Each of the placeholders contains one of these characters."""
_NAME_WITHIN = r"<(?:[^<>]*:)?([A-Za-z_]\w*)>|[:{\[](?:\.\.\.)?([A-Za-z_]\w*)"


class PathPattern(Struct, frozen=True):
    """A parsed path pattern."""

    text: str
    _regex: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """Parse a pattern.

        Raises ConfigurationError if no path could match it.
        """
        _check(text)
        parts = [_segment(segment, text) for segment in text.rstrip("/").split("/")]
        try:
            return cls(text, re.compile("/".join(parts) + "/?", re.DOTALL))
        except re.error as error:
            raise ConfigurationError(f"path pattern {text!r}: {error.msg}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the placeholders, in order."""
        return tuple(self._regex.groupindex)

    def covers(self, path: str) -> bool:
        """Whether the pattern matches a path."""
        return self._regex.fullmatch(path) is not None

    def match(self, path: str) -> dict[str, str] | None:
        """Return the values of the placeholders in a path; None if it does not match."""
        found = self._regex.fullmatch(path)
        return found.groupdict() if found else None

    def matches_end(self, path: str) -> bool:
        """Whether the pattern matches a path, or the part of a path after some of its segments."""
        return re.fullmatch(f"(?:/.*)?{self._regex.pattern}", path, re.DOTALL) is not None


class Unmatched:
    """Reports rules that have matched none of many requests in this process.

    Threads use it concurrently; lost counts are harmless.
    """

    __slots__ = ("_observe", "left", "waiting")

    def __init__(self, paths: Mapping[str, str], observe: Observer) -> None:
        self._observe = observe
        self.waiting: dict[str, str] = dict(paths)
        """The paths of rules that have not matched yet, by setting."""
        self.left: int = MANY_REQUESTS + 1 if paths else 0
        """The number of requests until the report; 0 if there is nothing left to count."""

    def count(self) -> None:
        """Count a request. Called while ``left`` is not 0."""
        self.left = self.left - 1 if self.waiting else 0
        if self.left == 0:
            waiting, self.waiting = self.waiting, {}
            for setting, path in waiting.items():
                self._observe(
                    SettingDoubted(
                        f"{setting}.path",
                        f"none of the first {MANY_REQUESTS} requests of this process matched the "
                        f"rule for {path!r}; if that is not expected, compare it with the "
                        "application's routes, for instance with `upstash-middleware rules check`: "
                        "a rule's path is written like a route, without the prefix in root_path or "
                        "SCRIPT_NAME",
                    )
                )


def other_readings(path: str) -> tuple[str, ...]:
    """Return the other paths as which parts of the application may read a path; usually none.

    Werkzeug's DispatcherMiddleware and its routing merge or drop repeated slashes, so
    ``/shop//login`` is routed like ``/shop/login``. Starlette's routes end in ``$``, which also
    matches before a final line feed, so ``/login%0A`` is routed to ``/login``. A path must begin
    with a slash (RFC 9112 §3.2.1), but waitress accepts others: Werkzeug reads ``x/login`` as
    ``/x/login``, and its DispatcherMiddleware as ``/login``.
    """
    if path[:1] == "/":
        if "//" not in path and path[-1] != "\n":
            return ()
        merged = [re.sub("/{2,}", "/", path)]
    elif path:
        merged = [re.sub("/{2,}", "/", f"/{each}") for each in (path, path.partition("/")[2])]
    else:
        return ()
    readings = {*merged, *(each.removesuffix("\n") for each in merged)}
    return tuple(sorted(readings - {path}))


def _check(text: str) -> None:
    problem = None
    for placeholder, reason in _SYNTAXES if _SPECIAL.intersection(text) else ():
        if re.search(placeholder, text):
            problem = f"{reason}; write {_convert_syntax(text)!r}"
            break
    else:
        if not text.startswith("/"):
            problem = f"a path begins with a slash; write {'/' + text!r}"
        elif "//" in text:
            problem = "it has an empty segment, which no placeholder matches; use a single slash"
        elif "?" in text or "#" in text:
            problem = (
                "a path has no query or fragment; remove them, and use a function of the "
                "request to check the query"
            )
        elif "%" in text:
            problem = "paths are decoded before matching; write the character itself"
        elif "\\" in text:
            problem = "it is not a regular expression; write {name} for one segment"
    if problem:
        raise ConfigurationError(f"path pattern {text!r} can never match: {problem}")


def _convert_syntax(text: str) -> str:
    """Convert a pattern of another syntax to this one, as far as possible."""
    segments = text.strip("/").split("/")
    for index, segment in enumerate(segments):
        if not any(re.search(placeholder, f"/{segment}") for placeholder, _ in _SYNTAXES):
            continue
        is_last = index == len(segments) - 1
        takes_all = is_last and ("<path:" in segment or "..." in segment or "*" in segment)
        found = re.search(_NAME_WITHIN, segment)
        name = (found[1] or found[2]) if found else "rest" if takes_all else f"name{index}"
        segments[index] = f"{{{name}:path}}" if takes_all else f"{{{name}}}"
    return "/" + "/".join(segments)


def _segment(segment: str, text: str) -> str:
    if "{" not in segment and "}" not in segment:
        return re.escape(segment)
    placeholder = re.fullmatch(_PLACEHOLDER, segment)
    if placeholder is None:
        raise ConfigurationError(
            f"path pattern {text!r}: {segment!r} should be a whole segment such as {{id}} "
            "or, as the last one, {rest:path}"
        )
    name, rest = placeholder.groups()
    if not rest:
        return f"(?P<{name}>[^/]++)"
    if not text.rstrip("/").endswith(segment):
        raise ConfigurationError(
            f"path pattern {text!r}: {segment!r} matches all further segments, so it must be last"
        )
    return f"(?P<{name}>.*)"
