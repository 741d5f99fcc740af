"""Durations in settings, and the interface of clocks, which can be replaced in tests."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Protocol

Duration = float | timedelta | str
"""Seconds, a timedelta, or text such as ``"60s"``, ``"5 minutes"`` or ``"1.5h"``."""

UNITS: dict[str, float] = {
    "ms": 0.001, "millisecond": 0.001,
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hr": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
    "w": 604_800, "week": 604_800,
    "month": 2_592_000,
}  # fmt: skip
"""Seconds by unit. A month has 30 days; windows are aligned to UTC, not to a calendar."""
_TEXT = r"(?i)([0-9]+(?:\.[0-9]+)?) ?([a-z]+)"  # compiled at the first use


def unit_seconds(unit: str) -> float | None:
    """Return the seconds of a unit of time, such as ``min`` or ``minutes``; None if unknown."""
    name = unit.lower()
    return UNITS.get(name) or UNITS.get(name.removesuffix("s"))


def seconds_in(value: Any) -> float | None:
    """Return the seconds of a Duration; None for other values."""
    if isinstance(value, timedelta):
        return _whole(value.total_seconds())
    if isinstance(value, str):
        found = re.fullmatch(_TEXT, value.strip())
        unit = unit_seconds(found[2]) if found else None
        return None if found is None or unit is None else _whole(float(found[1]) * unit)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(seconds: float) -> float:
    """Return a number of seconds, as an int if it is whole."""
    return int(seconds) if seconds.is_integer() else seconds


class Clock(Protocol):
    """A wall clock and a monotonic clock, both in seconds."""

    def wall(self) -> float:
        """Return the seconds since 1970 in UTC. The value may jump."""
        ...

    def monotonic(self) -> float:
        """Return the time of the monotonic clock. It never goes back, but may stop in a suspend."""
        ...
