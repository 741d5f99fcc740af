"""A bounded table: the least recently used entries are dropped first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class LRU(dict[K, V]):
    """A dictionary whose entries have at most ``room`` in total size. Safe under threads.

    It is read like any dictionary, which marks nothing as used, and changed by the methods below.
    """

    __slots__ = ("_lock", "_sizes", "room", "size")

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room: int = room
        self.size: int = 0
        self._sizes: dict[K, int] = {}
        self._lock = threading.Lock()

    def use(self, key: K) -> V | None:
        """Return a value and mark it as used; None if there is none."""
        with self._lock:
            value = self.pop(key, None)
            if value is not None:
                self[key] = value
            return value

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Set a value, and drop what no longer fits; one larger than the room is not kept."""
        with self._lock:
            self._drop(key)
            if size > self.room:
                return
            self[key] = value
            self._sizes[key] = size
            self.size += size
            while self.size > self.room:
                self._drop(next(iter(self)))

    def remove(self, *keys: K) -> None:
        """Remove entries, if they are there."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def remove_if(self, matches: Callable[[V], bool]) -> None:
        """Remove the entries whose value matches."""
        with self._lock:
            for key in [key for key, value in self.items() if matches(value)]:
                self._drop(key)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            super().clear()
            self._sizes.clear()
            self.size = 0

    def _drop(self, key: K) -> None:
        if self.pop(key, None) is not None:
            self.size -= self._sizes.pop(key)
