"""What the tests of Starlette's and FastAPI's decorators share: how a client comes, and closing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from upstash_middleware import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

PEER = ("203.0.113.9", 50000)


@pytest.fixture
def client(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Any], TestClient]]:
    """Serve applications in one event loop each, from startup to shutdown.

    Calls have long deadlines by default: a machine under load is no outage.
    """
    read, _ = settings._SETTINGS["deadline"]
    monkeypatch.setitem(settings._SETTINGS, "deadline", (read, 20.0))
    opened: list[TestClient] = []

    def serve(app: Any) -> TestClient:
        opened.append(TestClient(app, client=PEER).__enter__())
        return opened[-1]

    yield serve
    for each in opened:
        each.__exit__()
