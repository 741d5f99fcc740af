"""What the tests of the Django middleware share: the event loop that they run on."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, as Django does."""
    return "asyncio"
