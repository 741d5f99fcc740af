"""How many are in flight, while responses stream for longer than a slot lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.conftest import PATIENT
from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.ratelimit import Concurrency
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.messages import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import MovableClock, Serve

ONE: dict[str, Any] = {"default_limit": Concurrency(1, longest=60)}
ANOTHER = Request("GET", "/", host="shop.example", peer="203.0.113.9")


@pytest.fixture
def elsewhere(clock: MovableClock, upstash: Any) -> Iterator[Gateway]:
    """Another process with the same limit."""
    gateway = Gateway.of({**ONE, **PATIENT}, Halves.RATE_LIMIT)
    yield gateway
    gateway.close()


@pytest.mark.parametrize("name", ["RateLimitMiddleware", "UpstashMiddleware"])
def test_a_stream_that_outlives_its_slot_keeps_it_and_gives_it_back(
    serve: Serve, clock: MovableClock, elsewhere: Gateway, name: str
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
    serve: Serve, clock: MovableClock, elsewhere: Gateway
):
    served = serve(lambda _: Reply(b"ok"), ("RateLimitMiddleware", ONE))
    elsewhere.begin(ANOTHER)  # and never finished
    assert served.request("GET", "/").status == 429
    clock.advance(60)
    assert [served.request("GET", "/").status for _ in range(2)] == [200, 200]
