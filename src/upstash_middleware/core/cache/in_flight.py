"""Coordination of the concurrent requests of one process.

``SingleFlight`` has one request lead the others that wait for the same response; ``Revalidations``
has one at a time revalidate a stored response; ``PendingInvalidations`` keeps stored responses
from being used that are about to be invalidated. All are safe under threads.
"""

from __future__ import annotations

import threading
from enum import Enum, auto
from typing import TYPE_CHECKING

from msgspec import Struct, field

from upstash_middleware.core.flow import Latch
from upstash_middleware.core.lru import LRU

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.clock import Clock

BACK_OFF = 5.0
"""Seconds for which a revalidation that has failed is not repeated."""
_ROOM = 10_000
_LONGEST = 60.0
"""Seconds after which a render, revalidation or invalidation counts as dropped by its owner."""


class NotShared(Enum):
    """Why a response does not answer those who wait for it."""

    UNSHAREABLE = auto()
    """It may not be stored, or it streams: so would the next one."""
    FAILED = auto()
    """It is an error, and a stale response is used in its place."""
    INTERRUPTED = auto()
    """Its client left: another request has to be forwarded."""


class Flight(Struct, eq=False):
    """A forwarded request for which others may wait."""

    key: str
    started_at: float
    """By the monotonic clock."""
    latch: Latch = field(default_factory=Latch)
    result: object = None
    """``NotShared``, or what its leader shares."""


class SingleFlight:
    """The requests of this process that are forwarded, and how earlier ones ended.

    Safe under threads. What is remembered of how they ended is bounded, and only a guess.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flights: dict[str, Flight] = {}
        self._shareable: LRU[str, bool] = LRU(_ROOM)
        """Whether the last response under a key could be shared with those who waited."""
        self._lock = threading.Lock()

    def join(
        self, key: str, *, expected: bool = True, may_lead: bool = True
    ) -> tuple[Flight | None, bool]:
        """Return the flight for a key, and whether the caller leads it.

        None if there is none and the caller may not lead, and if no response is ``expected`` that
        can be shared; how the last one ended takes precedence over that.
        """
        with self._lock:
            if not self.expects(key, default=expected):
                return None, False
            flight, now = self._flights.get(key), self._clock.monotonic()
            if flight is not None and now < flight.started_at + _LONGEST:
                return flight, False
            if not may_lead:
                return None, False
            self._flights[key] = flight = Flight(key, now)
            if len(self._flights) > _ROOM:
                del self._flights[next(iter(self._flights))]
            return flight, True

    def resolve(self, flight: Flight, result: object, *, in_time: bool) -> None:
        """Wake those who wait for a flight; only the first call counts.

        A shared result also answers those who come until the flight is forgotten. ``in_time`` says
        whether those who have waited from the beginning still do.
        """
        with self._lock:
            if flight.result is not None:
                return
            flight.result = result
            shared = not isinstance(result, NotShared)
            if not shared and self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            if shared or result is NotShared.UNSHAREABLE:
                self._shareable.put(flight.key, shared and in_time)
        flight.latch.open()

    def forget(self, flight: Flight) -> None:
        """Remove a flight, so that no more requests join it: it is stored, or takes too long."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    def expects(self, key: str, *, default: bool) -> bool:
        """Whether a response under a key is expected that can be shared; a default if unknown."""
        shareable = self._shareable.peek(key)
        return default if shareable is None else shareable

    def expect(self, key: str) -> None:
        """Expect that the next response under a key can be shared, as this one could."""
        self._shareable.put(key, True)

    def clear(self) -> None:
        """Forget how requests have ended."""
        self._shareable.clear()


class Revalidations:
    """Which stored responses are being revalidated, and which revalidations have just failed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: LRU[str, tuple[float, bool]] = LRU(_ROOM)
        """When the next one under a key may begin, and whether the last one failed."""
        self._lock = threading.Lock()

    def begin(self, key: str) -> bool:
        """Return whether the caller is to revalidate a stored response, and then end it.

        One at a time, and none for ``BACK_OFF`` seconds after one has failed.
        """
        with self._lock:
            until, failed = self._known.peek(key) or (0.0, False)
            now = self._clock.monotonic()
            if now < until:
                return False
            self._known.put(key, (now + (BACK_OFF if failed else _LONGEST), failed))
            return True

    def end(self, key: str, *, failed: bool) -> None:
        """Remember how a revalidation ended."""
        with self._lock:
            if failed:
                self._known.put(key, (self._clock.monotonic() + BACK_OFF, True))
            elif key in self._known:
                self._known.remove(key)

    def failing(self, key: str) -> bool:
        """Whether the last revalidation has just failed; after a while one caller is to retry."""
        known = self._known.peek(key)
        return known is not None and known[1] and not self.begin(key)

    def clear(self) -> None:
        """Forget all of them."""
        self._known.clear()


class PendingInvalidations:
    """The URLs that this process is about to invalidate; what is stored for them is not used.

    An invalidation reaches Redis after its response was sent, and the client's next request must
    see its own change. Safe under threads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def begin(self, urls: Iterable[str]) -> None:
        """Add URLs, as in the names of epochs."""
        until = self._clock.monotonic() + _LONGEST
        with self._lock:
            for url in urls:
                self._until.setdefault(url, []).append(until)

    def end(self, urls: Iterable[str]) -> None:
        """Remove URLs, unless another request is invalidating them as well."""
        with self._lock:
            for url in urls:
                if pending := self._until.pop(url, [])[1:]:
                    self._until[url] = pending

    def __contains__(self, url: str) -> bool:
        if not self._until:
            return False
        with self._lock:
            pending = self._until.get(url)
        return pending is not None and pending[-1] > self._clock.monotonic()
