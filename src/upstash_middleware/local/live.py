"""What passes through the server, for those who watch it; it costs nothing while nobody does.

Only the handing over may live here; how it looks is the business of the console.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upstash_middleware.local.resp import Reply
    from upstash_middleware.local.weather import Fault

MOST_WAITING: Final = 500
"""Sights that wait for a watcher who is slower than the traffic; more are counted only."""


@dataclass(frozen=True, slots=True)
class SeenCommand:
    """A command as a client sent it, and what came of it."""

    at: float
    """Seconds since 1970."""
    words: Sequence[bytes]
    calls: Mapping[str, int]
    """The calls that a script made, by command."""
    reply: Reply


@dataclass(frozen=True, slots=True)
class SeenFault:
    """A request that the weather has hit."""

    at: float
    fault: Fault


@dataclass(frozen=True, slots=True)
class Missed:
    """So many that a slow watcher was not shown."""

    count: int


Sight: TypeAlias = SeenCommand | SeenFault | Missed


@dataclass(eq=False, slots=True)
class Watcher:
    """One who watches; what was seen since it last looked."""

    _waiting: deque[Sight] = field(default_factory=deque)
    _missed: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def see(self, sight: Sight) -> None:
        """Called for everything that happens."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(sight)
        else:
            self._missed += 1
        self._arrived.set()

    async def look(self) -> list[Sight]:
        """Wait until there is something to see; all of it."""
        await self._arrived.wait()
        self._arrived.clear()
        seen = list(self._waiting)
        if self._missed:
            seen.append(Missed(self._missed))
        self._waiting.clear()
        self._missed = 0
        return seen


class Live:
    """Everybody who watches."""

    __slots__ = ("_watchers",)

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    @property
    def watched(self) -> bool:
        """Whether anybody does: to be asked before anything is told."""
        return bool(self._watchers)

    def watch(self) -> Watcher:
        """Begin to watch; `leave` ends it."""
        watcher = Watcher()
        self._watchers.add(watcher)
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """End watching."""
        self._watchers.discard(watcher)

    def tell_command(self, words: Sequence[bytes], calls: Mapping[str, int], reply: Reply) -> None:
        """Tell of a command."""
        self._tell(SeenCommand(time.time(), words, calls, reply))

    def tell_fault(self, fault: Fault) -> None:
        """Tell of a request that the weather has hit."""
        self._tell(SeenFault(time.time(), fault))

    def _tell(self, sight: Sight) -> None:
        for watcher in self._watchers:
            watcher.see(sight)
