"""What this server does with a request: who may ask, what is run, what is billed, what is said.

Everything that Upstash's REST interface promises is put together here; how bytes get in and out
is the business of the transports, and of `store` on the other side.
"""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, assert_never

from upstash_middleware.local.bill import Meter
from upstash_middleware.local.commands import (
    CommandTable,
    Prepared,
    ScriptMemory,
    no_permission,
    prepare,
    read_command_table,
    was_unknown,
)
from upstash_middleware.local.control import PREFIX, answer_control
from upstash_middleware.local.history import History
from upstash_middleware.local.live import Live
from upstash_middleware.local.messages import Answer, Request, Response, error_answer
from upstash_middleware.local.reading import (
    Encoding,
    TooLarge,
    Unreadable,
    read_batch,
    read_command,
    read_encoding,
    read_path,
    read_token,
)
from upstash_middleware.local.resp import Failure, Reply
from upstash_middleware.local.store import Store, StoreUnreachable
from upstash_middleware.local.streams import open_stream
from upstash_middleware.local.weather import (
    INSTEAD,
    MANNERS,
    Fault,
    Manner,
    Weather,
    WeatherStation,
)
from upstash_middleware.local.writing import answer_batch, answer_one, in_base_32

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.local.reading import Command

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT"})
STREAMS: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"MONITOR"})
UNAUTHORIZED: Final = error_answer(
    401,
    "WRONGPASS invalid or missing auth token. "
    "See https://docs.upstash.com/redis/troubleshooting/http_unauthorized for details.",
)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The secrets that open the database, wholly or for reading."""

    full: str
    read_only: str


async def open_service(store: Store, tokens: Tokens, weather: Weather) -> Service:
    """The service over a store, after asking it what its commands do.

    Raises StoreUnreachable.
    """
    table = read_command_table((await store.run([[b"COMMAND"]]))[0])
    return Service(store, tokens, table, WeatherStation(weather))


class Service:
    """The REST interface over one store."""

    def __init__(
        self, store: Store, tokens: Tokens, table: CommandTable, weather: WeatherStation
    ) -> None:
        self.meter: Meter = Meter()
        self.history: History = History()
        self.live: Live = Live()
        self.weather = weather
        self.weather_changed: Callable[[], None] = lambda: None
        """Told of weather that was changed over HTTP."""
        self.store = store
        self.tokens = tokens
        self._table = table
        self._scripts = ScriptMemory()
        self._writes = 0

    async def answer(self, request: Request) -> tuple[Response, Manner]:
        """The answer to a request and how to deliver it; never raises for what can be sent."""
        if request.path.startswith(PREFIX):
            return await answer_control(self, request), Manner.WHOLE
        self.meter.add_request()
        late, fault = self.weather.next()
        if fault and self.live.watched:
            self.live.tell_fault(fault)
        if late:
            await asyncio.sleep(late)
        manner = MANNERS.get(fault, Manner.WHOLE) if fault else Manner.WHOLE
        if fault in INSTEAD:
            return INSTEAD[fault], manner
        try:
            if fault is Fault.NOSCRIPT:
                await self.store.run([[b"SCRIPT", b"FLUSH"]])
            return await self._admit(request), manner
        except (Unreadable, StoreUnreachable, RecursionError) as error:
            return _explain(error), manner

    def change_weather(self, weather: Weather) -> None:
        """Change the weather, and tell who has to open or close the door for it."""
        self.weather.change(weather)
        self.weather_changed()

    def reset_bill(self) -> None:
        """Begin a new bill, and a new history of it."""
        self.meter.reset()
        self.history.clear()

    async def flush(self) -> None:
        """Empty the database, and forget scripts and functions.  Raises StoreUnreachable."""
        emptied, *_ = await self.store.run(
            [[b"FLUSHDB"], [b"SCRIPT", b"FLUSH"], [b"FUNCTION", b"FLUSH"]]
        )
        if isinstance(emptied, Failure):
            raise StoreUnreachable(emptied.text.decode("utf-8", "replace"))

    async def _admit(self, request: Request) -> Response:
        if request.method not in METHODS:
            return error_answer(405, f"Method {request.method} is not allowed")
        token = read_token(request)
        if _equal(token, self.tokens.full):
            return await self._database(request, reads_only=False)
        if _equal(token, self.tokens.read_only):
            return await self._database(request, reads_only=True)
        return UNAUTHORIZED

    async def _database(self, request: Request, *, reads_only: bool) -> Response:
        match [segment.upper() for segment in read_path(request)[:1]]:
            case [name] if name in STREAMS:
                return await self._stream(request, reads_only=reads_only)
            case [b"PIPELINE"]:
                answer = await self._pipeline(request, reads_only=reads_only)
            case [b"MULTI-EXEC"]:
                answer = await self._transaction(request, reads_only=reads_only)
            case _:
                answer = await self._single(request, reads_only=reads_only)
        token = (b"Upstash-Sync-Token", in_base_32(self._writes))
        return replace(answer, headers=(*answer.headers, token))

    async def _stream(self, request: Request, *, reads_only: bool) -> Response:
        name, *channels = read_path(request)
        if reads_only and name.upper() == b"MONITOR":
            return error_answer(400, no_permission("monitor"))
        if bool(channels) is (name.upper() == b"MONITOR"):
            text = f"ERR wrong number of arguments for '{name.decode().lower()}' command"
            return error_answer(400, text)
        if request.method == "HEAD":
            return Answer(200, b"", b"text/event-stream")
        self.meter.add_command(name.decode().upper())
        return await open_stream(self.store.address, [name, *channels])

    async def _single(self, request: Request, *, reads_only: bool) -> Answer:
        encoding = read_encoding(request)
        command = read_command(request)
        prepared = self._prepare(command, reads_only=reads_only)
        if prepared.waiting is not None:
            raw = await self.store.run_apart(prepared.waiting)
            return answer_one(self._settle([command], [prepared], [raw])[0], encoding)
        return answer_one((await self._run([command], [prepared]))[0], encoding)

    async def _pipeline(self, request: Request, *, reads_only: bool) -> Answer:
        encoding = read_encoding(request)
        commands = read_batch(request)
        members = [self._prepare(command, reads_only=reads_only) for command in commands]
        return answer_batch(await self._run(commands, members), encoding)

    async def _transaction(self, request: Request, *, reads_only: bool) -> Answer:
        encoding = read_encoding(request)
        if encoding is Encoding.RESP2:
            encoding = Encoding.PLAIN  # transactions are answered in JSON whatever was asked for
        commands = read_batch(request)
        members = [self._prepare(command, reads_only=reads_only) for command in commands]
        for prepared in members:
            if prepared.ready is not None:
                return answer_one(prepared.ready, encoding)
        group = [[b"MULTI"], *(prepared.command for prepared in members), [b"EXEC"]]
        _, *queued, executed = await self.store.run(group)
        if not isinstance(executed, list):
            return answer_one(_why_discarded(members, queued, executed), encoding)
        return answer_batch(self._settle(commands, members, executed), encoding)

    def _prepare(self, command: list[bytes], *, reads_only: bool) -> Prepared:
        prepared = prepare(command, self._scripts)
        if reads_only and not prepared.ready and not self._table.readers_may(prepared):
            return Prepared.refused(no_permission(prepared.name.lower()))
        return prepared

    async def _run(self, commands: Sequence[Command], members: Sequence[Prepared]) -> list[Reply]:
        """Run what is to be run, as one group; the replies to all, in order."""
        sent = [prepared.command for prepared in members if prepared.ready is None]
        raw = iter(await self.store.run(sent) if sent else [])
        replies = [next(raw) if prepared.ready is None else prepared.ready for prepared in members]
        return self._settle(commands, members, replies)

    def _settle(
        self, commands: Sequence[Command], members: Sequence[Prepared], replies: Sequence[Reply]
    ) -> list[Reply]:
        """Bill what ran, and turn Valkey's replies into those of Upstash."""
        settled: list[Reply] = []
        for command, prepared, raw in zip(commands, members, replies, strict=True):
            reply, calls = prepared.finish(raw)
            if prepared.ready is None and not was_unknown(raw):
                self._writes += self._table.may_write(prepared)
                self.meter.add_command(prepared.name)
            for name, times in calls.items():
                self.meter.add_command(name, times)
            if self.live.watched:
                self.live.tell_command(command, calls, reply)
            settled.append(reply)
        return settled


def _explain(error: Unreadable | StoreUnreachable | RecursionError) -> Answer:
    match error:
        case TooLarge():
            return error_answer(413, str(error))
        case Unreadable():
            return error_answer(400, str(error))
        case StoreUnreachable():
            return error_answer(500, f"ERR the local server lost its database: {error}")
        case RecursionError():
            return error_answer(400, "ERR the reply is nested too deeply")
        case _:
            assert_never(error)


def _why_discarded(members: Sequence[Prepared], queued: Sequence[Reply], executed: Reply) -> Reply:
    """The error of the first member that could not be queued, which says more than EXEC's."""
    for prepared, reply in zip(members, queued, strict=True):
        if isinstance(reply, Failure):
            return prepared.finish(reply)[0]
    return executed


def _equal(token: bytes | None, secret: str) -> bool:
    return token is not None and hmac.compare_digest(token, secret.encode())
