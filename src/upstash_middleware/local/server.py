"""`LocalUpstash`: the local server as an object, for scripts and tests."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import anyio.to_thread

from upstash_middleware import clock
from upstash_middleware.local.commands import CommandTable
from upstash_middleware.local.console.auth import CONSOLE, ConsoleAuth
from upstash_middleware.local.faults import NO_FAULTS, Fault, Faults, parse_faults
from upstash_middleware.local.http1 import (
    CHUNK_BYTES,
    Delivery,
    HttpConnection,
    Stream,
    error_answer,
)
from upstash_middleware.local.service import Service, Tokens
from upstash_middleware.local.valkey import (
    EmbeddedValkey,
    LocalUpstashError,
    Store,
    StoreUnreachable,
    parse_address,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from concurrent.futures import Future

    from upstash_middleware.local.billing import Bill
    from upstash_middleware.local.http1 import Request, Response
    from upstash_middleware.local.transport import InProcessTransport

T = TypeVar("T")

_URL_WITHOUT_SOCKET: Final = "http://upstash.invalid"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost", "upstash.invalid"})
_CONSOLE_PATH: Final = CONSOLE.encode()
_BACKLOG: Final = 1024
_SECONDS_TO_ANSWER: Final = 0.01
"""Seconds for sending the response to a change of faults before connections are refused."""


class LocalUpstash:
    """An Upstash Redis on this machine, over HTTP.

    ::

        with LocalUpstash() as upstash:
            redis = upstash_redis.Redis(url=upstash.url, token=upstash.token)

    Use it with ``with`` or ``async with``. The server runs in a separate thread, and starts and
    stops its own Valkey.

    Args:
        host: The address to listen on.
        port: The port; 0 chooses a free port.
        token: The token; None generates one.
        read_only_token: A second token, for read-only commands; None generates one.
        redis: The URL of another Redis server, such as ``redis://127.0.0.1:6379/0``, to use instead
            of the embedded Valkey.
        data: The directory that stores the data; None keeps the data in memory.
        faults: The faults that are simulated from the start.
        listen: Whether to open a socket for HTTP; otherwise requests use ``transport``.

    Raises:
        ValueError: Settings contradict each other.
        LocalUpstashError: On entering it, if the port is in use or no Valkey is available.
    """

    def __init__(  # noqa: PLR0913 - each is a separate setting
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        read_only_token: str | None = None,
        redis: str | None = None,
        data: str | Path | None = None,
        faults: Faults = NO_FAULTS,
        listen: bool = True,
    ) -> None:
        if redis is not None and data is not None:
            raise ValueError(
                "data is a directory for the embedded Valkey; the server at the redis address "
                "stores its own data: give one of the two"
            )
        self.host = host
        self.port: int = port
        self.token: str = secrets.token_hex(16) if token is None else token
        self.read_only_token: str = (
            secrets.token_hex(16) if read_only_token is None else read_only_token
        )
        if self.token == self.read_only_token:
            raise ValueError("token and read_only_token should differ")
        self.redis_url: str = redis or ""
        """The URL of the Valkey or Redis with the data, for any Redis client."""
        self._given_redis = redis
        self._data = None if data is None else Path(data)
        self._first_faults = faults
        self._listen = listen
        self._valkey: EmbeddedValkey | None = None
        self._running: _RunningServer | None = None

    @property
    def url(self) -> str:
        """The value for UPSTASH_REDIS_REST_URL."""
        if not self._listen:
            return _URL_WITHOUT_SOCKET
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The two environment variables that Upstash's SDKs read."""
        return {
            "UPSTASH_REDIS_REST_URL": self.url,
            "UPSTASH_REDIS_REST_TOKEN": self.token,
        }

    @property
    def console_url(self) -> str:
        """The console's URL for a browser, including the key for the login."""
        return f"{self.url}{CONSOLE}?key={ConsoleAuth(self.token).key}"

    @property
    def transport(self) -> InProcessTransport:
        """A transport for `httpx.Client` and `httpx.AsyncClient` that needs no socket."""
        from upstash_middleware.local.transport import InProcessTransport  # noqa: PLC0415 - httpx

        return InProcessTransport(self._alive.submit)

    def start(self) -> None:
        """Start the server; return when it accepts requests. Raises LocalUpstashError."""
        if self._running is not None:
            raise LocalUpstashError("this local Upstash is running already")
        try:
            store_url = self.redis_url
            if self._given_redis is None:
                self._valkey = EmbeddedValkey(self._data)
                self._valkey.start()
                self.redis_url, store_url = self._valkey.redis_url, self._valkey.socket_url
            self._running = _RunningServer(
                store_url,
                Tokens(self.token, self.read_only_token),
                self._first_faults,
                (self.host, self.port) if self._listen else None,
            )
            self.port = self._running.address[1]
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and its Valkey; do nothing if it is not running."""
        if self._running is not None:
            self._running.stop()
            self._running = None
        if self._valkey is not None:
            self._valkey.stop()
            self._valkey = None

    def bill(self) -> Bill:
        """The usage since the start or the last reset."""
        return self._alive.service.meter.read()

    def reset_bill(self) -> None:
        """Start a new bill."""
        self._alive.service.reset_bill()

    def flush(self) -> None:
        """Empty the database, including scripts and functions. This is not billed."""
        self._alive.call(self._alive.flush())

    def advance(self, seconds: float) -> None:
        """Move time forward, for this server and for every middleware of this process.

        Rate limit windows, freshness and key lifetimes move together. `reset` sets the time back to
        the machine's time. Dates that the application writes itself (`Date`, `Expires`) and scripts
        that call TIME still use the machine's clock.

        Args:
            seconds: The number of seconds, at least 0. Fractions of a millisecond are dropped.

        Raises:
            ValueError: `seconds` is negative: time only moves forward.
        """
        if not 0 <= seconds < 10**10:
            raise ValueError(
                f"advance({seconds!r}): give the seconds to move forward, 0 or more; "
                "reset() sets time back"
            )
        milliseconds = int(seconds * 1000)
        self._alive.call(self._alive.service.advance(milliseconds))
        clock.advance(milliseconds / 1000)

    def restore_time(self) -> None:
        """Set time back to the machine's time, for this server and this process.

        Keys keep their remaining lifetimes.
        """
        clock.restore()
        self._alive.service.restore_time()

    def reset(self) -> None:
        """Reset everything: empty the database, the bill and the faults, and restore the time.

        Every middleware of this process forgets its state: denials, local counts, cached responses,
        an open circuit breaker.

        Raises:
            LocalUpstashError: A middleware of this process uses a server that is not local, or this
                server uses the Redis server given as `redis`. Nothing is deleted.
        """
        if self._given_redis is not None:
            raise LocalUpstashError(
                "reset() would delete what is in the Redis server given as `redis`: "
                "call flush() if that is what you want"
            )
        for each in list(clock.remembering):
            url = each.server_url
            if url is not None and url != self.url and urlsplit(url).hostname not in _LOOPBACK:
                raise LocalUpstashError(
                    f"reset() is for tests against a local Upstash, but a middleware of this "
                    f"process uses {url}: give it this server's url and token"
                )
        self.restore_time()
        self.set_faults()
        self.flush()
        self.reset_bill()
        clock.forget()

    def set_faults(self, faults: Faults | None = None, /, **settings: Any) -> None:
        """Simulate faults, given as a `Faults` or by its fields; without arguments, no faults.

        ``set_faults(fault="drop-after", times=1)``.

        Args:
            faults: The faults; None for none.
            **settings: Fields of ``Faults``, instead of ``faults``.

        Raises:
            ValueError: A setting is wrong; the message names it.
        """
        faults = parse_faults(settings) if faults is None else faults
        self._alive.call(self._alive.change_faults(faults))

    @contextmanager
    def faults(self, faults: Faults | None = None, /, **settings: Any) -> Iterator[None]:
        """Simulate faults during a ``with`` block, and restore the earlier faults after it.

        Args:
            faults: The faults; None for none.
            **settings: Fields of ``Faults``, instead of ``faults``.
        """
        before = self._alive.service.faults.current
        self.set_faults(faults, **settings)
        try:
            yield
        finally:
            self.set_faults(before)

    @property
    def _alive(self) -> _RunningServer:
        if self._running is None:
            raise LocalUpstashError("this local Upstash is not running: use it in a `with` block")
        return self._running

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await anyio.to_thread.run_sync(self.stop)


class _RunningServer:
    """Serves from its creation until `stop`, on an event loop in a separate thread.

    Raises LocalUpstashError.
    """

    def __init__(
        self, store_url: str, tokens: Tokens, faults: Faults, listen: tuple[str, int] | None
    ) -> None:
        self.address: tuple[str, int] = listen or ("", 0)
        """Host and port; the port may have been assigned by the system."""
        self._connections: set[HttpConnection] = set()
        self._listener: asyncio.Server | None = None
        self._end_of_refusal: asyncio.TimerHandle | None = None
        self._listening = asyncio.Lock()
        self._store: Store | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="upstash-local", daemon=True)
        self._thread.start()
        try:
            self.call(self._open(store_url, tokens, faults))
            if listen:
                self.call(self._listen())
            self.call(self.change_faults(faults))
        except BaseException:
            self.stop()
            raise

    def _run(self) -> None:
        # Python handles signals in the main thread. A signal that is delivered to another thread
        # does not interrupt a blocking call of the main thread.
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        self._loop.run_forever()

    def call(self, work: Coroutine[object, object, T]) -> T:
        """Run `work` on the server's event loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def submit(self, request: Request) -> Future[tuple[Response, Delivery]]:
        """Handle a request that did not use the socket; a stream is closed at once."""
        return asyncio.run_coroutine_threadsafe(self._answer_without_stream(request), self._loop)

    async def flush(self) -> None:
        """Empty the database, and cancel the commands of disconnected clients."""
        for connection in self._connections:
            connection.cancel_if_left()
        await self.service.flush()

    def stop(self) -> None:
        """Stop, and close all connections."""
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, store_url: str, tokens: Tokens, faults: Faults) -> None:
        try:
            store = self._store = Store(parse_address(store_url))
            (reply,) = await store.run([[b"COMMAND"]])
        except (ValueError, StoreUnreachable) as error:
            raise LocalUpstashError(str(error)) from error
        table = CommandTable.from_reply(reply)
        self.service: Service = Service(store, tokens, table, faults)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = HttpConnection(self._answer, reader, writer)
        self._connections.add(connection)
        connection.task.add_done_callback(lambda _: self._connections.discard(connection))

    async def _answer(self, request: Request) -> tuple[Response, Delivery]:
        if not request.path.startswith(b"/-/"):
            return await self.service.answer(request)
        before = self.service.faults.current
        response = await self._answer_own(request)
        if self.service.faults.current != before:  # listen or refuse after sending this response
            self._loop.call_later(
                _SECONDS_TO_ANSWER, lambda: self._loop.create_task(self._listen_or_refuse())
            )
        return response, Delivery.WHOLE

    async def _answer_without_stream(self, request: Request) -> tuple[Response, Delivery]:
        response, delivery = await self._answer(request)
        if isinstance(response, Stream):
            response.close()  # here, because it belongs to this event loop
        return response, delivery

    async def _answer_own(self, request: Request) -> Response:
        if request.path != _CONSOLE_PATH and not request.path.startswith(_CONSOLE_PATH + b"/"):
            return await self.service.answer_own(request)
        try:
            from upstash_middleware.local.console.handlers import answer_console  # noqa: PLC0415
        except ModuleNotFoundError as error:  # jinja2, which only the console needs
            text = f'the console needs {error.name}: pip install "upstash-middleware[local]"'
            return error_answer(501, text)
        return await answer_console(self.service, request)

    async def _listen(self) -> None:
        host, port = self.address
        try:
            self._listener = await asyncio.start_server(
                self._accept, host, port, limit=CHUNK_BYTES, backlog=_BACKLOG
            )
        except OSError as error:
            raise LocalUpstashError(
                f"cannot listen on {host}:{port}, {error.strerror or error}: "
                "give another port, or port 0 for a free one"
            ) from error
        self.address = (host, self._listener.sockets[0].getsockname()[1])

    # The fault `refuse` closes the listener and all connections.

    async def change_faults(self, faults: Faults) -> None:
        """Change the simulated faults; they are in effect when this method returns."""
        self.service.faults.change(faults)
        await self._listen_or_refuse()

    async def _listen_or_refuse(self) -> None:
        async with self._listening:
            if self._end_of_refusal is not None:
                self._end_of_refusal.cancel()
                self._end_of_refusal = None
            faults = self.service.faults.current
            if faults.fault is not Fault.REFUSE:
                if self._listener is None and self.address[1]:
                    await self._listen()
                return
            await self._disconnect()
            if faults.seconds is not None:
                self._end_of_refusal = self._loop.call_later(
                    faults.seconds,
                    lambda: self._loop.create_task(self.change_faults(NO_FAULTS)),
                )

    async def _disconnect(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # asyncio leaks connections that are accepted while the listener is being closed.
            with suppress(NotImplementedError):  # on Windows
                for listening in listener.sockets:
                    self._loop.remove_reader(listening.fileno())
            await asyncio.sleep(0)
            listener.close()
        for connection in list(self._connections):
            connection.abort()

    async def _close(self) -> None:
        for _ in range(3):  # a connection that was just accepted appears slightly later
            await self._disconnect()
            await asyncio.sleep(0)
        if self._store is not None:
            self._store.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
