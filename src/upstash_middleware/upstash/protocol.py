"""Upstash's REST interface: encodes commands as HTTP/1.1 requests, decodes responses. No I/O.

Requests ask for RESP2, which can contain any bytes. A response is decoded by its content type:

- ``application/octet-stream`` is RESP2;
- ``application/json`` is plain JSON. Base64 in JSON is requested for transactions only, because
  they do not support RESP2. Elsewhere JSON strings are UTF-8: a server without RESP2 returns text
  unchanged and damages other bytes (it replaces them with U+FFFD). The checksum of a stored value
  detects this.

Source: https://upstash.com/docs/redis/features/restapi.
"""

from __future__ import annotations

import re
from base64 import b64decode
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import hiredis
import httptools
import msgspec

from upstash_middleware.errors import (
    CommandError,
    ConnectionLost,
    Refused,
    UnexpectedAnswer,
    refusal_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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
    """One HTTP request; always a POST. The path begins with a slash and may have a query."""

    path: str
    headers: tuple[Header, ...]
    """The header fields of this call, in addition to those of every call."""
    body: bytes
    sync_token: str | None = None


class Response(msgspec.Struct, frozen=True):
    """One complete HTTP response."""

    status: int
    content_type: str
    body: bytes
    sync_token: str | None = None


# Requests ----------------------------------------------------------------------------------------

_SET_OPTIONS_WITH_VALUE: Final = frozenset({"EX", "PX", "EXAT", "PXAT"})
_join: Callable[[Any], str] = "".join
_encode_json = msgspec.json.Encoder().encode


def encode(commands: Sequence[Command], sync_token: str | None = None) -> Call:
    """Return the call for one or more commands, which are executed in order.

    One command may contain bytes that are not UTF-8, as its last argument or as the value of a SET:
    these bytes become the request's body. Raises ValueError, naming the command, for other such
    bytes, and for text that cannot be encoded in UTF-8 (a lone surrogate).
    """
    words = commands[0].args
    if len(commands) == 1 and (raw_at := _raw_position(words)) >= 0:
        value = words[raw_at]
        assert isinstance(value, bytes)  # noqa: S101
        return Call(_raw_path(words, raw_at), _RAW, value, sync_token)
    members = b",".join([_member(command.args) for command in commands])
    return pipeline_call(members, len(commands), sync_token)


def encode_transaction(commands: Sequence[Command], sync_token: str | None = None) -> Call:
    """Return the call for one or more commands, which are executed as a transaction.

    Raises ValueError for arguments that are neither text nor UTF-8.
    """
    body = b",".join([_member(command.args) for command in commands])
    return Call(TRANSACTION_PATH, _BASE64, b"[%b]" % body, sync_token)


def encode_members(commands: Sequence[Command]) -> bytes | None:
    """Return the commands as members of a pipeline's body, to be joined with others by commas.

    None for a single command whose value becomes the body. Raises ValueError like ``encode``.
    """
    members = []
    for command in commands:
        words = command.args
        try:
            _join(words)  # the fastest check for arguments other than text: TypeError
            members.append(_encode_json(words))
        except (TypeError, ValueError):
            if len(commands) == 1 and _raw_position(words) >= 0:
                return None
            members.append(_member(words))
    return members[0] if len(members) == 1 else b",".join(members)


def pipeline_call(members: bytes, number: int, sync_token: str | None) -> Call:
    """Return the call for ``number`` commands that ``encode_members`` has encoded."""
    if number == 1:
        return Call("/", _JSON, members, sync_token)
    return Call("/pipeline", _JSON, b"[%b]" % members, sync_token)


def _member(command: tuple[Argument, ...]) -> bytes:
    try:
        return _encode_json(_text(command))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{command[0]!s}: bytes that are not UTF-8 cannot be part of a pipeline; send the "
            "command by itself, or encode the value as text"
        ) from error
    except UnicodeEncodeError as error:
        raise _no_utf8(command) from error


def _text(words: tuple[Argument, ...]) -> list[str]:
    """Return the words as text for JSON; raises UnicodeDecodeError if they are not UTF-8."""
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
    """Return the words before the value as a path, and the words after it as the query."""
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
"""The most array members in a response; commands of this package return at most hundreds."""

_RESP2_FORMAT: Final = "application/octet-stream"
_JSON_FORMAT: Final = "application/json"
_ARRAY: Final = re.compile(rb"[*>]([0-9]{1,12})\r\n")
"""Includes RESP3 pushes, which would reserve memory for members before being rejected."""
_LONG_ARRAY: Final = re.compile(rb"\*[0-9]{3}")
_LONG_PUSH: Final = re.compile(rb">[0-9]{3}")
_RESP2_TYPES: Final = frozenset({b"+", b"-", b":", b"$", b"*"})
_NUMBERS: Final = b"0123456789\r\n:*$+-"
"""Digits and type bytes of RESP2. Data with only these bytes has no reply of another type."""
_PLAIN: Final = frozenset({bytes, int, type(None), CommandError})
"""The types of replies other than arrays."""
_INCOMPLETE: Final = object()
_idle_readers: Final[list[hiredis.Reader]] = []
"""Readers without remaining data: creating one takes longer than reading a small response."""
_decode_json = msgspec.json.Decoder().decode


def decode(
    response: Response, expected: int, secret: str, *, transaction: bool = False
) -> list[Reply]:
    """Return one reply for each command, in order; failed commands have an error as reply.

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
        if response.status == 413:
            _refuse_size(response, secret)
        raise _unexpected_answer(response, secret, "the status is neither 200 nor 400")
    replies: list[Reply] | CommandError
    try:
        if response.content_type == _RESP2_FORMAT or _content_type(response) == _RESP2_FORMAT:
            replies = decode_replies(response.body)
            # The replies of a pipeline are a sequence, or one array.
            if expected > 1 and len(replies) == 1 and isinstance(replies[0], list | CommandError):
                replies = replies[0]
        else:
            replies = _from_json(response, expected, transaction=transaction)
    except (ValueError, RecursionError) as error:
        raise _unexpected_answer(response, secret, str(error)) from None
    if isinstance(replies, CommandError):  # about the whole call, so it is not a member's error
        if refusal_in(str(replies)):
            raise Refused(_excerpt(str(replies), secret))
        if transaction:
            raise replies
        raise _unexpected_answer(response, secret, f"one error for {expected} commands")
    if len(replies) != expected:
        raise _unexpected_answer(response, secret, f"{len(replies)} replies to {expected} commands")
    if expected == 1 and type(replies[0]) is CommandError:
        refuse(replies[0], secret)
    return replies


def refuse(reply: CommandError, secret: str) -> None:
    """Raise Refused if the reply to a single command is about the token or the plan."""
    if refusal_in(str(reply)):
        raise Refused(_excerpt(str(reply), secret))


def _refuse_size(response: Response, secret: str) -> None:
    """Raise Refused if Upstash says that the request is too large; a proxy may say it too."""
    with suppress(ValueError, RecursionError):
        reply = _json_reply(_decode_json(response.body), base64=False)
        if isinstance(reply, CommandError):
            refuse(reply, secret)


def decode_replies(data: bytes) -> list[Reply]:
    """Return all RESP2 replies in ``data``, which contains one after the other.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/. Raises ValueError for
    data that is not RESP2, is truncated, or has extra bytes.
    """
    if data[:1] not in _RESP2_TYPES:
        raise ValueError("its first reply has no RESP2 type")
    # Numbers and one array with a length of two digits, as of a limit, need no other check.
    has_text = data.lstrip(_NUMBERS)
    if data.rfind(b"*") > 0 or data.find(b"\r", 0, 4) < 0 or (has_text and data.find(b">") >= 0):
        _check_arrays(data)
    try:
        reader = _idle_readers.pop()
    except IndexError:
        reader = hiredis.Reader(
            protocolError=ValueError, replyError=CommandError, notEnoughData=_INCOMPLETE
        )
    reader.feed(data)
    replies: list[Reply] = []
    while reader.has_data():
        if (reply := reader.gets()) is _INCOMPLETE:
            raise ValueError("it is truncated")
        replies.append(reply)
    _idle_readers.append(reader)
    if has_text:
        _check_types(replies)
    return replies


def _check_types(replies: list[Any]) -> None:
    """Reject types that only RESP3 has: booleans, floating-point numbers, maps."""
    for reply in replies:
        if type(reply) is list:
            if not _PLAIN.issuperset(map(type, reply)):
                _check_types(reply)
        elif type(reply) not in _PLAIN:
            raise ValueError(f"a reply is a {type(reply).__name__}, which RESP2 does not have")


def _check_arrays(data: bytes) -> None:
    """Reject oversized arrays before memory is reserved for their members.

    A value may contain text that looks like an array. If the sum of these apparent arrays is too
    large, strings are skipped by their lengths, and only actual arrays are counted.
    """
    if not (_LONG_ARRAY.search(data) or _LONG_PUSH.search(data)) and (
        len(data) * 33 <= MAX_MEMBERS or (data.count(b"*") + data.count(b">")) * 99 <= MAX_MEMBERS
    ):  # an array of two digits takes at least three bytes
        return
    if sum([int(found) for found in _ARRAY.findall(data)]) <= MAX_MEMBERS:
        return
    members = position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        kind, length = data[position : position + 1], data[position + 1 : min(end, position + 13)]
        position = end + 2
        if not length.isdigit():
            continue
        if kind == b"$":
            position += int(length) + 2
        elif kind in {b"*", b">"}:
            members += int(length)
            if members > MAX_MEMBERS:
                raise ValueError(f"its arrays have more than {MAX_MEMBERS} members")


def _from_json(
    response: Response, expected: int, *, transaction: bool
) -> list[Reply] | CommandError:
    """Return the replies, or the error that was returned for a whole pipeline."""
    content_type = _content_type(response)
    if content_type != _JSON_FORMAT:
        raise ValueError(f"its content type is {content_type[:60] or 'missing'!r}")
    value = _decode_json(response.body)
    is_list = expected > 1 or transaction
    if isinstance(value, dict):
        reply = _json_reply(value, base64=transaction)
        return reply if is_list and isinstance(reply, CommandError) else [reply]
    if isinstance(value, list) and is_list:
        return [_json_reply(member, base64=transaction) for member in value]
    raise ValueError("it is JSON of an unexpected shape")


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


def _unexpected_answer(response: Response, secret: str, reason: str) -> UnexpectedAnswer:
    """Return the error, with the body's beginning unless it may contain stored user data."""
    if response.status == 200 and _content_type(response) in {_RESP2_FORMAT, _JSON_FORMAT}:
        body = f"it has {len(response.body)} bytes"
    else:
        body = f"it begins: {_excerpt(response.body.decode('utf-8', 'replace'), secret)!r}"
    return UnexpectedAnswer(
        f"the response with status {response.status} is not one of Upstash's ({reason}); {body}"
    )


def _excerpt(text: str, secret: str) -> str:
    """Return the beginning of an external text, on one line, without the secret."""
    shown = text.replace(secret, "[token]") if secret else text
    return re.sub(r"[^\x20-\x7e]+", " ", shown)[:200]


# HTTP/1.1 (RFC 9112) ------------------------------------------------------------------------------
# Every request is a POST with a Content-Length. A connection has one request in flight at a time.

MAX_HEAD_BYTES: Final = 65_536
"""The longest head that is read, in bytes: much longer than Upstash's."""

MAX_RESPONSE_BYTES: Final = 100_000_000
"""The longest response that is read, in bytes: ten times the largest request to Upstash."""

_MAX_INTERIM: Final = 20
"""The most interim (1xx) responses before a final one."""

_PATH_CHARACTERS: Final = "/%:@!$&'()*+,;=~"
_TARGET = re.compile(r"[!-~]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~]*")


class RequestEncoder:
    """Encodes the requests to one URL; common parts are encoded only once."""

    __slots__ = ("_common", "_path", "_usual")

    def __init__(self, url: str, headers: Iterable[Header]) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        name = host if host.isascii() else host.encode("idna").decode()
        name = f"[{name}]" if ":" in name else name
        default = 443 if parts.scheme == "https" else 80
        authority = name if parts.port in {None, default} else f"{name}:{parts.port}"
        self._path = quote(parts.path, safe=_PATH_CHARACTERS).encode()
        self._common = b" HTTP/1.1\r\n" + _lines((("Host", authority), *headers))
        self._usual = {path: self._head(path, _JSON) for path in ("/", "/pipeline")}

    def request(self, call: Call) -> bytes:
        """Return the whole request; raises ValueError for characters that a line cannot contain."""
        head = self._usual.get(call.path) if call.headers is _JSON else None
        if head is None:
            head = self._head(call.path, call.headers)
        body = call.body
        length = str(len(body)).encode()
        if call.sync_token is None:
            return b"".join((head, b"Content-Length: ", length, b"\r\n\r\n", body))
        token = call.sync_token.encode("ascii")  # separate, because it changes
        between = b"\r\nContent-Length: "
        return b"".join((head, b"Upstash-Sync-Token: ", token, between, length, b"\r\n\r\n", body))

    def _head(self, path: str, headers: tuple[Header, ...]) -> bytes:
        if _TARGET.fullmatch(path) is None:
            raise ValueError(
                f"the path {path[:60]!r} has a character that a request line cannot contain"
            )
        return b"POST %b%b%b%b" % (
            self._path,
            path.encode("ascii"),
            self._common,
            _lines(headers),
        )


def _lines(headers: Iterable[Header]) -> bytes:
    lines = []
    for name, value in headers:
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise ValueError(f"the header {name[:60]!r} has a character that a field cannot have")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("ascii")


class ResponseReader:
    """Reads one response from the received pieces, with llhttp.

    In addition to llhttp, it skips interim responses, limits the size, and rejects responses whose
    end is uncertain, or closes the connection after them.
    """

    __slots__ = (
        *("_begins_usual", "_body", "_content_type", "_framed", "_in_head", "_interim", "_parser"),
        *("_received", "_response", "_status", "_sync_token", "_trailers", "reusable"),
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        """None after the last use of the connection, which breaks the reference cycle."""
        self.expect()

    def expect(self) -> None:
        """Start reading a response, the first or the next on the connection."""
        self.reusable: bool = False
        """Whether the connection can be used for another request after the response."""
        self._response: Response | None = None
        self._received = self._interim = 0
        self._in_head = True
        self._sync_token: bytes | None
        self._body: bytes | bytearray

    def close(self) -> None:
        """Stop reading."""
        self._parser = None

    def feed(self, data: bytes) -> Response | None:
        """Parse the next bytes; return the response if they complete it.

        Raises UnexpectedAnswer for bytes that are not HTTP/1.x or exceed a limit.
        """
        parser, before = self._parser, self._received
        assert parser is not None, "nothing more is to be read"  # noqa: S101
        if not before:
            self._begins_usual = data.startswith(b"HTTP/1.1 ")
        self._received = received = before + len(data)
        try:
            if received > MAX_HEAD_BYTES:
                self._check_size(data, before)
            parser.feed_data(data)
            if self._response is None:
                return None
        except UnexpectedAnswer:
            self._parser = None
            raise
        except httptools.HttpParserError as error:
            is_callbacks = isinstance(error, httptools.HttpParserCallbackError)
            raised = error.__context__ if is_callbacks else None
            # A signal handler may have raised, for instance a KeyboardInterrupt.
            if self._response is None or not isinstance(raised, UnexpectedAnswer | None):
                self._parser = None
                raise raised or UnexpectedAnswer(f"the response is not HTTP/1.1: {error}") from None
            self.reusable = False  # bytes after its end belong to no response
        if not self.reusable:
            self._parser = None
        return self._response

    def end(self, *, orderly: bool = True) -> Response:
        """Raise an error for a connection that ended before the response did.

        ``orderly`` is False if TLS did not announce the end, which an attacker may have caused.
        """
        self._parser = None
        if self._in_head:
            part = "within the head" if self._received else "before the head"
            raise ConnectionLost(f"the connection to Upstash was closed {part} of its response")
        close_notify = "" if orderly else ", without close_notify"
        raise UnexpectedAnswer(f"the response was cut short{close_notify}")

    def _check_size(self, data: bytes, before: int) -> None:
        if self._received > MAX_RESPONSE_BYTES:
            raise _too_long(MAX_RESPONSE_BYTES)
        if self._in_head and data.find(b"\r\n\r\n", 0, max(MAX_HEAD_BYTES - before, 0)) < 0:
            raise _too_long(MAX_HEAD_BYTES)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._response is not None:  # extra bytes belong to no response
            self.reusable = False
            return
        self._in_head, self._framed, self._trailers = True, False, 0
        self._content_type, self._body = b"", b""
        self._sync_token = None

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            self._trailers += len(name) + len(value)  # without a meaning here (RFC 9112 §7.1.2)
            if self._trailers > MAX_HEAD_BYTES:
                raise _too_long(MAX_HEAD_BYTES)
            return
        length = len(name)  # a fast first check, since the name's case varies
        if length == 12 and name.lower() == b"content-type":
            self._content_type = value
        elif length == 14 and name.lower() == b"content-length":
            self._framed = True
        elif length == 18 and name.lower() == b"upstash-sync-token":
            self._sync_token = value
        elif length == 17 and name.lower() == b"transfer-encoding":
            if value.strip(b" \t").lower() != b"chunked":
                raise UnexpectedAnswer("the response has a transfer coding that was not requested")
            self._framed = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101
        self._in_head = False
        self._status = status = self._parser.get_status_code()
        is_http = self._begins_usual or self._parser.get_http_version() in {"1.0", "1.1"}
        if status < 100 or not is_http:
            raise UnexpectedAnswer("the response is not HTTP/1.1: it has an unexpected status line")
        if status == 101:  # RFC 9110 §15.2.2: the request did not ask for it
            raise UnexpectedAnswer("the response switches to another protocol")
        if not self._framed and status >= 200 and status not in {204, 304}:
            # RFC 9112 §8: it is unknown whether such a response is complete.
            raise UnexpectedAnswer("the response has no length")

    def on_body(self, piece: bytes) -> None:
        if not self._body:
            self._body = piece
            return
        if isinstance(self._body, bytes):  # not a list: an object for each small chunk is large
            self._body = bytearray(self._body)
        self._body += piece

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser is None or self._response is not None:
            return
        if self._status < 200:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise UnexpectedAnswer(f"more than {_MAX_INTERIM} interim responses arrived")
            self._in_head, self._begins_usual = True, False
            return
        token, body = self._sync_token, self._body
        # RFC 9112 §9.3: persistent connections are unreliable in HTTP/1.0.
        self.reusable = parser.should_keep_alive() and (
            self._begins_usual or parser.get_http_version() == "1.1"
        )
        self._response = Response(
            self._status,
            self._content_type.decode("latin-1"),
            body if type(body) is bytes else bytes(body),
            None if token is None else token.decode("latin-1"),
        )


def _too_long(limit: int) -> UnexpectedAnswer:
    return UnexpectedAnswer(f"the response is longer than {limit} bytes")
