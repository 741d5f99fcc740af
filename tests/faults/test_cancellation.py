"""Cancelled at every suspension point, a flow leaves nothing behind.

A driver of the tests' own performs a flow's effects against the local Upstash and interrupts it
at the n-th, either before that was carried out or after, with the reply lost; for every n. What
the flow asks for after that is performed, as ``drivers.arun`` does. Then nothing may be held: no
slot, no lock, no leader whom others wait for.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from tests.upstash.support import pipeline
from upstash_middleware.asgi import UpstashMiddleware
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache import Cache, CacheRule, Purge
from upstash_middleware.core.engine import Engine, Exchange
from upstash_middleware.core.flow import Notify, Pipeline, Resolve, Sleep, Wait
from upstash_middleware.core.ratelimit import Concurrency, FixedWindow, RateLimiter, RateLimitRule
from upstash_middleware.events import CacheStored, InternalError
from upstash_middleware.messages import Headers, HTTPRequest, ResponseHead
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from upstash_middleware.core.flow import Flow
    from upstash_middleware.local import LocalUpstash

PAGE = HTTPRequest("GET", "/page", host="shop.example", peer="203.0.113.9")
HEAD = ResponseHead(200, Headers.of(content_type="text/plain", cache_control="max-age=60"))
PATIENCE = 20.0


class Interruption(BaseException):
    """As a cancellation or a worker's end comes: no Exception."""


class Clock(SystemClock):
    """The machine's clocks; pauses are not slept but skipped."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def wall(self) -> float:
        return SystemClock.wall() + self.skipped

    def monotonic(self) -> float:
        return SystemClock.monotonic() + self.skipped


class Process:
    """The halves of one process, and a driver that can interrupt."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self.client = client
        self.clock = clock
        self.events: list[Any] = []
        self.waited = 0.0
        common: dict[str, Any] = {
            "prefix": "t",
            "secret": lambda: b"key",
            "clock": clock,
            "observe": self.events.append,
            "deadline": PATIENCE,
        }
        limits = RateLimitRule(
            limits=[FixedWindow(100, 86_400), Concurrency(5)], name="r", settle=lambda *_: 3
        )
        self.cache = Cache([CacheRule("/page", ttl=60)], lock=True, **common)
        limiter = RateLimiter((limits,), None, **common)
        self.engine = Engine([limiter, self.cache], observe=self.events.append)
        self.limit_alone = Engine([limiter], observe=self.events.append)
        self.cache_alone = Engine([self.cache], observe=self.events.append)

    def drive(self, flow: Flow[Any], stop_at: int | None = None, *, before: bool = True) -> Any:
        """Run a flow; interrupt it at an effect, before or after it is performed."""
        step: Any = flow.send
        value: Any = None
        for number in itertools.count():
            try:
                effect = step(value)
            except StopIteration as end:
                return end.value
            try:
                value, step = self.performed(effect, number == stop_at, before), flow.send
            except BaseException as error:  # noqa: BLE001 - it belongs to the flow
                value, step = error, flow.throw
        raise AssertionError("unreachable")

    def performed(self, effect: Any, interrupts: bool, before: bool) -> Any:
        if interrupts and before:
            raise Interruption
        value = self.perform(effect)
        if interrupts:
            raise Interruption
        return value

    def perform(self, effect: Any) -> Any:
        match effect:
            case Pipeline():
                return self.client.execute(effect)
            case Sleep(seconds):
                self.clock.skipped += seconds
                return None
            case Wait(latch, timeout):
                if not latch.opened:
                    self.clock.skipped += timeout
                    self.waited += timeout
                return latch.opened
            case Notify(latch):
                return latch.open()
            case Resolve():
                raise AssertionError("nothing here is of the user's")


@pytest.fixture
def client(upstash: LocalUpstash) -> Iterator[Client]:
    client = Client(Credentials(upstash.url, upstash.token), deadline=PATIENCE)
    yield client
    client.close()


@pytest.fixture
def process(client: Client) -> Process:
    return Process(client, Clock())


def ask(client: Client, *words: str) -> Any:
    return client.execute(pipeline(words))[0]


def held_on_redis(client: Client) -> list[bytes]:
    """Return the slots that are taken and the locks that are held."""
    slots = [key for key in ask(client, "KEYS", "*:slots") if ask(client, "GET", key)]
    locks: list[bytes] = ask(client, "KEYS", "*#lock")
    return slots + locks


def slots_held(client: Client) -> list[bytes]:
    return [key for key in held_on_redis(client) if key.endswith(b":slots")]


def the_next_request_waits_for_nobody(process: Process) -> bool:
    """Whether a request for the same page finds no leader in its own process."""
    before = process.waited
    exchange: Exchange = process.drive(process.cache_alone.begin(PAGE))
    if (left := exchange.finish(complete=False)) is not None:
        process.drive(left)
    return process.waited == before


def check_nothing_is_held(process: Process) -> None:
    assert held_on_redis(process.client) == []
    assert the_next_request_waits_for_nobody(process)
    assert [event for event in process.events if isinstance(event, InternalError)] == []


def begin(engine: str, inner: str | None = None) -> Callable[[Process], Flow[Any]]:
    def flow(process: Process) -> Flow[Any]:
        within = getattr(process, inner) if inner else None
        started: Engine = getattr(process, engine)
        return started.begin(PAGE, within)

    return flow


def passing(process: Process, *, body: bytes = b"page") -> Exchange:
    exchange: Exchange = process.drive(process.engine.begin(PAGE))
    exchange.head(HEAD)
    exchange.chunk(body)
    return exchange


def finish(*, complete: bool) -> Callable[[Process], Flow[Any]]:
    def flow(process: Process) -> Flow[Any]:
        left = passing(process).finish(complete=complete)
        assert left is not None
        return left

    return flow


def purge(**what: Any) -> Callable[[Process], Flow[Any]]:
    return lambda process: process.cache.purge(Purge(**what))


def after_a_stranger_took_the_lock(process: Process) -> Flow[Any]:
    """Another process renders the page, and dies."""
    stranger = Process(process.client, process.clock)
    stranger.drive(stranger.cache_alone.begin(PAGE))
    return process.engine.begin(PAGE)


FLOWS = {
    "limit and lookup of a miss": begin("engine"),
    "limit alone": begin("limit_alone"),
    "lookup alone": begin("cache_alone"),
    "a limit that joins a cache inside": begin("limit_alone", "cache_alone"),
    "settle and store": finish(complete=True),
    "settle what was cut short": finish(complete=False),
    "purge a URL": purge(urls=("/page",)),
    "purge a tag softly": purge(tags=("a",), soft=True),
}


def length(flow: Callable[[Process], Flow[Any]], process: Process) -> int:
    """Return how many effects a flow has when nothing interrupts it."""
    effects = 0
    perform = process.perform

    def counting(effect: Any) -> Any:
        nonlocal effects
        effects += 1
        return perform(effect)

    driven = flow(process)
    process.perform = counting  # type: ignore[method-assign]
    process.drive(driven)
    return effects


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", FLOWS)
def test_an_interrupted_flow_leaves_nothing_behind(
    upstash: LocalUpstash, client: Client, name: str, before: bool
) -> None:
    points = length(FLOWS[name], Process(client, Clock()))
    assert points > 0
    for stop_at in range(points):
        upstash.flush()
        process = Process(client, Clock())
        flow = FLOWS[name](process)
        with pytest.raises(Interruption):
            process.drive(flow, stop_at, before=before)
        if not name.startswith("settle"):
            check_nothing_is_held(process)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_who_waits_for_another_process_leaves_nothing_of_its_own(
    upstash: LocalUpstash, client: Client, before: bool
) -> None:
    for stop_at in range(100):
        upstash.flush()
        process = Process(client, Clock())
        try:
            process.drive(after_a_stranger_took_the_lock(process), stop_at, before=before)
        except Interruption:  # the lock is the other's
            assert the_next_request_waits_for_nobody(process)
            left = ask(client, "KEYS", "*slots*")
            assert [key for key in left if ask(client, "GET", key)] == []
        else:
            assert stop_at > 3
            return
    raise AssertionError("it never came to an end")


def test_an_interrupted_leader_does_not_keep_others_waiting(client: Client) -> None:
    process = Process(client, Clock())
    with pytest.raises(Interruption):
        process.drive(process.engine.begin(PAGE), 1, before=False)
    began = process.clock.skipped
    process.drive(process.engine.begin(PAGE))
    assert process.clock.skipped == began


def test_what_nothing_interrupts_is_settled_and_stored_side_by_side(client: Client) -> None:
    """Bytes that are no text cannot share a call, and the settling must not suffer from that."""
    process = Process(client, Clock())
    left = passing(process, body=b"\x89PNG\xff\x00").finish(complete=True)
    assert left is not None
    process.drive(left)
    assert CacheStored("/page", stored=True) in process.events
    assert slots_held(client) == []
    assert process.drive(process.engine.begin(PAGE)).response.body == b"\x89PNG\xff\x00"


@pytest.mark.parametrize("native", [True, False], ids=["asyncio", "anyio"])
def test_a_finish_whose_task_is_cancelled_is_done_to_its_end(
    upstash: LocalUpstash, client: Client, native: bool
) -> None:
    """The slot is given back and the page stored, whoever cancels."""
    settings = {
        "rate_limits": [RateLimitRule(limits=[Concurrency(5)], name="r")],
        "default_limit": None,
        "cache": [CacheRule("/page", ttl=60)],
        "deadline": PATIENCE,
        "cache_deadline": PATIENCE,
    }

    async def main() -> None:
        runtime = Runtime.of(settings, Features.BOTH)
        exchange = await runtime.abegin(PAGE)
        exchange.head(HEAD)
        exchange.chunk(b"page")
        assert slots_held(client) != []
        upstash.set_faults(latency_ms=100)
        await cancelled(runtime.afinish(exchange, complete=True), after=0.02, native=native)
        upstash.set_faults()
        assert slots_held(client) == []
        assert (await runtime.abegin(PAGE)).response is not None
        await runtime.aclose()

    asyncio.run(main())


async def cancelled(work: Coroutine[Any, Any, None], *, after: float, native: bool) -> None:
    """Run work in a task and cancel that, by asyncio itself or by a scope of anyio's."""
    if native:
        task = asyncio.create_task(work)
        await asyncio.sleep(after)
        task.cancel()
        await asyncio.wait([task])
    else:
        with anyio.move_on_after(after):
            await work


DESCRIPTORS = Path("/proc/self/fd")


def open_descriptors() -> int:
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.exists(), reason="counts descriptors as Linux lists them")
def test_calls_cancelled_on_the_wire_leave_no_connection_behind(upstash: LocalUpstash) -> None:
    """A hundred requests cancelled at any moment, time and again: descriptors stay as many."""

    async def cancel_many() -> None:
        runtime = Runtime.of({"default_limit": "1000000/day", "deadline": PATIENCE}, Features.BOTH)
        upstash.set_faults(latency_ms=10)
        for number in range(10):
            with anyio.move_on_after(number / 500):
                async with anyio.create_task_group() as group:
                    for _ in range(10):
                        group.start_soon(runtime.abegin, PAGE)
        upstash.set_faults()
        decision = (await runtime.abegin(PAGE)).decision
        assert decision is not None
        assert decision.settled_by == "upstash"
        await runtime.aclose()

    # What stays open at first is kept for use: the server's connections to its store.
    for _ in range(3):
        asyncio.run(cancel_many())
    before = open_descriptors()
    for _ in range(5):
        asyncio.run(cancel_many())
    assert fewer_descriptors_than(before + 20, within=PATIENCE)


def fewer_descriptors_than(number: int, *, within: float) -> bool:
    """Wait for connections to close; five hundred calls have been cancelled.

    The tracebacks of some hold a client that was closed until the collector comes by.
    """
    gc.collect()
    until = time.monotonic() + within
    while open_descriptors() >= number and time.monotonic() < until:
        time.sleep(0.05)
    return open_descriptors() < number


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_closing_with_calls_in_flight_lets_each_come_to_an_end(
    upstash: LocalUpstash, kind: str
) -> None:
    """Each gets its answer or its policy, and none waits for ever."""
    upstash.set_faults(latency_ms=200)
    runtime = Runtime.of({"default_limit": "100/day", "deadline": PATIENCE}, Features.BOTH)

    async def main() -> list[Exchange]:
        calls = [asyncio.create_task(runtime.abegin(PAGE)) for _ in range(5)]
        await asyncio.sleep(0.05)
        await runtime.aclose()
        return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE * 2)

    if kind == "async":
        exchanges = asyncio.run(main())
    else:
        with ThreadPoolExecutor(5) as threads:
            calls = [threads.submit(runtime.begin, PAGE) for _ in range(5)]
            time.sleep(0.05)
            runtime.close()
            exchanges = [call.result(PATIENCE * 2) for call in calls]
    upstash.set_faults()
    assert all(exchange.decision is not None for exchange in exchanges)
    assert all(exchange.response is None for exchange in exchanges)


@pytest.mark.parametrize("native", [True, False], ids=["asyncio", "anyio"])
def test_requests_cancelled_at_any_moment_over_asgi_give_their_slots_back(
    upstash: LocalUpstash, client: Client, native: bool
) -> None:
    """From before the limit is asked until after the page is stored, in steps of a millisecond."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await anyio.sleep(0.003)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep(0.003)
        await send({"type": "http.response.body", "body": b"page"})

    middleware = UpstashMiddleware(
        app,
        rate_limits=[RateLimitRule(limits=[Concurrency(1000)], name="r")],
        default_limit=None,
        cache=[CacheRule("/{rest:path}", ttl=60)],
        deadline=PATIENCE,
        cache_deadline=PATIENCE,
    )

    async def request(number: int) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": f"/{number}",
            "raw_path": f"/{number}".encode(),
            "query_string": b"",
            "scheme": "http",
            "headers": [(b"host", b"shop.example")],
            "client": ("203.0.113.9", 1),
        }
        await middleware(scope, _nothing_more, _ignore)

    async def main() -> None:
        await request(999)
        upstash.set_faults(latency_ms=5)
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(_cancelled_after, request, number, native)
        upstash.set_faults()
        await middleware.runtime.aclose()

    asyncio.run(main())
    assert ask(client, "KEYS", "*:slots") != [], "else nothing has been taken at all"
    assert slots_held(client) == []


async def _cancelled_after(request: Any, number: int, native: bool) -> None:
    await cancelled(request(number), after=number / 1000, native=native)


async def _nothing_more() -> dict[str, Any]:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


async def _ignore(_message: Any) -> None:
    await anyio.lowlevel.checkpoint()
