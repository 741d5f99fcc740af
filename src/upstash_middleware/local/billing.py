"""Billing by Upstash's rule: HTTP requests, and commands including the inner calls of scripts."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from upstash_middleware.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Mapping

DOLLARS_PER_COMMAND: Final = 0.20 / 100_000
"""Upstash's pay-as-you-go list price."""
_FREE_COMMANDS: Final = frozenset({"PING", "AUTH", "INFO", "QUIT", "COMMAND"})
_MAX_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Bill:
    """The usage since the last reset.

    Args:
        requests: HTTP requests.
        commands: Billed commands, including each call inside a script.
        by_command: Billed commands by name: ``{"EVAL": 1, "GET": 2}``.
    """

    requests: int = 0
    commands: int = 0
    by_command: Mapping[str, int] = field(default_factory=dict)

    @property
    def dollars_per_million_requests(self) -> float:
        """The price of a million requests like these, in US dollars; 0 before the first."""
        if not self.requests:
            return 0.0
        return self.commands / self.requests * 1_000_000 * DOLLARS_PER_COMMAND


class Meter:
    """Counts requests and commands; commands also by the second in which they ran."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.started_at: float = SystemClock.wall()
        self.history: deque[tuple[int, Counter[str]]] = deque(maxlen=_MAX_SECONDS)
        """The seconds since 1970 in which commands ran, oldest first, with the commands."""
        self._requests = 0
        self._commands: Counter[str] = Counter()

    def add_request(self) -> None:
        self._requests += 1

    def add_command(self, name: str, times: int = 1) -> int:
        """Count a command by its upper-case name, unless it is free; return the billed number."""
        if name in _FREE_COMMANDS:
            return 0
        self._commands[name] += times
        second = int(SystemClock.wall())
        if not self.history or self.history[-1][0] != second:
            self.history.append((second, Counter()))
        self.history[-1][1][name] += times
        return times

    def read(self) -> Bill:
        return Bill(self._requests, self._commands.total(), dict(self._commands))
