"""URLs that this process is about to invalidate: what is stored for them is not to be used.

An invalidation is told to Redis after the response that caused it has gone out. Its client may
ask again before that has arrived, and is to read what it has written.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.clock import Clock

# One that takes longer was dropped by whoever should have carried it out.
_LONGEST = 60.0


class Changing:
    """The URLs, as their epochs are named, and until when at most. Safe under threads."""

    __slots__ = ("_clock", "_lock", "_until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def begin(self, urls: Iterable[str]) -> None:
        """Have these not used until their invalidation has been carried out."""
        until = self._clock.monotonic() + _LONGEST
        with self._lock:
            for url in urls:
                self._until.setdefault(url, []).append(until)

    def end(self, urls: Iterable[str]) -> None:
        """Have these used again, unless another request is changing them as well."""
        with self._lock:
            for url in urls:
                pending = self._until.get(url, [])[1:]
                if pending:
                    self._until[url] = pending
                else:
                    self._until.pop(url, None)

    def __contains__(self, url: str) -> bool:
        if not self._until:
            return False
        with self._lock:
            pending = self._until.get(url)
        return pending is not None and pending[-1] > self._clock.monotonic()
