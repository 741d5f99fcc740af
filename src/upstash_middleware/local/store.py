"""The connection to the Valkey (or Redis) behind this server, shared by all requests.

The commands of one request are contiguous on the connection, which makes a MULTI … EXEC group
safe on it.  Blocking commands must not be sent here: they would hold up every other request.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct

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
"""How long a script may run, and hold up every other request, before it is killed."""


class StoreUnreachable(Exception):
    """The Valkey behind this server cannot be reached, or refused a command of the server's own."""

    @classmethod
    def from_reply(cls, reply: Reply) -> StoreUnreachable:
        """The error for a reply of another kind than expected."""
        return cls(
            reply.text.decode("utf-8", "replace") if isinstance(reply, Failure) else repr(reply)
        )


class Address(Struct, frozen=True):
    """Where a Redis server listens, and how to log in."""

    host: str
    port: int
    socket_path: str | None
    tls: bool
    login: tuple[tuple[bytes, ...], ...]
    """The AUTH and SELECT commands that are sent first on every connection."""

    def __repr__(self) -> str:
        return f"Address({self.socket_path or f'{self.host}:{self.port}'})"  # no password


def parse_address(url: str) -> Address:
    """Read ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` or ``unix://path``.

    Raises ValueError with a message for the user who gave the address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix", "valkey", "valkeys"):
        raise ValueError(
            f"the Redis address {url!r} should begin with redis://, rediss:// or unix://, "
            "for example redis://127.0.0.1:6379/0"
        )
    login: list[tuple[bytes, ...]] = []
    if parts.password:
        user = [unquote(parts.username).encode()] if parts.username else []
        login.append((b"AUTH", *user, unquote(parts.password).encode()))
    database = "" if parts.scheme == "unix" else parts.path.strip("/")
    if database:
        if not database.isdigit():
            raise ValueError(f"the database in {url!r} should be a number, not {database!r}")
        login.append((b"SELECT", database.encode()))
    return Address(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 6379,
        socket_path=unquote(parts.path) if parts.scheme == "unix" else None,
        tls=parts.scheme in ("rediss", "valkeys"),
        login=tuple(login),
    )


class Store:
    """The shared connection, opened at first use and again after it was lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._watchdog: asyncio.Task[None] | None = None

    async def run(self, commands: Sequence[Sequence[bytes]]) -> list[Reply]:
        """Send at least one command; return the replies in order.  Raises StoreUnreachable."""
        connection = self._connection
        if connection is None or not connection.is_open:
            async with self._connecting:
                connection = self._connection
                if connection is None or not connection.is_open:
                    connection = self._connection = await connect(self.address)
        if self._watchdog is None:
            self._watchdog = asyncio.create_task(self._kill_stuck_scripts())
        return await connection.send(commands)

    async def run_apart(self, *commands: Sequence[bytes]) -> list[Reply]:
        """Send commands that may wait for their replies, on a separate connection.

        Raises StoreUnreachable.
        """
        connection = await connect(self.address)
        try:
            return await connection.send(commands)
        finally:
            connection.close()

    async def _kill_stuck_scripts(self) -> None:
        busy = True
        while busy:
            await asyncio.sleep(1.0)
            waited = self._connection.oldest_seconds if self._connection is not None else 0.0
            busy = waited > 0
            if waited > STUCK_SECONDS:
                with suppress(StoreUnreachable):
                    await self.run_apart([b"SCRIPT", b"KILL"], [b"FUNCTION", b"KILL"])
        self._watchdog = None

    def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._connection is not None:
            self._connection.close()


async def connect(address: Address, pushed: Callable[[Reply], None] | None = None) -> Connection:
    """Open a connection and log in; `pushed` receives messages, which no command waits for.

    Raises StoreUnreachable.
    """
    loop = asyncio.get_running_loop()
    try:
        if address.socket_path is not None:
            _, connection = await loop.create_unix_connection(
                lambda: Connection(pushed), address.socket_path
            )
        else:
            _, connection = await loop.create_connection(
                lambda: Connection(pushed),
                address.host,
                address.port,
                ssl=ssl.create_default_context() if address.tls else None,
            )
    except OSError as error:
        raise StoreUnreachable(f"no Redis server answers there: {error}") from error
    try:
        replies = await connection.send(address.login) if address.login else []
    except BaseException:
        connection.close()
        raise
    for reply in replies:
        if isinstance(reply, Failure):
            connection.close()
            text = reply.text.decode("utf-8", "replace")
            raise StoreUnreachable(f"the Redis server refused: {text}")
    return connection


class _CommandGroup:
    """Commands that were sent together, and the replies that have arrived."""

    __slots__ = ("future", "replies", "sent_at", "size")

    def __init__(self, future: asyncio.Future[list[Reply]], size: int) -> None:
        self.sent_at = future.get_loop().time()
        self.future = future
        self.size = size
        self.replies: list[Reply] = []


class Connection(asyncio.Protocol):
    """One connection: groups of commands out, their replies back in order."""

    def __init__(self, pushed: Callable[[Reply], None] | None = None) -> None:
        self._reader = ReplyReader()
        self._groups: deque[_CommandGroup] = deque()
        self._transport: asyncio.Transport | None = None
        self._pushed = pushed
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def oldest_seconds(self) -> float:
        """How long the oldest group of commands has been waiting; 0 if none is."""
        if not self._groups:
            return 0.0
        return asyncio.get_running_loop().time() - self._groups[0].sent_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - the loop guarantees it
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._reader.feed(data)
        except (MalformedReply, ValueError) as error:
            self.connection_lost(MalformedReply(str(error)))
            self.close()
            return
        for reply in replies:
            if self._groups:
                group = self._groups[0]
                group.replies.append(reply)
                if len(group.replies) == group.size:
                    self._groups.popleft()
                    if not group.future.done():
                        group.future.set_result(group.replies)
            elif self._pushed:
                self._pushed(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`: all commands that still wait fail."""
        if not self.lost.done():
            self.lost.set_result(None)
        while self._groups:
            future = self._groups.popleft().future
            if not future.done():
                future.set_exception(
                    StoreUnreachable(f"the connection to the Redis server was lost ({exc})")
                )

    def send(self, commands: Sequence[Sequence[bytes]]) -> asyncio.Future[list[Reply]]:
        """Send at least one command; the future receives all replies at once."""
        assert self._transport is not None  # noqa: S101 - the caller checked `is_open`
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._groups.append(_CommandGroup(future, len(commands)))
        self._transport.write(encode_commands(commands))
        return future

    def send_and_forget(self, command: Sequence[bytes]) -> None:
        """Send a command whose replies, any number of them, all go to `pushed`."""
        assert self._transport is not None  # noqa: S101 - `connect` returned it connected
        self._transport.write(encode_commands([command]))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
