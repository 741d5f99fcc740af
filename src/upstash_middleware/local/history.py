"""The bill over time: what was spent in each second of the last hours that had any traffic.

Only the keeping of samples may live here; who takes them, and when, is the business of `running`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.bill import Bill

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_SAMPLES: Final = 3600


@dataclass(frozen=True, slots=True)
class Spent:
    """What the bill grew by between one sample and the next."""

    at: float
    """When the sample was taken, seconds since 1970."""
    requests: int
    by_command: Mapping[str, int]


class History:
    """The latest samples; a second without traffic takes no room."""

    __slots__ = ("_before", "_clock", "_spent", "begun")

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._spent: deque[Spent] = deque(maxlen=MOST_SAMPLES)
        self.clear()

    def clear(self) -> None:
        """Forget all, for a new bill."""
        self.begun: float = self._clock()
        self._before = Bill()
        self._spent.clear()

    def take(self, bill: Bill) -> None:
        """Take a sample."""
        before, self._before = self._before, bill
        if (bill.requests, bill.commands) == (before.requests, before.commands):
            return
        # A bill that was begun anew in this very moment is smaller: then there is no difference.
        commands = Counter(bill.by_command) - Counter(before.by_command)
        requests = max(0, bill.requests - before.requests)
        self._spent.append(Spent(self._clock(), requests, commands))

    def read(self) -> list[Spent]:
        """The samples, oldest first."""
        return list(self._spent)
