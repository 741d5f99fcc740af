"""Events as OpenTelemetry metrics and spans: ``observers=[OpenTelemetryObserver()]``.

``metrics`` defines the metrics. Each call to Upstash is a span of kind CLIENT. It is created when
the call ends, in the thread or task that waited for it, so its parent is the current span there,
usually the server's span. Names and attributes follow the semantic conventions for Redis clients.
Requires the extra ``opentelemetry``, which installs only the API.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from upstash_middleware.events import CacheLookedUp, RateLimitDecided, UpstashCalled
from upstash_middleware.metrics import (
    CALLS,
    CIRCUIT,
    METRICS,
    Kind,
    error_type,
    measurement_of,
    operation,
    status_code,
    verdict,
)

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError as _missing:
    raise ImportError(
        "upstash_middleware.opentelemetry needs its extra: "
        'pip install "upstash-middleware[opentelemetry]"'
    ) from _missing

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

    from upstash_middleware.events import Event
    from upstash_middleware.metrics import Measurement, Metric

Add = Callable[[float, Mapping[str, "AttributeValue"], "Context | None"], None]

_SCOPE: Final = "upstash_middleware"
_SYSTEM: Final = {"db.system.name": "redis"}


class OpenTelemetryObserver:
    """Records events with the given providers or the global ones; thread-safe.

    The request's own span gets the rule that denied it and the outcome of the cache lookup.

    Args:
        tracer_provider: The provider of tracers; None for the global one.
        meter_provider: The provider of meters; None for the global one.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._add = {metric: _MAKERS[metric.kind](meter, metric) for metric in METRICS}
        self._add[CIRCUIT](0, {}, None)  # so that the metric exists before any failure

    def __call__(self, event: Event) -> None:
        """Add the event to the metrics and spans."""
        context = None
        match event:
            case UpstashCalled():
                context = self._span(event)
            case RateLimitDecided(allowed=False):
                _annotate("rate_limit.rule", event.rule)
                _annotate("rate_limit.verdict", verdict(event))
            case CacheLookedUp():
                _annotate("cache.outcome", event.outcome)
        measurement = measurement_of(event)
        if measurement is not None:
            add = self._add[measurement.metric]
            add(measurement.amount, _attributes(measurement), context)

    def _span(self, event: UpstashCalled) -> Context:
        """Create the span of a call that has just ended; return its context."""
        ended = time.time_ns()
        name, size = operation(event.commands), len(event.commands)
        span = self._tracer.start_span(
            f"{name} {event.server}:{event.port}",
            kind=SpanKind.CLIENT,
            start_time=ended - round(event.seconds * 1e9),
            attributes={
                **_SYSTEM,
                "db.operation.name": name,
                "server.address": event.server,
                "server.port": event.port,
                **({"db.operation.batch.size": size} if size > 1 else {}),
            },
        )
        if event.error is not None:
            span.set_attribute("error.type", error_type(event.error))
            if code := status_code(event.error):
                span.set_attribute("db.response.status_code", code)
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended)
        return trace.set_span_in_context(span)


def _annotate(name: str, value: str) -> None:
    trace.get_current_span().set_attribute(f"{_SCOPE}.{name}", value)


def _attributes(measurement: Measurement) -> dict[str, AttributeValue]:
    """Return the attributes that have a value, with the types of the semantic conventions."""
    metric = measurement.metric
    pairs = zip(metric.labels, measurement.values, strict=True)
    named: dict[str, AttributeValue] = {
        label.attribute: int(value) if label.attribute == "server.port" else value
        for label, value in pairs
        if value
    }
    return _SYSTEM | named if metric is CALLS else named


def _counter(meter: Meter, metric: Metric) -> Add:
    return meter.create_counter(metric.name, metric.unit, metric.meaning).add


def _histogram(meter: Meter, metric: Metric) -> Add:
    return meter.create_histogram(
        metric.name,
        metric.unit,
        metric.meaning,
        explicit_bucket_boundaries_advisory=metric.buckets,
    ).record


def _gauge(meter: Meter, metric: Metric) -> Add:
    return meter.create_up_down_counter(metric.name, metric.unit, metric.meaning).add


_MAKERS: Final[Mapping[Kind, Callable[[Meter, Metric], Add]]] = {
    Kind.COUNTER: _counter,
    Kind.HISTOGRAM: _histogram,
    Kind.GAUGE: _gauge,
}
