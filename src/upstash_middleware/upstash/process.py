"""What a process holds, and must not take over from the one that forked it. No I/O."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class ForkSafeLock:
    """A lock that is free in a forked child, where the thread that held it does not exist.

    Made once per module: what is registered for forks stays registered.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_opening = ForkSafeLock()
_forks = 0
"""How many forks lie between the first process and this one: quicker told than a process's id."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - it belongs to the process, as what is counted here does
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class OnePerProcess(Generic[T]):
    """A thing made at first use, and made anew in a forked child."""

    __slots__ = ("_held", "_inherited", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._held: tuple[int, T] | None = None
        self._inherited: list[T] = []

    def get(self) -> T:
        """Return this process's."""
        held = self._held
        if held is not None and held[0] == _forks:
            return held[1]
        with _opening:
            held = self._held
            if held is None or held[0] != _forks:
                if held is not None:
                    # Its threads are the parent's: taking it down here could wait for them.
                    self._inherited.append(held[1])
                self._held = held = (_forks, self._make())
            return held[1]

    def forget(self) -> T | None:
        """Return this process's, if it has been made; the next use makes another."""
        with _opening:
            held = self._held
            if held is None or held[0] != _forks:
                return None
            self._held = None
            return held[1]
