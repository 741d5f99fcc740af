"""Upstash's REST interface over one store, and this server's own addresses under ``/-/``.

`Service` authorizes a request, runs its commands, bills them, and answers in Upstash's format.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.local import rest
from upstash_middleware.local.billing import Meter
from upstash_middleware.local.commands import SHORTEN_LIFETIMES, is_unknown, prepare, reject
from upstash_middleware.local.faults import (
    DELIVERIES,
    INSTEAD,
    NO_FAULTS,
    Fault,
    FaultInjector,
    parse_faults,
    plain_faults,
)
from upstash_middleware.local.http1 import Answer, Delivery, Stream, error_answer, json_answer
from upstash_middleware.local.resp import Failure, Status
from upstash_middleware.local.scripts import original_monitor_line
from upstash_middleware.local.store import StoreUnreachable, connect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from upstash_middleware.local.commands import Command, CommandTable, Prepared
    from upstash_middleware.local.faults import Faults
    from upstash_middleware.local.http1 import Request, Response
    from upstash_middleware.local.resp import Reply
    from upstash_middleware.local.store import Address, Store

MAX_PENDING_EVENTS: Final = 500
"""Live events that wait for a watcher slower than the traffic; further ones are only counted."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT"})
_STREAMS: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"MONITOR"})
_UNAUTHORIZED: Final = error_answer(
    401,
    "WRONGPASS invalid or missing auth token. "
    "See https://docs.upstash.com/redis/troubleshooting/http_unauthorized for details.",
)


class Tokens(Struct, frozen=True):
    """The tokens for full and for read-only access."""

    full: str
    read_only: str

    def __repr__(self) -> str:
        return "Tokens(…)"


class Service:
    """The REST interface over one store.

    `on_faults_change` is called when the faults were changed over HTTP.
    """

    def __init__(
        self,
        store: Store,
        tokens: Tokens,
        table: CommandTable,
        faults: Faults,
        on_faults_change: Callable[[], None],
    ) -> None:
        self.store = store
        self.tokens = tokens
        self.meter: Meter = Meter()
        self.live: LiveFeed = LiveFeed()
        self.faults: FaultInjector = FaultInjector(faults)
        self._table = table
        self._on_faults_change = on_faults_change
        self._shas: dict[str, str] = {}
        self._writes = 0
        self._advanced_ms = 0

    async def answer(self, request: Request) -> tuple[Response, Delivery]:
        """The answer to a request and how to send it; no request makes this raise."""
        if request.path.startswith(b"/-/"):
            return await self._answer_own(request), Delivery.WHOLE
        self.meter.add_request()
        latency, fault = self.faults.next()
        if fault and self.live.watched:
            self.live.emit(FaultEvent(time.time(), fault))
        if latency:
            await asyncio.sleep(latency)
        delivery = DELIVERIES.get(fault, Delivery.WHOLE) if fault else Delivery.WHOLE
        if fault in INSTEAD:
            return INSTEAD[fault], delivery
        try:
            if fault is Fault.NOSCRIPT:
                await self.store.run([[b"SCRIPT", b"FLUSH"]])
            return await self._authorize(request), delivery
        except rest.InvalidRequest as error:
            return error_answer(error.status, str(error)), delivery
        except StoreUnreachable as error:
            text = f"ERR the local server lost its database: {error}"
            return error_answer(500, text), delivery
        except RecursionError:
            return error_answer(400, "ERR the reply is nested too deeply"), delivery

    def change_faults(self, faults: Faults) -> None:
        """Change the simulated faults for a request over HTTP."""
        self.faults.change(faults)
        self._on_faults_change()

    async def flush(self) -> None:
        """Delete all keys, scripts and functions.  Raises StoreUnreachable."""
        emptied, *_ = await self.store.run(
            [[b"FLUSHDB"], [b"SCRIPT", b"FLUSH"], [b"FUNCTION", b"FLUSH"]]
        )
        if isinstance(emptied, Failure):
            raise StoreUnreachable.from_reply(emptied)

    async def advance(self, milliseconds: int) -> None:
        """Move the server's time forward.  Raises StoreUnreachable."""
        (reply,) = await self.store.run([[b"EVAL", SHORTEN_LIFETIMES, b"0", b"%d" % milliseconds]])
        if isinstance(reply, Failure):
            raise StoreUnreachable.from_reply(reply)
        self._advanced_ms += milliseconds

    def restore_time(self) -> None:
        self._advanced_ms = 0

    # Upstash's REST interface.

    async def _authorize(self, request: Request) -> Response:
        if request.method not in _METHODS:
            return error_answer(405, f"Method {request.method} is not allowed")
        token = rest.read_token(request)
        if token is None:
            return _UNAUTHORIZED
        if hmac.compare_digest(token, self.tokens.full.encode()):
            return await self._run_request(request, reads_only=False)
        if hmac.compare_digest(token, self.tokens.read_only.encode()):
            return await self._run_request(request, reads_only=True)
        return _UNAUTHORIZED

    async def _run_request(self, request: Request, *, reads_only: bool) -> Response:
        path = rest.read_path(request)
        first = path[0].upper() if path else b""
        if first in _STREAMS:
            return await self._stream(request, path, reads_only=reads_only)
        encoding = rest.read_encoding(request)
        commands = (
            rest.read_batch(request)
            if first in {b"PIPELINE", b"MULTI-EXEC"}
            else [rest.read_command(request)]
        )
        prepared = [self._prepare(command, reads_only=reads_only) for command in commands]
        if first == b"PIPELINE":
            answer = rest.answer_batch(await self._run(commands, prepared), encoding)
        elif first == b"MULTI-EXEC":
            # Upstash answers transactions in JSON, also if RESP2 was requested.
            encoding = rest.Encoding.PLAIN if encoding is rest.Encoding.RESP2 else encoding
            answer = await self._run_transaction(commands, prepared, encoding)
        elif prepared[0].waiting is not None:
            replies = await self.store.run_apart(prepared[0].waiting)
            answer = rest.answer_one(self._finish(commands, prepared, replies)[0], encoding)
        else:
            answer = rest.answer_one((await self._run(commands, prepared))[0], encoding)
        token = (b"Upstash-Sync-Token", rest.sync_token(self._writes))
        return replace(answer, headers=(*answer.headers, token))

    async def _stream(self, request: Request, path: Command, *, reads_only: bool) -> Response:
        name, *channels = path
        if reads_only and name.upper() == b"MONITOR":
            return error_answer(400, _no_permission("monitor"))
        if bool(channels) is (name.upper() == b"MONITOR"):
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
        self, commands: Sequence[Command], prepared: Sequence[Prepared], encoding: rest.Encoding
    ) -> Answer:
        for each in prepared:
            if each.rejected is not None:
                return rest.answer_one(each.rejected, encoding)
        group = [[b"MULTI"], *(each.command for each in prepared), [b"EXEC"]]
        _, *queued, executed = await self.store.run(group)
        if isinstance(executed, list):
            return rest.answer_batch(self._finish(commands, prepared, executed), encoding)
        # The error of the command that could not be queued is more precise than that of EXEC.
        for each, reply in zip(prepared, queued, strict=True):
            if isinstance(reply, Failure):
                return rest.answer_one(each.finish(reply)[0], encoding)
        return rest.answer_one(executed, encoding)

    def _finish(
        self, commands: Sequence[Command], prepared: Sequence[Prepared], replies: Sequence[Reply]
    ) -> list[Reply]:
        """Bill the commands that ran, and turn Valkey's replies into Upstash's."""
        finished: list[Reply] = []
        for command, each, raw in zip(commands, prepared, replies, strict=True):
            reply, calls = each.finish(raw)
            if each.rejected is None and not is_unknown(raw):
                self._writes += self._table.may_write(each)
                self.meter.add_command(each.name)
            for name, times in calls.items():
                self.meter.add_command(name, times)
            if self.live.watched:
                self.live.emit(CommandEvent(time.time(), command, calls, reply))
            finished.append(reply)
        return finished

    # The server's own addresses.  They need no token, because the server is for one machine; so
    # that no web page in a browser can use them, requests with an Origin are rejected.

    async def _answer_own(self, request: Request) -> Answer:  # noqa: PLR0911 - a table of cases
        if b"origin" in request.headers:
            return error_answer(403, "the local server's own addresses are not for web pages")
        match request.method, request.path:
            case "GET", b"/-/bill":
                return self._bill()
            case "POST", b"/-/bill/reset":
                self.meter.reset()
                return self._bill()
            case "GET", b"/-/faults":
                return json_answer(200, plain_faults(self.faults.current))
            case "PUT", b"/-/faults":
                return self._put_faults(request)
            case "DELETE", b"/-/faults":
                self.change_faults(NO_FAULTS)
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
                400, "faults: refuse needs seconds, since this address is refused with the others"
            )
        self.change_faults(faults)
        return json_answer(200, plain_faults(self.faults.current))


# Live events.


class CommandEvent(Struct, frozen=True):
    """A command as a client sent it, and its reply."""

    at: float
    """Seconds since 1970."""
    words: Sequence[bytes]
    calls: Mapping[str, int]
    """The calls that a script made, by command."""
    reply: Reply


class FaultEvent(Struct, frozen=True):
    """A request that a simulated fault has hit."""

    at: float
    fault: Fault


class MissedEvents(Struct, frozen=True):
    """How many events a slow watcher did not receive."""

    count: int


LiveEvent: TypeAlias = CommandEvent | FaultEvent | MissedEvents


class Watcher:
    """The events that one watcher has not received yet."""

    __slots__ = ("_events", "_missed")

    def __init__(self) -> None:
        self._events: asyncio.Queue[LiveEvent] = asyncio.Queue(MAX_PENDING_EVENTS)
        self._missed = 0

    def put(self, event: LiveEvent) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self._missed += 1

    async def take(self) -> list[LiveEvent]:
        """Wait for at least one event; return all."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        if self._missed:
            events.append(MissedEvents(self._missed))
            self._missed = 0
        return events


class LiveFeed:
    """Passes events to all watchers; check `watched` first, so that they cost nothing otherwise."""

    __slots__ = ("_watchers",)

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    @property
    def watched(self) -> bool:
        return bool(self._watchers)

    def watch(self) -> Watcher:
        """Add a watcher; `leave` removes it."""
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def emit(self, event: LiveEvent) -> None:
        for watcher in self._watchers:
            watcher.put(event)


# Subscriptions and MONITOR.

_CLIENT: Final = re.compile(rb"^(\d+\.\d+) \[(\d+) (?!lua\])[^\]]*\]")
_PRELUDE_CALL: Final = re.compile(rb'^\d+\.\d+ \[\d+ lua\] "COMMAND" "GETKEYS"')


async def _open_stream(address: Address, command: Command) -> Stream:
    """Send SUBSCRIBE, PSUBSCRIBE or MONITOR on a separate connection; stream what arrives.

    Raises StoreUnreachable.
    """
    arrived: asyncio.Queue[list[Reply]] = asyncio.Queue()
    connection = await connect(address, lambda reply: arrived.put_nowait([reply]))
    connection.lost.add_done_callback(lambda _: arrived.put_nowait([]))
    connection.send_and_forget(command)
    monitor = command[0].upper() == b"MONITOR"
    return Stream(_stream_events(arrived, monitor=monitor), connection.close)


async def _stream_events(
    arrived: asyncio.Queue[list[Reply]], *, monitor: bool
) -> AsyncIterator[bytes]:
    """``data: message,CHANNEL,PAYLOAD``, or a line of MONITOR without what only this server does.

    A payload of several lines becomes several `data:`.
    """
    while replies := await arrived.get():
        reply = replies[0]
        if isinstance(reply, Failure):
            raise StoreUnreachable.from_reply(reply)
        data = b",".join(map(_text, reply if isinstance(reply, list) else [reply]))
        if monitor and _PRELUDE_CALL.match(data):
            continue
        if monitor:
            # At Upstash, the client's address is always 0.0.0.0:0.
            line = _CLIENT.sub(rb"\1 [\2 0.0.0.0:0]", data)
            data = b'"OK"' if data == b"OK" else original_monitor_line(line)
        yield b"".join(b"data: " + line + b"\n" for line in data.split(b"\n")) + b"\n"


def _no_permission(name: str) -> str:
    return f"NOPERM this user has no permissions to run the '{name}' command or its subcommand"


def _text(member: Reply) -> bytes:
    match member:
        case bytes():
            return member
        case Status():
            return member.text
        case _:
            return str(member).encode()
