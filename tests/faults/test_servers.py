"""Real servers: workers forked from a parent that had used its client, and a short soak."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import httpx
import pytest

from benchmarks.soak import served, soak
from benchmarks.soak_app import page_of
from benchmarks.soak_report import plots, report, violations

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash


def test_workers_of_a_parent_that_had_used_its_client_share_quotas_and_mix_up_no_values(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ``gunicorn --preload``: each worker opens a client of its own."""
    monkeypatch.setenv("SOAK_CALLS_BEFORE_FORK", "1")
    monkeypatch.setenv("SOAK_DEADLINE", "20")
    upstash.reset_bill()
    with (
        served(upstash) as (url, _),
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):

        def ask(number: int) -> tuple[bool, str, str]:
            path = f"/other/{number}"
            # A connection of its own, so that any of the workers takes it.
            response = client.get(path, headers={"connection": "close"})
            right = response.content == page_of(path)
            fields = response.headers
            return right, fields["x-ratelimit-remaining"], fields["x-worker"]

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(ask, range(80)))
    right, remaining, workers = (set(each) for each in zip(*answers, strict=True))
    assert right == {True}
    assert len(remaining) == 80, "no two requests were given the same unit of the quota"
    assert len(workers) > 1


@pytest.mark.slow
def test_a_soak_of_twenty_seconds_violates_nothing() -> None:
    """A machine that does other things as well is given more slack than the report gives."""
    soaked = soak(20.0, every=1.5)
    print(report(soaked))  # noqa: T201 - pytest shows it where something is violated
    assert violations(soaked, slack=2.0) == []
    assert soaked.seen.hits > 0
    assert len(soaked.seen.sent) > 500
    assert soaked.killed
    ET.fromstring(plots(soaked))
