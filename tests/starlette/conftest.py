"""What the tests of Starlette's and FastAPI's decorators share: how a client comes, and closing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

PEER = ("203.0.113.9", 50000)


@pytest.fixture
def client(upstash: LocalUpstash) -> Iterator[Callable[[Any], TestClient]]:
    """Serve applications in one event loop each, from startup to shutdown."""
    opened: list[TestClient] = []

    def serve(app: Any) -> TestClient:
        opened.append(TestClient(app, client=PEER).__enter__())
        return opened[-1]

    yield serve
    for each in opened:
        each.__exit__()
