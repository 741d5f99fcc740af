"""Calls over sockets for asyncio's event loops: the driver of ``exchange`` that awaits.

Nothing but waiting, for connections, bytes and the deadline, may live here.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

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
    from collections.abc import Callable

    from upstash_middleware.upstash.addresses import Address, Found
    from upstash_middleware.upstash.connections import Connection
    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.exchange import Exchange
    from upstash_middleware.upstash.protocol import Answer, Call

_PROACTOR: Final[Any] = getattr(asyncio, "ProactorEventLoop", ())
"""Windows' event loop, which a socket stays with once it has been used there."""


class AsyncSocketsTransport:
    """An AsyncTransport over sockets for asyncio; several loops may share it."""

    def __init__(self, credentials: Credentials) -> None:
        self._origin = Origin(credentials)
        self._idle = Idle()
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Idle] = WeakKeyDictionary()

    async def send(self, call: Call, seconds: float) -> Answer:
        """See AsyncTransport."""
        loop = asyncio.get_running_loop()
        idle = self._idle if not isinstance(loop, _PROACTOR) else self._idle_of(loop)
        request = self._origin.requests.request(call)
        until = loop.time() + seconds
        try:
            async with asyncio.timeout_at(until):
                connection = idle.take() or await self._connected(loop, until)
                try:
                    flow = exchange(request, connection.tls)
                    answer, reusable = await _driven(flow, connection, loop)
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError:
            raise exceeded(seconds) from None
        if reusable:
            idle.keep(connection)
        else:
            connection.close()
        return answer

    async def aclose(self) -> None:
        """See AsyncTransport."""
        self._idle.close()
        for idle in list(self._of_loops.values()):
            idle.close()

    def _idle_of(self, loop: asyncio.AbstractEventLoop) -> Idle:
        idle = self._of_loops.get(loop)
        if idle is None:
            idle = self._of_loops[loop] = Idle()
        return idle

    async def _connected(self, loop: asyncio.AbstractEventLoop, until: float) -> Connection:
        lookup, failure = self._origin.lookup, None
        for address, share in tries(lookup.numeric() or await self._looked_up(loop)):
            try:
                async with asyncio.timeout(None if share == 1 else (until - loop.time()) * share):
                    connection = await self._connected_to(address, loop)
            except OSError as error:
                failure = error
            else:
                lookup.worked(address)
                return connection
        raise not_connected(failure) from failure

    async def _connected_to(self, address: Address, loop: asyncio.AbstractEventLoop) -> Connection:
        sock = socket_for(address)
        try:
            await loop.sock_connect(sock, address[1])
            return self._origin.connection(sock)
        except BaseException:
            sock.close()
            raise

    async def _looked_up(self, loop: asyncio.AbstractEventLoop) -> list[Address]:
        told: asyncio.Future[Found] = loop.create_future()

        def tell(found: Found) -> None:
            with suppress(RuntimeError):  # the event loop has been closed meanwhile
                loop.call_soon_threadsafe(_resolve, told, found)

        self._origin.lookup.begin(tell)
        return addresses_in(await told)


async def _driven(
    flow: Exchange, connection: Connection, loop: asyncio.AbstractEventLoop
) -> tuple[Answer, bool]:
    sock = connection.sock
    step: Callable[[Any], bytes] = flow.send
    value: Any = None
    while True:
        try:
            data = step(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if data and (rest := connection.begin_sending(data)):
            with suppress(OSError):  # what came instead is there to be received
                await loop.sock_sendall(sock, rest)
        try:
            step, value = flow.send, await loop.sock_recv(sock, PIECE_BYTES)
        except OSError as error:
            step, value = flow.throw, error


def _resolve(told: asyncio.Future[Found], found: Found) -> None:
    if not told.done():
        told.set_result(found)
