"""The clock of this process, and its middleware with state, for control by tests.

`LocalUpstash.advance` and `LocalUpstash.reset` act on the local server and, through this module, on
every middleware of the process.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable


class SystemClock:
    """The machine's clocks, in seconds, plus the time added by `advance`."""

    wall: Callable[[], float] = staticmethod(time.time)
    monotonic: Callable[[], float] = staticmethod(time.monotonic)


class Remembers(Protocol):
    """A middleware that remembers results of its server."""

    @property
    def server_url(self) -> str | None:
        """The URL of the server that it uses; None before the first use."""
        ...

    def forget(self) -> None:
        """Forget everything learned or counted since the start."""
        ...


remembering: WeakSet[Remembers] = WeakSet()
"""Every enabled middleware of this process."""

_advanced = 0.0


def advance(seconds: float) -> None:
    """Move this process's clock forward, for every middleware in it."""
    global _advanced  # noqa: PLW0603 - one clock per process
    _advanced += seconds
    moved = _advanced
    if moved:
        SystemClock.wall = staticmethod(lambda: time.time() + moved)
        SystemClock.monotonic = staticmethod(lambda: time.monotonic() + moved)
    else:
        SystemClock.wall = staticmethod(time.time)
        SystemClock.monotonic = staticmethod(time.monotonic)


def forget() -> None:
    """Make every middleware of this process forget its remembered state."""
    for each in list(remembering):
        each.forget()


def restore() -> None:
    """Set this process's clock back to the machine's time."""
    advance(-_advanced)
