"""The settings of Django's own suite, with our runner."""

from test_sqlite import *  # type: ignore[import-not-found]  # noqa: F403 - of Django's sdist

TEST_RUNNER = "around_django.Runner"
