"""A server of the tests' own, on a real socket: it reads a request and does what it is told.

It knows nothing of Redis. What it received, and how often it was connected to, can be asked.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

Behaviour = Callable[["Connection"], Awaitable[None]]


class Connection:
    """What a behaviour has in its hands: the request, and the way back."""

    def __init__(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.body = body
        self.writer = writer

    async def write(self, data: bytes) -> None:
        """Send these bytes now."""
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        """End the connection in an orderly way."""
        self.writer.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def ended(self) -> None:
        """Wait until the connection that was closed or reset has ended."""
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class RawServer:
    """Answers each request with the next behaviour; the last one stays."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self._behaviours = list(behaviours)
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = self.ended = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""

    def wait_for_requests(self, number: int) -> None:
        """Block until so many requests have come."""
        self.until(lambda: len(self.requests) >= number)

    def until(self, condition: Callable[[], bool]) -> None:
        """Block until something has happened here."""
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, f"{len(self.requests)} requests, {self.ended} ended"
            time.sleep(0.01)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        self.connections += 1
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_content_length(head))
                self.requests.append((head, body))
                first = self._behaviours[0]
                if len(self._behaviours) > 1:
                    self._behaviours.pop(0)
                await first(Connection(head, body, writer))
        self.ended += 1
        writer.close()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@contextmanager
def raw_server(*behaviours: Behaviour) -> Iterator[RawServer]:
    """Run a RawServer on a free loopback port, in a thread, until the block ends."""
    server = RawServer(*behaviours)
    started = threading.Event()
    ending: list[Callable[[], object]] = []

    async def main() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        ending.append(lambda: loop.call_soon_threadsafe(ended.set))
        started.set()
        await ended.wait()
        listening.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in server.writers:
            writer.transport.abort()  # what nobody has read would keep its socket open
        await asyncio.sleep(0)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert started.wait(30)
        yield server
    finally:
        ending[0]()
        thread.join(30)
        assert not thread.is_alive()


def answer(
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "application/octet-stream",
    headers: bytes = b"",
) -> Behaviour:
    """Answer as HTTP does."""

    async def behave(connection: Connection) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
        await connection.write(head.encode() + b"\r\n" + headers + b"\r\n" + body)

    return behave


async def drop(connection: Connection) -> None:
    """Close after the request was read, without a word."""
    connection.close()


async def reset(connection: Connection) -> None:
    """Reset after the request was read."""
    connection.reset()


async def silent(connection: Connection) -> None:
    """Say nothing, for longer than any test waits."""
    await asyncio.sleep(60)


async def truncate(connection: Connection) -> None:
    """Promise more than is sent, then close."""
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n")
    await connection.write(b"Content-Length: 400\r\n\r\n$3\r\nab")
    connection.close()


async def truncate_and_reset(connection: Connection) -> None:
    """Promise more than is sent, then reset."""
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n$3\r\nab")
    await asyncio.sleep(0.05)
    connection.reset()


async def half_a_head(connection: Connection) -> None:
    """Close within the head."""
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Le")
    connection.close()


async def not_http(connection: Connection) -> None:
    """Speak another protocol."""
    await connection.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    connection.close()


def flood(piece: bytes) -> Behaviour:
    """Send the same bytes over and over, as fast as they are taken."""

    async def behaviour(connection: Connection) -> None:
        await connection.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await connection.write(piece)

    return behaviour


async def trickle(connection: Connection) -> None:
    """Send a byte now and then, so that every single read is quick and the whole never ends."""
    await connection.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(600):
        await connection.write(b" ")
        await asyncio.sleep(0.02)
