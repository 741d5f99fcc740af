"""HTTP messages as plain values; no framework, no I/O, no rules of HTTP beyond the shape.

Adapters translate their framework's objects into these and back; everything in ``core`` works
on these alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from upstash_middleware.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Iterable, KeysView

RawHeaders = tuple[tuple[bytes, bytes], ...]

# RFC 3986: what may stand in a path unescaped (pchar and the slash).
PATH_SAFE = "/-._~!$&'()*+,;=:@"
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


# What such a path consists of needs no escaping: nearly every path.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/\-._~!$&'()*+,;=:@]*")


@lru_cache(maxsize=512)
def _lower(name: bytes) -> str:
    return name.decode("latin-1").lower()


_NAME, _VALUE = itemgetter(0), itemgetter(1)


class Headers:
    """Header fields in the order and spelling in which they came; names compare without case.

    ``raw`` holds pairs of bytes. Text is Latin-1, as RFC 9110 §5.5 reads field values, so that
    every byte survives.
    """

    __slots__ = ("_index", "_repeated", "raw")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.raw: RawHeaders = tuple(raw)
        self._index: dict[str, bytes] | None = None
        """The first line of each name; made when somebody asks."""
        self._repeated: dict[str, list[bytes]] = {}
        """All lines of a name that has several, which is rare."""

    @classmethod
    def of(cls, **fields: str) -> Headers:
        """Build from keywords, for literals: ``Headers.of(content_type="text/plain")``."""
        return cls(
            (name.replace("_", "-").encode("latin-1"), value.encode("latin-1"))
            for name, value in fields.items()
        )

    def _by_name(self) -> dict[str, bytes]:
        names = [*map(_lower, map(_NAME, self.raw))]
        index = dict(zip(names, map(_VALUE, self.raw), strict=True))
        if len(index) < len(names):
            all_lines: dict[str, list[bytes]] = {}
            for name, (_, value) in zip(names, self.raw, strict=True):
                all_lines.setdefault(name, []).append(value)
            index = {name: lines[0] for name, lines in all_lines.items()}
            self._repeated = {name: lines for name, lines in all_lines.items() if len(lines) > 1}
        self._index = index
        return index

    def __contains__(self, name: str) -> bool:
        return name in (self._index or self._by_name())

    def get(self, name: str) -> str | None:
        """Return the first field line's value; ``name`` in lower case."""
        line = (self._index or self._by_name()).get(name)
        return None if line is None else line.decode("latin-1")

    def lines(self, name: str) -> list[str]:
        """Return every field line's value, in order; ``name`` in lower case."""
        line = (self._index or self._by_name()).get(name)
        if line is None:
            return []
        return [each.decode("latin-1") for each in self._repeated.get(name, (line,))]

    def combined(self, name: str) -> str | None:
        """Return all lines as one value joined by commas (RFC 9110 §5.2), None if absent."""
        line = (self._index or self._by_name()).get(name)
        if line is not None and name in self._repeated:
            line = b", ".join(self._repeated[name])
        return None if line is None else line.decode("latin-1")

    def names(self) -> KeysView[str]:
        """Return the distinct names, in lower case, in order of first appearance."""
        return (self._index or self._by_name()).keys()

    def lowered(self) -> list[tuple[bytes, bytes]]:
        """Return the field lines with their names in lower case."""
        return [*zip(map(bytes.lower, map(_NAME, self.raw)), map(_VALUE, self.raw), strict=True)]

    def without(self, *names: str) -> Headers:
        """Return these headers less the fields named (lower case)."""
        gone = {name.encode("latin-1") for name in names}
        return Headers(pair for pair in self.raw if pair[0].lower() not in gone)

    def adding(self, *pairs: tuple[bytes, bytes]) -> Headers:
        """Return these headers with more field lines at the end."""
        return Headers(self.raw + pairs)

    def setting(self, name: str, value: str) -> Headers:
        """Return these headers with exactly one line of ``name``, at the end."""
        return self.without(name).adding((name.encode("latin-1"), value.encode("latin-1")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        # Values may be credentials; names alone are safe to log.
        return f"Headers({', '.join(self.names())})"


NO_HEADERS = Headers()


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head as it reached the application's server."""

    method: str
    path: str
    """The whole decoded path, mount points included, as frameworks route on it."""
    headers: Headers = NO_HEADERS
    query: str = ""
    """The raw query, without the question mark."""
    scheme: str = "http"
    host: str = ""
    """The authority that the client asked for: the Host field, in lower case."""
    peer: str | None = None
    """The address at the other end of the connection; None where the server does not tell."""
    sent_path: str = ""
    """The path as it was sent, percent-encoded; empty where that is not known."""
    native: Any = field(default=None, repr=False)
    """The framework's own request: an ASGI scope, a WSGI environ, a Django HttpRequest."""

    @property
    def raw_path(self) -> str:
        """The path percent-encoded, in one spelling; made from ``path`` if need be."""
        sent = self.sent_path
        if _PLAIN_PATH.fullmatch(sent or self.path):
            return sent or self.path
        return normal_path(sent or quote(self.path, safe=PATH_SAFE))


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's status and header fields."""

    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response that this package gives itself: a denial, a stored page, a 304."""

    head: ResponseHead
    body: bytes = b""


WITHOUT_BODY = frozenset({204, 304})
"""Statuses of responses that end with their head (RFC 9110 §6.4.1)."""


def content_length(headers: Headers) -> int | None:
    """Return the bytes of body that a message announces, None where it does not say."""
    told = headers.get("content-length") or ""
    if not (told.isascii() and told.isdecimal()):
        return None
    return int(told) if len(told.lstrip("0")) < 19 else 10**18


def normal_path(raw_path: str) -> str:
    """Return a path in one spelling of its percent-encoding (RFC 3986 §6.2.2).

    ``%7e`` and ``~`` become the same; an encoded slash stays apart from a slash.
    """
    if _PLAIN_PATH.fullmatch(raw_path):
        return raw_path
    if "%" not in raw_path:
        return quote(raw_path, safe=PATH_SAFE)
    head, *escaped = raw_path.split("%")
    return quote(head, safe=PATH_SAFE) + "".join(_normal_escape(part) for part in escaped)


def _normal_escape(part: str) -> str:
    """Normalise what follows a percent sign: two hex digits, then plain text."""
    code, rest = part[:2], quote(part[2:], safe=PATH_SAFE)
    try:
        character = chr(bytes.fromhex(code)[0])
    except (ValueError, IndexError):  # not an escape at all: the percent sign was literal
        return "%25" + quote(part, safe=PATH_SAFE)
    return (character if character in _UNRESERVED else f"%{code.upper()}") + rest
