"""Upstash's REST interface as bytes in, bytes out: commands to a call, an answer to replies.

No I/O, no clock, no connection. A call asks for RESP2, which carries any bytes; an answer is read
by its own content type, never by what was asked:

- ``application/octet-stream`` is RESP2;
- ``application/json`` is plain JSON. Base64 within JSON is never asked for, so a JSON string
  always means its own UTF-8: no guess is made between the two, which look alike. A server that
  does not know RESP2 therefore serves text whole and damages other bytes (it puts U+FFFD in their
  place), which whoever checks its values finds out.

Source: https://upstash.com/docs/redis/features/restapi.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from upstash_middleware.errors import CommandError, Refused, UnexpectedAnswer
from upstash_middleware.refusals import refusal_in
from upstash_middleware.upstash.resp2 import decode_replies
from upstash_middleware.values import value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.effects import Argument, Command, Reply

Header = tuple[str, str]

COMMON_HEADERS: Final[tuple[Header, ...]] = (
    ("Upstash-Response-Format", "resp2"),
    ("Accept-Encoding", "identity"),
)
"""What every call says, beside who sends it."""

_JSON: Final[tuple[Header, ...]] = (("Content-Type", "application/json"),)
_RAW: Final[tuple[Header, ...]] = (("Content-Type", "application/octet-stream"),)

_PIPELINE: Final = "/pipeline"
_READABLE: Final = frozenset({200, 400})
_RESP2_FORMAT: Final = "application/octet-stream"
_JSON_FORMAT: Final = "application/json"
_FORMATS: Final = frozenset({_RESP2_FORMAT, _JSON_FORMAT})
_EXCERPT_CHARACTERS: Final = 160
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")

_SET_OPTIONS_WITH_VALUE: Final = frozenset({"EX", "PX", "EXAT", "PXAT"})

_NO_SEGMENTS: Final = frozenset({"", ".", ".."})
"""What an HTTP client takes out of a path (RFC 3986 §5.2.4, and percent-encoded too)."""

_TEXT_ALONE: Final = frozenset({str})

_quoted = json.encoder.encode_basestring
"""Text as a JSON string, with what is beyond ASCII as it is."""


@value(frozen=True, slots=True)
class Call:
    """One HTTP request: always POST; the path begins with a slash and may have a query."""

    path: str
    headers: tuple[Header, ...]
    """Those of this call alone, beside what the transport sends with every one."""
    body: bytes


@value(frozen=True, slots=True)
class Answer:
    """One HTTP response, read to its end."""

    status: int
    content_type: str
    body: bytes
    sync_token: str | None = None


def encode(commands: Sequence[tuple[Argument, ...]]) -> Call:
    """Return the call that performs the commands, at least one, in order.

    One command may hold bytes that are not UTF-8 as its last argument, or as the value of a SET:
    they then are the request's body. Raises ValueError, naming the command, for other such bytes
    and for text that has no UTF-8 (a lone surrogate).
    """
    if len(commands) == 1 and (raw := _first_raw(commands[0])):
        value_at, value = raw
        return Call(_raw_path(commands[0], value_at), _RAW, value)
    return joined([_member(command) for command in commands])


def as_members(commands: Sequence[Command]) -> list[str] | None:
    """Return the commands as they stand in a pipeline, to be joined with those of others.

    None for a single command that travels with its value as the request's body. Raises
    ValueError like ``encode``.
    """
    try:
        return [_member(command.args) for command in commands]
    except ValueError:
        if len(commands) == 1 and _first_raw(commands[0].args):
            return None
        raise


def joined(members: Sequence[str]) -> Call:
    """Return the call of members (``as_members``), at least one, in order."""
    if len(members) == 1:
        return Call("/", _JSON, members[0].encode())
    return Call(_PIPELINE, _JSON, f"[{','.join(members)}]".encode())


def decode(answer: Answer, expected: int, secret: str) -> list[Reply]:
    """Return as many replies as commands were sent, in order, each failed one as its error.

    ``secret`` is kept out of what is raised. Raises Refused if the token or the plan stands
    against the call as a whole, UnexpectedAnswer if it is not an answer of Upstash's.
    """
    if answer.status not in _READABLE:
        raise _refused_or_unexpected(answer, secret)
    try:
        replies = _replies(answer, expected)
    except (ValueError, RecursionError) as error:
        raise UnexpectedAnswer(_unexpected(answer, secret, str(error))) from None
    if isinstance(replies, CommandError):
        raise _of_the_whole(replies, expected, answer, secret)
    if len(replies) != expected:
        said = f"{len(replies)} replies to {expected} commands"
        raise UnexpectedAnswer(_unexpected(answer, secret, said))
    if expected == 1:
        refuse(replies[0], secret)
    return replies


def refuse(reply: Reply, secret: str) -> None:
    """Raise Refused if this reply to the only command of a pipeline is about token or plan."""
    if isinstance(reply, CommandError) and refusal_in(str(reply)):
        raise Refused(_safe(str(reply), secret))


def _member(command: tuple[Argument, ...]) -> str:
    try:
        words: Sequence[Any] = (
            command if _TEXT_ALONE.issuperset(map(type, command)) else _text(command)
        )
        text = f"[{','.join(map(_quoted, words))}]"
        if not text.isascii():
            text.encode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{command[0]!s}: bytes that are not UTF-8 cannot travel in a pipeline; send the "
            "command by itself, or encode the value as text"
        ) from error
    except UnicodeEncodeError as error:
        raise _no_utf8(command) from error
    return text


def _text(words: tuple[Argument, ...]) -> list[str]:
    """Return the words as JSON can hold them; raises UnicodeDecodeError for those it cannot."""
    return [word.decode() if isinstance(word, bytes) else str(word) for word in words]


def _first_raw(words: tuple[Argument, ...]) -> tuple[int, bytes] | None:
    """Return the first bytes that are not UTF-8, if any, and where they stand."""
    for index, word in enumerate(words):
        if isinstance(word, bytes):
            try:
                word.decode()
            except UnicodeDecodeError:
                return index, word
    return None


def _no_utf8(command: tuple[Argument, ...]) -> ValueError:
    return ValueError(
        f"{command[0]!s}: an argument has a lone surrogate, which no UTF-8 can carry; give it as "
        "bytes"
    )


def _raw_path(command: tuple[Argument, ...], value_at: int) -> str:
    """Return the path of the words before the value, and the query of those after it."""
    before = _text(command[:value_at])
    options: list[str] | None
    try:
        options = _text(command[value_at + 1 :])
    except UnicodeDecodeError:
        options = None
    name = before[0].lower() if before else ""
    if not name or options is None or (options and (name, value_at) != ("set", 2)):
        raise ValueError(
            f"{command[0]!s}: bytes that are not UTF-8 can travel only as the last argument or as "
            "the value of a SET; encode them as text"
        )
    for word in before:
        if word in _NO_SEGMENTS:
            raise ValueError(f"{name}: {word!r} cannot be part of a path; use another key")
    try:
        path = "/".join(["", name, *(quote(word, "") for word in before[1:])])
        return f"{path}?{_set_options(options)}" if options else path
    except UnicodeEncodeError as error:
        raise _no_utf8(command) from error


def _set_options(words: list[str]) -> str:
    remaining = iter(words)
    options: list[str] = []
    for word in remaining:
        takes_value = word.upper() in _SET_OPTIONS_WITH_VALUE
        options.append(
            f"{quote(word, '')}={quote(next(remaining, ''), '')}" if takes_value else word
        )
    return "&".join(options)


def _replies(answer: Answer, expected: int) -> list[Reply] | CommandError:
    """Return the replies, or the one error that stands for the whole of a pipeline."""
    kind = _kind(answer)
    if kind == _RESP2_FORMAT:
        return _of_pipeline(decode_replies(answer.body), expected)
    if kind == _JSON_FORMAT:
        return _from_json(json.loads(answer.body), expected)
    raise ValueError(f"its content type is {kind[:60] or 'missing'!r}")


def _kind(answer: Answer) -> str:
    return answer.content_type.partition(";")[0].strip().lower()


def _of_pipeline(replies: list[Reply], expected: int) -> list[Reply] | CommandError:
    """Take the replies out of an array, if they came in one: both forms are RESP2 pipelines."""
    if expected > 1 and len(replies) == 1:
        (whole,) = replies
        if isinstance(whole, list | CommandError):
            return whole
    return replies


def _from_json(value: Any, expected: int) -> list[Reply] | CommandError:
    if isinstance(value, dict):
        reply = _json_reply(value)
        return reply if expected > 1 and isinstance(reply, CommandError) else [reply]
    if isinstance(value, list) and expected > 1:
        return [_json_reply(member) for member in value]
    raise ValueError("it is JSON, but of another shape")


def _json_reply(value: Any) -> Reply:
    if isinstance(value, dict):
        if isinstance(error := value.get("error"), str):
            return CommandError(error)
        if "result" in value:
            return _result(value["result"])
    raise ValueError("a member has neither a result nor an error")


def _result(value: Any) -> Reply:
    if isinstance(value, str):
        return value.encode()
    if value is None or type(value) is int:
        return value
    if isinstance(value, list):
        return [_result(member) for member in value]
    raise ValueError(f"a result is a JSON {type(value).__name__}")


def _of_the_whole(
    error: CommandError, expected: int, answer: Answer, secret: str
) -> Refused | UnexpectedAnswer:
    """Return what an error means that came in place of a pipeline's replies.

    It says nothing of the single members, so it is no CommandError.
    """
    if refusal_in(str(error)):
        return Refused(_safe(str(error), secret))
    return UnexpectedAnswer(_unexpected(answer, secret, f"one error for {expected} commands"))


def _refused_or_unexpected(answer: Answer, secret: str) -> Refused | UnexpectedAnswer:
    if answer.status in {401, 403}:
        return Refused(
            f"Upstash refused the token with status {answer.status}: "
            f"{_safe(answer.body.decode('utf-8', 'replace'), secret)}"
        )
    return UnexpectedAnswer(_unexpected(answer, secret, "the status is neither 200 nor 400"))


def _unexpected(answer: Answer, secret: str, said: str) -> str:
    """Say what is wrong, with the body's beginning unless it may hold what users stored."""
    if answer.status == 200 and _kind(answer) in _FORMATS:
        shown = f"it has {len(answer.body)} bytes"
    else:
        shown = f"it begins: {_safe(answer.body.decode('utf-8', 'replace'), secret)!r}"
    return f"status {answer.status} is no answer of Upstash's ({said}); {shown}"


def _safe(text: str, secret: str) -> str:
    """Return the beginning of a text from outside, on one line, without the secret."""
    shown = text.replace(secret, "[token]") if secret else text
    return _UNPRINTABLE.sub(" ", shown)[:_EXCERPT_CHARACTERS]
