"""How fast the local Upstash is, next to a Redis client over TCP to the same Valkey.

``python benchmarks/local_upstash.py`` prints medians and requests per second, and ends with
status 1 when the promise is not kept: 3,000 single-command requests per second over kept-alive
connections, and less than 0.5 ms added at the median when idle.  The load comes from this process,
over plain sockets, so that no HTTP client's own time is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from urllib.parse import urlsplit

import httpx
import valkey

TOKEN = "benchmark"
ROUND_TRIPS = 3000
REQUESTS = 12_000
PROMISED_RATE = 3000
PROMISED_ADDED_MS = 0.5

RoundTrip = Callable[[], Awaitable[object]]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of a local Upstash in a process of its own."""
    command = [sys.executable, "-m", "upstash_middleware.local", "--port", "0", "--token", TOKEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip().partition("=")[2]
        finally:
            process.terminate()


async def http_round_trip(url: str) -> RoundTrip:
    """One GET over HTTP on a connection of its own."""
    reader, writer = await _connect(url)
    body = json.dumps(["GET", "key"]).encode()
    request = (
        b"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nUpstash-Encoding: base64\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (TOKEN.encode(), len(body), body)
    )

    async def round_trip() -> None:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.partition(b"Content-Length: ")[2].partition(b"\r")[0]
        await reader.readexactly(int(length))

    return round_trip


async def redis_round_trip(url: str) -> RoundTrip:
    """The same GET as a Redis server gets it, over TCP."""
    reader, writer = await _connect(url)

    async def round_trip() -> None:
        writer.write(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n")
        await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n")

    return round_trip


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def median_ms(round_trip: RoundTrip) -> float:
    """The median of single round trips, one at a time."""
    seconds = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        await round_trip()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1000


async def rate(round_trips: list[RoundTrip]) -> float:
    """Requests per second with all of these connections busy at once."""

    async def work(round_trip: RoundTrip) -> None:
        for _ in range(REQUESTS // len(round_trips)):
            await round_trip()

    begun = time.perf_counter()
    await asyncio.gather(*map(work, round_trips))
    return REQUESTS / (time.perf_counter() - begun)


def redis_client_ms(client: valkey.Valkey) -> float:
    """The median of a GET with an ordinary Redis client for Python."""
    seconds = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        client.get("key")
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds) * 1000


async def measure(url: str, redis_url: str) -> bool:
    """Print what was measured; whether it is what was promised."""
    over_http = await median_ms(await http_round_trip(url))
    over_tcp = await median_ms(await redis_round_trip(redis_url))
    with contextlib.closing(valkey.Valkey.from_url(redis_url)) as client:
        with_client = redis_client_ms(client)
    print(f"one GET, median       local Upstash over HTTP {over_http:8.3f} ms")
    print(f"                      Valkey over TCP         {over_tcp:8.3f} ms")
    print(f"                      valkey-py over TCP      {with_client:8.3f} ms")
    print(f"                      added by the server     {over_http - over_tcp:8.3f} ms")
    slowest = float("inf")
    for connections in (1, 16, 64):
        http_rate = await rate([await http_round_trip(url) for _ in range(connections)])
        tcp_rate = await rate([await redis_round_trip(redis_url) for _ in range(connections)])
        slowest = min(slowest, http_rate)
        print(
            f"{connections:3} connections       local Upstash {http_rate:8.0f}/s"
            f"       Valkey over TCP {tcp_rate:8.0f}/s"
        )
    return over_http - over_tcp < PROMISED_ADDED_MS and slowest >= PROMISED_RATE


def main() -> int:
    """Run the benchmark; the exit status."""
    with server() as url:
        info = httpx.get(f"{url}/info/server?_token={TOKEN}").json()["result"]
        port = next(line[9:] for line in info.splitlines() if line.startswith("tcp_port:"))
        httpx.get(f"{url}/set/key/value?_token={TOKEN}")
        kept = asyncio.run(measure(url, f"redis://127.0.0.1:{port}"))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
