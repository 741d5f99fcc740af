"""Entries as last decoded, by key: the same bytes are not checked and parsed a second time.

Nothing is believed of what stands on Redis: an entry is taken from here only if the bytes that
were just read are, to the last one, those that it was decoded from. Room is bounded in bytes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from upstash_middleware.core.cache.entries import Damaged, StoredResponse, decode, opened

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import Stub
    from upstash_middleware.core.cache.sealing import Sealing

    Entry = StoredResponse | Stub

ROOM: Final = 1024 * 1024
LARGEST: Final = 64 * 1024
"""Bytes of what is remembered, as read and with its body opened: in all, and of one entry."""


class Decoded:
    """What was decoded last; the longest known is forgotten first. Safe under threads."""

    __slots__ = ("_known", "_lock", "_room")

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, Entry, int]] = {}
        self._room = ROOM
        self._lock = threading.Lock()

    def read(self, key: str, data: bytes | None, sealing: Sealing | None = None) -> Entry | None:
        """Return the entry that these bytes are at this key; None for whatever is none."""
        known = self._known.get(key)
        if known is not None and known[0] == data:
            return known[1]
        entry = decode(key, data, sealing)
        if entry is None or data is None:
            return None
        if len(data) > LARGEST or (isinstance(entry, StoredResponse) and entry.length > LARGEST):
            return entry
        try:
            ready = opened(entry) if isinstance(entry, StoredResponse) else entry
        except Damaged:
            return entry  # whoever asks for its body will find that out
        self._remember(key, data, ready)
        return ready

    def _remember(self, key: str, data: bytes, entry: Entry) -> None:
        size = len(key) + len(data) + (entry.length if isinstance(entry, StoredResponse) else 0)
        with self._lock:
            self._forget(key)
            self._known[key] = (data, entry, size)
            self._room -= size
            while self._room < 0:
                self._forget(next(iter(self._known)))

    def _forget(self, key: str) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._room += known[2]
