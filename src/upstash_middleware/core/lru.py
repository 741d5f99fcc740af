"""A bounded table: the least recently used entries are dropped first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class LRU(Generic[K, V]):
    """A mapping whose entries have at most ``room`` in total size. Safe under threads."""

    __slots__ = ("_items", "_lock", "room", "size")

    def __init__(self, room: int) -> None:
        self.room: int = room
        self.size: int = 0
        self._items: dict[K, tuple[V, int]] = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """Return a value and mark it as used; None if there is none."""
        if key not in self._items:  # without the lock: nearly always, for most tables
            return None
        with self._lock:
            item = self._items.pop(key, None)
            if item is None:
                return None
            self._items[key] = item
            return item[0]

    def peek(self, key: K) -> V | None:
        """Return a value without marking it as used; None if there is none."""
        item = self._items.get(key)
        return None if item is None else item[0]

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Set a value, and drop what no longer fits; one larger than the room is not kept."""
        with self._lock:
            self._drop(key)
            if size > self.room:
                return
            self._items[key] = value, size
            self.size += size
            while self.size > self.room:
                self._drop(next(iter(self._items)))

    def remove(self, *keys: K) -> None:
        """Remove entries, if they are there."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def remove_if(self, matches: Callable[[V], bool]) -> None:
        """Remove the entries whose value matches."""
        with self._lock:
            for key in [key for key, (value, _) in self._items.items() if matches(value)]:
                self._drop(key)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._items.clear()
            self.size = 0

    def _drop(self, key: K) -> None:
        if (item := self._items.pop(key, None)) is not None:
            self.size -= item[1]
