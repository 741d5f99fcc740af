"""From replies to the bodies that Upstash answers with: JSON, JSON with base64, or raw RESP2.

Only the writing of replies may live here.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from typing import TYPE_CHECKING, Final, TypeAlias

from upstash_middleware.local.messages import Answer
from upstash_middleware.local.reading import MAX_COMMAND_BYTES, Encoding, size_error
from upstash_middleware.local.resp import Failure, NullArray, Reply, Status, encode_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Json: TypeAlias = "str | int | list[Json] | None"

_RESP2: Final = b"application/octet-stream"
_DIGITS: Final = b"0123456789abcdefghijklmnopqrstuv"


def answer_one(reply: Reply, encoding: Encoding) -> Answer:
    """The answer to one command: 200 with its result, or 400 with its error."""
    status = 400 if isinstance(reply, Failure) else 200
    answer = _answer_one(status, reply, encoding)
    if len(answer.body) > MAX_COMMAND_BYTES:
        return _answer_one(status, _bounded(reply), encoding)
    return answer


def _answer_one(status: int, reply: Reply, encoding: Encoding) -> Answer:
    if encoding is Encoding.RESP2:
        return Answer(status, encode_reply(reply), _RESP2)
    return Answer(status, _dump(_entry(reply, encoding)))


def answer_batch(replies: Sequence[Reply], encoding: Encoding) -> Answer:
    """The answer to a pipeline or a transaction: 200, each member with its result or error.

    In RESP2 the replies follow one another, as a client that pipelines over TCP would read them.
    """
    answer = _answer_batch(replies, encoding)
    if len(answer.body) > MAX_COMMAND_BYTES:
        return _answer_batch([_bounded(reply) for reply in replies], encoding)
    return answer


def _answer_batch(replies: Sequence[Reply], encoding: Encoding) -> Answer:
    if encoding is Encoding.RESP2:
        return Answer(200, b"".join(map(encode_reply, replies)), _RESP2)
    return Answer(200, _dump([_entry(reply, encoding) for reply in replies]))


def _bounded(reply: Reply) -> Reply:
    """The reply, or the error that Upstash gives in its place, with status 200, when too large."""
    size = len(encode_reply(reply))
    return Failure(size_error(size).encode()) if size > MAX_COMMAND_BYTES else reply


def in_base_32(number: int) -> bytes:
    """A sync token: a number of at least 0 in the digits 0 to 9 and a to v."""
    digits = b""
    while number or not digits:
        number, digit = divmod(number, 32)
        digits = _DIGITS[digit : digit + 1] + digits
    return digits


def _entry(reply: Reply, encoding: Encoding) -> dict[str, Json]:
    if isinstance(reply, Failure):
        return {"error": _plain(reply.text)}
    return {"result": _to_json(reply, _TEXT[encoding])}


def _to_json(reply: Reply, text: Callable[[bytes], str]) -> Json:
    match reply:
        case bytes():
            return text(reply)
        case int() | None:
            return reply
        case list():
            return [_to_json(member, text) for member in reply]
        case Status():
            return "OK" if reply.text == b"OK" else text(reply.text)
        case Failure():
            return text(reply.text)
        case NullArray():
            return None


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


_TEXT: Final = {Encoding.PLAIN: _plain, Encoding.BASE64: _base64}


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
