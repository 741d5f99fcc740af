"""What holds for every test: quiet, never skipped in CI, and independent of the machine's speed."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

import certifi
import pytest
from hypothesis import settings

from tests.patience import patient_calls, upstash  # noqa: F401 - fixtures of every test here

if TYPE_CHECKING:
    from collections.abc import Generator


_END = b"-----END CERTIFICATE-----\n"

# A machine under load is no failure of what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


# For each of its clients httpx reads every authority that certifi knows, which takes 60 ms. No test
# calls a server elsewhere, so one authority is enough, here and in the processes that tests start.
_one_authority = tempfile.NamedTemporaryFile(suffix=".pem")  # noqa: SIM115 - until the process ends
_one_authority.write(certifi.contents().encode().partition(_END)[0] + _END)
_one_authority.flush()
os.environ["SSL_CERT_FILE"] = _one_authority.name


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
