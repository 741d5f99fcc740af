"""Telling that a process has slept, so that it trusts no connection from before. No I/O.

A function that is frozen between two requests, or a machine that was suspended, wakes with
connections that the other side, or a router between, has long forgotten. Pools drop what has
idled, but count by the monotonic clock, which such a sleep may stop; the wall clock goes on.
"""

from __future__ import annotations

import threading
import time
from typing import Final

GAP_SECONDS: Final = 5.0
"""By how much the wall clock must have run ahead since the last call: more than clocks are
corrected by, less than any router keeps a silent connection."""


class Waking:
    """Compares the two clocks at each call; safe under threads."""

    __slots__ = ("_ahead", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead = _ahead()

    def has_slept(self) -> bool:
        """Whether the process has slept since this was last asked; of several who ask, one is told.

        A wall clock that was set forward counts as a sleep, which costs a connection.
        """
        ahead = _ahead()
        if ahead - self._ahead <= GAP_SECONDS:
            self._ahead = ahead
            return False
        with self._lock:
            slept = ahead - self._ahead > GAP_SECONDS
            self._ahead = ahead
        return slept


def _ahead() -> float:
    return time.time() - time.monotonic()
