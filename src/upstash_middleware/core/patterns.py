"""Path patterns of rules: which paths they match, and what the named parts held.

``/products/{id}`` matches one segment, ``/files/{rest:path}`` everything that follows. A
trailing slash more or less in the request does not matter, since frameworks differ there and a
limit must not be lost over it. Each pattern becomes one regular expression without nested or
neighbouring repetitions, so that no path can make it backtrack.
"""

from __future__ import annotations

import re

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A parsed pattern; ``match`` answers the named parts or None."""

    text: str
    _regex: re.Pattern[str]

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """Parse a pattern.

        Raises ConfigurationError for one that no path could ever match.
        """
        _check(text)
        parts = [_segment(segment, text) for segment in text.rstrip("/").split("/")]
        try:
            return cls(text, re.compile("/".join(parts) + "/?", re.DOTALL))
        except re.error as error:
            raise ConfigurationError(f"path pattern {text!r}: {error.msg}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The placeholders' names, in order."""
        return tuple(self._regex.groupindex)

    def match(self, path: str) -> dict[str, str] | None:
        """Return what the placeholders stand for in ``path``, or None if it does not match."""
        found = self._regex.fullmatch(path)
        return found.groupdict() if found else None


def _check(text: str) -> None:
    problem = None
    if not text.startswith("/"):
        problem = "a path begins with a slash"
    elif "//" in text:
        problem = "it has an empty segment; no placeholder matches one"
    elif "?" in text or "#" in text:
        problem = "a path holds no query or fragment; match on those with a predicate"
    elif "%" in text:
        problem = "paths are matched decoded; write the character itself"
    elif "*" in text:
        problem = "an asterisk is no wildcard here; write {name} or, at the end, {rest:path}"
    if problem:
        raise ConfigurationError(f"path pattern {text!r} can never match: {problem}")


def _segment(segment: str, text: str) -> str:
    if "{" not in segment and "}" not in segment:
        return re.escape(segment)
    placeholder = _PLACEHOLDER.fullmatch(segment)
    if placeholder is None:
        raise ConfigurationError(
            f"path pattern {text!r}: {segment!r} should be a whole segment such as {{id}} "
            "or, as the last one, {rest:path}"
        )
    name, rest = placeholder.groups()
    if not rest:
        return f"(?P<{name}>[^/]+)"
    if not text.rstrip("/").endswith(segment):
        raise ConfigurationError(
            f"path pattern {text!r}: {segment!r} matches all that follows, so it must come last"
        )
    return f"(?P<{name}>.*)"
