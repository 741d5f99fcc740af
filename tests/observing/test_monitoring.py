"""The Grafana dashboard and the Prometheus alert rules use metrics and labels that exist."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml

from tests.docs.pages import ROOT
from upstash_middleware.metrics import METRICS, Kind
from upstash_middleware.prometheus import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_MONITORING = ROOT / "examples" / "monitoring"
_ALERTS = [
    rule
    for group in yaml.safe_load((_MONITORING / "prometheus-alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
_DASHBOARD = json.loads((_MONITORING / "grafana-dashboard.json").read_text())
_PANELS = [panel for panel in _DASHBOARD["panels"] if panel["type"] != "row"]
_SUFFIXES = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_count")}
_EXPORTED = {
    name_of(metric) + suffix: {label.label: label.meaning for label in metric.labels}
    for metric in METRICS
    for suffix in _SUFFIXES[metric.kind]
}
_OF_PROMETHEUS = {"job", "instance", "le"}


def expressions() -> Iterator[tuple[str, str]]:
    """Return where each expression is, and the expression."""
    for rule in _ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in _PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def selectors(node: Any) -> Iterator[Any]:
    """Return all vector selectors in a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "args"):
        part = getattr(node, name, None)
        for each in part if isinstance(part, list) else [part]:
            if each is not None:
                yield from selectors(each)


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_expressions_are_valid_and_select_what_is_exported(where: str, expression: str) -> None:
    found = list(selectors(promql_parser.parse(expression)))
    assert found
    for selector in found:
        labels = _EXPORTED[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in {*labels, *_OF_PROMETHEUS}
            if matcher.name in labels:
                for value in matcher.value.split("|"):
                    assert f"`{value}`" in labels[matcher.name], f"{value} of {where}"
    for label in re.findall(r"by \(([^)]*)\)", expression):
        known = set().union(*(_EXPORTED[each.name] for each in found), _OF_PROMETHEUS)
        assert set(label.split(", ")) <= known


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        selector.name
        for panel in _PANELS
        for target in panel["targets"]
        for selector in selectors(
            promql_parser.parse(target["expr"].replace("$__rate_interval", "5m"))
        )
    }
    for metric in METRICS:
        assert any(name.startswith(name_of(metric)) for name in shown), metric.name


def test_labels_in_texts_are_those_of_the_expression() -> None:
    for rule in _ALERTS:
        texts = " ".join(rule["annotations"].values())
        for label in re.findall(r"\$labels\.(\w+)", texts):
            assert re.search(rf"by \([^)]*\b{label}\b", rule["expr"]), rule["alert"]


def test_every_alert_is_on_its_page() -> None:
    page = (ROOT / "docs" / "operations" / "monitoring.md").read_text()
    for rule in _ALERTS:
        assert f"| `{rule['alert']}` | {rule['labels']['severity']} |" in page


def test_panels_do_not_overlap() -> None:
    places = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in _DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
