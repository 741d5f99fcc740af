"""A small world for the cache's tests: a clock to move, a Redis in memory, a site to visit.

The Redis knows the commands that the cache sends and plays its two scripts in Python; that these
agree with the Lua is tested on a real one in ``test_on_upstash.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.cache import Cache, CacheRule, Purge
from upstash_middleware.core.cache.redis_store import cache_script
from upstash_middleware.drivers import run
from upstash_middleware.errors import CommandError, UpstashError
from upstash_middleware.messages import WITHOUT_BODY, Headers, HTTPRequest, Response, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.core.engine import PartExchange
    from upstash_middleware.core.flow import Command, Pipeline, Reply
    from upstash_middleware.events import Event

App = Callable[[HTTPRequest], tuple[ResponseHead, bytes]]

NOON = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT, a whole second


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = NOON

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - 1_000_000.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


class FakeRedis:
    """Redis as far as the cache speaks to it; ``execute`` makes it a driver's client."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.values: dict[str, tuple[bytes, float]] = {}
        self.round_trips = 0
        self.billed: list[str] = []
        self.broken: UpstashError | None = None

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        self.round_trips += 1
        if self.broken is not None:
            raise self.broken
        self._check_travels(pipeline)
        return [self.perform(command) for command in pipeline.commands]

    def _check_travels(self, pipeline: Pipeline) -> None:
        """Refuse what the wire cannot carry: bytes that are not text, inside a pipeline."""
        if len(pipeline.commands) == 1 and pipeline.commands[0].args[0] == "SET":
            return
        for command in pipeline.commands:
            for argument in command.args:
                if isinstance(argument, bytes):
                    argument.decode("utf-8")

    def perform(self, command: Command) -> Reply:
        name, *rest = command.args
        args: list[Any] = rest
        self.billed.append(str(name))
        if name == "MGET":
            return [self.get(key) for key in args]
        if name == "SET":
            return self.set(*args)
        if name == "DEL":
            return sum(self.values.pop(str(key), None) is not None for key in args)
        if name == "EVALSHA":
            sha, count, *words = args
            keys, arguments = words[:count], words[count:]
            play = {
                cache_script("soften").sha: self.soften,
                cache_script("store").sha: self.play_store,
                cache_script("lock").sha: self.play_lock,
                cache_script("supersede").sha: self.play_supersede,
            }[sha]
            return play(keys, arguments)
        return CommandError(f"ERR unknown command {name!r}")

    def get(self, key: Any) -> bytes | None:
        value, until = self.values.get(str(key), (None, 0.0))
        return value if until > self.clock.now else None

    def set(self, key: Any, value: Any, *options: Any) -> bytes | None:
        *condition, px, milliseconds = options
        assert px == "PX"
        assert milliseconds > 0
        if condition == ["NX"] and self.get(key) is not None:
            return None
        data = value if isinstance(value, bytes) else str(value).encode()
        self.values[str(key)] = (data, self.clock.now + milliseconds / 1000)
        return b"OK"

    def soften(self, keys: list[str], args: list[Any]) -> int:
        self.billed += ["MGET", *("SET" for _ in keys)]
        soft, milliseconds = args
        for key in keys:
            hard = (self.get(key) or b"").split(b":")[0]
            self.set(key, hard + b":" + soft.encode(), "PX", milliseconds)
        return 1

    def play_store(self, keys: list[str], args: list[Any]) -> int:
        any_tag, entry, *tags = keys
        before, start, end, milliseconds = args
        self.billed.append("MGET")
        if (self.get(any_tag) or b"") != before.encode():
            return 0
        self.billed.append("SET")
        epochs = b"".join(b"|" + (self.get(tag) or b":") for tag in tags)
        self.set(entry, start + epochs + end, "PX", milliseconds)
        return 1

    def play_lock(self, keys: list[str], args: list[Any]) -> int:
        self.billed += ["GET", "SET"]
        expected, value, milliseconds = args
        if self.get(keys[0]) not in {None, expected.encode()}:
            return 0
        if value:
            self.set(keys[0], value, "PX", milliseconds)
        else:
            self.values.pop(keys[0], None)
        return 1

    def play_supersede(self, keys: list[str], args: list[Any]) -> int:
        self.billed += ["GET", "SET"]
        before, after, lifetime, entry, milliseconds = args
        moved = (self.get(keys[0]) or b":") != before.encode()
        self.set(keys[0], after, "PX", lifetime)
        if moved:
            return 0
        self.billed.append("SET")
        self.set(keys[1], entry, "PX", milliseconds)
        return 1


def counting_bytes() -> Callable[[int], bytes]:
    """Return a source of randomness that never repeats, and is the same in every run."""
    numbers: Iterator[int] = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def request(
    path: str = "/page",
    method: str = "GET",
    query: str = "",
    host: str = "shop.test",
    **fields: str,
) -> HTTPRequest:
    """Make a request; header fields as keywords, ``if_none_match='"a"'``."""
    headers = Headers.of(**fields)
    return HTTPRequest(method=method, path=path, headers=headers, query=query, host=host)


def reply(body: bytes = b"page", status: int = 200, **fields: Any) -> tuple[ResponseHead, bytes]:
    """Make what the application answers."""
    return ResponseHead(status, Headers.of(**fields)), body


@dataclass
class Answer:
    """What the client got, and what it took."""

    status: int
    headers: Headers
    body: bytes
    hit: bool
    round_trips: int
    billed: list[str]

    @property
    def cache_status(self) -> str:
        return self.headers.lines("cache-status")[-1]


@dataclass
class Site:
    """One process: a cache before an application, over a Redis that others may share."""

    rules: tuple[CacheRule, ...] = (CacheRule("/{rest:path}"),)
    clock: FakeClock = field(default_factory=FakeClock)
    redis: FakeRedis | None = None
    randomness: Callable[[int], bytes] = field(default_factory=counting_bytes)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.redis = self.redis or FakeRedis(self.clock)
        self.store: FakeRedis = self.redis
        self.events: list[Event] = []
        self.rendered = 0
        self.forwarded: HTTPRequest | None = None
        self.app: App = lambda _: reply(cache_control="max-age=60", content_length="4")
        self.cache = Cache(
            self.rules,
            prefix="test",
            secret=lambda: b"secret",
            clock=self.clock,
            observe=self.events.append,
            randomness=self.randomness,
            **{"directories": True, **self.options},
        )

    def another_process(self, **options: Any) -> Site:
        """Return a process that knows nothing, over the same Redis."""
        site = Site(self.rules, self.clock, self.redis, self.randomness, self.options | options)
        site.app = self.app
        return site

    def visit(self, asked: HTTPRequest | None = None, *, complete: bool = True) -> Answer:
        """Send a request through the cache and, if need be, the application."""
        before, already = self.store.round_trips, len(self.store.billed)
        exchange = self.begin(asked or request())
        response = exchange.response or self._call_app(asked or request(), exchange)
        self.finish(exchange, complete=complete)
        return Answer(
            response.head.status,
            response.head.headers,
            response.body,
            hit=exchange.response is not None,
            round_trips=self.store.round_trips - before,
            billed=self.store.billed[already:],
        )

    def begin(self, asked: HTTPRequest) -> PartExchange:
        """Look a request up."""
        return run(self.cache.begin(asked), self.store)

    def _call_app(self, asked: HTTPRequest, exchange: PartExchange) -> Response:
        self.rendered += 1
        self.forwarded = exchange.request_to_forward(asked)
        head, body = self.app(self.forwarded)
        answered = exchange.head(head)
        if isinstance(answered, Response):
            return answered
        middle = len(body) // 2
        for piece in (body[:middle], body[middle:]):
            exchange.chunk(piece)
        return Response(answered, b"" if answered.status in WITHOUT_BODY else body)

    def purge(self, *urls: str, **what: Any) -> None:
        """Purge through this process."""
        run(self.cache.purge(Purge(urls, **what)), self.store)

    def finish(self, exchange: PartExchange, *, complete: bool = True) -> None:
        """Do what an exchange has left to do."""
        if (flow := exchange.finish(complete=complete)) is not None:
            run(flow, self.store)
