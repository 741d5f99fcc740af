"""The fixed window: a counter for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import (
    MAX_WINDOW_MS,
    Check,
    Limit,
    State,
    whole_number,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


_ROUND_LENGTHS = (86_400_000, 3_600_000, 60_000, 1000, 1)


class FixedWindow(Limit, frozen=True):
    """At most ``limit`` units in each window. Windows begin at multiples of ``per`` seconds.

    Around the boundary of two windows, up to twice the limit can be allowed within ``per`` seconds.

    Args:
        limit: The units in a window, at least 1.
        per: The window: seconds, a timedelta, or text such as ``"1 minute"``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    limit: int
    per: Duration

    name: ClassVar[str] = "fixed"
    title: ClassVar[str] = "fixed window"
    word: ClassVar[str | None] = "fixed"
    windows: ClassVar[bool] = True
    kept_for: ClassVar[int] = 0
    """The number of further windows for which the counter is kept."""

    def script_numbers(self) -> tuple[int, int, int]:
        return (self.limit, self.milliseconds, self.kept_for * self.milliseconds)

    def keys(self, base: str, now_ms: int) -> tuple[str, ...]:
        number = now_ms // self.milliseconds
        return (f"{base}:{number}", f"{base}:{number + 1}")

    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        window = self.milliseconds
        key = 0 if values[1] is None else 1
        used, number = values[key] or 0, now // window + key
        reset, left = (number + 1) * window, self.limit - used
        return Check(
            passes=now if cost <= left else reset,
            remaining=max(0, left),
            reset=reset,
            key=key,
            value=used + cost,
            counts_until=reset + self.kept_for * window,
            remaining_after=left - cost,
            reset_after=reset,
            state_part=number,
        )

    @classmethod
    def read_state(cls, last_part: str, value: str, now_ms: int, ttl_ms: int) -> State | None:
        return read_counter(last_part, value, now_ms, ttl_ms, cls.kept_for)


def read_counter(
    last_part: str, value: str, now_ms: int, ttl_ms: int | None, kept_for: int = 0
) -> State | None:
    """Return the state of a counter; None if the value or its TTL is not from the script.

    The key contains only the number of the window, which is the current, previous or next one. The
    length of the window is estimated from that number, assuming that it is a round length. If
    ``ttl_ms`` is None, any TTL is accepted.
    """
    try:
        number, used = whole_number(last_part), max(0, whole_number(value))
        least, most = now_ms / (number + 3), now_ms / (number - 1)
    except (ValueError, ZeroDivisionError):
        return None
    lengths = (int(most // unit) * unit for unit in _ROUND_LENGTHS)
    window = next((each for each in lengths if least < each <= MAX_WINDOW_MS), None)
    if window is None:
        return None
    start, end = number * window, (number + 1) * window
    if ttl_ms is not None:
        expected = end + kept_for * window + window // 8 + 1000 - now_ms
        if abs(ttl_ms - expected) > min(window / 4, 5000):
            return None
    facts = [
        ("Window", "ms", window),
        ("Began", "at", start),
        ("Ends" if now_ms < end else "Ended", "at", end),
    ]
    return State("Used", used, facts)


class KeptFixedWindow(FixedWindow, frozen=True):
    """A fixed window in a bucket with a sliding window, which needs the previous counter."""

    kept_for: ClassVar[int] = 1
