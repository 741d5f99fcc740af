"""Gateways over a local Upstash whose events an observer hears."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.runtime import Features, Runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from upstash_middleware.events import Observer
    from upstash_middleware.local import LocalUpstash


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def request_by(number: int, path: str = "/login") -> HTTPRequest:
    """Return the request of one of many clients, who each ask for a URL of their own."""
    return HTTPRequest(
        "POST", path, query=f"n={number}", peer=f"203.0.{number // 256}.{number % 256}"
    )


@pytest.fixture
def opened(upstash: LocalUpstash) -> Callable[..., AbstractContextManager[Runtime]]:
    """Make a runtime with a limit and a cache, for as long as a ``with`` lasts."""

    @contextmanager
    def opened(observer: Observer, **settings: Any) -> Iterator[Runtime]:
        arguments = {
            "rate_limits": [RateLimitRule("/login", "1/min", name="login", methods=["POST"])],
            "cache": [CacheRule("/pages/{id}", ttl=60)],
            "default_limit": None,
            "deadline": 10,
            "cache_deadline": 10,
            "observers": [observer],
            **settings,
        }
        runtime = Runtime.of(arguments, Features.BOTH, {})
        try:
            yield runtime
        finally:
            runtime.close()

    return opened
