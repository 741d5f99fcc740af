"""Objects that a process must not use after a fork or a suspension of the machine. No I/O."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
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
"""The number of forks from the first process to this one; cheaper to read than the PID."""


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - a count of the process
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def fork_number() -> int:
    """Return a number that differs between a process and its forked children."""
    return _forks


class OnePerProcess(Generic[T]):
    """An object that is created on first use, and created again in a forked child."""

    __slots__ = ("_current", "_inherited", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._current: tuple[int, T] | None = None
        self._inherited: list[T] = []

    def get(self) -> T:
        """Return this process's object."""
        current = self._current
        if current is not None and current[0] == _forks:
            return current[1]
        with _opening:
            current = self._current
            if current is None or current[0] != _forks:
                if current is not None:
                    # Its threads are the parent's: closing it here could wait for them.
                    self._inherited.append(current[1])
                self._current = current = (_forks, self._make())
            return current[1]

    def forget(self) -> T | None:
        """Return this process's object, if there is one; the next use creates another."""
        with _opening:
            current = self._current
            if current is None or current[0] != _forks:
                return None
            self._current = None
            return current[1]


GAP_SECONDS: Final = 5.0
"""By how much the wall clock must have advanced beyond the monotonic clock since the last call:
more than clocks are corrected by, less than any router keeps a silent connection."""


class SuspendDetector:
    """Notices that the machine was suspended, which stops the monotonic clock on some systems.

    Connections to the other side are then lost without a trace. Safe under threads.
    """

    __slots__ = ("_ahead", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ahead = time.time() - time.monotonic()

    def was_suspended(self) -> bool:
        """Whether the machine was suspended since the last call; only one thread gets True.

        A wall clock that was set forward counts too, which costs one connection.
        """
        ahead = time.time() - time.monotonic()
        if ahead - self._ahead <= GAP_SECONDS:
            self._ahead = ahead
            return False
        with self._lock:
            suspended = ahead - self._ahead > GAP_SECONDS
            self._ahead = ahead
        return suspended


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the asyncio event loop that runs in this thread; importing asyncio is left to it."""
    return sys.modules["asyncio"].get_running_loop()  # type: ignore[no-any-return]
