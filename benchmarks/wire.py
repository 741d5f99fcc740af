"""A longer way: a TCP relay that holds back what comes from a server by some milliseconds.

``python -m benchmarks.wire PORT SERVER_PORT MILLISECONDS``. The same relay stands before the
Upstash stand-in and before Valkey, so that a round trip of either costs the same. It ends with its
standard input.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import uvloop


class Far(asyncio.Protocol):
    """The relay's connection to the server."""

    def __init__(self, near: Near, seconds: float) -> None:
        self._near = near
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._loop.call_later(self._seconds, self._near.send, data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._loop.call_later(self._seconds, self._near.close)


class Near(asyncio.Protocol):
    """The relay's connection from a client."""

    def __init__(self, server_port: int, seconds: float) -> None:
        self._server_port = server_port
        self._seconds = seconds
        self._server: Any = None
        self._early = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._task = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._server, _ = await loop.create_connection(
            lambda: Far(self, self._seconds), "127.0.0.1", self._server_port
        )
        self._server.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self._server is None:
            self._early += data
        else:
            self._server.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self._server is not None:
            self._server.close()

    def send(self, data: bytes) -> None:
        """Give the client what the server said."""
        self._transport.write(data)

    def close(self) -> None:
        """Hang up as the server did."""
        self._transport.close()


async def _serve(port: int, server_port: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Near(server_port, seconds), "127.0.0.1", port, backlog=512)

    def end() -> None:
        if not os.read(0, 4096):
            loop.stop()

    loop.add_reader(0, end)


def main() -> None:
    """Relay until the standard input ends."""
    port, server_port, milliseconds = map(int, sys.argv[1:])
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_serve(port, server_port, milliseconds / 1000))
    loop.run_forever()


if __name__ == "__main__":
    main()
