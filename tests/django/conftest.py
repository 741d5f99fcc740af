"""What the tests of the Django middleware share: the event loop that they run on."""

from __future__ import annotations

import pytest

import tests.django.project  # noqa: F401 - some of what tests import wants Django configured
from tests.patience import patient_calls  # noqa: F401 - a fixture of every test here


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, as Django does."""
    return "asyncio"
