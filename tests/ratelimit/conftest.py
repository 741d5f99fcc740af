"""Fixtures of the rate limit's tests: a Valkey, emptied for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from valkey import Valkey

from tests.ratelimit.store import FakeClock, ValkeyStore
from upstash_middleware.core.ratelimit import RateLimiter, RateLimitRule
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash


@pytest.fixture
def upstash(upstash: LocalUpstash) -> LocalUpstash:
    """The local Upstash in the machine's own time, which other clients have too."""
    upstash.restore_time()
    return upstash


@pytest.fixture(scope="session")
def valkey(upstash_server: LocalUpstash) -> Iterator[Any]:
    """The Valkey behind the local Upstash, reached directly."""
    client = Valkey.from_url(upstash_server.redis_url)
    yield client
    client.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(valkey: Any, clock: FakeClock) -> ValkeyStore:
    valkey.flushall()
    return ValkeyStore(valkey, clock)


@pytest.fixture
def client(upstash: LocalUpstash) -> Iterator[Any]:
    """The real client over HTTP, to the local Upstash."""
    client = Client(Credentials(upstash.url, upstash.token), deadline=30)
    yield client
    client.close()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def limiter_of(clock: FakeClock, events: list[Event]) -> Callable[..., RateLimiter]:
    def make(
        *rules: RateLimitRule, default: RateLimitRule | None = None, **settings: Any
    ) -> RateLimiter:
        settings = {"clock": clock, "observe": events.append, **settings}
        return RateLimiter(rules, default, prefix="t", secret=lambda: b"key", **settings)

    return make
