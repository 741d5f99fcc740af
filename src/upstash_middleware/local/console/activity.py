"""The activity of the local Upstash: recent commands, and decisions of limits and cache.

All collections are bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from upstash_middleware.clock import SystemClock
from upstash_middleware.core.lru import LRU
from upstash_middleware.local.console.formats import summarize_reply
from upstash_middleware.local.valkey import Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from upstash_middleware.local.console.keys import ChargedLimit
    from upstash_middleware.local.faults import Fault
    from upstash_middleware.local.valkey import Reply

MAX_PENDING_EVENTS: Final = 500
"""Events that wait for a watcher slower than the traffic; further events are only counted."""
_HISTORY: Final = 200
_SHOWN_WORDS: Final = 12
_SHOWN_BYTES: Final = 121
_LATENCIES: Final = 1000
_MOST: Final = 5000
"""The most limits, rules, identifiers and kinds of errors that are remembered."""


class Event(Struct, frozen=True):
    """A command and its reply, a request affected by a fault, or a number of missed events."""

    at: float
    """Seconds since 1970."""
    name: str = ""
    words: Sequence[bytes] = ()
    """The first arguments from the client, each shortened."""
    more: int = 0
    """The number of further arguments."""
    calls: Mapping[str, int] = {}
    """The calls of a script, by command."""
    reply: str = ""
    """In a few words."""
    failed: bool = False
    billed: int = 0
    """Billed commands, including those of a script."""
    reserved: int = 0
    """Units that a limit has reserved for a lease."""
    fault: Fault | None = None
    missed: int = 0
    """The number of events that a watcher was too slow to receive."""


class Watcher:
    """The events that one watcher has not received yet."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_PENDING_EVENTS)
        self._missed = 0

    def put(self, event: Event) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            self._missed += 1

    async def take(self) -> list[Event]:
        """Wait for at least one event; return all available events."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        if self._missed:
            events.append(Event(time.time(), missed=self._missed))
            self._missed = 0
        return events


class Decisions(Struct):
    """The decisions of a rule, or about an identifier."""

    allowed: int = 0
    denied: int = 0
    limits: str = ""
    """A rule's limits as text, from its last call."""

    @property
    def requests(self) -> int:
        return self.allowed + self.denied


class Leased(Struct):
    """A limit from its last call, and the units that leases have reserved and returned."""

    limit: ChargedLimit
    reserved: int = 0
    returned: int = 0


class Activity:
    """The activity since the start or the last reset."""

    def __init__(self) -> None:
        # The modules for decoding are slow to import: during the first command, the import could
        # exceed a test's deadline.
        from upstash_middleware.local.console import keys  # noqa: PLC0415

        self._keys: ModuleType = keys
        self.watchers: set[Watcher] = set()
        self.reset()

    def reset(self) -> None:
        self.history: deque[Event] = deque(maxlen=_HISTORY)
        """The last commands and faults, oldest first."""
        self.rules: LRU[tuple[str, str], Decisions] = LRU(_MOST)
        """By prefix and rule."""
        self.identifiers: LRU[tuple[str, str], Decisions] = LRU(_MOST)
        """By kind and identifier."""
        self.limits: LRU[str, Leased] = LRU(_MOST)
        """By each key of their state."""
        self.lookups: Counter[str] = Counter()
        """The response cache's lookups: ``fresh``, ``stale`` and ``missing``."""
        self.errors: Counter[str] = Counter()
        self.latencies: deque[float] = deque(maxlen=_LATENCIES)
        """Seconds that recent requests took in this server, including simulated latency."""

    def add_fault(self, fault: Fault) -> None:
        self.add_error(f"fault {fault.value}")
        self._emit(Event(time.time(), fault=fault))

    def add_command(
        self, command: Sequence[bytes], calls: Mapping[str, int], reply: Reply, billed: int
    ) -> None:
        """Record a command from a client, and its reply."""
        name = command[0][:_SHOWN_BYTES].decode("utf-8", "backslashreplace").upper()
        reserved = 0
        if isinstance(reply, Failure):
            self.add_error(reply.text.partition(b" ")[0][:40].decode("latin-1"))
        elif name in ("EVALSHA", "EVAL"):
            reserved = self._add_charges(command, reply)
        elif (
            name == "MGET"
            and b":cache:entry:" in command[1]
            and (outcome := self._keys.read_lookup(command[1:], reply, SystemClock.wall()))
        ):
            self.lookups[outcome] += 1
        words = [word[:_SHOWN_BYTES] for word in command[1 : _SHOWN_WORDS + 1]]
        more = max(0, len(command) - 1 - _SHOWN_WORDS)
        text, failed = summarize_reply(reply), isinstance(reply, Failure)
        self._emit(Event(time.time(), name, words, more, calls, text, failed, billed, reserved))

    def _add_charges(self, command: Sequence[bytes], reply: Reply) -> int:
        """Record the decisions of a limits' script; return the units reserved for leases."""
        charged = self._keys.read_charges(command, reply)
        by_rule: dict[str, list[ChargedLimit]] = {}
        for each in charged:
            by_rule.setdefault(each.base, []).append(each)
            before = self.limits.get(each.keys[0]) or self.limits.get(each.keys[-1])
            leased = Leased(each, each.verdict.leased, each.returned)
            if before is not None and before.limit.limit == each.limit:
                leased.reserved += before.reserved
                leased.returned += before.returned
            for key in each.keys:
                self.limits.put(key, leased)
        for limits in by_rule.values():
            owner, allowed = limits[0].owner, all(each.verdict.allowed for each in limits)
            rule = self.rules.get(owner[:2]) or Decisions()
            rule.limits = "; ".join(each.text for each in limits)
            identifier = self.identifiers.get(owner[2:]) or Decisions()
            for decisions in (rule, identifier):
                decisions.allowed += allowed
                decisions.denied += not allowed
            self.rules.put(owner[:2], rule)
            self.identifiers.put(owner[2:], identifier)
        return sum({each.base: each.verdict.leased for each in charged}.values())

    def add_error(self, name: str) -> None:
        """Count an error: the code of a reply, an HTTP status, or a fault."""
        if name in self.errors or len(self.errors) < _MOST:
            self.errors[name] += 1

    def _emit(self, event: Event) -> None:
        self.history.append(event)
        for watcher in self.watchers:
            watcher.put(event)
