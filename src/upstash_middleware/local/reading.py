"""From an HTTP request to commands: the three shapes in which Upstash takes them.

Only the reading of requests may live here; nothing is executed and nothing is answered.  The
error texts are those that Upstash is known to answer with.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from upstash_middleware.local.messages import Request

Command: TypeAlias = list[bytes]

MAX_COMMAND_BYTES: Final = 10 * 1024 * 1024


class Unreadable(Exception):
    """The request holds no command; the text is Upstash's error for the client."""


class TooLarge(Unreadable):
    """A command is larger than Upstash takes."""


class Encoding(Enum):
    """How the client wants the strings of the answer."""

    PLAIN = "plain"
    BASE64 = "base64"
    RESP2 = "resp2"


def read_token(request: Request) -> bytes | None:
    """The token that the client shows: the parameter ``_token``, else Authorization.

    The word Bearer before it may be missing.
    """
    for name, value in read_parameters(request.query):
        if name == b"_token":
            return value
    shown = request.headers.get(b"authorization", b"").strip()
    if shown[:7].lower() == b"bearer ":
        shown = shown[7:].strip()
    return shown or None


def read_encoding(request: Request) -> Encoding:
    """The form of answer that the request's headers ask for.

    Raises Unreadable for values, and for a combination, that Upstash refuses.
    """
    encoding = request.headers.get(b"upstash-encoding", b"").strip().lower()
    form = request.headers.get(b"upstash-response-format", b"").strip().lower()
    if encoding not in (b"", b"base64"):
        raise Unreadable(
            f"ERR invalid Upstash-Encoding {_show(encoding)}, the only one there is is base64"
        )
    if form not in (b"", b"json", b"resp2"):
        raise Unreadable(
            f"ERR invalid Upstash-Response-Format {_show(form)}, there are json and resp2"
        )
    if form == b"resp2":
        if encoding:
            raise Unreadable(
                "ERR Upstash-Encoding base64 is not permitted with Upstash-Response-Format resp2"
            )
        return Encoding.RESP2
    return Encoding.BASE64 if encoding else Encoding.PLAIN


def _show(header: bytes) -> str:
    return repr(header.decode("utf-8", "replace"))


def read_path(request: Request) -> Command:
    """The segments of the path, percent signs decoded; none for ``/``."""
    path = request.path.strip(b"/")
    return [unquote_to_bytes(segment) for segment in path.split(b"/")] if path else []


def read_command(request: Request) -> Command:
    """The one command of a request to ``/`` (a JSON array) or in the path form.

    In the path form, ``/set/key?EX=60`` with a body: the path, then the body, then the query.
    Raises Unreadable.
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

    Raises Unreadable for the whole when one member is not a command: nothing is run then.
    """
    value = _parse_json(request.body)
    if not isinstance(value, list):
        raise Unreadable("expected JSON array")
    if not value:
        raise Unreadable("ERR empty pipeline request")
    return [_command(member) for member in value]


def _command(value: Any) -> Command:
    if not isinstance(value, list):
        raise Unreadable("expected JSON array")
    if not value:
        raise Unreadable("ERR empty command")
    return _checked([_argument(member) for member in value])


def _checked(command: Command) -> Command:
    size = sum(map(len, command))
    if size > MAX_COMMAND_BYTES:
        raise TooLarge(size_error(size))
    return command


def size_error(size: int) -> str:
    """What Upstash says of a command, or of a reply, of so many bytes."""
    return (
        f"ERR max request size exceeded. Limit: {MAX_COMMAND_BYTES} bytes, Actual: {size} bytes. "
        "See https://upstash.com/docs/redis/troubleshooting/max_request_size_exceeded for details"
    )


def read_parameters(query: bytes) -> list[tuple[bytes, bytes]]:
    """The names and values of a query, or of a form, in order and as the bytes that they are."""
    pairs = (part.partition(b"=") for part in query.split(b"&") if part)
    return [(_unquote_plus(name), _unquote_plus(value)) for name, _, value in pairs]


def _unquote_plus(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant)


def _parse_json(body: bytes) -> Any:
    """The value of a body; numbers come as the text in which they were written."""
    if not body.strip():
        raise Unreadable("EOF")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"ERR invalid JSON: {error}") from error


def _argument(value: Any) -> bytes:
    match value:
        case str():
            return _encode(value)
        case bool():
            return b"true" if value else b"false"
        case None:
            raise Unreadable("ERR null args are not supported")
        case _:
            opening = "[" if isinstance(value, list) else "{"
            raise Unreadable(f'ERR unsupported arg type: "{opening}": json.Delim')


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
