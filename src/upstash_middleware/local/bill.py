"""The bill by Upstash's rule: HTTP requests, and commands with the inner calls of scripts.

Only counting may live here.  Prices are Upstash's pay-as-you-go list prices.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FREE_COMMANDS: Final = frozenset({"PING", "AUTH", "INFO", "QUIT", "COMMAND"})
DOLLARS_PER_COMMAND: Final = 0.20 / 100_000


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


class Meter:
    """Counts as the server works."""

    __slots__ = ("_commands", "_requests")

    def __init__(self) -> None:
        self._requests = 0
        self._commands: Counter[str] = Counter()

    def add_request(self) -> None:
        """Count one HTTP request."""
        self._requests += 1

    def add_command(self, name: str, times: int = 1) -> None:
        """Count a command by its upper-case name, unless it is free."""
        if name not in FREE_COMMANDS:
            self._commands[name] += times

    def read(self) -> Bill:
        """The bill so far."""
        return Bill(self._requests, self._commands.total(), dict(self._commands))

    def reset(self) -> None:
        """Begin a new bill."""
        self._requests = 0
        self._commands.clear()
