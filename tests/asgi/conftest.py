"""What the tests of the ASGI adapter share: the event loop that they run on."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: no other loop is among the project's dependencies."""
    return "asyncio"
