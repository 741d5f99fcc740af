"""Calls over sockets for threads: the driver of ``exchange`` that blocks.

Nothing but waiting, for connections, bytes and the deadline, may live here.
"""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, Any

from upstash_middleware.upstash.addresses import addresses_in, tries
from upstash_middleware.upstash.connections import (
    PIECE_BYTES,
    Idle,
    Origin,
    not_connected,
    socket_for,
)
from upstash_middleware.upstash.exchange import exchange
from upstash_middleware.upstash.transport import exceeded

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from upstash_middleware.upstash.addresses import Address, Found
    from upstash_middleware.upstash.connections import Connection
    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.exchange import Exchange
    from upstash_middleware.upstash.protocol import Answer, Call


class SocketsTransport:
    """A Transport over sockets."""

    def __init__(self, credentials: Credentials) -> None:
        self._origin = Origin(credentials)
        self._idle = Idle()

    def send(self, call: Call, seconds: float) -> Answer:
        """See Transport."""
        until = time.monotonic() + seconds
        request = self._origin.requests.request(call)
        try:
            connection = self._idle.take() or self._connected(until)
            try:
                flow = exchange(request, connection.tls)
                answer, reusable = _driven(flow, connection, until)
            except BaseException:
                connection.close()
                raise
        except TimeoutError:
            raise exceeded(seconds) from None
        if reusable:
            self._idle.keep(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """See Transport."""
        self._idle.close()

    def _connected(self, until: float) -> Connection:
        lookup, failure = self._origin.lookup, None
        for address, share in tries(lookup.numeric() or self._looked_up(until)):
            try:
                connection = self._connected_to(address, _left(until) * share)
            except OSError as error:
                failure = error
            else:
                lookup.worked(address)
                return connection
        _left(until)
        raise not_connected(failure) from failure

    def _connected_to(self, address: Address, seconds: float) -> Connection:
        sock = socket_for(address)
        try:
            sock.settimeout(seconds)
            sock.connect(address[1])
            sock.setblocking(False)
            return self._origin.connection(sock)
        except BaseException:
            sock.close()
            raise

    def _looked_up(self, until: float) -> list[Address]:
        told: queue.SimpleQueue[Found] = queue.SimpleQueue()
        self._origin.lookup.begin(told.put)
        try:
            return addresses_in(told.get(timeout=_left(until)))
        except queue.Empty:
            raise TimeoutError from None


def _driven(flow: Exchange, connection: Connection, until: float) -> tuple[Answer, bool]:
    sock = connection.sock
    step: Callable[[Any], bytes] = flow.send
    value: Any = None
    while True:
        try:
            data = step(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if data and (rest := connection.begin_sending(data)):
            _send_all(sock, rest, until)
        if not connection.wait(_left(until)):
            raise TimeoutError
        try:
            step, value = flow.send, sock.recv(PIECE_BYTES)
        except OSError as error:
            step, value = flow.throw, error


def _send_all(sock: socket.socket, data: memoryview, until: float) -> None:
    sock.settimeout(_left(until))
    try:
        sock.sendall(data)
    except TimeoutError:
        raise
    except OSError:
        pass  # what came instead is there to be received
    finally:
        sock.setblocking(False)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
