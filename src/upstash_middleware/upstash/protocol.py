"""Upstash's REST interface: commands to the body of an HTTP request, a response to replies.

A request asks for RESP2, which carries any bytes. A response is read by its own content type:

- ``application/octet-stream`` is RESP2;
- ``application/json`` is plain JSON. Base64 within JSON is requested for transactions only, which
  do not support RESP2. Elsewhere a JSON string means its own UTF-8: a server that does not know
  RESP2 returns text whole and damages other bytes (it replaces them with U+FFFD), which stored
  values detect by their checksum.

Source: https://upstash.com/docs/redis/features/restapi.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import hiredis
import msgspec

from upstash_middleware.errors import CommandError, Refused, UnexpectedAnswer, refusal_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.flow import Argument, Command, Reply

Header = tuple[str, str]

_RESP2: Final = ("Upstash-Response-Format", "resp2")
_JSON: Final[tuple[Header, ...]] = (("Content-Type", "application/json"), _RESP2)
_RAW: Final[tuple[Header, ...]] = (("Content-Type", "application/octet-stream"), _RESP2)
_BASE64: Final[tuple[Header, ...]] = (
    ("Content-Type", "application/json"),
    ("Upstash-Encoding", "base64"),
)

TRANSACTION_PATH: Final = "/multi-exec"


class Call(msgspec.Struct, frozen=True):
    """One HTTP request: always POST; the path begins with a slash and may have a query."""

    path: str
    headers: tuple[Header, ...]
    """The header fields of this call, in addition to those of every call."""
    body: bytes


class Response(msgspec.Struct, frozen=True):
    """One HTTP response, read to its end."""

    status: int
    content_type: str
    body: bytes
    sync_token: str | None = None


# Requests ----------------------------------------------------------------------------------------

_SET_OPTIONS_WITH_VALUE: Final = frozenset({"EX", "PX", "EXAT", "PXAT"})
_TEXT_ALONE: Final = frozenset({str})
_encode_json = msgspec.json.Encoder().encode


def encode(commands: Sequence[tuple[Argument, ...]]) -> Call:
    """Return the call that performs the commands, at least one, in order.

    One command may hold bytes that are not UTF-8 as its last argument, or as the value of a SET:
    they are then the request's body. Raises ValueError, naming the command, for other such bytes
    and for text that has no UTF-8 (a lone surrogate).
    """
    if len(commands) == 1 and (raw_at := _raw_position(commands[0])) >= 0:
        value = commands[0][raw_at]
        assert isinstance(value, bytes)  # noqa: S101
        return Call(_raw_path(commands[0], raw_at), _RAW, value)
    return join([_member(command) for command in commands])


def encode_transaction(commands: Sequence[tuple[Argument, ...]]) -> Call:
    """Return the call that performs the commands, at least one, in order and as one.

    Raises ValueError for arguments that are neither text nor UTF-8.
    """
    body = b",".join([_member(command) for command in commands])
    return Call(TRANSACTION_PATH, _BASE64, b"[%b]" % body)


def as_members(commands: Sequence[Command]) -> list[bytes] | None:
    """Return each command as it appears in a pipeline's body, to be joined with others.

    None for a single command whose value is the request's body. Raises ValueError like ``encode``.
    """
    try:
        return [_member(command.args) for command in commands]
    except ValueError:
        if len(commands) == 1 and _raw_position(commands[0].args) >= 0:
            return None
        raise


def join(members: Sequence[bytes]) -> Call:
    """Return the call for members (``as_members``), at least one, in order."""
    if len(members) == 1:
        return Call("/", _JSON, members[0])
    return Call("/pipeline", _JSON, b"[%b]" % b",".join(members))


def _member(command: tuple[Argument, ...]) -> bytes:
    try:
        if _TEXT_ALONE.issuperset(map(type, command)):
            return _encode_json(command)
        return _encode_json(_text(command))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{command[0]!s}: bytes that are not UTF-8 cannot be part of a pipeline; send the "
            "command by itself, or encode the value as text"
        ) from error
    except UnicodeEncodeError as error:
        raise _no_utf8(command) from error


def _text(words: tuple[Argument, ...]) -> list[str]:
    """Return the words as JSON can hold them; raises UnicodeDecodeError for those it cannot."""
    return [word.decode() if isinstance(word, bytes) else str(word) for word in words]


def _raw_position(words: tuple[Argument, ...]) -> int:
    """Return the position of the first bytes that are not UTF-8; -1 if there are none."""
    for index, word in enumerate(words):
        if isinstance(word, bytes):
            try:
                word.decode()
            except UnicodeDecodeError:
                return index
    return -1


def _no_utf8(command: tuple[Argument, ...]) -> ValueError:
    return ValueError(
        f"{command[0]!s}: an argument contains a lone surrogate, which UTF-8 cannot encode; pass "
        "it as bytes"
    )


def _raw_path(command: tuple[Argument, ...], value_at: int) -> str:
    """Return the words before the value as a path, and those after it as its query."""
    before = _text(command[:value_at])
    options: list[str] | None
    try:
        options = _text(command[value_at + 1 :])
    except UnicodeDecodeError:
        options = None
    name = before[0].lower() if before else ""
    if not name or options is None or (options and (name, value_at) != ("set", 2)):
        raise ValueError(
            f"{command[0]!s}: bytes that are not UTF-8 can be sent only as the last argument or "
            "as the value of a SET; encode them as text"
        )
    for word in before:
        if word in {"", ".", ".."}:  # HTTP clients remove these segments (RFC 3986 §5.2.4)
            raise ValueError(f"{name}: {word!r} cannot be part of a path; use another key")
    try:
        path = "/".join(["", name, *(quote(word, "") for word in before[1:])])
        return f"{path}?{_set_options(options)}" if options else path
    except UnicodeEncodeError as error:
        raise _no_utf8(command) from error


def _set_options(words: list[str]) -> str:
    remaining = iter(words)
    return "&".join(
        f"{quote(word, '')}={quote(next(remaining, ''), '')}"
        if word.upper() in _SET_OPTIONS_WITH_VALUE
        else word
        for word in remaining
    )


# Responses ---------------------------------------------------------------------------------------

MAX_MEMBERS: Final = 100_000
"""Members of arrays in one response; no command of this package returns more than hundreds."""

_RESP2_FORMAT: Final = "application/octet-stream"
_JSON_FORMAT: Final = "application/json"
_ARRAY: Final = re.compile(rb"\*([0-9]{1,12})\r\n")
_INCOMPLETE: Final = object()
_decode_json = msgspec.json.Decoder().decode


def decode(
    response: Response, expected: int, secret: str, *, transaction: bool = False
) -> list[Reply]:
    """Return as many replies as commands were sent, in order, each failed one as its error.

    ``secret`` is kept out of error messages. Raises CommandError for a transaction that was
    discarded, Refused if Upstash rejects the token or a limit of the plan is reached, and
    UnexpectedAnswer if the response is not one of Upstash's.
    """
    if response.status not in {200, 400}:
        if response.status in {401, 403}:
            raise Refused(
                f"Upstash rejected the token with status {response.status}: "
                f"{_excerpt(response.body.decode('utf-8', 'replace'), secret)}"
            )
        raise _unexpected(response, secret, "the status is neither 200 nor 400")
    try:
        replies = _replies(response, expected, transaction=transaction)
    except (ValueError, RecursionError) as error:
        raise _unexpected(response, secret, str(error)) from None
    if isinstance(replies, CommandError):  # about the whole call, so it is no member's error
        if refusal_in(str(replies)):
            raise Refused(_excerpt(str(replies), secret))
        if transaction:
            raise replies
        raise _unexpected(response, secret, f"one error for {expected} commands")
    if len(replies) != expected:
        raise _unexpected(response, secret, f"{len(replies)} replies to {expected} commands")
    if expected == 1:
        refuse(replies[0], secret)
    return replies


def refuse(reply: Reply, secret: str) -> None:
    """Raise Refused if this reply to a pipeline's only command is about the token or the plan."""
    if isinstance(reply, CommandError) and refusal_in(str(reply)):
        raise Refused(_excerpt(str(reply), secret))


def _replies(response: Response, expected: int, *, transaction: bool) -> list[Reply] | CommandError:
    """Return the replies, or the one error that was returned for a whole pipeline."""
    content_type = response.content_type
    if content_type != _RESP2_FORMAT:  # which nearly all have exactly
        content_type = _content_type(response)
    if content_type == _RESP2_FORMAT:
        replies = decode_replies(response.body)
        # A pipeline's replies come one after the other, or as one array.
        if expected > 1 and len(replies) == 1 and isinstance(replies[0], list | CommandError):
            return replies[0]
        return replies
    if content_type == _JSON_FORMAT:
        value = _decode_json(response.body)
        if isinstance(value, dict):
            reply = _json_reply(value, base64=transaction)
            is_list = expected > 1 or transaction
            return reply if is_list and isinstance(reply, CommandError) else [reply]
        if isinstance(value, list) and (expected > 1 or transaction):
            return [_json_reply(member, base64=transaction) for member in value]
        raise ValueError("it is JSON of an unexpected shape")
    raise ValueError(f"its content type is {content_type[:60] or 'missing'!r}")


def decode_replies(data: bytes) -> list[Reply]:
    """Return all RESP2 replies in ``data``, one after the other.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/. Raises ValueError if
    anything is not RESP2, is truncated, or is left over.
    """
    if data[:1] not in b"+-:$*":
        raise ValueError("its first reply has no RESP2 type")
    if b"*" in data:
        _check_arrays(data)
    reader = hiredis.Reader(
        protocolError=ValueError, replyError=CommandError, notEnoughData=_INCOMPLETE
    )
    reader.feed(data)
    replies: list[Reply] = []
    while reader.has_data():
        reply = reader.gets()
        if reply is _INCOMPLETE:
            raise ValueError("it is truncated")
        if type(reply) is list:
            for member in reply:
                if type(member) is not bytes and type(member) is not int:
                    _check_type(member)
        elif type(reply) is not bytes and type(reply) is not int:
            _check_type(reply)
        replies.append(reply)
    return replies


def _check_type(reply: Any) -> None:
    """Reject what only RESP3 has: booleans, floating-point numbers, maps."""
    if type(reply) is list:
        for member in reply:
            if type(member) is not bytes and type(member) is not int:
                _check_type(member)
    elif reply is not None and type(reply) is not CommandError:
        raise ValueError(f"a reply is a {type(reply).__name__}, which RESP2 does not have")


def _check_arrays(data: bytes) -> None:
    """Reject oversized arrays before memory is reserved for their members.

    A value may contain what looks like an array, so where these are too large in sum, the strings
    are skipped by their lengths and only the arrays themselves are counted.
    """
    members = 0
    for array in _ARRAY.finditer(data):
        members += int(array[1])
        if members > MAX_MEMBERS:
            break
    else:
        return
    members = position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        kind, length = data[position : position + 1], data[position + 1 : min(end, position + 13)]
        position = end + 2
        if not length.isdigit():
            continue
        if kind == b"$":
            position += int(length) + 2
        elif kind == b"*":
            members += int(length)
            if members > MAX_MEMBERS:
                raise ValueError(f"arrays of more than {MAX_MEMBERS} members")


def _json_reply(value: Any, *, base64: bool) -> Reply:
    if isinstance(value, dict):
        if isinstance(error := value.get("error"), str):
            return CommandError(error)
        if "result" in value:
            return _json_result(value["result"], base64=base64)
    raise ValueError("a member has neither a result nor an error")


def _json_result(value: Any, *, base64: bool) -> Reply:
    if isinstance(value, str):
        if base64 and value != "OK":
            return b64decode(value, validate=True)
        return value.encode()
    if value is None or type(value) is int:
        return value
    if isinstance(value, list):
        return [_json_result(member, base64=base64) for member in value]
    raise ValueError(f"a result is a JSON {type(value).__name__}")


def _content_type(response: Response) -> str:
    return response.content_type.partition(";")[0].strip().lower()


def _unexpected(response: Response, secret: str, reason: str) -> UnexpectedAnswer:
    """Return the error, with the body's beginning unless it may hold what users stored."""
    if response.status == 200 and _content_type(response) in {_RESP2_FORMAT, _JSON_FORMAT}:
        body = f"it has {len(response.body)} bytes"
    else:
        body = f"it begins: {_excerpt(response.body.decode('utf-8', 'replace'), secret)!r}"
    return UnexpectedAnswer(
        f"the response with status {response.status} is not one of Upstash's ({reason}); {body}"
    )


def _excerpt(text: str, secret: str) -> str:
    """Return the beginning of a text from outside, on one line, without the secret."""
    shown = text.replace(secret, "[token]") if secret else text
    return re.sub(r"[^\x20-\x7e]+", " ", shown)[:160]
