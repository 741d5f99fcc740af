"""What is fuzzed: functions of bytes that raise where a promise is broken.

They need no atheris: the tests run them over the cases that are kept.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from upstash_middleware.core.cache.entries import (
    Damaged,
    Sealing,
    StoredResponse,
    _checksum,
    body_of,
    decode,
    encode,
)
from upstash_middleware.errors import CommandError, UpstashError
from upstash_middleware.logs import one_line
from upstash_middleware.upstash.protocol import Response, ResponseReader
from upstash_middleware.upstash.protocol import decode as decode_answer

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY: Final = "p:cache:entry:http://shop.example/page"
_SEALING: Final = Sealing(["k" * 32], encrypt=False, randomness=bytes)
_LARGEST: Final = 1 << 20
_KINDS: Final = (
    "application/json",
    "application/octet-stream",
    "application/json; charset=utf-8",
    "text/html",
    "",
)
_STATUSES: Final = (200, 400, 401, 413, 500, 502)


def entries(data: bytes) -> None:
    """Read bytes as an entry, and their rest as an entry whose checksum is right.

    Under a key of the application's they are none at all.
    """
    _entry(data)
    assert decode(_KEY, data, _SEALING) is None
    head, _, body = data.partition(b"\x00")
    content = len(head).to_bytes(4, "big") + head + body
    _entry(b"\x01:|:|\n" + _checksum(_KEY, content) + content)


def sealed(head: object) -> bytes:
    """Return what ``entries`` takes for an entry with this head and a right checksum."""
    return json.dumps(head).encode() + b"\x00page"


def _entry(data: bytes) -> None:
    found = decode(_KEY, data)
    if found is None:
        return
    if isinstance(found, StoredResponse):
        _check_response(found)
    again = decode(_KEY, encode(_KEY, found, raw=True))
    assert type(again) is type(found)


def _check_response(found: StoredResponse) -> None:
    assert 100 <= found.status <= 999
    assert all(isinstance(part, bytes) for pair in found.headers.raw for part in pair)
    for seconds in (found.stored_at, found.initial_age, found.lifetime):
        assert abs(seconds) < float("inf")
    with suppress(Damaged):
        assert len(body_of(found)) <= max(len(found.packed), found.length)


def wire(data: bytes) -> None:
    """Read bytes as an answer: replies as many as were asked for, or one of our errors."""
    if len(data) < 3:
        return
    kind, status = _KINDS[data[0] % len(_KINDS)], _STATUSES[data[1] % len(_STATUSES)]
    expected = data[2] % 4 + 1
    try:
        replies = decode_answer(Response(status, kind, data[3:]), expected, "the-secret")
    except UpstashError as error:
        _check_error(error)
        return
    assert len(replies) == expected
    assert all(_is_reply(reply) for reply in replies)


def answers(data: bytes) -> None:
    """Read bytes as HTTP, whole and in pieces: the same answer either way, or an error alike."""
    if not data:
        return
    size, data = data[0] % 32 + 1, data[1:]
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert _read([data] if data else []) == _read(pieces)


def _read(pieces: list[bytes]) -> Response | type[UpstashError]:
    reader = ResponseReader()
    try:
        return next(filter(None, map(reader.feed, pieces)), None) or reader.end()
    except UpstashError as error:
        _check_error(error)
        return type(error)


def _check_error(error: UpstashError) -> None:
    said = str(error)
    assert "the-secret" not in said
    assert one_line(said).isprintable()
    assert len(said) < 1000


def _is_reply(reply: Any) -> bool:
    if isinstance(reply, list):
        return all(_is_reply(member) for member in reply)
    return reply is None or isinstance(reply, int | bytes | CommandError)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "answers": answers,
    "entries": entries,
    "wire": wire,
}


def seeds(name: str) -> list[bytes]:
    """Return what fuzzing begins with: things as they should be."""
    if name == "wire":
        return [
            b"\x00\x00\x00" + json.dumps({"result": "OK"}).encode(),
            b"\x00\x00\x01" + json.dumps([{"result": 1}, {"error": "ERR no"}]).encode(),
            b"\x01\x00\x00+OK\r\n",
            b"\x01\x00\x01*2\r\n$1\r\na\r\n:1\r\n",
        ]
    if name == "answers":
        first, kind = b"HTTP/1.1 200 OK\r\n", b"Content-Type: application/octet-stream\r\n"
        chunks = b"Transfer-Encoding: chunked\r\n\r\n2;x=y\r\n:1\r\n2\r\n\r\n\r\n0\r\nT: u\r\n\r\n"
        return [
            b"\x00" + first + kind + b"Content-Length: 4\r\nConnection: close\r\n\r\n:1\r\n",
            b"\x07" + b"HTTP/1.1 103 Early\r\n\r\n" + first + kind + chunks,
            b"\x1f" + first + kind + b"X: y\r\n z\r\n\r\n:1\r\n",
        ]
    whole = ["response", 200, [["a", "b"]], 1.0, 0.0, 9.0, [0, 0, False], False, 4, [], ""]
    return [sealed(whole), sealed(["stub", ["a"], [], {}, ""])]
