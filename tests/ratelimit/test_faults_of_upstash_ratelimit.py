"""What upstash-ratelimit 1.2 gets wrong, with the numbers that it was seen to get wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.ratelimit.store import NOW
from upstash_middleware.core.ratelimit import RateLimitRule, SlidingWindow
from upstash_middleware.drivers import run
from upstash_middleware.messages import HTTPRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ratelimit.store import FakeClock, ValkeyStore
    from upstash_middleware.core.ratelimit import RateLimiter

REQUEST = HTTPRequest("GET", "/a", peer="203.0.113.7")
WINDOW = 60


class Visits:
    """Requests at chosen seconds of a window, against ten per minute."""

    def __init__(self, limiter: RateLimiter, store: ValkeyStore, clock: FakeClock) -> None:
        self._limiter = limiter
        self._store = store
        self._clock = clock
        self._begin = NOW - NOW % WINDOW + WINDOW

    def at(self, second: float) -> float | None:
        """Ask once; return the seconds to wait, None where the request passes."""
        self._clock.move(self._begin + second - self._clock.time)
        exchange = run(self._limiter.begin(REQUEST), self._store)
        assert exchange.decision is not None
        if exchange.decision.allowed:
            return None
        assert exchange.decision.retry_after is not None
        return exchange.decision.retry_after


@pytest.fixture
def visits_of(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock
) -> Callable[..., Visits]:
    def make(**settings: Any) -> Visits:
        rule = RateLimitRule("/a", SlidingWindow(10, per=WINDOW))
        visits = Visits(limiter_of(rule, **settings), store, clock)
        assert [visits.at(59) for _ in range(10)] == [None] * 10
        return visits

    return make


@pytest.mark.parametrize("second", [59.5, 61.0, 100.0])
def test_a_wait_that_is_told_is_neither_too_short_nor_too_long(visits_of, second):
    """Its `reset` is the window's end: at 59.5 s it said 0.5 s, at 61 s it said 59 s."""
    visits = visits_of(remember_denials=0)
    while (wait := visits.at(second)) is None:
        pass
    assert visits.at(second + wait - 0.001) is not None
    assert visits.at(second + wait) is None


def test_denied_at_61_seconds_the_wait_is_5_seconds_and_not_59(visits_of):
    """The estimate falls by one request in six seconds."""
    visits = visits_of(remember_denials=0)
    assert visits.at(61) is None
    assert visits.at(61) == 5.001


def test_what_is_remembered_of_a_denial_denies_nothing_that_should_pass(visits_of):
    """After one denial at 61 s, none of the nine requests passed that should, until 120 s."""
    visits = visits_of()
    assert visits.at(61) is None
    assert visits.at(61) is not None
    assert [visits.at(second) for second in range(67, 120, 6)] == [None] * 9
