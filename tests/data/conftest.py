"""The data caches under test: in threads and on an event loop."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from anyio.from_thread import start_blocking_portal

from upstash_middleware import Data, SyncData

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.from_thread import BlockingPortal

    from upstash_middleware.local import LocalUpstash

PATIENT = 20.0
"""Seconds; a machine under load is no outage."""
_numbers = count()


class Make(Protocol):
    """Makes a SyncData, or a Data whose methods return when done; all of a test share a prefix."""

    def __call__(self, **settings: Any) -> Any: ...


class Awaited:
    """A Data whose methods and memoized functions are awaited on an event loop."""

    def __init__(self, data: Data, portal: BlockingPortal) -> None:
        self.data = data
        self.portal = portal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **named: self._call(getattr(self.data, name), *args, **named)

    def memoize(self, *args: Any, **named: Any) -> Callable[..., Any]:
        decorate = self.data.memoize(*args, **named)

        def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            async def later(*args: Any, **named: Any) -> Any:
                return function(*args, **named)

            later.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
            memoized = decorate(later)

            @wraps(function)
            def returning(*args: Any, **named: Any) -> Any:
                return self._call(memoized, *args, **named)

            returning.key_of = memoized.key_of  # type: ignore[attr-defined]
            return returning

        return decorated

    def _call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        async def call() -> Any:
            return await function(*args, **named)

        return self.portal.call(call)


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(params=["sync", "async"])
def make(
    request: pytest.FixtureRequest, upstash: LocalUpstash, portal: BlockingPortal
) -> Iterator[Make]:
    prefix = f"d{next(_numbers)}"
    with ExitStack() as closing:

        def make(**settings: Any) -> Any:
            given = {"prefix": prefix, "deadline": PATIENT, "cache_deadline": PATIENT, **settings}
            if request.param == "sync":
                return closing.enter_context(SyncData(**given))
            data = Data(**given)
            closing.callback(portal.call, data.aclose)
            return Awaited(data, portal)

        yield make


@pytest.fixture
def data(make: Make) -> Any:
    return make()
