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
def upstash_server() -> LocalUpstash:
    """One local Upstash for the session (under pytest-xdist, one for each worker)."""
    from upstash_middleware.local.testing import server_for_tests  # noqa: PLC0415 - see above

    return server_for_tests()


@pytest.fixture
def upstash(
    upstash_server: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalUpstash]:
    """A running local Upstash: empty, its bill at zero, its URL and token in the environment.

    `advance(seconds)` moves time forward for it and for the middleware in this process.
    """
    from upstash_middleware.local import local_upstash  # noqa: PLC0415 - see above

    # By monkeypatch, so that a test that changes these with it too leaves nothing behind.
    for name, value in upstash_server.env.items():
        monkeypatch.setenv(name, value)
    with local_upstash() as upstash:
        yield upstash


@pytest.fixture
def upstash_faults(upstash: LocalUpstash) -> Iterator[Callable[..., None]]:
    """Changes the faults of `upstash` until the test ends: ``upstash_faults(latency_ms=50)``."""
    yield upstash.set_faults
    upstash.set_faults()
