"""Fixtures of the cache's tests."""

from __future__ import annotations

import pytest

from tests.cache.world import Site


@pytest.fixture
def site() -> Site:
    """A site all of whose pages are under one rule without a TTL of its own."""
    return Site()
