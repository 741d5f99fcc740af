"""A bounded table that drops the least recently used entries."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

K = TypeVar("K", bound="Hashable")
V = TypeVar("V")


class LRU(dict[K, V]):
    """A dictionary whose entries have a total size of at most ``room``. Thread-safe.

    Reads as in a dictionary do not mark entries as used. Use the methods below for changes.
    """

    __slots__ = ("_lock", "_sizes", "room", "size")

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room: int = room
        self.size: int = 0
        self._sizes: dict[K, int] = {}
        self._lock = threading.Lock()

    def use(self, key: K) -> V | None:
        """Return a value and mark it as used; None if the key is missing."""
        with self._lock:
            value = self.pop(key, None)
            if value is not None:
                self[key] = value
            return value

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Set a value, and drop entries beyond the room. Larger values are not kept at all."""
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
        """Remove entries; missing keys are ignored."""
        with self._lock:
            for key in keys:
                self._drop(key)

    def remove_if(self, matches: Callable[[V], bool]) -> None:
        """Remove the entries with a matching value."""
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
