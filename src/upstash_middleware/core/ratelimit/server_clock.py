"""The time of day as the database tells it, near enough: this machine's, plus a learned offset.

The offset comes from a TIME that travels with a pipeline which is sent anyway. It reads the
clock that it was given; it asks nobody itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.effects import Command

if TYPE_CHECKING:
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.effects import Reply

ASK_EVERY = 3600.0
"""Seconds between two askings."""
ASK_AGAIN = 10.0
"""Seconds after which an asking without an answer is given up."""
DISAGREEMENT = 0.25
"""Seconds by which wall and monotonic clock may drift apart before the offset is doubted."""

TIME = Command(("TIME",), reads_only=True)


class ServerClock:
    """Tells the server's time; used by threads at once, each step being one assignment."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = 0.0
        self._ask_at = float("-inf")
        self._apart: float | None = None

    def now(self) -> float:
        """Return the time of day in seconds since 1970."""
        return self._clock.wall() + self._offset

    def monotonic(self) -> float:
        """Return seconds since some moment, by a clock that nobody sets."""
        return self._clock.monotonic()

    def now_ms(self) -> int:
        """Return the time of day in whole milliseconds since 1970."""
        return round((self._clock.wall() + self._offset) * 1000)

    def asks(self) -> bool:
        """Whether the next pipeline shall carry a TIME; if so, no other will for some seconds.

        So at first, every hour, and when the wall clock was set or the process was frozen.
        """
        monotonic = self._clock.monotonic()
        apart = self._clock.wall() - monotonic
        if self._apart is not None and abs(apart - self._apart) > DISAGREEMENT:
            self._ask_at = float("-inf")
            self._apart = apart
        if monotonic < self._ask_at:
            return False
        self._ask_at = monotonic + ASK_AGAIN
        return True

    def sent(self) -> float:
        """Return what ``learn`` wants to know: when, by the wall clock, the TIME was sent."""
        return self._clock.wall()

    def learn(self, reply: Reply, sent: float) -> None:
        """Take the server's answer to TIME; what is no such answer teaches nothing."""
        server = _seconds(reply)
        if server is None:
            return
        received = self._clock.wall()
        # All of this is possible without any difference of the clocks: then there is none.
        agrees = sent <= server <= received
        self._offset = 0.0 if agrees else server - (sent + received) / 2
        monotonic = self._clock.monotonic()
        self._ask_at, self._apart = monotonic + ASK_EVERY, received - monotonic


def _seconds(reply: Reply) -> float | None:
    match reply:
        case [bytes(seconds), bytes(micros)] if seconds.isdigit() and micros.isdigit():
            return int(seconds) + int(micros) / 1_000_000
        case _:
            return None
