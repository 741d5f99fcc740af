"""How many are in flight, while responses stream for longer than a slot lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.conftest import PATIENT
from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.ratelimit import Concurrency
from upstash_middleware.messages import HTTPRequest
from upstash_middleware.runtime import Features, Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.clocks import MovableClock
    from tests.contract.conftest import Serve

ONE: dict[str, Any] = {"default_limit": Concurrency(1, longest=60)}
ANOTHER = HTTPRequest("GET", "/", host="shop.example", peer="203.0.113.9")


@pytest.fixture
def elsewhere(clock: MovableClock, upstash: Any) -> Iterator[Runtime]:
    """Another process with the same limit."""
    runtime = Runtime.of({**ONE, **PATIENT}, Features.RATE_LIMIT)
    yield runtime
    runtime.close()


@pytest.mark.parametrize("name", ["RateLimitMiddleware", "UpstashMiddleware"])
def test_a_stream_that_outlives_its_slot_keeps_it_and_gives_it_back(
    serve: Serve, clock: MovableClock, elsewhere: Runtime, name: str
):
    """Its pieces come half a life apart at most; six pieces are three lives."""
    denied: list[bool] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(6):
            yield b"piece "
            clock.advance(29)
            denied.append(elsewhere.begin(ANOTHER).response is not None)

    def streaming(_: Seen) -> Reply:
        return Reply(pieces())

    answer = serve(streaming, (name, ONE)).request("GET", "/")
    assert answer.body == b"piece " * 6
    assert denied == [True] * 6
    assert elsewhere.begin(ANOTHER).response is None


def test_the_slot_of_a_process_that_died_is_free_after_its_life(
    serve: Serve, clock: MovableClock, elsewhere: Runtime
):
    served = serve(lambda _: Reply(b"ok"), ("RateLimitMiddleware", ONE))
    elsewhere.begin(ANOTHER)  # and never finished
    assert served.request("GET", "/").status == 429
    clock.advance(60)
    assert [served.request("GET", "/").status for _ in range(2)] == [200, 200]
