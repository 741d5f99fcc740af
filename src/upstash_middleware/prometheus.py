"""Events as metrics for ``prometheus_client``: ``observers=[PrometheusObserver()]``.

``metrics`` defines the metrics; this module converts their names. Requires the extra
``prometheus``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from upstash_middleware.metrics import METRICS, Kind, measurement_of

try:
    from prometheus_client import REGISTRY, Counter, Gauge, Histogram
except ImportError as _missing:
    raise ImportError(
        "upstash_middleware.prometheus needs its extra: "
        'pip install "upstash-middleware[prometheus]"'
    ) from _missing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from upstash_middleware.events import Event
    from upstash_middleware.metrics import Metric

Add = Callable[[float, tuple[str, ...]], None]

_registered: WeakKeyDictionary[CollectorRegistry, Mapping[Metric, Add]] = WeakKeyDictionary()
_lock: Final = threading.Lock()


class PrometheusObserver:
    """Counts events in a Prometheus registry; thread-safe.

    Observers with the same registry share metrics, so that each middleware may have its own. In
    multiprocess mode, the circuit gauges of all running processes are summed.

    Args:
        registry: The registry; by default the global one.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        """Register the metrics. Raises ValueError if other metrics have these names."""
        with _lock:
            if registry not in _registered:
                _registered[registry] = {
                    metric: _MAKERS[metric.kind](metric, registry) for metric in METRICS
                }
            self._add = _registered[registry]

    def __call__(self, event: Event) -> None:
        """Add the event to the metrics."""
        measurement = measurement_of(event)
        if measurement is not None:
            self._add[measurement.metric](measurement.amount, measurement.values)


def name_of(metric: Metric) -> str:
    """Return the name that OpenTelemetry gives a metric in Prometheus, without ``_total``.

    Args:
        metric: The metric.
    """
    unit = "_seconds" if metric.unit == "s" else ""
    return metric.name.replace(".", "_") + unit


def _labels(metric: Metric) -> tuple[str, ...]:
    return tuple(label.label for label in metric.labels)


def _counter(metric: Metric, registry: CollectorRegistry) -> Add:
    counter = Counter(name_of(metric), metric.meaning, _labels(metric), registry=registry)
    return lambda amount, values: (counter.labels(*values) if values else counter).inc(amount)


def _histogram(metric: Metric, registry: CollectorRegistry) -> Add:
    histogram = Histogram(
        name_of(metric), metric.meaning, _labels(metric), registry=registry, buckets=metric.buckets
    )
    return lambda amount, values: histogram.labels(*values).observe(amount)


def _gauge(metric: Metric, registry: CollectorRegistry) -> Add:
    gauge = Gauge(name_of(metric), metric.meaning, registry=registry, multiprocess_mode="livesum")
    return lambda amount, _values: gauge.inc(amount)


_MAKERS: Final[Mapping[Kind, Callable[[Metric, CollectorRegistry], Add]]] = {
    Kind.COUNTER: _counter,
    Kind.HISTOGRAM: _histogram,
    Kind.GAUGE: _gauge,
}
