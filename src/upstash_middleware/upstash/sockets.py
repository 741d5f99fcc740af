"""Calls over sockets: the process's connections, which threads and event loops share.

A connection is a non-blocking socket, TLS if the URL is https, and the parser of the current
response. Threads wait for a socket with poll. An event loop calls the connection when data arrives;
the connection stays registered between calls. Another loop may take over a connection whose own
loop is closed or not running.
"""

from __future__ import annotations

import math
import queue
import select
import socket
import sys
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from contextvars import Context
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from upstash_middleware.errors import ConnectionLost, NotConnected
from upstash_middleware.upstash.process import current_process
from upstash_middleware.upstash.protocol import RequestEncoder, ResponseReader
from upstash_middleware.upstash.transport import IDLE_SECONDS, common_headers, exceeded

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterator

    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.protocol import Call, Response
    from upstash_middleware.upstash.tls import Resumption, Tls

PIECE_BYTES: Final = 65_536
"""The number of bytes to receive at once."""

IDLE_CONNECTIONS: Final = 64
"""The most idle connections that are kept; more may be in use."""

_MAX_WAIT: Final = 86_400.0
_PROACTOR: Final = "ProactorEventLoop"


class SocketsTransport:
    """A Transport over sockets."""

    def __init__(self, credentials: Credentials) -> None:
        self._origin = _Origin(credentials)
        self._pool = Pool()

    def send(self, call: Call, seconds: float) -> Response:
        """See Transport."""
        until = time.monotonic() + seconds
        request = self._origin.requests.request(call)
        try:
            connection = self._pool.take() or self._connect(until)
            response = None
            try:
                connection.begin(request)
                while response is None:
                    if not connection.wait(_seconds_left(until)):
                        raise TimeoutError  # noqa: TRY301
                    if connection.unsent:
                        connection.flush()
                    response = connection.read()
            except BaseException:
                connection.close()
                raise
        except TimeoutError:
            raise exceeded(seconds) from None
        self._pool.keep(connection)
        return response

    def close(self) -> None:
        """See Transport."""
        self._pool.close()

    def _connect(self, until: float) -> Connection:
        lookup, failure = self._origin.lookup, None
        for address, share in attempts(lookup.numeric() or self._look_up(until)):
            sock = socket_for(address)
            try:
                sock.settimeout(_seconds_left(until) * share)
                sock.connect(address[1])
                sock.setblocking(False)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                lookup.prefer(address)
                return self._origin.connection(sock)
        _seconds_left(until)
        raise _not_connected(failure) from failure

    def _look_up(self, until: float) -> list[Address]:
        found: queue.SimpleQueue[LookupResult] = queue.SimpleQueue()
        self._origin.lookup.begin(found.put)
        try:
            return addresses_in(found.get(timeout=_seconds_left(until)))
        except queue.Empty:
            raise TimeoutError from None


def _seconds_left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class AsyncSocketsTransport:
    """An AsyncTransport over sockets for asyncio; several event loops may share it."""

    def __init__(self, credentials: Credentials) -> None:
        self._origin = _Origin(credentials)
        self._pool = Pool()

    async def send(self, call: Call, seconds: float) -> Response:
        """See AsyncTransport."""
        loop = sys.modules["asyncio"].get_running_loop()
        until = loop.time() + seconds
        request = self._origin.requests.request(call)
        connection = self._pool.take(loop)
        try:
            if connection is None:
                connection = await self._connect(loop, until)
            try:
                response = await connection.exchange(request, loop, until)
            except BaseException:
                connection.close()
                raise
        except TimeoutError:
            raise exceeded(seconds) from None
        self._pool.keep(connection)
        return response

    async def aclose(self) -> None:
        """See AsyncTransport."""
        self._pool.close()

    async def _connect(self, loop: asyncio.AbstractEventLoop, until: float) -> Connection:
        import asyncio  # noqa: PLC0415 - already imported by a running event loop

        lookup, failure = self._origin.lookup, None
        async with asyncio.timeout_at(until):
            addresses = lookup.numeric()
            if addresses is None:
                found: asyncio.Future[LookupResult] = loop.create_future()
                lookup.begin(_resolver(found))
                addresses = addresses_in(await found)
            for address, share in attempts(addresses):
                sock = socket_for(address)
                try:
                    seconds = None if share == 1 else (until - loop.time()) * share
                    async with asyncio.timeout(seconds):
                        await loop.sock_connect(sock, address[1])
                except OSError as error:
                    sock.close()
                    failure = error
                except BaseException:
                    sock.close()
                    raise
                else:
                    lookup.prefer(address)
                    return self._origin.connection(sock)
        raise _not_connected(failure) from failure


async def _exchange_on_proactor(
    connection: Connection, request: bytes, loop: asyncio.AbstractEventLoop, until: float
) -> Response:
    """Exchange a request and its response on a loop that cannot watch sockets for reading."""
    import asyncio  # noqa: PLC0415

    async with asyncio.timeout_at(until):
        connection.begin(request)
        while True:
            if connection.unsent:
                data, connection.unsent = connection.unsent, b""
                with suppress(OSError):  # data that has arrived can still be received
                    await loop.sock_sendall(connection.sock, data)
            try:
                data = await loop.sock_recv(connection.sock, PIECE_BYTES)
            except OSError as error:
                raise connection.lost(error) from error
            response = connection.receive(data)
            if response is not None:
                return response


def _resolver(future: asyncio.Future[LookupResult]) -> Callable[[LookupResult], None]:
    """Return a function that resolves a future from another thread."""
    loop = future.get_loop()

    def resolve(found: LookupResult) -> None:
        if not future.done():
            future.set_result(found)

    def from_thread(found: LookupResult) -> None:
        with suppress(RuntimeError):  # the event loop has been closed
            loop.call_soon_threadsafe(resolve, found)

    return from_thread


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread; None if there is none."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()  # noqa: SLF001


def _is_proactor(loop: object) -> bool:
    """Whether this is Windows' event loop, which never releases a socket that it has used."""
    return type(loop).__name__ == _PROACTOR


class _Origin:
    """The server of a URL: request encoding, addresses, and TLS settings."""

    def __init__(self, credentials: Credentials) -> None:
        self.requests: RequestEncoder = RequestEncoder(credentials.url, common_headers(credentials))
        self.lookup: Lookup = Lookup(credentials.host, credentials.port)
        self._host = credentials.host
        self._resumption: Resumption | None = None
        if credentials.url.startswith("https:"):
            from upstash_middleware.upstash import tls  # noqa: PLC0415 - loads ssl

            tls.context()  # loading certificates is slow and must not count against a call
            self._resumption = tls.Resumption()

    def connection(self, sock: Socket) -> Connection:
        """Return a Connection for a socket that has just been connected."""
        if self._resumption is None:
            return Connection(sock, None)
        from upstash_middleware.upstash.tls import Tls  # noqa: PLC0415

        return Connection(sock, Tls(self._host, self._resumption))


# Connections -------------------------------------------------------------------------------------


class Socket(socket.socket):
    """A socket that may be garbage-collected while idle, without a ResourceWarning.

    It closes itself, because objects in a reference cycle are finalized in any order.
    """

    __slots__ = ("idle",)

    idle: bool

    def __del__(self) -> None:
        if self.fileno() >= 0:
            if not getattr(self, "idle", True):  # missing if creation was interrupted
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()


def socket_for(address: Address) -> Socket:
    """Return a non-blocking socket that is not connected yet."""
    sock = Socket(address[0], socket.SOCK_STREAM)
    sock.idle = False
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """A connected socket, with TLS if needed, and its request in flight."""

    __slots__ = (
        "__weakref__",
        "_number",
        "_poll",
        "_process",
        "_reader",
        "_timer",
        "_timer_at",
        "_until",
        "idle_since",
        "loop",
        "on_proactor",
        "reusable",
        "sock",
        "tls",
        "unsent",
        "waiter",
        "writing",
    )

    def __init__(self, sock: Socket, tls: Tls | None) -> None:
        self.sock: Socket = sock
        self.tls: Tls | None = tls
        self.unsent: bytes | memoryview = b""
        """Bytes that the socket has not accepted yet."""
        self.reusable: bool = True
        """Whether the connection can be used for another request."""
        self.idle_since: float = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that reads from the socket."""
        self.on_proactor: bool = False
        self.waiter: asyncio.Future[Response] | None = None
        """The future that gets the response on this loop."""
        self.writing: bool = False
        """Whether this loop waits until the socket accepts more bytes."""
        self._number = sock.fileno()
        self._process = current_process()
        self._reader = ResponseReader()
        self._until = self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def begin(self, request: bytes) -> None:
        """Send as much of a request as fits into the socket's buffer.

        Raises NotConnected if the connection was already closed: the server has received nothing.
        """
        self._reader.expect()
        data = request if self.tls is None else self.tls.begin(request)
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise NotConnected(f"the connection to Upstash was already closed: {error}") from error
        if sent != len(data):
            self._keep_unsent(memoryview(data)[sent:])

    def flush(self) -> None:
        """Send more of the unsent bytes."""
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:  # data that has arrived can still be received
            sent = len(self.unsent)
        self._keep_unsent(memoryview(self.unsent)[sent:])

    def _keep_unsent(self, data: memoryview) -> None:
        self.unsent = data
        if data and self.loop is not None and not self.on_proactor and not self.writing:
            Context().run(self.loop.add_writer, self._number, _on_writable, ref(self))
            self.writing = True

    def read(self) -> Response | None:
        """Receive at most PIECE_BYTES bytes; return the response if it is complete."""
        try:
            data = self.sock.recv(PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self.lost(error) from error
        return self.receive(data)

    def receive(self, data: bytes) -> Response | None:
        """Parse received bytes, empty at the end; return the response if it is complete.

        Raises NotConnected, ConnectionLost and UnexpectedAnswer.
        """
        reader, ended = self._reader, not data
        if self.tls is not None:
            try:
                to_send, data, ended = self.tls.receive(data)
            except EOFError:
                return reader.end(orderly=False)
            except OSError as error:
                raise self.lost(error) from error
            if to_send:
                self.unsent = bytes(self.unsent) + to_send
                self.flush()
        response = reader.feed(data) if data else None
        if response is None:
            return reader.end() if ended else None
        self.reusable = reader.reusable and not ended and not self.unsent
        return response

    def lost(self, error: OSError) -> NotConnected | ConnectionLost:
        """Return the UpstashError for the request in flight after a socket error."""
        if self.tls is not None and not self.tls.ready:
            from upstash_middleware.upstash.tls import handshake_error  # noqa: PLC0415

            return handshake_error(error)
        return ConnectionLost(f"the connection to Upstash was lost: {error}")

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Register the socket for reading on this event loop, if the loop supports it."""
        before, self.loop = self.loop, loop
        if before is not None and not before.is_closed():
            self._detach(before)
        self.writing, self._timer, self._timer_at = False, None, math.inf
        self.on_proactor = _is_proactor(loop)
        if not self.on_proactor:
            # In a new context: the loop keeps the context while the connection is open, and a
            # request's context contains data of its visitor.
            Context().run(loop.add_reader, self._number, _on_readable, ref(self))

    def exchange(
        self, request: bytes, loop: asyncio.AbstractEventLoop, until: float
    ) -> Awaitable[Response]:
        """Send a request on this event loop; return a future for its response, until the deadline.

        There is one timer. It is kept when a call ends, because the next deadline is usually later.
        """
        if self.loop is not loop:
            self._attach(loop)
        if self.on_proactor:
            return _exchange_on_proactor(self, request, loop, until)
        self.waiter = waiter = loop.create_future()  # resolved when the response is read
        self._until = until
        if until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(loop)
        self.begin(request)
        return waiter

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer_at = self._until
        self._timer = Context().run(loop.call_at, self._until, _on_time, ref(self), loop)

    def on_time(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the call in flight if its deadline has passed; otherwise set the timer again."""
        self._timer, self._timer_at, waiter = None, math.inf, self.waiter
        if waiter is None or waiter.done():
            return
        if loop.time() >= self._until:
            waiter.set_exception(TimeoutError())
        else:
            self._set_timer(loop)

    def wait(self, seconds: float) -> bool:
        """Wait until the socket is readable, or writable if there are unsent bytes."""
        seconds = min(max(seconds, 0.0), _MAX_WAIT)
        poll = self._poll
        if poll is None:  # Windows, where select accepts any socket number
            readers, writers = [self.sock], [self.sock] if self.unsent else []
            return any(select.select(readers, writers, [], seconds))
        if not self.unsent:
            return bool(poll.poll(math.ceil(seconds * 1000)))
        poll.modify(self.sock, select.POLLIN | select.POLLOUT)
        try:
            return bool(poll.poll(math.ceil(seconds * 1000)))
        finally:
            poll.modify(self.sock, select.POLLIN)

    def is_usable(self) -> bool:
        """Whether the server has, as far as is known here, neither closed it nor sent data."""
        if not self.reusable:
            return False
        poll = self._poll
        if not (self.wait(0) if poll is None else poll.poll(0)):
            return True
        self.reusable = False
        if self.tls is None:
            return False
        try:
            while True:  # TLS 1.3 may send session tickets at any time
                _, data, ended = self.tls.receive(self.sock.recv(PIECE_BYTES))
                if data or ended:
                    return False
        except BlockingIOError:
            self.reusable = True
            return True
        except (OSError, EOFError):
            return False

    def close(self) -> None:
        """Close the socket without close_notify, because a parent process may still use it."""
        self.reusable = False
        self.waiter = None
        self._reader.close()
        loop = self.loop
        if loop is not None and not loop.is_closed() and self._process == current_process():
            self.loop = None
            if loop.is_running() and loop is not _running_loop():  # only its thread may
                self.sock.idle = True

                def close() -> None:
                    self._detach(loop)
                    self.sock.close()

                with suppress(RuntimeError):  # the loop has been closed
                    loop.call_soon_threadsafe(close)
                    return
            self._detach(loop)
        self.sock.close()

    def _detach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remove the connection from the event loop."""
        if self._timer is not None:
            self._timer.cancel()
        if not _is_proactor(loop):
            loop.remove_reader(self._number)
            loop.remove_writer(self._number)

    def stop_reading(self) -> None:
        """Remove the reader from the loop, because a closed connection is always readable."""
        if self.loop is not None:
            self.loop.remove_reader(self._number)

    def stop_writing(self) -> None:
        """Remove the writer from the loop."""
        self.writing = False
        if self.loop is not None:
            self.loop.remove_writer(self._number)

    def __del__(self) -> None:
        # An unclosed socket that is in use gets Python's ResourceWarning.
        loop = getattr(self, "loop", None)  # missing if creation was interrupted
        if loop is not None and self.sock.idle:
            self.close()


def _on_readable(reference: ref[Connection]) -> None:
    """Read the available bytes, and pass a complete response to the waiting task."""
    connection = reference()
    if connection is None:
        return
    waiter = connection.waiter
    if waiter is None or waiter.done():
        if not connection.is_usable():
            connection.close()
        return
    try:
        response = connection.read()
    except Exception as error:  # noqa: BLE001 - raised in the waiting task
        connection.stop_reading()
        waiter.set_exception(error)
    else:
        if response is not None:
            connection.waiter = None
            waiter.set_result(response)


def _on_time(reference: ref[Connection], loop: asyncio.AbstractEventLoop) -> None:
    connection = reference()
    if connection is not None and connection.loop is loop:
        connection.on_time(loop)


def _on_writable(reference: ref[Connection]) -> None:
    """Send more bytes, until all are sent."""
    connection = reference()
    if connection is not None:
        connection.flush()
        if not connection.unsent:
            connection.stop_writing()


class Pool:
    """The idle connections, most recent last; shared by all threads and event loops."""

    def __init__(self) -> None:
        self._idle: deque[Connection] = deque()
        self._closed = False

    def take(self, loop: asyncio.AbstractEventLoop | None = None) -> Connection | None:
        """Return an idle connection that can be used here; None if there is none."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.loop is not loop:
                self._idle.append(connection)
                if (found := self._find(loop)) is None:
                    return None
                connection = found
            connection.sock.idle = False
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.is_usable():
                return connection
            connection.close()

    def _find(self, loop: asyncio.AbstractEventLoop | None) -> Connection | None:
        """Remove and return a connection of this loop, or one that no running loop reads from."""
        known = self._idle.copy()
        known.reverse()
        own = [each for each in known if each.loop is loop]
        for found in own or [each for each in known if _may_be_taken(each.loop)]:
            with suppress(ValueError):  # another thread has taken the connection
                self._idle.remove(found)
                return found
        return None

    def keep(self, connection: Connection) -> None:
        """Keep a connection after its call, and close connections that were idle for too long."""
        if not connection.reusable:
            connection.close()
            return
        now = connection.idle_since = time.monotonic()
        connection.sock.idle = True
        idle = self._idle
        idle.append(connection)
        if self._closed:
            self.close()
        while len(idle) > 1:
            try:
                oldest = idle[0]
                if len(idle) <= IDLE_CONNECTIONS and now - oldest.idle_since < IDLE_SECONDS:
                    return
                idle.remove(oldest)
            except (IndexError, ValueError):  # other threads have taken the connection
                return
            oldest.close()

    def close(self) -> None:
        """Close all idle connections; connections in use are closed after their calls."""
        self._closed = True
        with suppress(IndexError):
            while True:
                self._idle.pop().close()


def _may_be_taken(loop: asyncio.AbstractEventLoop | None) -> bool:
    return loop is None or (not _is_proactor(loop) and (loop.is_closed() or not loop.is_running()))


# Addresses ---------------------------------------------------------------------------------------

Address = tuple[int, Any]
"""A socket's address family, and the address to connect to."""

LookupResult = list[Address] | OSError | UnicodeError

_SHARED_SECONDS: Final = 1.0
"""Seconds for which later calls share a lookup that is in progress."""


class Lookup:
    """Looks up the addresses of one host and port.

    A lookup that hangs cannot be cancelled, so it runs in a separate thread: calls with an expired
    deadline and an exiting process do not wait for it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[LookupResult], object]] = []
        self._begun = 0.0
        self._preferred: Address | None = None

    def numeric(self) -> list[Address] | None:
        """Return the address if the host is an IP address; otherwise None."""
        try:
            return self._find(socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return None

    def begin(self, callback: Callable[[LookupResult], object]) -> None:
        """Start a lookup in a thread, which calls ``callback`` with the addresses or the error."""
        with self._lock:
            now = time.monotonic()
            if self._callbacks and now - self._begun < _SHARED_SECONDS:
                self._callbacks.append(callback)
                return
            self._begun, self._callbacks = now, [callback]
            callbacks = self._callbacks
        try:
            threading.Thread(
                target=self._run, args=(callbacks,), name="upstash-middleware-dns", daemon=True
            ).start()
        except RuntimeError:  # no thread can be started because the process is exiting
            self._run(callbacks)

    def prefer(self, address: Address) -> None:
        """Try this address first from now on, because a connection to it succeeded."""
        self._preferred = address

    def _run(self, callbacks: list[Callable[[LookupResult], object]]) -> None:
        found: LookupResult
        try:
            found = self._find()
        except (OSError, UnicodeError) as error:
            found = error  # a UnicodeError means that the text is no valid host name
        with self._lock:
            waiting = list(callbacks)
            callbacks.clear()
        for callback in waiting:
            callback(found)

    def _find(self, flags: int = 0) -> list[Address]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        addresses = interleave_families([(family, address) for family, _, _, _, address in found])
        return sorted(addresses, key=lambda address: address != self._preferred)


def addresses_in(found: LookupResult) -> list[Address]:
    """Return the addresses from a lookup; raises NotConnected if it failed."""
    if isinstance(found, list):
        return found
    raise NotConnected(f"no connection to Upstash: its address was not found: {found}") from found


def interleave_families(addresses: list[Address]) -> list[Address]:
    """Alternate the address families, so that an unreachable one costs one try (RFC 8305 §4)."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [each for each in chain(*zip_longest(*families.values())) if each is not None]


def attempts(addresses: list[Address]) -> Iterator[tuple[Address, float]]:
    """Yield each address with its share of the time left: half of it, for the last one all."""
    *others, last = addresses
    yield from ((each, 0.5) for each in others)
    yield last, 1.0


def _not_connected(error: OSError | None) -> NotConnected:
    """Return the error if no address accepted a connection."""
    return NotConnected(f"no connection to Upstash: {error or 'no address was found'}")
