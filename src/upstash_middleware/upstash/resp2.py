"""The bytes of RESP2 as replies, without I/O: exact, and bounded by what it was given.

RESP2 is what a Redis server says on TCP (https://redis.io/docs/latest/develop/reference/protocol-spec/);
Upstash sends it as an answer's body. RESP3's types are not known here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from upstash_middleware.errors import CommandError

if TYPE_CHECKING:
    from upstash_middleware.core.effects import Reply

MAX_DEPTH = 32
"""Arrays within arrays."""

_SIMPLE, _ERROR, _NUMBER, _BULK, _ARRAY = b"+-:$*"
_ARRAY_OF_NUMBERS = re.compile(rb"\*([0-9]{1,6})\r\n((?::-?[0-9]{1,19}\r\n)+)")
_SIGNS = frozenset({b"-", b"+"})
_LONGEST_NUMBER = 20
"""Characters of a 64-bit number with its sign."""


def decode_replies(data: bytes) -> list[Reply]:
    """Return the replies that ``data`` holds, one after another, all of it.

    Raises ValueError if anything is not RESP2, is cut short, or is left over.
    """
    replies: list[Reply] = []
    members, lacking = replies, -1
    outer: list[tuple[list[Reply], int]] = []
    position, size = 0, len(data)
    while position < size:
        reply: Reply
        numbers = _ARRAY_OF_NUMBERS.match(data, position)  # what limits answer, read at once
        if numbers and numbers[2].count(b":") == int(numbers[1]) and len(outer) < MAX_DEPTH:
            reply = [*map(int, numbers[2][1:-2].split(b"\r\n:"))]
            position, opens = numbers.end(), 0
        else:
            reply, position, opens = _next(data, position)
        members.append(reply)
        lacking -= 1
        if opens:
            if len(outer) == MAX_DEPTH:
                raise ValueError(f"arrays nest deeper than {MAX_DEPTH}")
            outer.append((members, lacking))
            members, lacking = cast("list[Reply]", reply), opens
        while not lacking:
            members, lacking = outer.pop()
    if outer:
        raise ValueError("cut short within an array")
    return replies


def _next(data: bytes, position: int) -> tuple[Reply, int, int]:
    """Return the reply that begins here, where the next begins, and how many members it lacks."""
    end = data.find(b"\r\n", position)
    if end < 0:
        raise ValueError("cut short within a line")
    kind, line, after = data[position], data[position + 1 : end], end + 2
    if kind == _NUMBER:
        return _number(line), after, 0
    if kind == _BULK:
        length = _length(line)
        if length < 0:
            return None, after, 0
        end = after + length
        if data[end : end + 2] != b"\r\n":
            raise ValueError("a string does not end where its length says")
        return data[after:end], end + 2, 0
    if kind == _ARRAY:
        length = _length(line)
        return (None, after, 0) if length < 0 else ([], after, length)
    return _line(kind, line), after, 0


def _line(kind: int, line: bytes) -> bytes | CommandError:
    if b"\r" in line or b"\n" in line:
        raise ValueError("a line break within a line")
    if kind == _SIMPLE:
        return line
    if kind == _ERROR:
        return CommandError(line.decode("utf-8", "replace"))
    raise ValueError(f"{bytes((kind,))!r} begins no RESP2 type")


def _number(line: bytes) -> int:
    digits = line[1:] if line[:1] in _SIGNS else line
    if digits.isdigit() and len(line) <= _LONGEST_NUMBER:
        return int(line)
    raise ValueError("a number is not one")


def _length(line: bytes) -> int:
    if line.isdigit() and len(line) <= _LONGEST_NUMBER:
        return int(line)
    if line == b"-1":
        return -1
    raise ValueError("a length is not one")
