"""What the tests of the Django middleware share: the event loop that they run on."""

from __future__ import annotations

import pytest

import tests.django.project  # noqa: F401 - some of what tests import wants Django configured


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, as Django does."""
    return "asyncio"
