"""Gateways over a local Upstash whose events an observer hears."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.messages import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from upstash_middleware.events import Observer
    from upstash_middleware.local import LocalUpstash


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request_by(number: int, path: str = "/login") -> Request:
    """Return the request of one of many clients, who each ask for a URL of their own."""
    return Request("POST", path, query=f"n={number}", peer=f"203.0.{number // 256}.{number % 256}")


@pytest.fixture
def opened(upstash: LocalUpstash) -> Callable[..., AbstractContextManager[Gateway]]:
    """Make a gateway with a limit and a cache, for as long as a ``with`` lasts."""

    @contextmanager
    def opened(observer: Observer, **settings: Any) -> Iterator[Gateway]:
        arguments = {
            "rate_limits": [RateLimitRule("/login", "1/min", name="login", methods=["POST"])],
            "cache": [CacheRule("/pages/{id}", ttl=60)],
            "default_limit": None,
            "deadline": 10,
            "cache_deadline": 10,
            "observers": [observer],
            **settings,
        }
        gateway = Gateway.of(arguments, Halves.BOTH, {})
        try:
            yield gateway
        finally:
            gateway.close()

    return opened
