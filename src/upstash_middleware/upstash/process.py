"""Objects that a process must not share with a forked child. No I/O."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class ForkSafeLock:
    """A lock that is free in a forked child, where the thread that held it does not exist.

    Create it once per module, because handlers for forks cannot be unregistered.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self.lock: threading.RLock = threading.RLock()


_opening = ForkSafeLock()
_forks: list[None] = []
"""One entry for each fork between the first process and this one."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(None))

# uWSGI forks its workers without informing Python, unless py-call-osafterfork or threads are set.
current_process: Callable[[], int] = os.getpid if "uwsgi" in sys.modules else _forks.__len__
"""Returns a number that differs between a process and its forked children.

Counting forks is cheaper than the PID, which needs a system call.
"""


class OnePerProcess(Generic[T]):
    """An object that is created on first use, and again in a forked child."""

    __slots__ = ("_current", "_inherited", "_make")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._current: tuple[int, T] | None = None
        self._inherited: list[T] = []

    def get(self) -> T:
        """Return this process's object."""
        current, here = self._current, current_process()
        if current is not None and current[0] == here:
            return current[1]
        with _opening.lock:
            current = self._current
            if current is None or current[0] != here:
                if current is not None:
                    # Its threads belong to the parent process, so closing it here could block.
                    self._inherited.append(current[1])
                self._current = current = (here, self._make())
            return current[1]
