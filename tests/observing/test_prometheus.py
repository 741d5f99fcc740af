"""What Prometheus scrapes: the exposition's text, read back as a server of Prometheus reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from upstash_redis import Redis

from tests.observing.conftest import request_by
from upstash_middleware import RateLimitRule
from upstash_middleware.events import CacheEntryRefused, CircuitClosed, CircuitOpened
from upstash_middleware.local import Fault
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.prometheus import PrometheusObserver
from upstash_middleware.starlette import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from starlette.requests import Request

    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.runtime import Runtime

    Opened = Callable[..., AbstractContextManager[Runtime]]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scraped(registry: CollectorRegistry) -> dict[str, dict[tuple[str, ...], float]]:
    """Return each sample's values, by its labels' in the order of their names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def units_used(upstash: LocalUpstash) -> int:
    with Redis(upstash.url, upstash.token) as redis:
        (key,) = redis.keys("*:login:*")
        return int(redis.get(key) or 0)


def test_decisions_lookups_and_calls_are_scraped(opened: Opened, registry: CollectorRegistry):
    with opened(PrometheusObserver(registry)) as runtime:
        for number in (0, 0, 0, 1):
            runtime.begin(request_by(number))
        runtime.begin(HTTPRequest("GET", "/pages/7"))
    samples = scraped(registry)
    assert samples["upstash_middleware_rate_limit_decisions_total"] == {
        ("login", "upstash", "allowed"): 2,
        ("login", "upstash", "denied"): 1,
        ("login", "memory", "denied"): 1,
    }
    assert samples["upstash_middleware_cache_lookups_total"] == {("uri-miss",): 1}
    counts = samples["db_client_operation_duration_seconds_count"]
    assert {labels[2]: value for labels, value in counts.items()} == {
        "PIPELINE": 1,
        "EVALSHA": 2,
        "MGET": 1,
    }
    assert samples["upstash_middleware_circuit_open"] == {(): 0}


def test_units_of_leases_are_scraped(
    upstash: LocalUpstash, opened: Opened, registry: CollectorRegistry
):
    rule = RateLimitRule("/login", "fixed 1000/h lease 1m", name="login")
    with opened(PrometheusObserver(registry), rate_limits=[rule]) as runtime:
        for _ in range(60):
            runtime.begin(request_by(0))
        upstash.advance(61)
        runtime.begin(request_by(0))
        samples, used = scraped(registry), units_used(upstash)
    decisions = samples["upstash_middleware_rate_limit_decisions_total"]
    by_lease, by_calls = (decisions["login", by, "allowed"] for by in ("lease", "upstash"))
    assert by_lease + by_calls == 61
    leased = samples["upstash_middleware_rate_limit_leased_total"]
    assert set(leased) == {("leased", "login"), ("returned", "login")}
    assert leased["returned", "login"] > 0
    unused = leased["leased", "login"] - leased["returned", "login"] - by_lease
    assert unused == used - 61


def test_changes_of_sessions_are_scraped(upstash: LocalUpstash, registry: CollectorRegistry):
    """By what was changed, and whether it was saved or dropped."""

    def remember(request: Request) -> PlainTextResponse:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return PlainTextResponse("welcome")

    app = Starlette(routes=[Route("/", remember)])
    app.add_middleware(
        UpstashMiddleware, sessions=True, observers=[PrometheusObserver(registry)], redis=upstash
    )
    browser = TestClient(app)
    for _ in range(3):
        browser.get("/")
    upstash.set_faults(fault=Fault.DROP_BEFORE)
    browser.get("/")
    samples = scraped(registry)
    assert samples["upstash_middleware_session_saves_total"] == {
        ("created", "true"): 1,
        ("saved", "true"): 2,
        ("saved", "false"): 1,
    }
    assert samples["upstash_middleware_failures_total"] == {("session load", "ConnectionLost"): 1}


def test_failures_and_the_circuit_are_scraped(
    opened: Opened, registry: CollectorRegistry, upstash_faults: Callable[..., None]
):
    upstash_faults(fault=Fault.DROP_BEFORE)
    with opened(PrometheusObserver(registry)) as runtime:
        for number in range(8):
            runtime.begin(request_by(number))
    samples = scraped(registry)
    assert samples["upstash_middleware_failures_total"] == {
        ("rate limit", "ConnectionLost"): 5,
        ("rate limit", "CircuitOpen"): 3,
    }
    assert samples["upstash_middleware_rate_limit_decisions_total"] == {
        ("login", "open", "allowed"): 8
    }
    assert samples["upstash_middleware_circuit_open"] == {(): 1}


def test_a_shadow_rules_denial_is_told_from_one_that_stops(
    opened: Opened, registry: CollectorRegistry
):
    rule = RateLimitRule("/login", "1/min", name="login", shadow=True)
    with opened(PrometheusObserver(registry), rate_limits=[rule]) as runtime:
        for _ in range(2):
            runtime.begin(request_by(0))
    verdicts = scraped(registry)["upstash_middleware_rate_limit_decisions_total"]
    assert sorted(labels[2] for labels in verdicts) == ["allowed", "shadow-denied"]


def test_a_fault_of_the_applications_is_scraped(opened: Opened, registry: CollectorRegistry):
    def broken(request: HTTPRequest) -> str:
        raise ZeroDivisionError

    rule = RateLimitRule("/login", "1/min", by=broken)
    with opened(PrometheusObserver(registry), rate_limits=[rule]) as runtime:
        runtime.begin(request_by(0))
    faults = scraped(registry)["upstash_middleware_faults_total"]
    assert faults == {("ZeroDivisionError", "rate_limits[0].by"): 1}


def test_hundreds_of_clients_and_urls_make_no_more_series_than_three_do(
    opened: Opened, registry: CollectorRegistry
):
    """Labels are rules, outcomes and classes of errors: nothing that a client can choose."""

    def series() -> set[tuple[str, tuple[str, ...]]]:
        return {(name, labels) for name, found in scraped(registry).items() for labels in found}

    with opened(PrometheusObserver(registry)) as runtime:

        def visit(number: int) -> None:
            for asked in (request_by(number), request_by(number), request_by(number)):
                runtime.begin(asked)
            runtime.begin(HTTPRequest("GET", f"/pages/{number}", query=f"n={number}"))

        for number in range(3):
            visit(number)
        few = series()
        for number in range(3, 300):
            visit(number)
    assert series() == few
    text = generate_latest(registry).decode()
    assert not any(clue in text for clue in ("203.0", "/pages", "?n", "ip="))


def test_observers_of_one_registry_share_their_metrics(registry: CollectorRegistry):
    """So a limit and a cache that stand apart may have one each."""
    PrometheusObserver(registry)(CircuitOpened(5, 5, "ConnectionLost"))
    PrometheusObserver(registry)(CircuitClosed(1.0))
    assert scraped(registry)["upstash_middleware_circuit_open"] == {(): 0}


def test_a_name_that_somebody_else_has_taken_is_an_error(registry: CollectorRegistry):
    Counter("upstash_middleware_faults", "Not ours.", registry=registry)
    with pytest.raises(ValueError, match="upstash_middleware_faults"):
        PrometheusObserver(registry)


PROCESS = """
from upstash_middleware.events import CircuitOpened, RateLimitDecided
from upstash_middleware.prometheus import PrometheusObserver

observe = PrometheusObserver()
observe(RateLimitDecided("login", "ip=203.0.113.7", allowed=True, remaining=1))
observe(CircuitOpened(5, 5, "ConnectionLost"))
"""
SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_in_multiprocess_mode_the_counts_of_all_processes_add_up(tmp_path: Path):
    """As under gunicorn: two workers count into files, and whoever is scraped reads them all."""
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def ran(text: str) -> str:
        command = [sys.executable, "-c", text]
        return subprocess.run(
            command, env=environ, check=True, text=True, capture_output=True
        ).stdout

    ran(PROCESS)
    ran(PROCESS)
    lines = ran(SCRAPE).splitlines()
    labels = 'rule="login",settled_by="upstash",verdict="allowed"'
    assert f"upstash_middleware_rate_limit_decisions_total{{{labels}}} 2.0" in lines
    assert "upstash_middleware_circuit_open 2.0" in lines


def test_entries_that_were_refused_are_counted_and_not_by_their_keys(registry: CollectorRegistry):
    """Which anybody who may write to Redis could make any number of."""
    observer = PrometheusObserver(registry)
    for number in range(3):
        observer(CacheEntryRefused(f"p:cache:entry:{number}", "damaged"))
    assert scraped(registry)["upstash_middleware_cache_refused_total"] == {(): 3}
