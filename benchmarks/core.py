"""The core without I/O: what a decision costs, in microseconds of processor time.

Stores answer from memory and at once; the smallest of several repetitions counts, for everything
else that a busy machine does only adds. ``python -m benchmarks.core`` prints the table.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from upstash_middleware import CacheRule, Headers, HTTPRequest, RateLimitRule
from upstash_middleware.core.cache import Cache
from upstash_middleware.core.cache.entries import decode
from upstash_middleware.core.engine import Engine
from upstash_middleware.core.flow import Command
from upstash_middleware.core.ratelimit import RateLimiter
from upstash_middleware.drivers import run
from upstash_middleware.logs import LogObserver
from upstash_middleware.messages import ResponseHead
from upstash_middleware.runtime import SystemClock
from upstash_middleware.upstash import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.flow import Pipeline, Reply

_REPETITIONS = 9
_SECONDS_EACH = 0.03

_REQUEST_FIELDS = Headers(
    [
        (b"host", b"shop.example"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"),
        (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        (b"accept-language", b"en-GB,en;q=0.5"),
        (b"accept-encoding", b"gzip, deflate, br, zstd"),
        (b"connection", b"keep-alive"),
    ]
)
_PAGE_FIELDS = Headers(
    [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"1024"),
        (b"etag", b'"5f3759df"'),
        (b"cache-control", b"max-age=3600"),
    ]
)
_PAGE = bytes(range(256)) * 4
_VERDICT: list[Reply] = [1, 999, 3_600_000, 0, 1_795_412, 0]
_DENIAL: list[Reply] = [0, 0, 3_600_000, 3_600_000, 1_795_412, 0]
_OBSERVER = LogObserver()
"""What every process has."""


class Memory:
    """A client whose store is a dictionary, and whose limits always say the same."""

    def __init__(self, verdict: list[Reply]) -> None:
        self._verdict = verdict
        self.values: dict[Any, Any] = {}

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        """Response at once."""
        return [self._reply(command.args) for command in pipeline.commands]

    def _reply(self, words: tuple[Any, ...]) -> Reply:
        match words[0]:
            case "EVALSHA":
                return list(self._verdict)
            case "TIME":
                return [str(int(time.time())).encode(), b"0"]
            case "MGET":
                return [*map(self.values.get, words[1:])]
            case "SET":
                self.values[words[1]] = words[2]
                return b"OK"
        raise ValueError(words[0])


def _request() -> HTTPRequest:
    return HTTPRequest(
        "GET", "/products/7", _REQUEST_FIELDS, host="shop.example", peer="203.0.113.7",
        sent_path="/products/7",
    )  # fmt: skip


def _engine(*, limit: str | None, cache: bool) -> Engine:
    halves: list[Any] = []
    common: dict[str, Any] = {
        "prefix": "upstash-middleware",
        "secret": lambda: b"secret",
        "clock": SystemClock,
        "observe": _OBSERVER,
    }
    if limit:
        halves.append(RateLimiter((), RateLimitRule(None, limit, name="default"), **common))
    if cache:
        halves.append(Cache([CacheRule("/products/{id}", ttl=3600)], **common))
    return Engine(halves, observe=_OBSERVER)


def _decision(
    *, limit: str | None, cache: bool, verdict: list[Reply], vary: bool = False
) -> Callable[[], object]:
    engine, client = _engine(limit=limit, cache=cache), Memory(verdict)
    if cache:
        _store_page(engine, client, vary=vary)
    exchange = run(engine.begin(_request()), client)
    if limit:  # else a policy for failures would be measured
        assert exchange.decision is not None
        assert exchange.decision.remaining == verdict[1]
    if cache:
        assert exchange.response is not None
    request = _request()

    def decide() -> object:
        request.headers._index = None  # noqa: SLF001 - as they come from the wire
        return run(engine.begin(request), client)

    return decide


def _store_page(engine: Engine, client: Memory, *, vary: bool) -> None:
    exchange = run(engine.begin(_request()), client)
    fields = _PAGE_FIELDS.setting("vary", "Accept-Language, Accept-Encoding")
    exchange.head(ResponseHead(200, fields if vary else _PAGE_FIELDS))
    exchange.chunk(_PAGE)
    finish = exchange.finish(complete=True)
    assert finish is not None
    run(finish, client)


def _entry() -> Callable[[], object]:
    client = Memory(_VERDICT)
    _store_page(_engine(limit=None, cache=True), client, vary=False)
    ((key, data),) = client.values.items()
    assert decode(key, data) is not None
    return lambda: decode(key, data)


def _call() -> Callable[[], object]:
    words = ("EVALSHA", "0" * 40, 2, "upstash-middleware:default:203.0.113.7:1795412",
             "upstash-middleware:default:203.0.113.7:1795411", 1_795_412_000_000, "take", 0,
             "sliding", 1, 100, 60_000, 0, 1)  # fmt: skip
    command = Command(words)
    return lambda: protocol.encode([command])


def _answer() -> Callable[[], object]:
    body = b"*5\r\n:1\r\n:999\r\n:3600000\r\n:0\r\n:1795412\r\n"
    answer = protocol.Response(200, "application/octet-stream", body)
    return lambda: protocol.decode(answer, 1, "secret")


def benchmarks() -> dict[str, Callable[[], object]]:
    """Return what is measured."""
    return {
        "cache hit: the whole decision": _decision(limit=None, cache=True, verdict=_VERDICT),
        "one limit: the whole decision": _decision(limit="9/hour", cache=False, verdict=_VERDICT),
        "one limit: denied again, remembered": _decision(
            limit="9/hour", cache=False, verdict=_DENIAL
        ),
        "limit and hit: the whole decision": _decision(
            limit="9/hour", cache=True, verdict=_VERDICT
        ),
        "hit of one of many variants: the whole decision": _decision(
            limit=None, cache=True, verdict=_VERDICT, vary=True
        ),
        "entry of 1 KB: decoding": _entry(),
        "limit's call: encoding": _call(),
        "limit's answer: parsing": _answer(),
    }


def microseconds(work: Callable[[], object]) -> float:
    """Return what one call takes of the processor, in microseconds."""
    work()
    count = 1
    while (took := _timed(work, count)) < _SECONDS_EACH / 10:
        count *= 2
    count = max(1, int(count * _SECONDS_EACH / took))
    return min(_timed(work, count) for _ in range(_REPETITIONS)) / count * 1e6


def _timed(work: Callable[[], object], count: int) -> float:
    begun = time.process_time()
    for _ in range(count):
        work()
    return time.process_time() - begun


def main() -> None:
    """Print the table."""
    for name, work in benchmarks().items():
        print(f"{name:50} {microseconds(work):8.2f} µs")


if __name__ == "__main__":
    main()
