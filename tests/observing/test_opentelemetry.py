"""What OpenTelemetry's own SDK exports of the events: spans, where they hang, and metrics."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.observing.conftest import request_by
from upstash_middleware import RateLimitRule
from upstash_middleware.errors import CommandError, ConnectionLost
from upstash_middleware.events import CircuitClosed, CircuitOpened, UpstashCalled
from upstash_middleware.local import Fault
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.metrics import CALLS
from upstash_middleware.opentelemetry import OpenTelemetryObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.runtime import Runtime

    Opened = Callable[..., AbstractContextManager[Runtime]]


class Telemetry:
    """An observer with the SDK's providers, and what they have exported."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meters = MeterProvider([self._metrics], shutdown_on_exit=False)
        self.observer = OpenTelemetryObserver(
            tracer_provider=self.tracers, meter_provider=self.meters
        )
        self.tracer = self.tracers.get_tracer("the server")

    def spans(self, kind: SpanKind = SpanKind.CLIENT) -> list[ReadableSpan]:
        return [span for span in self._spans.get_finished_spans() if span.kind is kind]

    def metric(self, name: str) -> Any:
        """Return the one exported metric of a name."""
        data: Any = self._metrics.get_metrics_data()
        (found,) = (
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        )
        return found

    def counted(self, name: str) -> dict[tuple[Any, ...], float]:
        """Return a metric's values by those of its attributes, in the order of their names."""
        return {
            tuple(value for _, value in sorted(point.attributes.items())): point.value
            for point in self.metric(name).data.data_points
        }


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry()
    yield telemetry
    telemetry.tracers.shutdown()
    telemetry.meters.shutdown()


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def test_a_call_is_a_client_span_under_the_servers_in_a_thread(
    opened: Opened, telemetry: Telemetry, upstash: LocalUpstash
):
    with opened(telemetry.observer) as runtime:
        runtime.begin(request_by(0))  # the first asks for the time as well
        with telemetry.tracer.start_as_current_span("POST /login", kind=SpanKind.SERVER) as server:
            runtime.begin(request_by(1))
    first, second = telemetry.spans()
    assert first.parent is None
    assert first.name.startswith("PIPELINE 127.0.0.1:")
    assert first.attributes is not None
    assert first.attributes["db.operation.batch.size"] == 2
    assert parent_of(second) == server.get_span_context().span_id
    assert dict(second.attributes or {}) == {
        "db.system.name": "redis",
        "db.operation.name": "EVALSHA",
        "server.address": "127.0.0.1",
        "server.port": int(upstash.url.rpartition(":")[2]),
    }
    assert second.status.status_code is StatusCode.UNSET


def test_a_span_lasts_as_long_as_the_call(
    opened: Opened, telemetry: Telemetry, upstash_faults: Callable[..., None]
):
    with opened(telemetry.observer) as runtime:
        runtime.begin(request_by(0))
        upstash_faults(latency_ms=80)
        with telemetry.tracer.start_as_current_span("server", kind=SpanKind.SERVER):
            runtime.begin(request_by(1))
    span, (server,) = telemetry.spans()[-1], telemetry.spans(SpanKind.SERVER)
    times = (server.start_time, span.start_time, span.end_time, server.end_time)
    began, called, answered, ended = (time or 0 for time in times)
    assert 0.08e9 <= answered - called < 20e9
    slack = 0.01e9  # a span's length is told by another clock than its end
    assert began - slack <= called < answered <= ended + slack


@pytest.mark.anyio
async def test_tasks_whose_calls_travel_together_each_have_a_span_under_their_own(
    opened: Opened,
    telemetry: Telemetry,
    upstash: LocalUpstash,
    upstash_faults: Callable[..., None],
):
    async def serve(number: int) -> int:
        with telemetry.tracer.start_as_current_span("server", kind=SpanKind.SERVER) as server:
            await runtime.abegin(request_by(number))
            return server.get_span_context().span_id

    with opened(telemetry.observer) as runtime:
        await runtime.abegin(request_by(0))
        upstash.reset_bill()
        upstash_faults(latency_ms=20)  # calls that come meanwhile are joined
        servers = await asyncio.gather(*map(serve, range(1, 201)))
        posts = upstash.bill().requests
        await runtime.aclose()
    assert posts < 200
    assert sorted(map(parent_of, telemetry.spans()[1:]), key=str) == sorted(servers, key=str)


def test_the_servers_span_is_told_of_a_denial_and_of_the_cache(
    opened: Opened, telemetry: Telemetry
):
    with opened(telemetry.observer) as runtime:
        for asked in (request_by(0), request_by(0), HTTPRequest("GET", "/pages/7")):
            with telemetry.tracer.start_as_current_span("server", kind=SpanKind.SERVER):
                runtime.begin(asked)
    assert [dict(span.attributes or {}) for span in telemetry.spans(SpanKind.SERVER)] == [
        {},
        {
            "upstash_middleware.rate_limit.rule": "login",
            "upstash_middleware.rate_limit.verdict": "denied",
        },
        {"upstash_middleware.cache.outcome": "uri-miss"},
    ]


def test_a_call_that_fails_says_how(
    opened: Opened, telemetry: Telemetry, upstash_faults: Callable[..., None]
):
    with opened(telemetry.observer, breaker=False) as runtime:
        runtime.begin(request_by(0))
        upstash_faults(fault=Fault.DROP_BEFORE)
        runtime.begin(request_by(1))
    span = telemetry.spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ConnectionLost"
    failures = telemetry.counted("upstash_middleware.failures")
    assert failures == {("ConnectionLost", "rate limit"): 1}


def test_a_command_that_fails_says_its_code(telemetry: Telemetry):
    """One that is known: what else a server says would be a name of its own each time."""
    for message in ("WRONGTYPE Operation against a key", "A7F3 never heard of"):
        error = CommandError(message)
        telemetry.observer(UpstashCalled("db", 443, ("GET", "SET"), 0.01, error))
    attributes = [span.attributes or {} for span in telemetry.spans()]
    for name in ("error.type", "db.response.status_code"):
        assert [one[name] for one in attributes] == ["WRONGTYPE", "_OTHER"]


def test_what_the_open_circuit_holds_back_is_no_call(
    opened: Opened, telemetry: Telemetry, upstash_faults: Callable[..., None]
):
    upstash_faults(fault=Fault.DROP_BEFORE)
    with opened(telemetry.observer) as runtime:
        for number in range(8):
            runtime.begin(request_by(number))
    assert len(telemetry.spans()) == 5
    assert telemetry.counted("upstash_middleware.circuit.open") == {(): 1}
    assert telemetry.counted("upstash_middleware.failures")[("CircuitOpen", "rate limit")] == 3


def test_the_duration_is_a_histogram_of_the_semantic_conventions(
    opened: Opened, telemetry: Telemetry, upstash: LocalUpstash
):
    with opened(telemetry.observer) as runtime:
        for number in range(3):
            runtime.begin(request_by(number))
    metric = telemetry.metric("db.client.operation.duration")
    assert metric.unit == "s"
    points = {point.attributes["db.operation.name"]: point for point in metric.data.data_points}
    assert {name: point.count for name, point in points.items()} == {"PIPELINE": 1, "EVALSHA": 2}
    assert points["EVALSHA"].explicit_bounds == CALLS.buckets
    assert points["EVALSHA"].attributes == {
        "db.system.name": "redis",
        "db.operation.name": "EVALSHA",
        "server.address": "127.0.0.1",
        "server.port": int(upstash.url.rpartition(":")[2]),
    }


def test_decisions_are_counted_by_rule_verdict_and_ground(opened: Opened, telemetry: Telemetry):
    with opened(telemetry.observer) as runtime:
        for number in (0, 0, 0, 1):
            runtime.begin(request_by(number))
    assert telemetry.counted("upstash_middleware.rate_limit.decisions") == {
        ("login", "upstash", "allowed"): 2,
        ("login", "upstash", "denied"): 1,
        ("login", "memory", "denied"): 1,
    }


def test_units_of_leases_are_counted_by_rule_and_change(
    upstash: LocalUpstash, opened: Opened, telemetry: Telemetry
):
    rule = RateLimitRule("/login", "1000/h lease 1m", name="login")
    with opened(telemetry.observer, rate_limits=[rule]) as runtime:
        for _ in range(60):
            runtime.begin(request_by(0))
        upstash.advance(61)
        runtime.begin(request_by(0))
    leased = telemetry.counted("upstash_middleware.rate_limit.leased")
    assert set(leased) == {("leased", "login"), ("returned", "login")}
    assert leased["leased", "login"] > leased["returned", "login"] > 0


def test_an_open_circuit_is_there_to_be_seen_before_it_opens_and_goes_down_again(
    telemetry: Telemetry,
):
    assert telemetry.counted("upstash_middleware.circuit.open") == {(): 0}
    telemetry.observer(CircuitOpened(5, 5, "ConnectionLost"))
    assert telemetry.counted("upstash_middleware.circuit.open") == {(): 1}
    telemetry.observer(CircuitClosed(1.0))
    assert telemetry.counted("upstash_middleware.circuit.open") == {(): 0}


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_is_a_span_too(
    opened: Opened,
    telemetry: Telemetry,
    upstash: LocalUpstash,
    upstash_faults: Callable[..., None],
):
    with opened(telemetry.observer) as runtime:
        await runtime.abegin(request_by(0))
        upstash.reset_bill()
        upstash_faults(latency_ms=60_000)
        call = asyncio.create_task(runtime.abegin(request_by(1)))
        while not upstash.bill().requests:  # noqa: ASYNC110 - it is the server that is waited for
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.wait([call])
        await runtime.aclose()
    assert (telemetry.spans()[1].attributes or {})["error.type"] == "CancelledError"


def test_without_an_sdk_nothing_is_recorded_and_nothing_fails():
    observer = OpenTelemetryObserver()
    observer(UpstashCalled("db", 443, ("GET",), 0.01, ConnectionLost("gone")))
    assert not trace.get_current_span().is_recording()
