"""RESP2, the protocol between this server and the Valkey behind it: bytes to values and back.

No I/O and no knowledge of HTTP may live here.  A reply keeps what RESP2 tells apart and JSON
does not (a status from a string, a null array from a null string), because the answers that
Upstash gives depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True, slots=True)
class Status:
    """A simple string, such as ``OK``."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """An error reply, its code included: ``WRONGTYPE Operation against a key …``."""

    text: bytes


def failure(text: bytes) -> Failure:
    """An error reply of a text that may hold line ends, which an error reply must not."""
    return Failure(text.translate(_NO_LINE_ENDS))


@dataclass(frozen=True, slots=True)
class NullArray:
    """``*-1``: the absence of an array, as XREAD gives it when there is nothing to read."""


_NO_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"  ")

Reply: TypeAlias = "Status | Failure | NullArray | bytes | int | list[Reply] | None"

OK: Final = Status(b"OK")
_NULL_ARRAY: Final = NullArray()
_UNFINISHED: Final = object()


class MalformedReply(Exception):
    """The other side does not speak RESP2."""


def encode_commands(commands: Iterable[Sequence[bytes]]) -> bytes:
    """The bytes that send these commands, one after another."""
    parts: list[bytes] = []
    for command in commands:
        parts.append(b"*%d\r\n" % len(command))
        parts.extend(b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in command)
    return b"".join(parts)


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a reply, as a Redis server would send it."""
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


@dataclass(slots=True)
class _OpenArray:
    """An array of which ``missing`` members have not arrived yet."""

    members: list[Reply]
    missing: int


class ReplyReader:
    """Turns what arrives, cut anywhere, into whole replies; each byte is looked at once."""

    __slots__ = ("_buffer", "_open", "_position")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0
        self._open: list[_OpenArray] = []

    def feed(self, data: bytes) -> list[Reply]:
        """Take more bytes; return the replies that are complete now.

        Raises MalformedReply when the bytes are not RESP2.
        """
        self._buffer += data
        replies: list[Reply] = []
        while (value := self._next_value()) is not _UNFINISHED:
            while self._open:
                innermost = self._open[-1]
                innermost.members.append(value)  # type: ignore[arg-type]  # not the sentinel
                innermost.missing -= 1
                if innermost.missing:
                    break
                value = self._open.pop().members
            else:
                replies.append(value)  # type: ignore[arg-type]  # not the sentinel
        del self._buffer[: self._position]
        self._position = 0
        return replies

    def _next_value(self) -> object:
        """The next value that is not the beginning of an array, or ``_UNFINISHED``."""
        while True:
            end = self._buffer.find(b"\r\n", self._position)
            if end < 0:
                return _UNFINISHED
            kind = self._buffer[self._position]
            line = bytes(self._buffer[self._position + 1 : end])
            if kind == 0x2A and (size := int(line)) > 0:  # "*"
                self._open.append(_OpenArray([], size))
                self._position = end + 2
                continue
            if kind == 0x24:  # "$"
                return self._bulk_string(end + 2, int(line))
            self._position = end + 2
            return _simple_value(kind, line)

    def _bulk_string(self, start: int, size: int) -> object:
        if size < 0:
            self._position = start
            return None
        end = start + size
        if len(self._buffer) < end + 2:
            return _UNFINISHED
        self._position = end + 2
        return bytes(memoryview(self._buffer)[start:end])


def _simple_value(kind: int, line: bytes) -> Reply:
    match chr(kind):
        case "+":
            return Status(line)
        case "-":
            return Failure(line)
        case ":":
            return int(line)
        case "*":
            return _NULL_ARRAY if line == b"-1" else []
        case other:
            raise MalformedReply(f"a RESP2 reply cannot begin with {other!r}")
