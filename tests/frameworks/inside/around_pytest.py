"""The pytest plugin that runs a framework's suite through the middleware."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import around
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

_LONGEST_WAIT = 10
"""Seconds for which a test may wait, where it has a fake clock otherwise."""
_SOURCES = str(Path.cwd())


def pytest_configure() -> None:
    """Patch the framework before its tests are imported."""
    around.wrap(os.environ["FRAMEWORKS_NAME"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out FastAPI's tests that run in a process of their own, without the middleware."""
    apart = [item for item in items if _file_of(item).name == "_subprocess.py"]
    config.hook.pytest_deselected(items=apart)
    items[:] = [item for item in items if item not in apart]


def _file_of(item: pytest.Item) -> Path:
    code = getattr(getattr(item, "function", None), "__code__", None)
    return Path(code.co_filename) if code else item.path


def _name(test: str) -> str:
    # Some parameters are paths in the folder of the run.
    return test.replace(_SOURCES, "")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Let Flask-Caching's fake clock wait: Redis drops values when it is time."""
    value = yield
    of_ours = around.run.mode in around.CACHE_MODES and "FileSystem" not in request.node.nodeid
    if fixturedef.argname == "clock" and of_ours:
        value.advance = _wait
    return value


def _wait(seconds: float) -> None:
    if seconds > _LONGEST_WAIT:
        pytest.skip(f"it waits for {seconds} seconds")
    time.sleep(seconds)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Name the test that starts."""
    around.run.begin(_name(nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test's setup, call or teardown."""
    outcome: str = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if report.skipped else "xpassed"
    elif report.failed and report.when != "call":
        outcome = "error"
    around.run.record(_name(report.nodeid), outcome, report.longreprtext if report.failed else "")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a module that cannot be imported."""
    if report.failed:
        around.run.record(report.nodeid, "error", report.longreprtext)


def pytest_sessionfinish() -> None:
    """Write the results."""
    around.run.save()
