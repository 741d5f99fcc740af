"""The layer in this process: what lookups have found, in bounded room and for bounded time.

It knows where a stored response stands on Redis and when that was last read there, and no rule of
HTTP: whether one may be used is asked of it as of any other. It is filled by lookups alone, so
nothing gets here that was not alive on Redis. A key names all that its response is selected by
(``keys``), so whoever has a key may have what is under it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from upstash_middleware.core.cache.lookup import Lookup
    from upstash_middleware.core.cache.purging import Purge
    from upstash_middleware.core.cache.store import Target
    from upstash_middleware.core.clock import Clock

# What one stored response takes beside its bytes: objects of some 3 kB were measured, and their
# number grows with fields and tags.
_OBJECTS = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """A lookup that found something, and what it is about."""

    lookup: Lookup
    url: str
    """As its epoch is named by."""
    size: int


class L1:
    """Lookups by the keys of what they found; the longest unused is forgotten first.

    ``room`` is in bytes, 0 for none. For ``seconds`` a lookup counts as what Redis would answer;
    what is kept for longer is for when Redis does not. Safe under threads.
    """

    __slots__ = ("_changes", "_clock", "_kept", "_lock", "_room", "_seconds", "_size")

    def __init__(self, room: int, seconds: float, clock: Clock) -> None:
        self._room = room
        self._seconds = seconds
        self._clock = clock
        self._kept: dict[str, Kept] = {}
        self._size = 0
        self._changes = 0
        self._lock = threading.Lock()

    @property
    def holds(self) -> bool:
        """Whether there is anything to find, so that nobody makes keys in vain."""
        return bool(self._kept)

    @property
    def changes(self) -> int:
        """How often this process has changed what is on Redis; to be read before a lookup."""
        return self._changes

    def find(self, key: str) -> Lookup | None:
        """Return what was found at a key, however long ago."""
        if key not in self._kept:
            return None
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None:
                return None
            self._kept[key] = kept
            return kept.lookup

    def unheard(self, lookup: Lookup) -> float:
        """Return for how many seconds purges are not heard of any more; below 0: they are.

        A frozen process may not have seen the time pass on one of its clocks.
        """
        wall, monotonic = self._clock.wall(), self._clock.monotonic()
        return max(wall - lookup.wall, monotonic - lookup.monotonic) - self._seconds

    def put(self, target: Target, lookup: Lookup, changes: int) -> None:
        """Keep what a lookup has found, in place of what was found there before.

        ``changes`` as read before it: what it read may be older than a change made since.
        """
        if not self._room:
            return
        with self._lock:
            self._drop(target.key)
            self._drop(lookup.key)
            size = _size(lookup)
            if lookup.entry is None or lookup.purged_softly or changes != self._changes:
                return
            if size > self._room:
                return
            self._kept[lookup.key] = Kept(lookup, target.url, size)
            self._size += size
            while self._size > self._room:
                self._drop(next(iter(self._kept)))

    def replaced(self, *keys: str) -> None:
        """Forget what was at these keys: this process has stored something there."""
        with self._lock:
            self._changes += 1
            for key in keys:
                self._drop(key)

    def purged(self, what: Purge, urls: Collection[str]) -> None:
        """Forget what this process has purged; ``urls`` as epochs are named by."""
        if what.everything:
            self._forget(lambda _: True)
        else:
            tags = set(what.tags)
            self._forget(lambda kept: kept.url in urls or not tags.isdisjoint(_tags(kept)))

    def _forget(self, concerns: Callable[[Kept], bool]) -> None:
        with self._lock:
            self._changes += 1
            for key in [key for key, kept in self._kept.items() if concerns(kept)]:
                self._drop(key)

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size


def _tags(kept: Kept) -> tuple[str, ...]:
    return kept.lookup.entry.tags if kept.lookup.entry is not None else ()


def _size(lookup: Lookup) -> int:
    if lookup.entry is None:
        return 0
    fields = sum(len(name) + len(text) for name, text in lookup.entry.headers.raw)
    names = len(lookup.key) + sum(map(len, lookup.entry.tags))
    variants = 100 * len(lookup.stub.variants) if lookup.stub is not None else 0
    return _OBJECTS + names + fields + variants + len(lookup.entry.packed)
