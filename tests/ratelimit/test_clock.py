"""The server's time: learned on the way, kept apart from what this machine believes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.ratelimit.store import NOW, FakeClock, ValkeyStore
from upstash_middleware.core.ratelimit import FixedWindow, RateLimiter, RateLimitRule
from upstash_middleware.drivers import run
from upstash_middleware.errors import CommandError
from upstash_middleware.messages import HTTPRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.flow import Command, Reply

REQUEST = HTTPRequest("GET", "/a", peer="203.0.113.7")


def asked_times(store: ValkeyStore) -> list[bool]:
    return [
        any(command.args == ("TIME",) for command in pipeline.commands)
        for pipeline in store.pipelines
    ]


def test_time_is_asked_with_the_first_pipeline_and_one_an_hour(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock
) -> None:
    """It never costs a round trip of its own."""
    limiter = limiter_of(RateLimitRule("/a", "9/s"))
    for wait in (0, 1, 3598, 2, 1):
        clock.move(wait)
        run(limiter.begin(REQUEST), store)
    assert asked_times(store) == [True, False, False, True, False]


def test_a_jump_of_the_wall_clock_has_time_asked_anew(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock
) -> None:
    """Set by hand or frozen: either way the offset is doubtful."""
    limiter = limiter_of(RateLimitRule("/a", "9/s"))
    for jump in (0.0, 0.2, 0.3, 0.0, -5.0, 0.0):
        clock.time += jump
        run(limiter.begin(REQUEST), store)
    assert asked_times(store) == [True, False, True, False, True, False]


def test_decisions_follow_the_servers_clock_once_it_is_known(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock
) -> None:
    """A machine that is 25 s ahead counts in the same windows as the others."""
    ahead = FakeClock(NOW + 25, 5.0)
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10), name="a"), clock=ahead)
    first = run(limiter.begin(REQUEST), store).decision
    second = run(limiter.begin(REQUEST), store).decision
    assert first is not None
    assert second is not None
    assert first.reset == NOW + 30
    assert second.reset == NOW + 10


@dataclass
class TellsTime(ValkeyStore):
    """A store whose TIME takes a while by the caller's clock, and has this reply."""

    told: Reply = None
    takes: float = 0.0

    def reply(self, command: Command) -> Reply:
        if command.args != ("TIME",):
            return super().reply(command)
        self.clock.move(self.takes)
        return self.told


def seconds_to_the_next_window(limiter: RateLimiter, store: TellsTime) -> float | None:
    """Learn the time; then send until one is denied, and return its exact Retry-After."""
    run(limiter.begin(HTTPRequest("GET", "/a", peer="203.0.113.8")), store)
    for _ in range(3):
        decision = run(limiter.begin(REQUEST), store).decision
        assert decision is not None
        if not decision.allowed:
            return decision.retry_after
    raise AssertionError("none was denied")


@pytest.mark.parametrize("difference", [-7.5, 3.25, 40_000.0])
def test_the_offset_is_the_middle_of_what_is_possible(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock, difference: float
) -> None:
    """Between sending and receiving the server read its clock; nobody knows when."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10)))
    told = TellsTime(store.client, clock, told=time_reply(NOW + 0.1 + difference), takes=0.2)
    expected = 10 - (NOW + 0.2 + difference) % 10
    assert seconds_to_the_next_window(limiter, told) == pytest.approx(expected, abs=0.002)


def test_a_difference_within_the_round_trip_is_none(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock
) -> None:
    """A slow first connection must not put off a clock that is right."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10)))
    told = TellsTime(store.client, clock, told=time_reply(NOW + 0.39), takes=0.4)
    assert seconds_to_the_next_window(limiter, told) == 9.6


@pytest.mark.parametrize(
    "reply", [None, 5, b"x", [], [b"1"], [b"x", b"1"], [b"1", None], CommandError("ERR no TIME")]
)
def test_an_answer_that_is_no_time_teaches_nothing(
    limiter_of: Callable[..., RateLimiter], store: ValkeyStore, clock: FakeClock, reply: Reply
) -> None:
    """And is not asked for again at once."""
    limiter = limiter_of(RateLimitRule("/a", FixedWindow(1, 10)), remember_denials=0)
    told = TellsTime(store.client, clock, told=reply)
    assert seconds_to_the_next_window(limiter, told) == 10
    clock.move(10)
    run(limiter.begin(REQUEST), told)
    assert asked_times(told) == [True, False, False, True]


def time_reply(seconds: float) -> Reply:
    whole, part = divmod(round(seconds * 1_000_000), 1_000_000)
    return [str(whole).encode(), str(part).encode()]
