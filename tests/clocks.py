"""Clocks that a test moves, for every middleware of the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.clock import SystemClock

if TYPE_CHECKING:
    import pytest

    from upstash_middleware.core.clock import Clock


class MovableClock:
    """Clocks that only a test moves, so that no result depends on how long it takes."""

    def __init__(self) -> None:
        self._wall, self._monotonic = SystemClock.wall(), SystemClock.monotonic()

    def wall(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._wall += seconds
        self._monotonic += seconds


def use_clock(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every middleware of this process read this clock, until the patch is undone."""
    monkeypatch.setattr(SystemClock, "wall", clock.wall)
    monkeypatch.setattr(SystemClock, "monotonic", clock.monotonic)
