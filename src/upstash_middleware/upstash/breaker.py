"""The circuit breaker: whether to ask Upstash at all, after how the latest calls went. No I/O.

*Closed*, every call passes and its outcome is noted. *Open*, none does. *Half-open*, after a
pause, one call is let through; it closes the circuit, or opens it for twice as long.

What counts against Upstash: no answer, a wrong one, a token or quota refused (every call would
be), and a slow one. A command that failed does not: Upstash has answered.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from upstash_middleware.errors import CircuitOpen, CommandError, Refused, UpstashError
from upstash_middleware.refusals import Refusal
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType

REMEMBERED_CALLS: Final = 20
REMEMBERED_SECONDS: Final = 30.0
FEWEST_CALLS: Final = 5
"""With half of the remembered calls bad, and at least so many of them, the circuit opens."""

FIRST_PAUSE: Final = 0.25
"""Seconds until the first probe: what breaks for a moment is soon asked again."""

_CUT_OFF: Final = ""
"""The outcome of a call that was cancelled, or ended by a fault that is not Upstash's."""

_OF_EVERY_CALL: Final = frozenset({Refusal.TOKEN, Refusal.QUOTA})


@dataclass(frozen=True, slots=True)
class Opened:
    """The circuit has opened: so many of the latest calls were bad, the last of them like this."""

    bad: int
    of: int
    last: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The circuit has closed: a probe went well, so many seconds after it had opened."""

    after: float


Change = Opened | Closed


class Breaker:
    """One database's circuit in one process; safe under threads and event loops.

    ``slow`` is how many seconds a call may take before it counts as bad, ``longest_pause`` how
    many lie between two probes at most. ``clock`` counts seconds. ``tell`` is called when the
    circuit opens and when it closes, outside of every lock.
    """

    def __init__(
        self,
        *,
        slow: float,
        clock: Callable[[], float],
        tell: Callable[[Change], None],
        longest_pause: float = 10.0,
    ) -> None:
        self._slow = slow
        self._longest_pause = longest_pause
        self._clock = clock
        self._tell = tell
        self._lock = threading.Lock()
        self._calls: deque[tuple[float, bool]] = deque(maxlen=REMEMBERED_CALLS)
        self._open = False
        self._opened_at = 0.0
        self._pause = FIRST_PAUSE
        self._probe_at = 0.0
        self._probing = False

    def check(self) -> None:
        """Raise CircuitOpen where a call could not pass now; takes no lock."""
        if self._open and (self._probing or self._clock() < self._probe_at):
            raise CircuitOpen("Upstash is not asked for a while, since too many calls had failed")

    def passing(self) -> AbstractContextManager[None]:
        """Let one call pass and see how it goes; entering raises CircuitOpen where it may not.

        However the call ends, also when it is cancelled, the next probe can be made.
        """
        return _Passage(self)

    def enter(self) -> tuple[float, bool]:
        """Return when this call begins, and whether it is a probe."""
        is_probe = False
        if self._open:
            with self._lock:
                self.check()
                is_probe = self._probing = self._open
        return self._clock(), is_probe

    def leave(self, began: float, outcome: str | None, *, is_probe: bool) -> None:
        """See how a call went: None for well, else in words."""
        took = self._clock() - began
        if outcome in {None, _CUT_OFF} and took > self._slow:
            outcome = f"it took {took:.2g} s"
        change = self._after(outcome, is_probe=is_probe)
        if change is not None:
            self._tell(change)

    def _after(self, outcome: str | None, *, is_probe: bool) -> Change | None:
        with self._lock:
            now = self._clock()
            if is_probe:
                self._probing = False
                return self._after_probe(now, outcome)
            if self._open or outcome == _CUT_OFF:
                return None  # on its way before the circuit opened, or ended by who had asked
            self._calls.append((now, outcome is not None))
            return None if outcome is None else self._after_bad(now, outcome)

    def _after_bad(self, now: float, said: str) -> Opened | None:
        recent = [bad for at, bad in self._calls if now - at < REMEMBERED_SECONDS]
        bad = sum(recent)
        if bad < FEWEST_CALLS or bad * 2 < len(recent):
            return None
        self._open, self._opened_at, self._pause = True, now, FIRST_PAUSE
        self._probe_at = now + self._pause
        return Opened(bad, len(recent), said)

    def _after_probe(self, now: float, outcome: str | None) -> Closed | None:
        if outcome is None:
            self._open = False
            self._calls.clear()
            return Closed(now - self._opened_at)
        if outcome != _CUT_OFF:  # else the next call is the probe
            self._pause = min(self._pause * 2, self._longest_pause)
            self._probe_at = now + self._pause
        return None


class _Passage:
    """One call that passes."""

    __slots__ = ("_began", "_breaker", "_is_probe")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        self._began, self._is_probe = self._breaker.enter()

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None:
            outcome = None
        else:
            outcome = _against_upstash(error) if isinstance(error, UpstashError) else _CUT_OFF
        self._breaker.leave(self._began, outcome, is_probe=self._is_probe)


def _against_upstash(error: UpstashError) -> str | None:
    """Return what an error says against Upstash; None where it has done its part."""
    if isinstance(error, CommandError) or (
        isinstance(error, Refused) and error.kind not in _OF_EVERY_CALL
    ):
        return None
    return f"{type(error).__name__}: {error}"
