"""What a handler charges counts whenever it does so, also after the response has been sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served

LIMIT: tuple[str, dict[str, Any]] = ("RateLimitMiddleware", {"default_limit": "100/hour"})
DECORATED: tuple[str, dict[str, Any]] = ("100/hour", {"name": "decorated"})
PLACES: dict[str, dict[str, Any]] = {
    "middleware": {"layers": [LIMIT], "limits": []},
    "decorator": {"layers": [], "limits": [DECORATED]},
    "both": {"layers": [LIMIT], "limits": [DECORATED]},
}


@pytest.fixture(params=PLACES.values(), ids=list(PLACES))
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


def remaining(served: Served) -> int:
    answer = served.request("GET", "/")
    assert answer.status == 200
    return int(answer.header("x-ratelimit-remaining") or -1)


class Charging:
    """A handler whose decisions a test charges when it likes."""

    def __init__(self) -> None:
        self.decisions: list[Any] = []

    def __call__(self, request: Seen) -> Reply:
        self.decisions.append(request.rate_limit)
        return Reply(b"ok")


@pytest.mark.parametrize("units", [7, -1])
def test_a_charge_after_the_response_was_sent_is_taken(
    serve: Serve, place: dict[str, Any], units: int
):
    """From a thread, as of a background task or a queue."""
    handler = Charging()
    served = serve(handler, *place["layers"], limits=place["limits"])
    assert remaining(served) == 99
    (decision,) = handler.decisions
    decision.charge(units)
    assert remaining(served) == 98 - units
    decision.charge(units)
    assert remaining(served) == 97 - 2 * units


@pytest.mark.parametrize("length", [True, False], ids=["with a length", "without one"])
def test_what_a_stream_charges_at_its_end_is_taken(
    serve: Serve, place: dict[str, Any], length: bool
):
    """After its last piece, where a server may have closed the response already."""

    def streaming(request: Seen) -> Reply:
        def pieces() -> Iterator[bytes]:
            try:
                yield b"a"
                request.rate_limit.charge(1)
                yield b"b"
                request.rate_limit.charge(10)
            finally:
                request.rate_limit.charge(20)

        fields = (("content-length", "2"),) if length else ()
        return Reply(pieces() if request.path == "/stream" else b"ok", headers=fields)

    served = serve(streaming, *place["layers"], limits=place["limits"])
    assert served.request("GET", "/stream").body == b"ab"
    assert remaining(served) == 100 - 1 - 31 - 1


def test_a_charge_where_nothing_was_taken_stays_without_effect(serve: Serve):
    handler = Charging()
    served = serve(handler, ("RateLimitMiddleware", {"enabled": False, "default_limit": "1/hour"}))
    served.request("GET", "/")
    (decision,) = handler.decisions
    decision.charge(5)
    with pytest.raises(ValueError, match="whole number"):
        decision.charge("5")
