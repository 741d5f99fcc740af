"""HTTP/1.1 as a client speaks it (RFC 9112): calls to bytes, bytes to answers. No I/O.

Every request is a POST with a Content-Length, and one is under way on a connection at a time. Of
an answer's head only what a call needs is kept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from upstash_middleware.errors import ConnectionLost, UnexpectedAnswer
from upstash_middleware.upstash.protocol import Answer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from upstash_middleware.upstash.protocol import Call, Header

HEAD_BYTES: Final = 65_536
"""The longest head, chunk's line or trailer section that is read: far beyond any of Upstash's."""

_TARGET = re.compile(r"[!-~]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~]*")
_OF_A_PATH: Final = "/%:@!$&'()*+,;=~"

_HEAD = re.compile(  # §4 and §5, without whitespace before a colon, or a stray CR, LF or NUL
    rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\0\r\n]*+)?+"
    rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]++:[^\0\r\n]*+)*+"
)
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] [1-9][0-9][0-9](?: .*)?")
_OBS_FOLD = re.compile(rb"[ \t]*\r\n[ \t]+")
_READ = re.compile(
    rb"\r\n(connection|content-length|content-type|transfer-encoding|upstash-sync-token):"
    rb"[ \t]*+([^\r\n]*+)",
    re.IGNORECASE,
)
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;.*)?", re.DOTALL)
_WITHOUT_BODY: Final = frozenset({204, 304})


class Requests:
    """Makes the requests of one URL's calls; what all have in common is encoded once."""

    __slots__ = ("_path", "_standing")

    def __init__(self, url: str, headers: Iterable[Header]) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        name = host if host.isascii() else host.encode("idna").decode()
        name = f"[{name}]" if ":" in name else name
        default = 443 if parts.scheme == "https" else 80
        authority = name if parts.port in {None, default} else f"{name}:{parts.port}"
        self._path = quote(parts.path, safe=_OF_A_PATH).encode()
        self._standing = b" HTTP/1.1\r\n" + _lines([("Host", authority), *headers])

    def request(self, call: Call) -> bytes:
        """Return the whole request; raises ValueError for what would be more than one line."""
        if _TARGET.fullmatch(call.path) is None:
            raise ValueError(
                f"the path {call.path[:60]!r} has a character that no request line can carry"
            )
        return b"".join(
            (
                b"POST ",
                self._path,
                call.path.encode("ascii"),
                self._standing,
                _lines(call.headers),
                b"Content-Length: %d\r\n\r\n" % len(call.body),
                call.body,
            )
        )


def _lines(headers: Iterable[Header]) -> bytes:
    lines = []
    for name, value in headers:
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise ValueError(f"the header {name[:60]!r} has a character that no field can carry")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("ascii")


class AnswerReader:
    """Reads one answer from the pieces in which it comes.

    Raises UnexpectedAnswer for what is not HTTP, or is cut short, and ConnectionLost if the end
    comes before a head.
    """

    __slots__ = ("_body", "_head", "_held", "reusable")

    def __init__(self) -> None:
        self.reusable: bool = False
        """Whether another call may follow on this connection, once the answer has been read."""
        self._held = bytearray()
        self._head: _Head | None = None
        self._body: _Body | None = None

    def feed(self, data: bytes) -> Answer | None:
        """Take the next bytes; return the answer if they end it."""
        reading = self._body
        if reading is None:
            begun = self._past_heads(data)
            if begun is None:
                return None
            reading, data = begun
        body = reading.feed(data)
        return None if body is None else self._answer(body)

    def end(self, *, orderly: bool = True) -> Answer:
        """Return the answer that the end of the connection ends.

        The end is not orderly if TLS has not announced it: somebody else may have made it.
        """
        if self._body is None:
            when = "within the answer's head" if self._held else "before it answered"
            raise ConnectionLost(f"the connection to Upstash was lost: it was closed {when}")
        answer = self._answer(self._body.end(orderly=orderly))
        self.reusable = False
        return answer

    def _past_heads(self, data: bytes) -> tuple[_Body, bytes] | None:
        """Read the final head, past those of interim responses; return what follows it, and how."""
        while True:
            end, data = self._end_of_head(data)
            if end < 0:
                return None
            head, data = _read(data[:end]), data[end + 4 :]
            if head.status >= 200:
                self._head, self._body = head, head.body
                return head.body, data
            if head.status == 101:  # RFC 9110 §15.2.2: only who asked for it can be answered so
                raise UnexpectedAnswer("the answer is of another protocol: its status is 101")

    def _end_of_head(self, data: bytes) -> tuple[int, bytes]:
        """Return where the head ends in what is not yet read; -1 if more is to come."""
        held = self._held
        if held:
            looked_at = max(len(held) - 3, 0)
            held += data
            end = held.find(b"\r\n\r\n", looked_at)
            if end < 0:
                _check_beginning(held)
                return -1, b""
            data = bytes(held)
            held.clear()
        else:
            end = data.find(b"\r\n\r\n")
        if end < 0:
            held += data
            _check_beginning(held)
        elif end > HEAD_BYTES:
            raise _too_long()
        return end, data

    def _answer(self, body: bytes) -> Answer:
        head = self._head
        assert head is not None  # noqa: S101 - there is a body only after a head
        self.reusable = head.reusable and not head.body.excess
        return Answer(head.status, head.content_type, body, head.sync_token)


def _check_beginning(head: bytearray) -> None:
    """Refuse what cannot become a head, without waiting for its end."""
    if not head.startswith(b"HTTP/1."[: len(head)]):
        raise _no_status_line()
    if len(head) > HEAD_BYTES:
        raise _too_long()


class _Head(NamedTuple):
    """What a call needs of an answer's head."""

    status: int
    content_type: str
    sync_token: str | None
    body: _Body
    reusable: bool


def _read(head: bytes) -> _Head:
    matched = _HEAD.fullmatch(head)
    if matched is None:
        # §5.2: a user agent reads an obs-fold as a space.
        head = _OBS_FOLD.sub(b" ", head)
        matched = _HEAD.fullmatch(head)
    if matched is None:
        raise _malformed(head)
    minor, status = int(matched[1]), int(matched[2])
    fields = _fields(head)
    body, certain = _framed(status, minor, fields)
    token = fields.get(b"upstash-sync-token")
    return _Head(
        status,
        fields.get(b"content-type", b"").decode("latin-1"),
        None if token is None else token.decode("latin-1"),
        body,
        certain and minor > 0 and not _closes(fields.get(b"connection")),
    )


def _fields(head: bytes) -> dict[bytes, bytes]:
    """Return those that are read; several of one name are one list (RFC 9110 §5.3)."""
    fields: dict[bytes, bytes] = {}
    for found, text in _READ.findall(head):
        name, value = found.lower(), text.rstrip(b" \t")
        fields[name] = b"%b, %b" % (fields[name], value) if name in fields else value
    return fields


def _closes(connection: bytes | None) -> bool:
    if connection is None:
        return False
    return any(option.strip(b" \t") == b"close" for option in connection.lower().split(b","))


def _framed(status: int, minor: int, fields: dict[bytes, bytes]) -> tuple[_Body, bool]:
    """Return what reads the body, and whether its end is certain to be the answer's (§6.3)."""
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if status < 200 or status in _WITHOUT_BODY:
        return _Counted(0), True
    if coding is not None:
        if coding.lower() != b"chunked":
            raise UnexpectedAnswer("the answer has a transfer coding that nobody asked for")
        # §6.1: with a length besides, or from HTTP/1.0, the framing is not to be relied on.
        return _Chunked(), length is None and minor > 0
    if length is None:
        return _UntilClose(), False
    return _Counted(_length(length)), True


def _length(field: bytes) -> int:
    """Return the Content-Length, which may be repeated, but not change."""
    if b"," in field:
        several = {each.strip(b" \t") for each in field.split(b",")}
        field = several.pop() if len(several) == 1 else b""
    if _LENGTH.fullmatch(field) is None:
        raise UnexpectedAnswer("the answer has no valid Content-Length")
    return int(field)


class _Body(Protocol):
    """Reads a body from the pieces in which it comes."""

    excess: bool
    """Whether bytes came after its end, which belong to no answer."""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes; return the whole body if they end it."""
        ...

    def end(self, *, orderly: bool) -> bytes:
        """Return the body that the connection's end ends."""
        ...


class _Counted:
    """Of a given length."""

    __slots__ = ("_missing", "_pieces", "excess")

    def __init__(self, length: int) -> None:
        self.excess = False
        self._missing = length
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> bytes | None:
        if len(data) == self._missing and not self._pieces:
            return data
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return None
        body = b"".join(self._pieces)
        if self._missing < 0:
            self.excess = True
            body = body[: self._missing]
        return body

    def end(self, *, orderly: bool) -> bytes:  # noqa: ARG002 - it is too early either way
        raise UnexpectedAnswer(f"the answer was cut short: {self._missing} bytes are missing")


class _UntilClose:
    """Of all that comes until the connection is closed."""

    __slots__ = ("_pieces", "excess")

    def __init__(self) -> None:
        self.excess = False
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self._pieces.append(data)

    def end(self, *, orderly: bool) -> bytes:
        if not orderly:  # §9.8
            raise UnexpectedAnswer("the answer was cut short: TLS has not announced its end")
        return b"".join(self._pieces)


class _Chunked:
    """In chunks, whose extensions mean nothing here, nor does the trailer section (§7.1)."""

    __slots__ = ("_body", "_held", "_reading", "excess")

    def __init__(self) -> None:
        self.excess = False
        self._held = bytearray()
        self._body = bytearray()
        self._reading = self._read()
        next(self._reading)

    def feed(self, data: bytes) -> bytes | None:
        self._held += data
        try:
            next(self._reading)
        except StopIteration:
            self.excess = bool(self._held)
            return bytes(self._body)
        return None

    def end(self, *, orderly: bool) -> bytes:  # noqa: ARG002 - it is too early either way
        raise UnexpectedAnswer("the answer was cut short: its last chunk is missing")

    def _read(self) -> Generator[None]:
        """Yield wherever more bytes are needed."""
        held = self._held
        yield
        while size := _size(bytes((yield from self._line()))):
            while len(held) < size + 2:
                yield
            if held[size : size + 2] != b"\r\n":
                raise UnexpectedAnswer("the answer is not HTTP: a chunk is longer than it says")
            self._body += held[:size]
            del held[: size + 2]
        left = HEAD_BYTES
        while line := (yield from self._line()):
            left -= len(line)
            if left < 0:
                raise _too_long()

    def _line(self) -> Generator[None, None, bytearray]:
        held, looked_at = self._held, 0
        while (end := held.find(b"\r\n", looked_at)) < 0:
            if len(held) > HEAD_BYTES:
                raise _too_long()
            looked_at = max(len(held) - 1, 0)
            yield
        line = held[:end]
        del held[: end + 2]
        return line


def _size(line: bytes) -> int:
    matched = _CHUNK.fullmatch(line)
    if matched is None:
        raise UnexpectedAnswer("the answer is not HTTP: a chunk begins with no size")
    return int(matched[1], 16)


def _malformed(head: bytes) -> UnexpectedAnswer:
    if _STATUS_LINE.fullmatch(head.partition(b"\r\n")[0]) is None:
        return _no_status_line()
    return UnexpectedAnswer("the answer is not HTTP: a line of its head is no field")


def _no_status_line() -> UnexpectedAnswer:
    return UnexpectedAnswer("the answer is not HTTP: its first line is no status line of HTTP/1.1")


def _too_long() -> UnexpectedAnswer:
    return UnexpectedAnswer(
        f"the answer's head, or a line in it, is longer than {HEAD_BYTES} bytes"
    )
