"""The circuit breaker: whether to call Upstash at all, after how the latest calls ended. No I/O.

*Closed*, every call is made and its outcome is remembered. *Open*, none is. *Half-open*, after a
pause, one call is made as a probe; it closes the circuit, or opens it for twice as long.

A call counts as bad if there was no response or a wrong one, if the token was rejected or the quota
is used up (then every call would fail), or if it was slow. A command that failed does not count:
Upstash has responded.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from upstash_middleware.errors import CircuitOpen, CommandError, Refusal, Refused, UpstashError
from upstash_middleware.events import CircuitClosed, CircuitOpened

if TYPE_CHECKING:
    from collections.abc import Callable

Call = tuple[float, bool]
"""When a call began, and whether it is a probe."""

REMEMBERED_CALLS: Final = 20
REMEMBERED_SECONDS: Final = 30.0
MIN_BAD_CALLS: Final = 5
"""The circuit opens when half of the remembered calls, and at least this many, are bad."""

FIRST_PAUSE: Final = 0.25
"""Seconds until the first probe; each failed probe doubles the pause."""

_CUT_OFF: Final = ""
"""The outcome of a call that was cancelled, or ended by an error that is not Upstash's."""


class Breaker:
    """One database's circuit in one process; safe under threads and event loops.

    Args:
        slow: Seconds that a call may take before it counts as bad.
        clock: Counts seconds.
        emit: Called when the circuit opens and when it closes, outside of every lock.
        longest_pause: Seconds between two probes at most.
    """

    def __init__(
        self,
        *,
        slow: float,
        clock: Callable[[], float],
        emit: Callable[[CircuitOpened | CircuitClosed], object],
        longest_pause: float = 10.0,
    ) -> None:
        self._slow = slow
        self._longest_pause = longest_pause
        self._clock = clock
        self._emit = emit
        self._lock = threading.Lock()
        self._calls: deque[tuple[float, bool]] = deque(maxlen=REMEMBERED_CALLS)
        self._open = False
        self._opened_at = 0.0
        self._pause = FIRST_PAUSE
        self._probe_at = 0.0
        self._probing = False

    def check(self) -> None:
        """Raise CircuitOpen if no call may be made now; takes no lock."""
        if self._open and (self._probing or self._clock() < self._probe_at):
            raise CircuitOpen("no call was made: too many recent calls failed or were slow")

    def begin(self) -> Call:
        """Begin a call, which ``end`` has to end; raises CircuitOpen if none may be made."""
        is_probe = False
        if self._open:
            with self._lock:
                self.check()
                is_probe = self._probing = self._open
        return self._clock(), is_probe

    def end(self, call: Call, error: BaseException | None) -> None:
        """End a call, with the error that it ended with, which may be a cancellation."""
        began, is_probe = call
        now = self._clock()
        outcome = None if error is None else _outcome(error)
        if now - began > self._slow and outcome in {None, _CUT_OFF}:
            outcome = f"it took {now - began:.2g} s"
        event: CircuitOpened | CircuitClosed | None = None
        with self._lock:
            if is_probe:
                self._probing = False
                if outcome is None:
                    self._open = False
                    self._calls.clear()
                    event = CircuitClosed(now - self._opened_at)
                elif outcome != _CUT_OFF:  # after one that was cut off, the next call is the probe
                    self._pause = min(self._pause * 2, self._longest_pause)
                    self._probe_at = now + self._pause
            elif not self._open and outcome != _CUT_OFF:  # else it began before the circuit opened
                self._calls.append((now, outcome is not None))
                if outcome is not None:
                    event = self._open_if_many_are_bad(now, outcome)
        if event is not None:
            self._emit(event)

    def _open_if_many_are_bad(self, now: float, outcome: str) -> CircuitOpened | None:
        recent = [bad for at, bad in self._calls if now - at < REMEMBERED_SECONDS]
        bad = sum(recent)
        if bad < MIN_BAD_CALLS or bad * 2 < len(recent):
            return None
        self._open, self._opened_at, self._pause = True, now, FIRST_PAUSE
        self._probe_at = now + self._pause
        return CircuitOpened(bad, len(recent), outcome)


def _outcome(error: BaseException) -> str | None:
    """Return the outcome of a call that raised this error; None if the call counts as good."""
    if not isinstance(error, UpstashError):
        return _CUT_OFF
    if isinstance(error, CommandError):
        return None
    if isinstance(error, Refused) and error.kind not in {Refusal.TOKEN, Refusal.QUOTA}:
        return None
    return f"{type(error).__name__}: {error}"
