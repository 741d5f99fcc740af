"""Clients of the local Upstash for the tests in this folder: the SDK's, and plain HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from upstash_redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash


@pytest.fixture
def upstash(upstash: LocalUpstash) -> LocalUpstash:
    """The local Upstash in the machine's own time, which other clients and processes have too."""
    upstash.restore_time()
    return upstash


@pytest.fixture
def redis(upstash: LocalUpstash) -> Iterator[Redis]:
    """The Python SDK's client; it does not retry, so that a failure is seen at once."""
    with Redis.from_env(rest_retries=0) as client:
        yield client


@pytest.fixture
def http(upstash: LocalUpstash) -> Iterator[httpx.Client]:
    """A plain HTTP client that shows the token."""
    headers = {"Authorization": f"Bearer {upstash.token}"}
    with httpx.Client(base_url=upstash.url, headers=headers, timeout=30) as client:
        yield client
