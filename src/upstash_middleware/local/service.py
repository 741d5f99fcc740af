"""Handles requests to Upstash's REST interface, and to this server's own paths below ``/-/``.

`Service` authorizes a request, runs its commands, bills them, and responds in Upstash's format. The
error messages are those of Upstash, as far as they are known.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from base64 import b64encode
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.local.billing import Meter
from upstash_middleware.local.commands import is_unknown, prepare, reject
from upstash_middleware.local.console.activity import Activity
from upstash_middleware.local.faults import (
    EFFECTS,
    NO_FAULTS,
    Effect,
    Fault,
    FaultInjector,
    parse_faults,
    plain_faults,
)
from upstash_middleware.local.http1 import (
    Answer,
    Delivery,
    InvalidRequest,
    Stream,
    error_answer,
    json_answer,
)
from upstash_middleware.local.scripts import lua, original_monitor_line
from upstash_middleware.local.valkey import (
    Failure,
    NullArray,
    Status,
    StoreUnreachable,
    connect,
    encode_reply,
)
from upstash_middleware.messages import Discreet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from upstash_middleware.local.commands import Command, CommandTable, Prepared
    from upstash_middleware.local.faults import Faults
    from upstash_middleware.local.http1 import Request, Response
    from upstash_middleware.local.valkey import Address, Reply, Store

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT"})
_STREAMS: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"MONITOR"})
_MAX_COMMAND_BYTES: Final = 10 * 1024 * 1024
_UNAUTHORIZED: Final = error_answer(
    401,
    "WRONGPASS invalid or missing auth token. "
    "See https://docs.upstash.com/redis/troubleshooting/http_unauthorized for details.",
)


class Tokens(Discreet, Struct, frozen=True):
    """The tokens for full and for read-only access."""

    full: str
    read_only: str

    def __repr__(self) -> str:
        return "Tokens(…)"


class Service:
    """Handles the requests for one store."""

    def __init__(self, store: Store, tokens: Tokens, table: CommandTable, faults: Faults) -> None:
        self.store = store
        self.tokens = tokens
        self.meter: Meter = Meter()
        self.activity: Activity = Activity()
        self.faults: FaultInjector = FaultInjector(faults)
        self._table = table
        self._shas: dict[str, str] = {}
        self._writes = 0
        self._advanced_ms = 0

    async def answer(self, request: Request) -> tuple[Response, Delivery]:
        """Return the response to a request and how to send it; never raises."""
        began = time.perf_counter()
        try:
            return await self._answer(request)
        finally:
            self.activity.latencies.append(time.perf_counter() - began)

    async def _answer(self, request: Request) -> tuple[Response, Delivery]:
        self.meter.add_request()
        latency, fault = self.faults.for_next_request()
        effect = EFFECTS[fault] if fault else Effect("none")
        delivery = effect.delivery
        if fault:
            self.activity.add_fault(fault)
        if latency:
            await asyncio.sleep(latency)
        if effect.instead is not None:
            return effect.instead, delivery
        try:
            if fault is Fault.NOSCRIPT:
                await self.store.run([[b"SCRIPT", b"FLUSH"]])
            return await self._authorize(request), delivery
        except InvalidRequest as error:
            status, text = error.args
            self.activity.add_error(f"HTTP {status}")
            return error_answer(status, text), delivery
        except StoreUnreachable as error:
            self.activity.add_error("HTTP 500")
            text = f"ERR the local server lost its database: {error}"
            return error_answer(500, text), delivery
        except RecursionError:
            return error_answer(400, "ERR the reply is nested too deeply"), delivery

    async def flush(self) -> None:
        """Delete all keys, scripts and functions. Raises StoreUnreachable."""
        emptied, *_ = await self.store.run(
            [[b"FLUSHDB"], [b"SCRIPT", b"FLUSH"], [b"FUNCTION", b"FLUSH"]]
        )
        if isinstance(emptied, Failure):
            raise StoreUnreachable.from_reply(emptied)

    async def advance(self, milliseconds: int) -> None:
        """Move the server's time forward. Raises StoreUnreachable."""
        script = lua("shorten_lifetimes")
        (reply,) = await self.store.run([[b"EVAL", script, b"0", b"%d" % milliseconds]])
        if isinstance(reply, Failure):
            raise StoreUnreachable.from_reply(reply)
        self._advanced_ms += milliseconds

    def restore_time(self) -> None:
        self._advanced_ms = 0

    def reset_bill(self) -> None:
        """Start a new bill, and reset the recorded activity."""
        self.meter.reset()
        self.activity.reset()

    async def run_command(self, command: Command) -> tuple[Reply, int]:
        """Run a command as if a client had sent it; return the reply and the billed commands.

        Raises StoreUnreachable.
        """
        self.meter.add_request()
        (reply,) = await self._run([command], [self._prepare(command, reads_only=False)])
        return reply, self.activity.history[-1].billed

    async def run_unbilled(self, command: Command) -> Reply:
        """Run a command without billing it. Raises StoreUnreachable."""
        prepared = self._prepare(command, reads_only=False)
        return prepared.finish((await self.store.run([prepared.command]))[0])[0]

    # Upstash's REST interface.

    async def _authorize(self, request: Request) -> Response:
        if request.method not in _METHODS:
            return error_answer(405, f"Method {request.method} is not allowed")
        token = _token(request)
        for known, reads_only in ((self.tokens.full, False), (self.tokens.read_only, True)):
            if token and hmac.compare_digest(token, known.encode()):
                return await self._run_request(request, reads_only=reads_only)
        self.activity.add_error("HTTP 401")
        return _UNAUTHORIZED

    async def _run_request(self, request: Request, *, reads_only: bool) -> Response:
        path = _read_path(request)
        first = path[0].upper() if path else b""
        if first in _STREAMS:
            return await self._stream(request, path, reads_only=reads_only)
        encoding = _read_encoding(request)
        is_batch = first in (b"PIPELINE", b"MULTI-EXEC")
        commands = _read_batch(request) if is_batch else [_read_command(request, path)]
        prepared = [self._prepare(command, reads_only=reads_only) for command in commands]
        if first == b"MULTI-EXEC":
            # Upstash responds to transactions in JSON, even if RESP2 was requested.
            encoding = Encoding.PLAIN if encoding is Encoding.RESP2 else encoding
            answer = await self._run_transaction(commands, prepared, encoding)
        elif not is_batch and prepared[0].waiting is not None:
            replies = await self.store.run_apart(prepared[0].waiting)
            answer = _answer_one(self._finish(commands, prepared, replies)[0], encoding)
        else:
            replies = await self._run(commands, prepared)
            answer = _answer(replies, encoding) if is_batch else _answer_one(replies[0], encoding)
        token = (b"Upstash-Sync-Token", b"%d" % self._writes)
        return replace(answer, headers=(*answer.headers, token))

    async def _stream(self, request: Request, path: Command, *, reads_only: bool) -> Response:
        name, *channels = path
        is_monitor = name.upper() == b"MONITOR"
        if reads_only and is_monitor:
            return error_answer(400, _no_permission("monitor"))
        if bool(channels) is is_monitor:
            text = f"ERR wrong number of arguments for '{name.decode().lower()}' command"
            return error_answer(400, text)
        if request.method == "HEAD":
            return Answer(200, b"", b"text/event-stream")
        self.meter.add_command(name.decode().upper())
        return await _open_stream(self.store.address, path)

    def _prepare(self, command: Command, *, reads_only: bool) -> Prepared:
        prepared = prepare(command, self._shas, self._advanced_ms)
        if reads_only and not prepared.rejected and not self._table.is_read_only(prepared):
            return reject(_no_permission(prepared.name.lower()))
        return prepared

    async def _run(self, commands: Sequence[Command], prepared: Sequence[Prepared]) -> list[Reply]:
        """Run the commands that were not rejected, as one group; return all replies in order."""
        sent = [each.command for each in prepared if each.rejected is None]
        raw = iter(await self.store.run(sent) if sent else [])
        replies = [next(raw) if each.rejected is None else each.rejected for each in prepared]
        return self._finish(commands, prepared, replies)

    async def _run_transaction(
        self, commands: Sequence[Command], prepared: Sequence[Prepared], encoding: Encoding
    ) -> Answer:
        for each in prepared:
            if each.rejected is not None:
                return _answer_one(each.rejected, encoding)
        group = [[b"MULTI"], *(each.command for each in prepared), [b"EXEC"]]
        _, *queued, executed = await self.store.run(group)
        if isinstance(executed, list):
            return _answer(self._finish(commands, prepared, executed), encoding)
        # The error of the command that could not be queued is more precise than EXEC's.
        for each, reply in zip(prepared, queued, strict=True):
            if isinstance(reply, Failure):
                return _answer_one(each.finish(reply)[0], encoding)
        return _answer_one(executed, encoding)

    def _finish(
        self, commands: Sequence[Command], prepared: Sequence[Prepared], replies: Sequence[Reply]
    ) -> list[Reply]:
        """Bill the commands that ran, and convert Valkey's replies to Upstash's."""
        finished: list[Reply] = []
        for command, each, raw in zip(commands, prepared, replies, strict=True):
            reply, calls = each.finish(raw)
            billed = 0
            if each.rejected is None and not is_unknown(raw):
                self._writes += self._table.may_write(each)
                billed = self.meter.add_command(each.name)
            for name, times in calls.items():
                billed += self.meter.add_command(name, times)
            self.activity.add_command(command, calls, reply, billed)
            finished.append(reply)
        return finished

    # The server's own paths. They need no token, because the server is for one machine. Requests
    # with an Origin are rejected, so that no web page in a browser can use them.

    async def answer_own(self, request: Request) -> Answer:  # noqa: PLR0911 - a table of cases
        """Return the response for one of the server's own paths."""
        if b"origin" in request.headers:
            return error_answer(403, "the local server's own addresses are not for web pages")
        match request.method, request.path:
            case "GET", b"/-/bill":
                return self._bill()
            case "POST", b"/-/bill/reset":
                self.reset_bill()
                return self._bill()
            case "GET", b"/-/faults":
                return json_answer(200, plain_faults(self.faults.current))
            case "PUT", b"/-/faults":
                return self._put_faults(request)
            case "DELETE", b"/-/faults":
                self.faults.change(NO_FAULTS)
                return json_answer(200, plain_faults(NO_FAULTS))
            case "POST", b"/-/flush":
                await self.flush()
                return json_answer(200, {"result": "OK"})
            case _:
                return error_answer(
                    404,
                    "the local server's own addresses are: GET /-/bill, POST /-/bill/reset, "
                    "GET /-/faults, PUT /-/faults, DELETE /-/faults, POST /-/flush",
                )

    def _bill(self) -> Answer:
        bill = self.meter.read()
        price = round(bill.dollars_per_million_requests, 4)
        return json_answer(200, {**asdict(bill), "dollars_per_million_requests": price})

    def _put_faults(self, request: Request) -> Answer:
        try:
            faults = parse_faults(json.loads(request.body))
        except (ValueError, RecursionError) as error:
            return error_answer(400, str(error))
        if faults.fault is Fault.REFUSE and faults.seconds is None:
            return error_answer(
                400, "faults: refuse needs seconds, since requests to this address are refused too"
            )
        self.faults.change(faults)
        return json_answer(200, plain_faults(self.faults.current))


# Upstash's format: from requests to commands.


class Encoding(Enum):
    """The encoding of strings in the response."""

    PLAIN = "plain"
    BASE64 = "base64"
    RESP2 = "resp2"


def _token(request: Request) -> bytes:
    """The client's token: the parameter ``_token``, or Authorization with or without Bearer."""
    for name, value in read_parameters(request.query):
        if name == b"_token":
            return value
    token = request.headers.get(b"authorization", b"").strip()
    return token[7:].strip() if token[:7].lower() == b"bearer " else token


def _read_encoding(request: Request) -> Encoding:
    encoding = request.headers.get(b"upstash-encoding", b"").strip().lower()
    form = request.headers.get(b"upstash-response-format", b"").strip().lower()
    for name, value, known in (
        ("Encoding", encoding, ("base64",)),
        ("Response-Format", form, ("json", "resp2")),
    ):
        if value and _plain(value) not in known:
            raise InvalidRequest(
                400, f"ERR invalid Upstash-{name} {_plain(value)!r}, there is {' and '.join(known)}"
            )
    if form == b"resp2":
        if encoding:
            raise InvalidRequest(
                400,
                "ERR Upstash-Encoding base64 is not permitted with Upstash-Response-Format resp2",
            )
        return Encoding.RESP2
    return Encoding.BASE64 if encoding else Encoding.PLAIN


def _read_path(request: Request) -> Command:
    """The decoded segments of the path; empty for ``/``."""
    path = request.path.strip(b"/")
    return [unquote_to_bytes(segment) for segment in path.split(b"/")] if path else []


def _read_command(request: Request, path: Command) -> Command:
    """The command of a request to ``/`` (a JSON array) or in the path form.

    In the path form, ``/set/key?EX=60`` with a body, the order is: path, body, query.
    """
    if not path:
        return _command(_parse_json(request.body))
    command = [*path, request.body] if request.body else path
    for name, value in read_parameters(request.query):
        if name != b"_token":
            command += [name, value] if value else [name]
    return _checked(command)


def _read_batch(request: Request) -> list[Command]:
    """The commands of ``/pipeline`` and ``/multi-exec``; if one is invalid, none is run."""
    value = _parse_json(request.body)
    if not isinstance(value, list):
        raise InvalidRequest(400, "expected JSON array")
    if not value:
        raise InvalidRequest(400, "ERR empty pipeline request")
    return [_command(member) for member in value]


def read_parameters(query: bytes) -> list[tuple[bytes, bytes]]:
    """The names and values of a query or a form, in order, as bytes."""
    pairs = (part.replace(b"+", b" ").partition(b"=") for part in query.split(b"&") if part)
    return [(unquote_to_bytes(name), unquote_to_bytes(value)) for name, _, value in pairs]


def _command(value: Any) -> Command:
    if not isinstance(value, list):
        raise InvalidRequest(400, "expected JSON array")
    if not value:
        raise InvalidRequest(400, "ERR empty command")
    return _checked([_argument(member) for member in value])


def _checked(command: Command) -> Command:
    size = sum(map(len, command))
    if size > _MAX_COMMAND_BYTES:
        raise InvalidRequest(413, _size_error(size))
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
            except UnicodeEncodeError:  # a lone surrogate: valid in JSON, but not in UTF-8
                return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        case bool():
            return b"true" if value else b"false"
        case None:
            raise InvalidRequest(400, "ERR null args are not supported")
        case _:
            opening = "[" if isinstance(value, list) else "{"
            raise InvalidRequest(400, f'ERR unsupported arg type: "{opening}": json.Delim')


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_reject_constant)


def _parse_json(body: bytes) -> Any:
    """The value of a body; numbers are returned as their original text."""
    if not body.strip():
        raise InvalidRequest(400, "EOF")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(400, f"ERR invalid JSON: {error}") from error


# Upstash's format: from replies to answers.


def _answer_one(reply: Reply, encoding: Encoding) -> Answer:
    """The response to one command: 200 with its result, or 400 with its error."""
    status = 400 if isinstance(reply, Failure) else 200
    return _answer([reply], encoding, status, one=True)


def _answer(
    replies: Sequence[Reply], encoding: Encoding, status: int = 200, *, one: bool = False
) -> Answer:
    """The response to a pipeline or a transaction: 200, with a result or error per command.

    In RESP2 the replies follow one another, as in a pipeline over TCP.
    """
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
            return _answer(bounded, encoding, status, one=one)
    return answer


def _bounded(reply: Reply) -> Reply:
    """The reply; if it is too large, the error that Upstash sends instead."""
    size = len(encode_reply(reply))
    return Failure(_size_error(size).encode()) if size > _MAX_COMMAND_BYTES else reply


def _to_json(reply: Reply, text: Callable[[bytes], str]) -> Any:
    match reply:
        case bytes():
            return text(reply)
        case list():
            return [_to_json(member, text) for member in reply]
        case Status(b"OK"):
            return "OK"
        case Status() | Failure():
            return text(reply.text)
        case NullArray():
            return None
        case _:
            return reply


def _plain(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _no_permission(name: str) -> str:
    return f"NOPERM this user has no permissions to run the '{name}' command or its subcommand"


# Subscriptions and MONITOR.

_CLIENT: Final = re.compile(rb"^(\d+\.\d+) \[(\d+) (?!lua\])[^\]]*\]")
_PRELUDE_CALL: Final = re.compile(rb'^\d+\.\d+ \[\d+ lua\] "COMMAND" "GETKEYS"')


async def _open_stream(address: Address, command: Command) -> Stream:
    """Send SUBSCRIBE, PSUBSCRIBE or MONITOR on a separate connection, and stream the replies."""
    arrived: asyncio.Queue[Reply | None] = asyncio.Queue()
    connection = await connect(address, arrived.put_nowait)
    connection.send_and_forget([command])
    is_monitor = command[0].upper() == b"MONITOR"
    return Stream(_stream_events(arrived, is_monitor=is_monitor), connection.close)


async def _stream_events(
    arrived: asyncio.Queue[Reply | None], *, is_monitor: bool
) -> AsyncIterator[bytes]:
    """``data: message,CHANNEL,PAYLOAD``, or a line of MONITOR without what this server adds.

    A payload with several lines is sent as several `data:` lines.
    """
    while (reply := await arrived.get()) is not None:
        if isinstance(reply, Failure):
            raise StoreUnreachable.from_reply(reply)
        data = b",".join(map(_text, reply if isinstance(reply, list) else [reply]))
        if is_monitor and _PRELUDE_CALL.match(data):
            continue
        if is_monitor:
            # At Upstash, the client's address is always 0.0.0.0:0.
            line = _CLIENT.sub(rb"\1 [\2 0.0.0.0:0]", data)
            data = b'"OK"' if data == b"OK" else original_monitor_line(line)
        yield b"".join(b"data: " + line + b"\n" for line in data.split(b"\n")) + b"\n"


def _text(member: Reply) -> bytes:
    match member:
        case bytes():
            return member
        case Status():
            return member.text
        case _:
            return str(member).encode()
