"""The pytest plugin of upstash-middleware: a local Upstash for each test, and its faults.

pytest imports this module before coverage starts to measure, whether or not a test uses it.  So it
contains only fixtures, which import what they need when they are used, and it is not part of the
package.
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
    from upstash_middleware.local import LocalUpstash  # noqa: PLC0415 - see above

    with LocalUpstash() as server:
        yield server


@pytest.fixture
def upstash(
    upstash_server: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalUpstash]:
    """A running local Upstash: empty, its bill at zero, its URL and token in the environment.

    `advance(seconds)` moves time forward for it and for the middleware in this process.
    """
    from upstash_middleware import clock  # noqa: PLC0415 - see above

    upstash_server.set_faults()
    upstash_server.flush()
    upstash_server.reset_bill()
    clock.forget()
    for name, value in upstash_server.env.items():
        monkeypatch.setenv(name, value)
    yield upstash_server
    upstash_server.restore_time()


@pytest.fixture
def upstash_faults(upstash: LocalUpstash) -> Iterator[Callable[..., None]]:
    """Changes the faults of `upstash` until the test ends: ``upstash_faults(latency_ms=50)``."""
    yield upstash.set_faults
    upstash.set_faults()
