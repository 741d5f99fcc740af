"""The sliding log, which stores every request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import Check, Limit, State
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_LIMIT = 1000


class SlidingLog(Limit, frozen=True):
    """At most ``limit`` units in any ``per`` seconds, exactly, because every request is stored.

    The stored data grow with the limit, so the limit is at most 1000.

    Args:
        limit: The units in a window, from 1 to 1000.
        per: The window: seconds, a timedelta, or text such as ``"1 minute"``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    limit: int
    per: Duration

    name: ClassVar[str] = "log"
    title: ClassVar[str] = "sliding log"
    word: ClassVar[str | None] = "log"

    def check_numbers(self) -> None:
        if self.limit > _MAX_LIMIT:
            raise ConfigurationError(
                f"{self}: limit should be at most {_MAX_LIMIT}; use a SlidingWindow for more"
            )

    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        window, entries = self.milliseconds, values[0] or ()
        at = max(now, entries[-1][0]) if entries else now
        counting = tuple((time, units) for time, units in entries if time > at - window)
        left = self.limit - sum(units for _, units in counting)
        passes, excess = now, cost - left
        if excess > 0:
            for time, units in counting:
                passes, excess = time + window, excess - units
                if excess <= 0:
                    break
        return Check(
            passes=passes,
            remaining=max(0, left),
            reset=counting[-1][0] + window if counting else now,
            key=0,
            value=(*counting, (at, cost)),
            counts_until=at + window,
            remaining_after=left - cost,
            reset_after=at + window,
            state_part=at,
        )

    @classmethod
    def describe(cls, entries: Sequence[tuple[int, ...]], window: int, now: int) -> State:
        facts = [("Window", "ms", window), ("Entries", "units", len(entries))]
        return State("Used", sum(cost for at, cost in entries if at > now - window), facts)
