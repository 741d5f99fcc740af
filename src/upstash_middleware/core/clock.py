"""Time as the core sees it: passed in, so that tests can move it."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Tells the time; both in seconds."""

    def wall(self) -> float:
        """Return the time of day as seconds since 1970 in UTC; it may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some moment; it never goes back, but may stand in a freeze."""
        ...
