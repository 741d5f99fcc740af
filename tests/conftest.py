"""What holds for every test: quiet, never skipped in CI, and independent of the machine's speed."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.patience import patient_calls, upstash  # noqa: F401 - fixtures of every test here

if TYPE_CHECKING:
    from collections.abc import Generator


# A machine under load is no failure of what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let no garbage collection look at the tests and modules: that takes 0.2 seconds each time.

    Full collections are rare, too, as long as there is that much to look at; until then
    `LocalUpstash.reset` takes care of each middleware of the tests before.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test a failure where CI runs: what is not run holds nothing."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Print nothing for a test that passes."""
    return ("passed", "", "PASSED") if report.passed and report.when == "call" else None
