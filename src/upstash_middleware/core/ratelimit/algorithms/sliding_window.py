"""The sliding window, estimated from two fixed windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.fixed_window import read_counter
from upstash_middleware.core.ratelimit.algorithms.limit import Check, Limit, State

if TYPE_CHECKING:
    from collections.abc import Sequence


class SlidingWindow(Limit, frozen=True):
    """About ``limit`` units in any ``per`` seconds, estimated from two fixed windows.

    The units of the previous window are multiplied by the part of it that the sliding window still
    covers, and rounded down.

    Args:
        limit: The units in a window, at least 1.
        per: The window: seconds, a timedelta, or text such as ``"1 minute"``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    limit: int
    per: Duration

    name: ClassVar[str] = "sliding"
    title: ClassVar[str] = "sliding window"
    word: ClassVar[str | None] = "sliding"
    windows: ClassVar[bool] = True

    def keys(self, base: str, now_ms: int) -> tuple[str, ...]:
        number = now_ms // self.milliseconds
        return (f"{base}:{number - 1}", f"{base}:{number}", f"{base}:{number + 1}")

    # The end of the window in which the units count fully.
    def taken_until(self, part: int, reset: int) -> int:  # noqa: ARG002
        return (part + 1) * self.milliseconds

    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        window, key = self.milliseconds, 1 if values[2] is None else 2
        start = (now // window - 1 + key) * window
        previous, used = values[key - 1] or 0, values[key] or 0
        left = self.limit - used - previous * (start + window - max(now, start)) // window

        def reset(used: int) -> int:
            if used:
                return start + 2 * window - _longest_rest(used, 0, window)
            if previous:
                return max(now, start + window - _longest_rest(previous, 0, window))
            return now

        passes = now
        if cost > left:
            room = self.limit - used - cost
            if room >= 0:
                passes = start + window - _longest_rest(previous, room, window)
            else:
                passes = start + 2 * window - _longest_rest(used, self.limit - cost, window)
        return Check(
            passes=passes,
            remaining=max(0, left),
            reset=reset(used),
            key=key,
            value=used + cost,
            counts_until=start + 2 * window,
            remaining_after=left - cost,
            reset_after=reset(used + cost),
            state_part=start // window,
        )

    @classmethod
    def read_state(cls, last_part: str, value: str, now_ms: int, ttl_ms: int) -> State | None:
        state = read_counter(last_part, value, now_ms, ttl_ms, kept_for=1)
        if state is None:
            return None
        (_, _, window), _, (_, _, end) = state.facts
        if now_ms < end:
            return state
        weighed = int(state.used * max(0, end + window - now_ms) // window)
        return replace(state, facts=[*state.facts, ("Still weighs", "units", weighed)])


def _longest_rest(count: int, room: int, window: int) -> int:
    """Return the largest r with ``count * r // window <= room``, for count > room."""
    return ((room + 1) * window - 1) // count if count else 0
