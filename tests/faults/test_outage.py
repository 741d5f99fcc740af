"""An outage from its beginning to its end, through the runtime: what it costs, and who is told."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware.errors import CircuitOpen, UpstashError
from upstash_middleware.events import CircuitClosed, CircuitOpened, Event, UpstashFailed
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.runtime import Features, Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.local import LocalUpstash

PATIENCE = 20.0


class Outage:
    """A runtime, what it told, and a way to ask it."""

    def __init__(self, kind: str, **settings: Any) -> None:
        self.events: list[Event] = []
        self._runner = asyncio.Runner()
        self._kind = kind
        self._request = HTTPRequest("GET", "/", peer="203.0.113.9")
        self.runtime = Runtime.of(
            {
                "default_limit": "1000/day",
                "deadline": PATIENCE,
                "observers": [self.events.append],
                **settings,
            },
            Features.BOTH,
        )

    def decide(self) -> Decision:
        if self._kind == "threads":
            exchange = self.runtime.begin(self._request)
        else:
            exchange = self._runner.run(self.runtime.abegin(self._request))
        assert exchange.decision is not None
        return exchange.decision

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def until(self, settled_by: str) -> None:
        """Ask until a decision rests on this."""
        end = time.monotonic() + PATIENCE
        while self.decide().settled_by != settled_by:
            assert time.monotonic() < end
            time.sleep(0.02)

    def close(self) -> None:
        self._runner.run(self.runtime.aclose())
        self._runner.close()


@pytest.fixture(params=["threads", "event loop"])
def outage(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Iterator[Outage]:
    outage = Outage(request.param)
    yield outage
    outage.close()


def test_an_outage_opens_the_circuit_and_its_end_closes_it_each_said_once(
    outage: Outage, upstash: LocalUpstash, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        outage.until("upstash")
        upstash.set_faults(fault="bad-gateway")
        for _ in range(30):
            assert outage.decide().settled_by == "open"
        upstash.set_faults()
        outage.until("upstash")
    assert len(outage.told(CircuitOpened)) == 1
    assert len(outage.told(CircuitClosed)) == 1
    lines = [one.getMessage() for one in caplog.records if one.name == "upstash_middleware"]
    failed, opened, over = lines
    assert "Upstash failed" in failed
    assert "failed or were slow" in opened
    assert "Upstash is reachable again" in over


def test_while_the_circuit_is_open_a_request_costs_no_time_and_no_call(
    outage: Outage, upstash: LocalUpstash
) -> None:
    """A silent Upstash costs the first requests their deadline, and the others nothing."""
    upstash.set_faults(fault="bad-gateway")
    while not outage.told(CircuitOpened):
        outage.decide()
    upstash.set_faults(latency_ms=500)
    shortest = 20.0
    for _ in range(20):
        began = time.monotonic()
        outage.decide()
        shortest = min(shortest, time.monotonic() - began)
        if shortest < 0.5:  # the others may be probes, which take their time
            break
    assert shortest < 0.5
    assert [event for event in outage.told(UpstashFailed) if isinstance(event.error, CircuitOpen)]


def test_without_the_breaker_every_request_asks(upstash: LocalUpstash) -> None:
    outage = Outage("threads", breaker=False)
    upstash.set_faults(fault="server-error")
    for _ in range(30):
        outage.decide()
    upstash.set_faults()
    assert outage.decide().settled_by == "upstash"
    assert outage.told(CircuitOpened) == []
    outage.close()


def test_a_used_up_quota_opens_the_circuit_and_the_remedy_is_said(
    outage: Outage, upstash: LocalUpstash, caplog: pytest.LogCaptureFixture
) -> None:
    upstash.set_faults(fault="quota")
    for _ in range(20):
        outage.decide()
    assert len(outage.told(CircuitOpened)) == 1
    assert caplog.text.count("raise the plan or the budget") == 1


def test_a_purge_while_the_circuit_is_open_raises_at_once(upstash: LocalUpstash) -> None:
    """A handler must know that nothing was purged."""
    outage = Outage("threads")
    upstash.set_faults(fault="bad-gateway")
    while not outage.told(CircuitOpened):
        outage.decide()
    errors = []
    for _ in range(20):  # some may be probes, after a pause that doubles
        with pytest.raises(UpstashError) as raised:
            outage.runtime.purge("/page")
        errors.append(type(raised.value))
    assert CircuitOpen in errors
    outage.close()
