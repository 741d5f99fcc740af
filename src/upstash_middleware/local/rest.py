"""Upstash's REST format: from HTTP requests to commands, and from replies to HTTP answers.

The error messages are those that Upstash is known to send.
"""

from __future__ import annotations

import json
from binascii import b2a_base64
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from upstash_middleware.local.http1 import Answer, json_answer
from upstash_middleware.local.resp import Failure, NullArray, Reply, Status, encode_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.local.commands import Command
    from upstash_middleware.local.http1 import Request

_MAX_COMMAND_BYTES: Final = 10 * 1024 * 1024
_BASE_32: Final = b"0123456789abcdefghijklmnopqrstuv"


class InvalidRequest(Exception):
    """The request contains no command; the message is Upstash's error for the client."""

    status = 400


class TooLarge(InvalidRequest):
    """A command is larger than Upstash accepts."""

    status = 413


class Encoding(Enum):
    """How strings are encoded in the answer."""

    PLAIN = "plain"
    BASE64 = "base64"
    RESP2 = "resp2"


# Requests.


def read_token(request: Request) -> bytes | None:
    """The client's token: the parameter ``_token``, else Authorization, with or without Bearer."""
    for name, value in read_parameters(request.query):
        if name == b"_token":
            return value
    token = request.headers.get(b"authorization", b"").strip()
    if token[:7].lower() == b"bearer ":
        token = token[7:].strip()
    return token or None


def read_encoding(request: Request) -> Encoding:
    """The encoding that the request's headers select.

    Raises InvalidRequest for values, and for a combination, that Upstash rejects.
    """
    encoding = request.headers.get(b"upstash-encoding", b"").strip().lower()
    form = request.headers.get(b"upstash-response-format", b"").strip().lower()
    if encoding not in (b"", b"base64"):
        raise InvalidRequest(
            f"ERR invalid Upstash-Encoding {encoding.decode('utf-8', 'replace')!r}, "
            "the only one there is is base64"
        )
    if form not in (b"", b"json", b"resp2"):
        raise InvalidRequest(
            f"ERR invalid Upstash-Response-Format {form.decode('utf-8', 'replace')!r}, "
            "there are json and resp2"
        )
    if form == b"resp2":
        if encoding:
            raise InvalidRequest(
                "ERR Upstash-Encoding base64 is not permitted with Upstash-Response-Format resp2"
            )
        return Encoding.RESP2
    return Encoding.BASE64 if encoding else Encoding.PLAIN


def read_path(request: Request) -> Command:
    """The decoded segments of the path; none for ``/``."""
    path = request.path.strip(b"/")
    return [unquote_to_bytes(segment) for segment in path.split(b"/")] if path else []


def read_command(request: Request) -> Command:
    """The command of a request to ``/`` (a JSON array) or in the path form.

    The path form, ``/set/key?EX=60`` with a body, is: the path, then the body, then the query.
    Raises InvalidRequest.
    """
    command = read_path(request)
    if not command:
        return _command(_parse_json(request.body))
    if request.body:
        command.append(request.body)
    for name, value in read_parameters(request.query):
        if name != b"_token":
            command += [name, value] if value else [name]
    return _checked(command)


def read_batch(request: Request) -> list[Command]:
    """The commands of ``/pipeline`` and ``/multi-exec``.

    Raises InvalidRequest if any of them is not a command: nothing is run then.
    """
    value = _parse_json(request.body)
    if not isinstance(value, list):
        raise InvalidRequest("expected JSON array")
    if not value:
        raise InvalidRequest("ERR empty pipeline request")
    return [_command(member) for member in value]


def read_parameters(query: bytes) -> list[tuple[bytes, bytes]]:
    """The names and values of a query or a form, in order, as bytes."""
    pairs = (part.replace(b"+", b" ").partition(b"=") for part in query.split(b"&") if part)
    return [(unquote_to_bytes(name), unquote_to_bytes(value)) for name, _, value in pairs]


def _command(value: Any) -> Command:
    if not isinstance(value, list):
        raise InvalidRequest("expected JSON array")
    if not value:
        raise InvalidRequest("ERR empty command")
    return _checked([_argument(member) for member in value])


def _checked(command: Command) -> Command:
    size = sum(map(len, command))
    if size > _MAX_COMMAND_BYTES:
        raise TooLarge(_size_error(size))
    return command


def _size_error(size: int) -> str:
    return (
        f"ERR max request size exceeded. Limit: {_MAX_COMMAND_BYTES} bytes, Actual: {size} bytes. "
        "See https://upstash.com/docs/redis/troubleshooting/max_request_size_exceeded for details"
    )


def _argument(value: Any) -> bytes:
    match value:
        case str():
            try:
                return value.encode()
            except UnicodeEncodeError:  # half of a surrogate pair: valid in JSON, not in UTF-8
                return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        case bool():
            return b"true" if value else b"false"
        case None:
            raise InvalidRequest("ERR null args are not supported")
        case _:
            opening = "[" if isinstance(value, list) else "{"
            raise InvalidRequest(f'ERR unsupported arg type: "{opening}": json.Delim')


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_reject_constant)


def _parse_json(body: bytes) -> Any:
    """The value of a body; a number is the text in which it was written."""
    if not body.strip():
        raise InvalidRequest("EOF")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"ERR invalid JSON: {error}") from error


# Answers.


def answer_one(reply: Reply, encoding: Encoding) -> Answer:
    """The answer to one command: 200 with its result, or 400 with its error."""
    status = 400 if isinstance(reply, Failure) else 200
    return _answer(status, [reply], encoding, one=True)


def answer_batch(replies: Sequence[Reply], encoding: Encoding) -> Answer:
    """The answer to a pipeline or a transaction: 200, with the result or error of each command.

    In RESP2 the replies follow one another, as in a pipeline over TCP.
    """
    return _answer(200, replies, encoding)


def sync_token(writes: int) -> bytes:
    """A number in base 32, in the digits 0 to 9 and a to v."""
    digits = b""
    while writes or not digits:
        writes, digit = divmod(writes, 32)
        digits = _BASE_32[digit : digit + 1] + digits
    return digits


def _answer(
    status: int, replies: Sequence[Reply], encoding: Encoding, *, one: bool = False
) -> Answer:
    if encoding is Encoding.RESP2:
        body = b"".join(map(encode_reply, replies))
        answer = Answer(status, body, b"application/octet-stream")
    else:
        text = _base64 if encoding is Encoding.BASE64 else _plain
        results = [
            {"error": _plain(reply.text)}
            if isinstance(reply, Failure)
            else {"result": _to_json(reply, text)}
            for reply in replies
        ]
        answer = json_answer(status, results[0] if one else results)
    if len(answer.body) > _MAX_COMMAND_BYTES:
        bounded = [_bounded(reply) for reply in replies]
        if bounded != replies:
            return _answer(status, bounded, encoding, one=one)
    return answer


def _bounded(reply: Reply) -> Reply:
    """The reply, or if it is too large, the error that Upstash sends in its place."""
    size = len(encode_reply(reply))
    return Failure(_size_error(size).encode()) if size > _MAX_COMMAND_BYTES else reply


def _to_json(reply: Reply, text: Callable[[bytes], str]) -> Any:
    match reply:
        case bytes():
            return text(reply)
        case list():
            return [_to_json(member, text) for member in reply]
        case Status():
            return "OK" if reply.text == b"OK" else text(reply.text)
        case Failure():
            return text(reply.text)
        case NullArray():
            return None
        case _:
            return reply


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")
