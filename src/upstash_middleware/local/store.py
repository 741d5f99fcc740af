"""The one connection to the Valkey (or Redis) behind this server, shared by all requests.

Commands of concurrent requests travel on it one group after another; a group's commands are
contiguous, which is what makes a MULTI … EXEC group safe on a shared connection.  Blocking
commands must never get here: they would hold up everyone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from upstash_middleware.local.resp import (
    Failure,
    MalformedReply,
    Reply,
    ReplyReader,
    encode_commands,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


STUCK_SECONDS: Final = 5.0
"""How long a script may hold up everybody before it is stopped."""


class StoreUnreachable(Exception):
    """The Valkey behind this server cannot be reached, or went away while it was asked."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server listens, and how to enter."""

    host: str
    port: int
    socket_path: str | None
    tls: bool
    greeting: tuple[tuple[bytes, ...], ...]
    """The AUTH and SELECT commands that come first on every connection."""


def parse_address(url: str) -> Address:
    """Read ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` or ``unix://path``.

    Raises ValueError, in words for the person who gave the address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
        raise ValueError(
            f"the Redis address {url!r} should begin with redis://, rediss:// or unix://, "
            "for example redis://127.0.0.1:6379/0"
        )
    greeting: list[tuple[bytes, ...]] = []
    if parts.password:
        user = [unquote(parts.username).encode()] if parts.username else []
        greeting.append((b"AUTH", *user, unquote(parts.password).encode()))
    database = "" if parts.scheme == "unix" else parts.path.strip("/")
    if database:
        if not database.isdigit():
            raise ValueError(f"the database in {url!r} should be a number, not {database!r}")
        greeting.append((b"SELECT", database.encode()))
    return Address(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 6379,
        socket_path=unquote(parts.path) if parts.scheme == "unix" else None,
        tls=parts.scheme in ("rediss", "valkeys"),
        greeting=tuple(greeting),
    )


class _Waiting:
    """A group of commands whose replies are arriving."""

    __slots__ = ("begun", "future", "missing", "replies")

    def __init__(self, future: asyncio.Future[list[Reply]], missing: int) -> None:
        self.begun = future.get_loop().time()
        self.future = future
        self.missing = missing
        self.replies: list[Reply] = []


class Wire(asyncio.Protocol):
    """One connection: groups of commands out, their replies back in order."""

    def __init__(self, pushed: Callable[[Reply], None] | None = None) -> None:
        self._reader = ReplyReader()
        self._waiting: deque[_Waiting] = deque()
        self._transport: asyncio.Transport | None = None
        self._pushed = pushed
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest group of commands has been waiting; 0 when none does."""
        if not self._waiting:
            return 0.0
        return asyncio.get_running_loop().time() - self._waiting[0].begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what the loop promises
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by the event loop: hand each reply to the group that waits for it."""
        try:
            replies = self._reader.feed(data)
        except (MalformedReply, ValueError) as error:
            self.connection_lost(MalformedReply(str(error)))
            self.close()
            return
        for reply in replies:
            if not self._waiting:
                if self._pushed:
                    self._pushed(reply)
                continue
            group = self._waiting[0]
            group.replies.append(reply)
            group.missing -= 1
            if not group.missing:
                self._waiting.popleft()
                if not group.future.done():
                    group.future.set_result(group.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop: nobody waits in vain."""
        if not self.lost.done():
            self.lost.set_result(None)
        while self._waiting:
            group = self._waiting.popleft()
            if not group.future.done():
                group.future.set_exception(
                    StoreUnreachable(f"the connection to the Redis server was lost ({exc})")
                )

    def send(self, commands: Sequence[Sequence[bytes]]) -> asyncio.Future[list[Reply]]:
        """Send a group of at least one command; the future gets all replies at once."""
        assert self._transport is not None  # noqa: S101 - `is_open` was asked before
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(future, len(commands)))
        self._transport.write(encode_commands(commands))
        return future

    def send_and_forget(self, command: Sequence[bytes]) -> None:
        """Send a command whose replies, any number of them, all go to `pushed`."""
        assert self._transport is not None  # noqa: S101 - connected before it is given out
        self._transport.write(encode_commands([command]))

    def close(self) -> None:
        """End the connection; what waits on it fails."""
        if self._transport is not None:
            self._transport.abort()


async def connect(address: Address, pushed: Callable[[Reply], None] | None = None) -> Wire:
    """Open a connection and enter; `pushed` gets what arrives unasked (messages).

    Raises StoreUnreachable.
    """
    loop = asyncio.get_running_loop()
    try:
        if address.socket_path is not None:
            _, wire = await loop.create_unix_connection(lambda: Wire(pushed), address.socket_path)
        else:
            _, wire = await loop.create_connection(
                lambda: Wire(pushed),
                address.host,
                address.port,
                ssl=ssl.create_default_context() if address.tls else None,
            )
    except OSError as error:
        raise StoreUnreachable(f"no Redis server answers there: {error}") from error
    try:
        await _enter(wire, address.greeting)
    except BaseException:
        wire.close()
        raise
    return wire


async def _enter(wire: Wire, greeting: Sequence[Sequence[bytes]]) -> None:
    for reply in await wire.send(greeting) if greeting else ():
        if isinstance(reply, Failure):
            text = reply.text.decode("utf-8", "replace")
            raise StoreUnreachable(f"the Redis server refused: {text}")


class Store:
    """The shared connection, opened at first use and again after it was lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._wire: Wire | None = None
        self._connecting = asyncio.Lock()
        self._watch: asyncio.TimerHandle | None = None
        self._rescue: asyncio.Task[None] | None = None

    async def run(self, commands: Sequence[Sequence[bytes]]) -> list[Reply]:
        """The replies to a group of at least one command, in order.

        Raises StoreUnreachable.
        """
        wire = self._wire
        if wire is None or not wire.is_open:
            wire = await self._connected()
        if self._watch is None:
            self._look_again()
        return await wire.send(commands)

    async def run_apart(self, command: Sequence[bytes]) -> Reply:
        """The reply to a command that may wait for it, on a connection of its own.

        Raises StoreUnreachable.
        """
        wire = await connect(self.address)
        try:
            return (await wire.send([command]))[0]
        finally:
            wire.close()

    async def _connected(self) -> Wire:
        async with self._connecting:
            if self._wire is None or not self._wire.is_open:
                self._wire = await connect(self.address)
            return self._wire

    def _look_again(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(1.0, self._look)

    def _look(self) -> None:
        """Stop a script that runs for ever, since everybody waits for it."""
        self._watch = None
        waited = self._wire.oldest_seconds if self._wire is not None else 0.0
        if waited > 0:
            self._look_again()
        if waited > STUCK_SECONDS and (self._rescue is None or self._rescue.done()):
            self._rescue = asyncio.get_running_loop().create_task(self._stop_scripts())

    async def _stop_scripts(self) -> None:
        with suppress(StoreUnreachable):
            wire = await connect(self.address)
            try:
                await wire.send([[b"SCRIPT", b"KILL"], [b"FUNCTION", b"KILL"]])
            finally:
                wire.close()

    def close(self) -> None:
        """End the connection."""
        if self._watch is not None:
            self._watch.cancel()
        if self._wire is not None:
            self._wire.close()
