"""The test runner that runs Django's suite through the middleware."""

from __future__ import annotations

import signal
import unittest
from typing import Any

import around
from django.conf import settings
from django.test.runner import DiscoverRunner

_TIMEOUT = 120
"""Seconds for one test: a response from the cache leaves some tests waiting for their view."""


def _give_up(*_: object) -> None:
    raise TimeoutError(f"the test took longer than {_TIMEOUT} seconds")


around.wrap("django")
signal.signal(signal.SIGALRM, _give_up)


class _Result(unittest.TextTestResult):
    """Notes each test's outcome."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        around.run.begin(test.id())
        if around.run.mode != "none":
            settings.UPSTASH_MIDDLEWARE = around.arguments()
        signal.alarm(_TIMEOUT)
        super().startTest(test)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        signal.alarm(0)

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addSuccess(test)
        around.run.record(test.id(), "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        around.run.record(test.id(), "error", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        around.run.record(test.id(), "failed", self.failures[-1][1])

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        around.run.record(test.id(), "skipped")

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        around.run.record(test.id(), "xfailed")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        around.run.record(test.id(), "xpassed")

    def addSubTest(self, test: unittest.TestCase, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            text = (self.failures if failed else self.errors)[-1][1]
            around.run.record(test.id(), "failed" if failed else "error", text)


class Runner(DiscoverRunner):
    """Django's runner with the results above, which it writes at the end."""

    def get_resultclass(self) -> Any:
        return _Result

    def run_suite(self, suite: Any, **more: Any) -> Any:
        result = super().run_suite(suite, **more)
        around.run.save()
        return result
