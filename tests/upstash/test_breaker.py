"""The circuit breaker: when it opens, whom it lets through, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.upstash.raw_server import answer, raw_server, silent
from tests.upstash.support import pipeline
from upstash_middleware.errors import (
    CircuitOpen,
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    Refused,
    UnexpectedAnswer,
)
from upstash_middleware.events import CircuitClosed, CircuitOpened
from upstash_middleware.upstash import (
    AsyncClient,
    Breaker,
    Client,
    Credentials,
    OnePerProcess,
    Response,
)
from upstash_middleware.upstash.client import FIRST_PAUSE, MIN_BAD_CALLS, REMEMBERED_CALLS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.upstash.client import Attempt

GET = pipeline(("GET", "k"), reads_only=True)


@contextmanager
def passing(breaker: Breaker) -> Iterator[None]:
    """Make a call in a ``with``."""
    call, error = breaker.begin(), None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        breaker.end(call, error)


class Circuit:
    """A breaker on a clock that a test moves, and the events that it emitted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.emitted: list[Any] = []
        self.breaker = Breaker(
            slow=0.5, longest_pause=1.0, clock=lambda: self.now, emit=self.emitted.append
        )

    def call(self, error: BaseException | None = None, took: float = 0.0) -> bool:
        """Make a call that ends like this; return whether it was let through."""
        try:
            call = self.breaker.begin()
        except CircuitOpen:
            return False
        self.now += took
        self.breaker.end(call, error)
        return True

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.call(ConnectionLost("gone"))


@pytest.fixture
def circuit() -> Circuit:
    return Circuit()


def opened_circuit() -> Circuit:
    circuit = Circuit()
    circuit.fail(MIN_BAD_CALLS)
    return circuit


BAD = [
    NotConnected("refused"),
    ConnectionLost("reset"),
    DeadlineExceeded("1 s"),
    UnexpectedAnswer("502"),
    Refused("ERR max requests limit exceeded. Limit: 500000"),
    Refused("WRONGPASS invalid or missing auth token"),
]


@pytest.mark.parametrize("error", BAD, ids=lambda error: f"{type(error).__name__}-{error}")
def test_five_failures_in_a_row_open_the_circuit(circuit, error):
    for _ in range(MIN_BAD_CALLS):
        assert not circuit.emitted
        assert circuit.call(error)
    assert not circuit.call()
    said = f"{type(error).__name__}: {error}"
    assert circuit.emitted == [CircuitOpened(MIN_BAD_CALLS, MIN_BAD_CALLS, said)]


def test_slow_calls_open_it(circuit):
    for _ in range(MIN_BAD_CALLS):
        assert circuit.call(took=0.6)
    assert not circuit.call()
    assert circuit.emitted == [CircuitOpened(5, 5, "it took 0.6 s")]


def test_slow_calls_of_the_application_do_not_open_it():
    emitted: list[Any] = []
    clock = SimpleNamespace(now=1000.0)
    breaker = Breaker(slow=None, clock=lambda: clock.now, emit=emitted.append)
    for error in [None, asyncio.CancelledError()] * 10:
        call = breaker.begin()
        clock.now += 600
        breaker.end(call, error)
    for _ in range(MIN_BAD_CALLS):
        assert not emitted
        breaker.end(breaker.begin(), ConnectionLost("gone"))
    assert emitted == [CircuitOpened(5, 5, "ConnectionLost: gone", commands=True)]


@pytest.mark.parametrize("deadline", [None, 0.1])
def test_a_server_that_hangs_opens_it_whatever_the_deadline(circuit, deadline):
    with raw_server(silent) as server:
        breaker = OnePerProcess(lambda: circuit.breaker)
        client = Client(Credentials(server.url, "token"), deadline=0.2, breaker=breaker)
        for _ in range(MIN_BAD_CALLS):
            with pytest.raises(DeadlineExceeded):
                client.execute(pipeline(("GET", "k"), deadline=deadline))
        with pytest.raises(CircuitOpen):
            client.execute(GET)
        client.close()


GOOD = [
    None,
    CommandError("WRONGTYPE Operation against a key"),
    Refused("NOPERM this user has no permissions to run the 'set' command"),
    Refused("ERR DB capacity quota exceeded"),
    Refused("ERR max request size exceeded"),
]


@pytest.mark.parametrize("error", GOOD, ids=str)
def test_what_concerns_one_command_does_not_open_it(circuit, error):
    assert all(circuit.call(error) for _ in range(100))
    assert circuit.emitted == []


def test_less_than_half_of_the_calls_failing_does_not_open_it(circuit):
    for _ in range(50):
        circuit.call()
        circuit.call()
        circuit.fail()
    assert circuit.emitted == []


def test_half_of_the_latest_calls_failing_opens_it(circuit):
    for _ in range(REMEMBERED_CALLS):
        circuit.call()
    circuit.fail(REMEMBERED_CALLS // 2 - 1)
    assert circuit.emitted == []
    circuit.fail()
    assert circuit.emitted[0].bad == REMEMBERED_CALLS // 2


def test_failures_of_long_ago_do_not_count(circuit):
    circuit.fail(MIN_BAD_CALLS - 1)
    circuit.now += 31
    circuit.fail(MIN_BAD_CALLS - 1)
    assert circuit.emitted == []


def test_after_a_pause_one_call_probes_and_closes_it():
    circuit = opened_circuit()
    circuit.now += FIRST_PAUSE
    with passing(circuit.breaker):
        with pytest.raises(CircuitOpen):
            circuit.breaker.check()
        assert not circuit.call()
    assert circuit.emitted[1:] == [CircuitClosed(FIRST_PAUSE)]
    assert circuit.call()


def test_a_probe_that_fails_doubles_the_pause_up_to_the_longest():
    circuit = opened_circuit()
    pauses = []
    for _ in range(6):
        since = circuit.now
        while not circuit.call(ConnectionLost("still")):
            circuit.now += 0.125
        pauses.append(circuit.now - since)
    assert pauses == [0.25, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert len(circuit.emitted) == 1


def test_a_slow_probe_does_not_close_it():
    circuit = opened_circuit()
    circuit.now += FIRST_PAUSE
    assert circuit.call(took=0.6)
    assert not circuit.call()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), ValueError("x")])
def test_a_probe_that_is_cut_off_leaves_the_probe_to_the_next(error):
    circuit = opened_circuit()
    circuit.now += FIRST_PAUSE
    assert circuit.call(error)
    assert circuit.call()
    assert circuit.emitted[1:] == [CircuitClosed(FIRST_PAUSE)]


def test_calls_cut_off_count_only_when_they_were_slow(circuit):
    for _ in range(100):
        circuit.call(asyncio.CancelledError())
    assert circuit.emitted == []
    for _ in range(MIN_BAD_CALLS):
        circuit.call(asyncio.CancelledError(), took=0.6)
    assert len(circuit.emitted) == 1


def test_of_many_threads_one_probes():
    circuit = opened_circuit()
    circuit.now += FIRST_PAUSE
    let_go, together = threading.Event(), threading.Barrier(8)

    def probe() -> bool:
        together.wait()
        try:
            with passing(circuit.breaker):
                return let_go.wait(20)
        except CircuitOpen:
            return False

    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(probe) for _ in range(8)]
        while sum(one.done() for one in asked) < 7:
            time.sleep(0.001)
        let_go.set()
        assert sum(one.result() for one in asked) == 1


def test_while_open_a_call_costs_microseconds():
    circuit = opened_circuit()
    best = min(_seconds_of(circuit) for _ in range(5))
    assert best < 200e-6  # some 2 µs on an idle machine


def _seconds_of(circuit: Circuit) -> float:
    began = time.perf_counter()
    for _ in range(100):
        assert not circuit.call()
    return (time.perf_counter() - began) / 100


class AnyCircuit(RuleBasedStateMachine):
    """Any order of calls that begin and end: what must hold in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.under_way: list[Attempt] = []

    @rule()
    def begin(self) -> None:
        try:
            self.under_way.append(self.circuit.breaker.begin())
        except CircuitOpen:
            return

    @precondition(lambda self: self.under_way)
    @rule(error=st.sampled_from([None, None, *BAD, *GOOD[1:], asyncio.CancelledError()]))
    def end(self, error: BaseException | None) -> None:
        self.circuit.breaker.end(self.under_way.pop(0), error)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.circuit.now += seconds

    @invariant()
    def openings_and_closings_alternate(self) -> None:
        kinds = [type(change) for change in self.circuit.emitted]
        assert kinds == [CircuitOpened, CircuitClosed] * (len(kinds) // 2) + [CircuitOpened] * (
            len(kinds) % 2
        )

    def teardown(self) -> None:
        """Once nothing is under way, a call passes within the longest pause."""
        while self.under_way:
            self.end(None)
        self.circuit.now += 1.0
        assert self.circuit.call()
        assert self.circuit.call()


AnyCircuit.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestAnyCircuit = AnyCircuit.TestCase


class Dead:
    """A transport to nowhere, and how often it was used."""

    def __init__(self, credentials: Credentials) -> None:
        self.calls = 0

    def send(self, call: object, seconds: float) -> Response:
        self.calls += 1
        raise ConnectionLost("gone")

    def close(self) -> None:
        pass


class AsyncDead(Dead):
    async def send(self, call: object, seconds: float, loop: object = None) -> Response:  # type: ignore[override]
        return super().send(call, seconds)

    async def aclose(self) -> None:
        pass


CREDENTIALS = Credentials("http://127.0.0.1:1", "token")


def test_threads_and_event_loops_share_one_circuit():
    circuit = Circuit()
    breaker = OnePerProcess(lambda: circuit.breaker)
    made = []

    def transport(credentials):
        made.append(AsyncDead(credentials))
        return made[-1]

    client = Client(CREDENTIALS, transport=Dead, breaker=breaker)
    async_client = AsyncClient(CREDENTIALS, transport=transport, breaker=breaker)
    for _ in range(MIN_BAD_CALLS):
        with pytest.raises(ConnectionLost):
            client.execute(GET)

    async def main() -> None:
        for _ in range(10):
            with pytest.raises(CircuitOpen):
                await async_client.execute(GET)

    asyncio.run(main())
    assert sum(one.calls for one in made) == 0
    with pytest.raises(CircuitOpen):
        client.execute(GET)


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("kind", ["threads", "event loops"])
def test_calls_with_a_short_deadline_that_fail_open_a_circuit_for_such_calls_only(kind, coalesce):
    circuits = Circuit(), Circuit()
    options: dict[str, Any] = {
        "breaker": OnePerProcess(lambda: circuits[0].breaker),
        "quick_breaker": OnePerProcess(lambda: circuits[1].breaker),
        "deadline": 1.0,
        "coalesce": coalesce,
    }
    client = Client(CREDENTIALS, transport=Dead, **options)
    async_client = AsyncClient(CREDENTIALS, transport=AsyncDead, **options)

    async def executed(one: Any) -> Any:
        return await async_client.execute(one)

    def execute(one: Any) -> Any:
        return client.execute(one) if kind == "threads" else asyncio.run(executed(one))

    short = pipeline(("GET", "k"), reads_only=True, deadline=0.5)
    for _ in range(MIN_BAD_CALLS):
        with pytest.raises(ConnectionLost):
            execute(short)
    assert [len(circuit.emitted) for circuit in circuits] == [0, 1]
    with pytest.raises(CircuitOpen):
        execute(short)
    with pytest.raises(ConnectionLost):
        execute(GET)


def test_a_burst_that_fails_together_counts_once_for_each_http_call():
    """Pipelines that share a call fail as one: a lost call is no outage."""
    circuit = Circuit()
    client = AsyncClient(
        CREDENTIALS, transport=AsyncDead, breaker=OnePerProcess(lambda: circuit.breaker)
    )

    async def main() -> Any:
        asks = (client.execute(GET) for _ in range(100))
        return await asyncio.gather(*asks, return_exceptions=True)

    results = asyncio.run(main())
    assert {type(result) for result in results} <= {ConnectionLost, CircuitOpen}
    assert len(circuit.emitted) <= 1


def test_a_probe_that_is_cancelled_on_the_wire_is_no_probe_any_more():
    circuit = opened_circuit()
    circuit.now += FIRST_PAUSE
    with raw_server(silent, answer(b"$-1\r\n")) as server:
        credentials = Credentials(server.url, "token")
        breaker = OnePerProcess(lambda: circuit.breaker)
        client = AsyncClient(credentials, breaker=breaker, deadline=20.0)

        async def main() -> None:
            probe = asyncio.create_task(client.execute(GET))
            await anyio.to_thread.run_sync(server.wait_for_requests, 1)
            probe.cancel()
            with pytest.raises(asyncio.CancelledError):
                await probe
            assert await client.execute(GET) == [None]
            await client.aclose()

        asyncio.run(main())
    assert [type(change) for change in circuit.emitted] == [CircuitOpened, CircuitClosed]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_begins_with_a_closed_circuit_of_its_own():
    breaker = OnePerProcess(lambda: Circuit().breaker)
    mine = breaker.get()
    for _ in range(MIN_BAD_CALLS):
        with pytest.raises(ConnectionLost), passing(mine):
            raise ConnectionLost("gone")
    with pytest.raises(CircuitOpen):
        breaker.get().check()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            breaker.get().check()
            os.write(write, b"closed")
        finally:
            os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b"closed"
    os.waitpid(child, 0)
    os.close(read)
