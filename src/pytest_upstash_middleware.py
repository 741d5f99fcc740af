"""The pytest plugin of upstash-middleware: a local Upstash for each test, and its weather.

pytest imports this before coverage measures anything, whether a test uses it or not.  So only
fixtures may live here, and they import what they need when they are used; for the same reason it
stands beside the package and not in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash


@pytest.fixture(scope="session")
def upstash_server() -> Iterator[LocalUpstash]:
    """One local Upstash for the session (under pytest-xdist, one for each worker)."""
    from upstash_middleware.local import LocalUpstash  # noqa: PLC0415 - see the module's docstring

    with LocalUpstash() as server:
        yield server


@pytest.fixture
def upstash(upstash_server: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> LocalUpstash:
    """A running local Upstash: empty, its bill at zero, its URL and token in the environment."""
    upstash_server.set_weather()
    upstash_server.flush()
    upstash_server.reset_bill()
    for name, value in upstash_server.env.items():
        monkeypatch.setenv(name, value)
    return upstash_server


@pytest.fixture
def upstash_weather(upstash: LocalUpstash) -> Iterator[Callable[..., None]]:
    """Changes the weather of `upstash` until the test ends: ``upstash_weather(latency_ms=50)``."""
    yield upstash.set_weather
    upstash.set_weather()
