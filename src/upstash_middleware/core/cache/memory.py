"""What this process has learned about resources, in bounded room: a guess, never a truth."""

from __future__ import annotations

import threading

from upstash_middleware.values import dataclass


@dataclass(frozen=True, slots=True)
class Learned:
    """What a lookup of a resource should ask for."""

    vary: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


NOTHING_LEARNED = Learned()


class Memory:
    """The resources last asked for, by key; the longest unused is forgotten first.

    A wrong guess costs one more read, so nothing here has to be right. Safe under threads.
    """

    __slots__ = ("_known", "_lock", "_room")

    def __init__(self, room: int) -> None:
        self._room = room
        self._known: dict[str, Learned] = {}
        self._lock = threading.Lock()

    def recall(self, key: str) -> Learned:
        """Return what was learned of a resource."""
        if key not in self._known:
            return NOTHING_LEARNED
        with self._lock:
            learned = self._known.pop(key, None)
            if learned is None:
                return NOTHING_LEARNED
            self._known[key] = learned
            return learned

    def learn(self, key: str, learned: Learned) -> None:
        """Remember a resource; one that needs no guess takes no room."""
        with self._lock:
            self._known.pop(key, None)
            if learned != NOTHING_LEARNED:
                self._known[key] = learned
                if len(self._known) > self._room:
                    del self._known[next(iter(self._known))]
