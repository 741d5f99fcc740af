"""Billing by Upstash's rule: HTTP requests, and commands including the inner calls of scripts."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DOLLARS_PER_COMMAND: Final = 0.20 / 100_000
"""Upstash's pay-as-you-go list price."""
_FREE_COMMANDS: Final = frozenset({"PING", "AUTH", "INFO", "QUIT", "COMMAND"})
_MAX_SAMPLES: Final = 3600


@dataclass(frozen=True, slots=True)
class Bill:
    """What was used since the last reset.

    `requests` counts HTTP requests; `commands` counts billed commands, each call inside a script
    included; `by_command` splits the latter by command name (``{"EVAL": 1, "GET": 2}``).
    """

    requests: int = 0
    commands: int = 0
    by_command: Mapping[str, int] = field(default_factory=dict)

    @property
    def dollars_per_million_requests(self) -> float:
        """What a million requests like these cost, in US dollars; 0 before the first."""
        if not self.requests:
            return 0.0
        return self.commands / self.requests * 1_000_000 * DOLLARS_PER_COMMAND


class Sample(Struct, frozen=True):
    """The commands that were billed between the previous sample and this one."""

    at: float
    """When the sample was taken, seconds since 1970."""
    by_command: Mapping[str, int]


class Meter:
    """Counts requests and commands, and samples the counts over time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.samples: deque[Sample] = deque(maxlen=_MAX_SAMPLES)
        """Oldest first; there is no sample of a second in which no command ran."""
        self.reset()

    def reset(self) -> None:
        self.started_at: float = self._clock()
        self._requests = 0
        self._commands: Counter[str] = Counter()
        self._sampled: Counter[str] = Counter()
        self.samples.clear()

    def add_request(self) -> None:
        self._requests += 1

    def add_command(self, name: str, times: int = 1) -> None:
        """Count a command by its upper-case name, unless it is free."""
        if name not in _FREE_COMMANDS:
            self._commands[name] += times

    def read(self) -> Bill:
        return Bill(self._requests, self._commands.total(), dict(self._commands))

    def sample(self) -> None:
        if used := self._commands - self._sampled:
            self.samples.append(Sample(self._clock(), used))
            self._sampled = self._commands.copy()
