"""A server of single connections, as sockets: for what a server of HTTP never does."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def listening(
    serve: Callable[[socket.socket, threading.Event], None], host: str = "127.0.0.1"
) -> Iterator[int]:
    """Serve each connection in a thread until the block ends; yield the port."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.settimeout(0.05)

        def accept() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=serve, args=(connection, ended)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server.getsockname()[1]
        finally:
            ended.set()
            for thread in (accepting, *threads):
                thread.join(10)


def next_request(connection: socket.socket) -> bytes | None:
    """Read one request to its end, and return its body; None at the connection's end."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (piece := connection.recv(65_536)):
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    pieces = [body]
    while (length := length - len(pieces[-1])) > 0:
        pieces.append(connection.recv(65_536))
    return b"".join(pieces)


def answered(body: bytes, *fields: bytes) -> bytes:
    """Return an answer's bytes."""
    length = b"Content-Length: %d" % len(body)
    head = (b"HTTP/1.1 200 OK", b"Content-Type: application/octet-stream", length, *fields)
    return b"\r\n".join((*head, b"", b"")) + body
