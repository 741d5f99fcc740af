"""RESP2, the protocol between this server and the Valkey behind it: bytes to values and back.

A reply keeps what RESP2 distinguishes and JSON does not (a status from a string, a null array
from a null string), because Upstash's responses depend on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Status(Struct, frozen=True):
    """A simple string, such as ``OK``."""

    text: bytes


class Failure(Struct, frozen=True):
    """An error reply, including its code: ``WRONGTYPE Operation against a key …``."""

    text: bytes


class NullArray(Struct, frozen=True):
    """``*-1``, the absence of an array: the reply of XREAD when there is nothing to read."""


Reply: TypeAlias = "Status | Failure | NullArray | bytes | int | list[Reply] | None"

_NO_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"  ")
_INCOMPLETE: Final = object()


class MalformedReply(Exception):
    """The server's reply is not RESP2."""


def failure(text: str | bytes) -> Failure:
    """An error reply; line ends, which an error reply cannot contain, become spaces."""
    data = text.encode() if isinstance(text, str) else text
    return Failure(data.translate(_NO_LINE_ENDS))


def encode_commands(commands: Iterable[Sequence[bytes]]) -> bytes:
    """The bytes that send these commands, one after another."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        parts.extend(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command)
    return b"".join(parts)


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a reply, as a Redis server sends it."""
    match reply:
        case None:
            encoded = b"$-1\r\n"
        case bytes():
            encoded = b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            encoded = b":%d\r\n" % reply
        case Status():
            encoded = b"+%b\r\n" % reply.text
        case Failure():
            encoded = b"-%b\r\n" % reply.text
        case NullArray():
            encoded = b"*-1\r\n"
        case list():
            encoded = b"*%d\r\n" % len(reply) + b"".join(map(encode_reply, reply))
        case _:
            assert_never(reply)
    return encoded


class ReplyReader:
    """Turns bytes, cut anywhere, into complete replies; each byte is read once."""

    __slots__ = ("_buffer", "_open", "_position")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._open: list[tuple[list[Reply], int]] = []
        """The arrays that are incomplete, outermost first: members so far, and their number."""

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that are complete after these bytes.  Raises MalformedReply."""
        self._buffer += data
        replies: list[Reply] = []
        while (value := self._next_value()) is not _INCOMPLETE:
            while self._open:
                members, size = self._open[-1]
                members.append(value)  # type: ignore[arg-type]  # not the sentinel
                if len(members) < size:
                    break
                value, _ = self._open.pop()
            else:
                replies.append(value)  # type: ignore[arg-type]  # not the sentinel
        del self._buffer[: self._position]
        self._position = 0
        return replies

    def _next_value(self) -> object:
        """The next value that is not the beginning of an array, or ``_INCOMPLETE``."""
        while True:
            end = self._buffer.find(b"\r\n", self._position)
            if end < 0:
                return _INCOMPLETE
            kind = self._buffer[self._position : self._position + 1]
            line = bytes(self._buffer[self._position + 1 : end])
            start = end + 2
            if kind == b"$" and (size := int(line)) >= 0:
                if len(self._buffer) < start + size + 2:
                    return _INCOMPLETE
                self._position = start + size + 2
                return bytes(memoryview(self._buffer)[start : start + size])
            self._position = start
            if kind == b"*" and (size := int(line)) > 0:
                self._open.append(([], size))
                continue
            return _simple_value(kind.decode("latin-1"), line)


def _simple_value(kind: str, line: bytes) -> Reply:
    match kind:
        case "+":
            return Status(line)
        case "-":
            return Failure(line)
        case ":":
            return int(line)
        case "$":
            return None
        case "*":
            return NullArray() if line == b"-1" else []
        case other:
            raise MalformedReply(f"a RESP2 reply cannot begin with {other!r}")
