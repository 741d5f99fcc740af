"""docs/observability.md names every metric, label, attribute, event and field of the log."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any, get_args

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from tests.docs.pages import ROOT, blocks, clear_of_a_minutes_end
from upstash_middleware import logs
from upstash_middleware.errors import CommandError
from upstash_middleware.events import CacheLookedUp, Event, RateLimitDecided, UpstashCalled
from upstash_middleware.metrics import METRICS
from upstash_middleware.opentelemetry import OpenTelemetryObserver
from upstash_middleware.prometheus import name_of

PAGE = ROOT / "docs" / "observability.md"


def table(*rows: tuple[str, ...]) -> str:
    head, *rest = rows
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rest))


def metrics() -> str:
    rows = [
        (
            f"`{metric.name}`",
            f"`{name_of(metric)}{'_total' if metric.kind.value == 'counter' else ''}`",
            metric.kind.value,
            f"`{metric.unit}`",
            ", ".join(f"`{label.label}`" for label in metric.labels),
            metric.meaning,
        )
        for metric in METRICS
    ]
    return table(
        ("OpenTelemetry", "Prometheus", "kind", "unit", "labels in Prometheus", "what"), *rows
    )


def labels() -> str:
    known = dict.fromkeys(label for metric in METRICS for label in metric.labels)
    rows = [(f"`{label.attribute}`", f"`{label.label}`", label.meaning) for label in known]
    rows.insert(0, ("`db.system.name`", "", "`redis`, on `db.client.operation.duration`"))
    return table(("attribute in OpenTelemetry", "label in Prometheus", "values"), *rows)


def events() -> str:
    rows = [
        (
            f"`{event.__name__}`",
            (inspect.getdoc(event) or "").split("\n\n")[0].replace("\n", " "),
            ", ".join(f"`{name}`" for name in event.__struct_fields__),
        )
        for event in get_args(Event)
    ]
    return table(("event", "when", "fields"), *rows)


def test_the_documentation_shows_every_metric_label_and_event():
    """``make docs-tables`` writes them."""
    text = PAGE.read_text()
    for name, made in (("metrics", metrics()), ("labels", labels()), ("events", events())):
        before, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{mark}\n{made}\n{end}{after}"
    if os.environ.get("WRITE_DOCS_TABLES"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text


def first_column(heading: str) -> set[str]:
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def test_the_documentation_shows_every_attribute_of_a_span():
    exporter = InMemorySpanExporter()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    observe = OpenTelemetryObserver(tracer_provider=tracers, meter_provider=meters)
    told: list[Event] = [
        UpstashCalled("db", 443, ("GET", "SET"), 0.1, CommandError("ERR no")),
        RateLimitDecided("login", "ip=203.0.113.7", allowed=False, remaining=0),
        CacheLookedUp("/", "hit"),
    ]
    with tracers.get_tracer("server").start_as_current_span("server"):
        for event in told:
            observe(event)
    seen: set[str] = set()
    seen = seen.union(*(span.attributes or {} for span in exporter.get_finished_spans()))
    tracers.shutdown()
    meters.shutdown()
    assert first_column("OpenTelemetry") == seen


def test_the_documentation_shows_every_field_of_a_log_record():
    source = inspect.getsource(logs)
    named = set(re.findall(r"(\w+)=", "".join(re.findall(r"_fields\((.*?)\)", source))))
    assert first_column("Logging") == {f"upstash_{name}" for name in {*named, "event", "refusal"}}


@pytest.mark.usefixtures("upstash")
def test_the_example_is_scraped_as_the_page_shows():
    names: dict[str, Any] = {"__name__": "documented"}
    exec(next(block.text for block in blocks(PAGE) if block.language == "python"), names)
    (shown,) = (block.text for block in blocks(PAGE) if block.language == "console")
    clear_of_a_minutes_end()
    with TestClient(names["app"]) as client:
        for _ in range(3):
            client.post("/login")
        scraped = client.get("/metrics").text.splitlines()
    assert [line for line in scraped if "decisions_total" in line and "login" in line] == [
        line for line in shown.splitlines() if "login" in line
    ]
