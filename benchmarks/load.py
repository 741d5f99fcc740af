"""The load: requests over kept-alive connections, each sent when the last was answered.

A plain epoll loop without an event loop's machinery, for a load generator may not be what is
measured.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.request import urlopen

if TYPE_CHECKING:
    from collections.abc import Callable

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_PATIENCE = 10.0
"""Seconds without any answer after which something is broken."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came back."""

    seconds: float
    latencies: list[float]
    """Seconds from sending a request to the last byte of its answer, sorted."""
    statuses: Counter[int]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Return the latency that this share of the answers did not exceed."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def load(port: int, request: Callable[[int], bytes], connections: int, seconds: float) -> Load:
    """Keep so many connections busy for so long; ``request`` makes the nth request."""
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    poll = select.epoll()
    for one in sockets:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(one.fileno(), select.EPOLLIN)
    try:
        return _busy(poll, {one.fileno(): one for one in sockets}, request, seconds)
    finally:
        poll.close()
        for one in sockets:
            one.close()


def _busy(
    poll: select.epoll,
    sockets: dict[int, socket.socket],
    request: Callable[[int], bytes],
    seconds: float,
) -> Load:
    clock = time.perf_counter
    sent, buffers = dict.fromkeys(sockets, 0.0), dict.fromkeys(sockets, b"")
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    number, begun = 0, clock()
    end = begun + seconds
    for descriptor, one in sockets.items():
        sent[descriptor] = clock()
        one.sendall(request(number))
        number += 1
    waiting = len(sockets)
    while waiting:
        ready = poll.poll(_PATIENCE)
        if not ready:
            raise TimeoutError(f"no answer within {_PATIENCE:g} s")
        for descriptor, _ in ready:
            one = sockets[descriptor]
            data = one.recv(262144)
            if not data:
                raise ConnectionError("the server hung up")
            data = buffers[descriptor] + data if buffers[descriptor] else data
            if not whole(data):
                buffers[descriptor] = data
                continue
            now = clock()
            buffers[descriptor] = b""
            latencies.append(now - sent[descriptor])
            statuses[int(data[9:12])] += 1
            if now < end:
                sent[descriptor] = now
                one.sendall(request(number))
                number += 1
            else:
                waiting -= 1
    took = clock() - begun
    latencies.sort()
    return Load(took, latencies, statuses)


def whole(data: bytes) -> bool:
    """Whether an answer is all there."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    found = _LENGTH.search(data, 0, head_end + 2)
    if found:
        return len(data) >= head_end + 4 + int(found[1])
    if _CHUNKED.search(data, 0, head_end + 2):
        return data.endswith(b"\r\n0\r\n\r\n")
    return data[9:12] in {b"304", b"204"}


def cookie_of(port: int, path: str) -> str:
    """Return the cookie, ``NAME=VALUE``, that the response to a GET request sets."""
    with urlopen(f"http://127.0.0.1:{port}{path}") as response:
        return str(response.headers["set-cookie"]).partition(";")[0]


def get(path: str, cookie: str = "") -> Callable[[int], bytes]:
    """Return what makes GET requests; ``{n}`` in the path becomes a number, new each time."""
    head = "\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
    head += f"Cookie: {cookie}\r\n\r\n" if cookie else "\r\n"
    if "{n}" in path:
        stamp = time.time_ns()
        before, _, after = path.partition("{n}")
        return lambda n: f"GET {before}{stamp}-{n}{after} HTTP/1.1{head}".encode()
    whole_request = f"GET {path} HTTP/1.1{head}".encode()
    return lambda _: whole_request
