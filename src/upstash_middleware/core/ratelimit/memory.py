"""Denials that this process remembers, so that asking again costs nothing.

A denial is forgotten when the same request would pass, and after a minute at the latest, so that
a quota raised or reset elsewhere is noticed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.ratelimit.decision import Decision, PolicyState
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.server_clock import ServerClock

MOST_DENIALS = 10_000
Asked = tuple[str, int, Any]
"""What the keys begin with, the cost, and the tier: another quota is another question."""


@dataclass(frozen=True, slots=True)
class _Denial:
    decision: Decision
    at_ms: int
    until_ms: int
    until_monotonic: float
    """By the other clock: one that is set back must not deny for longer."""


class Denials:
    """Remembers who was denied what; safe under threads. ``longest`` is in seconds, 0 for never."""

    def __init__(self, time: ServerClock, longest: float, most: int = MOST_DENIALS) -> None:
        self._time = time
        self._longest_ms = int(longest * 1000)
        self._most = most
        self._denials: OrderedDict[Asked, _Denial] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, asked: Asked, decision: Decision, at_ms: int) -> None:
        """Remember that such a request was denied by a call at ``at_ms``."""
        wait = self._longest_ms
        if decision.retry_after is not None:
            wait = min(wait, round(decision.retry_after * 1000))
        if wait <= 0:
            return
        until_monotonic = self._time.monotonic() + wait / 1000
        denial = _Denial(decision, at_ms, at_ms + wait, until_monotonic)
        with self._lock:
            self._denials[asked] = denial
            self._denials.move_to_end(asked)
            if len(self._denials) > self._most:
                self._denials.popitem(last=False)

    def forget(self, base: str) -> None:
        """Forget what was denied to whoever's keys begin with this."""
        with self._lock:
            for key in [key for key in self._denials if key[0] == base]:
                del self._denials[key]

    def recall(self, asked: Asked) -> Decision | None:
        """Return the denial of such a request, with what is left of its wait, or None."""
        denial = self._denials.get(asked)
        if denial is None:
            return None
        now_ms = self._time.now_ms()
        holds = denial.at_ms <= now_ms < denial.until_ms
        if holds and self._time.monotonic() < denial.until_monotonic:
            return _later(denial.decision, now_ms - denial.at_ms)
        with self._lock:
            self._denials.pop(asked, None)
        return None


def _later(was: Decision, passed_ms: int) -> Decision:
    """Return a denial with what is left of its waits."""
    policies = [
        PolicyState(
            policy.name,
            policy.limit,
            policy.window,
            policy.remaining,
            policy.reset,
            policy.allowed,
            _rest(policy.retry_after, passed_ms),
            policy.never,
        )
        for policy in was.policies
    ]
    return Decision(
        was.allowed,
        was.rule,
        was.identifier,
        was.limit,
        was.remaining,
        was.reset,
        _rest(was.retry_after, passed_ms),
        tuple(policies),
        was.shadow,
        "memory",
        was.challenge,
    )


def _rest(wait: float | None, passed_ms: int) -> float | None:
    return None if wait is None else max(0, round(wait * 1000) - passed_ms) / 1000
