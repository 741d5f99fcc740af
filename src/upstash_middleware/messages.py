"""HTTP messages as plain values.

Adapters convert their framework's objects to these values and back; ``core`` uses only these.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import quote

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, KeysView

RawHeaders = tuple[tuple[bytes, bytes], ...]

# RFC 3986: characters that a path may contain unescaped (pchar and the slash).
PATH_SAFE = "/-._~!$&'()*+,;=:@"
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Nearly every path needs no escaping.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/\-._~!$&'()*+,;=:@]*")


class _FieldNames(msgspec.Struct, frozen=True):
    """The positions of a message's field lines by name; messages with the same names share them."""

    first: dict[str, int]
    """The position of the first line of each name, in lower case."""
    repeated: dict[str, list[int]]
    """The positions of all lines of the names that have several."""


def _names_of(names: tuple[bytes, ...]) -> _FieldNames:
    lines: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        lines.setdefault(name.lower().decode("latin-1"), []).append(position)
    first = {name: positions[0] for name, positions in lines.items()}
    repeated = {name: positions for name, positions in lines.items() if len(positions) > 1}
    return _FieldNames(first, repeated)


_LONGEST_REMEMBERED = 1024
"""Maximum size of remembered names, in bytes: clients can invent longer names."""
_remembered_names = lru_cache(maxsize=512)(_names_of)


class Headers:
    """Header fields in their original order and spelling; names are compared case-insensitively.

    ``raw`` contains pairs of bytes. Text is decoded as Latin-1 (RFC 9110 §5.5), so that no byte is
    lost.

    Args:
        raw: Pairs of name and value.
    """

    __slots__ = ("_names", "raw")

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.raw: RawHeaders = tuple(raw)
        self._names: _FieldNames | None = None
        """Computed on first use."""

    @classmethod
    def of(cls, **fields: str) -> Headers:
        """Create headers from keyword arguments: ``Headers.of(content_type="text/plain")``.

        Args:
            **fields: The values by name, with ``_`` instead of ``-``.
        """
        return cls(
            (name.replace("_", "-").encode("latin-1"), value.encode("latin-1"))
            for name, value in fields.items()
        )

    def _look_up(self) -> _FieldNames:
        names = tuple([name for name, _ in self.raw])
        known = len(b"".join(names)) <= _LONGEST_REMEMBERED
        found = self._names = (_remembered_names if known else _names_of)(names)
        return found

    def __contains__(self, name: str) -> bool:
        first = (self._names or self._look_up()).first
        # Callers in this package write names in lower case.
        return name in first or (not name.islower() and name.lower() in first)

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first field line, or the default.

        Args:
            name: The name of the field, in any case.
            default: Returned if there is no such field.
        """
        first = (self._names or self._look_up()).first
        position = first.get(name)
        if position is None and not name.islower():
            position = first.get(name.lower())
        return default if position is None else self.raw[position][1].decode("latin-1")

    def lines(self, name: str) -> list[str]:
        """Return the values of all field lines, in order.

        Args:
            name: The name of the field, in any case.
        """
        names = self._names or self._look_up()
        position = names.first.get(name)
        if position is None and not name.islower():
            name = name.lower()
            position = names.first.get(name)
        if position is None:
            return []
        positions = names.repeated.get(name) or (position,)
        return [self.raw[each][1].decode("latin-1") for each in positions]

    def combined(self, name: str) -> str | None:
        """Return all lines as one value, joined by commas (RFC 9110 §5.2); None if absent.

        Args:
            name: The name of the field, in any case.
        """
        return ", ".join(self.lines(name)) if self.repeats(name) else self.get(name)

    def repeats(self, name: str) -> bool:
        """Whether several field lines have this name.

        Args:
            name: The name of the field, in any case.
        """
        repeated = (self._names or self._look_up()).repeated
        return bool(repeated) and name.lower() in repeated

    def names(self) -> KeysView[str]:
        """Return the distinct names, in lower case, in order of first appearance."""
        return (self._names or self._look_up()).first.keys()

    def lowered(self) -> list[tuple[bytes, bytes]]:
        """Return the field lines with their names in lower case."""
        return [(name.lower(), value) for name, value in self.raw]

    def without(self, *names: str) -> Headers:
        """Return these headers without some fields.

        Args:
            *names: Names of fields, in any case.
        """
        gone = {name.lower().encode("latin-1") for name in names}
        return Headers(pair for pair in self.raw if pair[0].lower() not in gone)

    def adding(self, *pairs: tuple[bytes, bytes]) -> Headers:
        """Return these headers with additional field lines at the end.

        Args:
            *pairs: Pairs of name and value.
        """
        return Headers(self.raw + pairs)

    def setting(self, name: str, value: str) -> Headers:
        """Return these headers with exactly one line of ``name``, at the end.

        Args:
            name: The name of the field, in any case.
            value: Its value.
        """
        return self.without(name).adding((name.encode("latin-1"), value.encode("latin-1")))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        # Values may be credentials, so only the names are safe to log.
        return f"Headers({', '.join(self.names())})"


NO_HEADERS = Headers()


class RequestBody:
    """A request's body. An adapter reads it, and passes it on to the application as if unread."""

    __slots__ = ()

    def read(self, limit: int) -> bytes | Awaitable[bytes | None] | None:
        """Return the body; None if it is longer than ``limit`` bytes or cannot be read completely.

        On an event loop this returns an awaitable.
        """
        raise NotImplementedError

    def parsed(self, name: str) -> list[Any] | None:  # noqa: ARG002 - for those that have it
        """Return a form field's values, texts and files; None if no form has been parsed yet."""
        return None

    def is_available(self, *, waits: bool) -> bool:
        """Whether the body can still be read; without ``waits``, whether it can be at once."""
        raise NotImplementedError


class Discreet:
    """Base of Structs whose repr omits secrets; also keeps rich from showing all fields."""

    __slots__ = ()

    def __rich_repr__(self) -> Any:
        return None


class HTTPRequest(Discreet, msgspec.Struct, frozen=True):
    """A request's head as it reached the application's server."""

    method: str
    """``GET``, in the letter case that the application routes on."""
    path: str
    """The decoded path that the application routes on, and that a rule's ``path`` matches:
    WSGI's ``PATH_INFO``, Django's ``path_info``, ASGI's ``path`` without ``root_path``. It does not
    include the prefix under which the application is mounted."""
    headers: Headers = NO_HEADERS
    """The header fields."""
    query: str = ""
    """The raw query, without the question mark."""
    scheme: str = "http"
    """``http`` or ``https``; for a WebSocket handshake ``ws`` or ``wss``."""
    host: str = ""
    """The requested authority: the Host field, in lower case."""
    peer: str | None = None
    """The address at the other end of the connection; None if the server does not provide it."""
    sent_path: str = ""
    """The path of the URL that the client requested, including the prefix, percent-encoded as it
    was sent; empty if it is unknown."""
    root_path: str = ""
    """The prefix under which the application is mounted: WSGI's ``SCRIPT_NAME``, ASGI's
    ``root_path``. Empty for an application at the root of its host."""
    native: Any = None
    """The framework's request: the scope in Starlette, FastAPI and ASGI (a mapping), the environ in
    Flask and WSGI (a dict), the HttpRequest in Django. An annotation informs type checkers:
    ``scope: Scope = request.native``. None on the command line."""
    body: RequestBody | None = None
    """The body, if a rule needs it; ``form`` and ``json_field`` read it."""

    @property
    def raw_path(self) -> str:
        """The path of the URL that clients use, with the prefix and normalized percent-encoding.

        Cache keys and purges use it.
        """
        path = self.sent_path or self.root_path + self.path
        if _PLAIN_PATH.fullmatch(path):
            return path
        return normal_path(self.sent_path or quote(path, safe=PATH_SAFE))

    def __repr__(self) -> str:
        # Without ``native`` and the body, which contain credentials.
        names = (name for name in self.__struct_fields__ if name not in {"native", "body"})
        return f"HTTPRequest({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


class ResponseHead(msgspec.Struct, frozen=True):
    """A response's status and header fields."""

    status: int
    headers: Headers


class Response(msgspec.Struct, frozen=True):
    """A complete response of this package: a denial, a stored response, a 304."""

    head: ResponseHead
    body: bytes = b""


WITHOUT_BODY = frozenset({204, 304})
"""Statuses of responses that have no body (RFC 9110 §6.4.1)."""


def content_length(headers: Headers) -> int | None:
    """Return the body's length according to Content-Length; None without a valid field."""
    length = headers.get("content-length")
    if length is None or not (length.isascii() and length.isdecimal()):
        return None
    return int(length) if len(length) < 19 or len(length.lstrip("0")) < 19 else 10**18


def has_body(headers: Headers) -> bool:
    """Whether a request with these fields has or may have a body (RFC 9112 §6.3)."""
    names = headers.names()
    if "transfer-encoding" in names:
        return True
    if "content-length" not in names:
        return False
    return any(length.strip("0 ") for length in headers.lines("content-length"))


UNANNOUNCED_BODY = "it has a body without Content-Length"


def announces_no_body(request: HTTPRequest) -> bool:
    """Whether this is a GET or HEAD whose fields announce no body.

    In HTTP/2 and HTTP/3 it may still have a body (RFC 9113 §8.1), which the application can read.
    An adapter that sees such a body prevents storing the response.
    """
    return request.method in {"GET", "HEAD"} and not has_body(request.headers)


LONGEST_VALUE = 8192
"""The longest field value that is parsed, in characters, all lines combined.

Servers have similar limits for a line (gunicorn 8,190, Apache 8,190, nginx 8,192). A longer value
is not parsed; each user of the field then makes the cautious choice.
"""

# The quantifiers are possessive, so that the pattern cannot backtrack.
_MEMBER = re.compile(r'(?:[^,"]++|"(?:[^"\\]++|\\.)*+"?)++')


def split_list(value: str) -> list[str]:
    """Return the members of a list-valued field (RFC 9110 §5.6.1), without surrounding whitespace.

    A comma inside a quoted string does not separate members. Empty members are dropped.
    """
    members = (member.strip(" \t") for member in _MEMBER.findall(value))
    return [member for member in members if member]


def normal_path(raw_path: str) -> str:
    """Return a path with normalized percent-encoding (RFC 3986 §6.2.2).

    ``%7e`` becomes ``~``; an encoded slash remains different from a slash.
    """
    if _PLAIN_PATH.fullmatch(raw_path):
        return raw_path
    if "%" not in raw_path:
        return quote(raw_path, safe=PATH_SAFE)
    head, *escaped = quote(raw_path, safe=PATH_SAFE + "%").split("%")
    # A percent sign without two hexadecimal digits is not an escape.
    parts = [_NORMAL_ESCAPES.get(part[:2], "%25" + part[:2]) + part[2:] for part in escaped]
    return head + "".join(parts)


_HEXADECIMAL = "0123456789ABCDEFabcdef"
_NORMAL_ESCAPES = {
    code: chr(int(code, 16)) if chr(int(code, 16)) in _UNRESERVED else f"%{code.upper()}"
    for code in [first + second for first in _HEXADECIMAL for second in _HEXADECIMAL]
}
