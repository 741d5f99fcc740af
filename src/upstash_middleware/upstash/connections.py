"""Connections as both transports have them: sockets that never block, and those that idle.

They belong to no event loop, so that any may use them in turn. Nothing here waits, but for
``Connection.wait``.
"""

from __future__ import annotations

import math
import select
import socket
import threading
import time
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from upstash_middleware.errors import NotConnected
from upstash_middleware.upstash.addresses import Lookup
from upstash_middleware.upstash.http1 import Requests
from upstash_middleware.upstash.transport import IDLE_SECONDS, standing_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.upstash.addresses import Address
    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.tls import Tls

PIECE_BYTES: Final = 65_536
"""How much is received at once."""

IDLE_CONNECTIONS: Final = 64
"""How many are kept at most; more may be in use."""

_LONGEST_WAIT: Final = 86_400.0


class Origin:
    """The server of a URL: its requests, its addresses, and what connections to it begin as."""

    def __init__(self, credentials: Credentials) -> None:
        self.requests: Requests = Requests(credentials.url, standing_headers(credentials))
        self.lookup: Lookup = Lookup(credentials.host, credentials.port)
        self._tls: Callable[[], Tls] | None = None
        if credentials.url.startswith("https:"):
            from upstash_middleware.upstash import tls  # noqa: PLC0415 - loads ssl

            tls.context()  # reading the authorities takes long, and is no call's concern
            self._tls = partial(tls.Tls, credentials.host, tls.Resumption())

    def connection(self, sock: Socket) -> Connection:
        """Return the connection over a socket that has just been connected."""
        return Connection(sock, None if self._tls is None else self._tls())


class Socket(socket.socket):
    """A socket that idles without a warning when its client, which needs no closing, is gone.

    It says so of itself, for a cycle's parts are collected in any order.
    """

    __slots__ = ("idle",)

    idle: bool

    def __del__(self) -> None:
        if self.fileno() >= 0:
            if not self.idle:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()


def socket_for(address: Address) -> Socket:
    """Return a socket that does not block and is yet to be connected."""
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


def not_connected(error: OSError | None) -> NotConnected:
    """Return what a connection that no address has taken means."""
    return NotConnected(f"no connection to Upstash: {error or 'no address was found'}")


class Connection:
    """A connected socket, and TLS over it if there is any."""

    __slots__ = ("_poll", "idle_since", "sock", "tls")

    def __init__(self, sock: Socket, tls: Tls | None) -> None:
        self.sock: Socket = sock
        self.tls: Tls | None = tls
        self.idle_since: float = 0.0
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):  # Windows has none, where select knows no highest number
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)

    def begin_sending(self, data: bytes) -> memoryview:
        """Send what the socket takes at once, and return the rest.

        Raises NotConnected where it takes nothing any more: the server has seen nothing.
        """
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise NotConnected(f"the connection to Upstash was closed before: {error}") from error
        return memoryview(data)[sent:]

    def wait(self, seconds: float) -> bool:
        """Wait until something has come, or the end, and return whether it has."""
        seconds = min(max(seconds, 0.0), _LONGEST_WAIT)
        if self._poll is None:
            return bool(select.select([self.sock], [], [], seconds)[0])
        return bool(self._poll.poll(math.ceil(seconds * 1000)))

    def is_usable(self) -> bool:
        """Whether the other side, as far as is known here, has neither closed it nor spoken."""
        if not self.wait(0):
            return True
        if self.tls is None:
            return False
        try:
            while True:  # tickets, as TLS 1.3 has them come at any time
                data, ended = self.tls.opened(self.sock.recv(PIECE_BYTES))
                if data or ended:
                    return False
        except BlockingIOError:
            return True
        except (OSError, EOFError):
            return False

    def close(self) -> None:
        """Close it without a word of TLS: the process that it was inherited from may use it."""
        self.sock.close()


class Idle:
    """The connections that wait for their next call, the latest first; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: deque[Connection] = deque()
        self._closed = False

    def take(self) -> Connection | None:
        """Return one that can be used."""
        while True:
            with self._lock:
                if not self._connections:
                    return None
                connection = self._connections.pop()
                connection.sock.idle = False
            if time.monotonic() - connection.idle_since < IDLE_SECONDS and connection.is_usable():
                return connection
            connection.close()

    def keep(self, connection: Connection) -> None:
        """Take one whose call is over, and let go of what has idled too long."""
        now = connection.idle_since = time.monotonic()
        with self._lock:
            if self._closed or len(self._connections) >= IDLE_CONNECTIONS:
                left = [connection]
            else:
                self._connections.append(connection)
                connection.sock.idle = True
                left = []
                while now - self._connections[0].idle_since >= IDLE_SECONDS:
                    left.append(self._connections.popleft())
        for each in left:
            each.close()

    def close(self) -> None:
        """Close all, and later those that are in use."""
        with self._lock:
            self._closed = True
            left = list(self._connections)
            self._connections.clear()
        for connection in left:
            connection.close()
