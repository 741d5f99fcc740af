"""The Rate Limit dashboard of the Upstash console: its deny list and its analytics.

Keys and members have the format of the JavaScript SDK. This module is imported only if it is used.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Literal

from upstash_middleware.core.flow import Command
from upstash_middleware.core.lru import LRU
from upstash_middleware.core.ratelimit.rules import bare_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.flow import Reply
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.memory import ServerClock
    from upstash_middleware.messages import HTTPRequest

_REMEMBERED_SECONDS = 60.0
"""Seconds for which this process remembers members of the deny list."""
MAX_MEMBERS = 1000
_MAX_MEMBER_LENGTH = 512
"""Characters. Longer members are not looked up."""


class DenyList:
    """The set ``PREFIX:denyList:all``. Thread-safe.

    Its members are identifiers, addresses and user agents.
    """

    def __init__(self, prefix: str, time: ServerClock) -> None:
        self._key = f"{prefix}:denyList:all"
        self._time = time
        self._denied: LRU[str, float] = LRU(MAX_MEMBERS)
        """By member, the time until which it is known to be on the list."""
        self._failed = False

    def is_first_failure(self) -> bool:
        """Return True at the first call, and False afterwards."""
        first, self._failed = not self._failed, True
        return first

    def members(
        self, identifiers: Sequence[str], address: str | None, request: HTTPRequest
    ) -> list[str]:
        """Return the possible members for a request: identifiers, address, user agent."""
        members = [bare_value(identifier) for identifier in identifiers]
        if address is not None:
            members.append(address)
        if agent := request.headers.get("user-agent"):
            members.append(agent)
        return [
            member for member in dict.fromkeys(members) if 0 < len(member) <= _MAX_MEMBER_LENGTH
        ]

    def known(self, members: Sequence[str]) -> bool:
        """Whether any member is known to be on the list."""
        now = self._time.monotonic()
        return any(self._denied.get(member, 0.0) > now for member in members)

    def command(self, members: Sequence[str]) -> Command:
        """Return the command that looks up the members."""
        return Command(("SMISMEMBER", self._key, *members), reads_only=True)

    def learn(self, members: Sequence[str], reply: Reply) -> bool:
        """Remember the members that are on the list; return whether there are any."""
        flags = reply if isinstance(reply, list) else []
        listed = [member for member, flag in zip(members, flags, strict=False) if flag == 1]
        for member in listed:
            self._denied.put(member, self._time.monotonic() + _REMEMBERED_SECONDS)
        return bool(listed)


SEND_EVERY = 10.0
"""Seconds between calls that send counts."""
MAX_COUNTS = 1000
"""The maximum number of different counts. Further ones are dropped."""
_COUNTS_TTL = 30 * 86_400
"""Seconds. The dashboard shows a week."""
_HOUR_MS = 3_600_000

Counts = dict[tuple[int, str], int]
"""The counts by hour (milliseconds since 1970) and member."""


class Analytics:
    """Counts allowed and denied requests. Thread-safe.

    Counts are collected in memory, and sent with a later pipeline to the sorted sets
    ``PREFIX:events:HOUR``, whose members are compact JSON.
    """

    def __init__(self, prefix: str, time: ServerClock) -> None:
        self._prefix = prefix
        self._time = time
        self._counts: Counts = {}
        self._send_at = time.monotonic() + SEND_EVERY
        self._lock = threading.Lock()

    def count(self, decision: Decision) -> None:
        """Count a decision."""
        success: bool | Literal["denied"] = decision.allowed
        if decision.settled_by == "deny list":
            success = "denied"
        member = json.dumps(
            {"identifier": bare_value(decision.identifier), "success": success},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        now_ms = self._time.now_ms()
        self.add({(now_ms - now_ms % _HOUR_MS, member): 1})

    def add(self, counts: Counts) -> None:
        """Add counts, such as those that could not be sent."""
        with self._lock:
            for key, count in counts.items():
                if key in self._counts or len(self._counts) < MAX_COUNTS:
                    self._counts[key] = self._counts.get(key, 0) + count

    def take_due(self, *, at_once: bool = False) -> Counts:
        """Return the counts if it is time to send them; with ``at_once``, always return them."""
        now = self._time.monotonic()
        with self._lock:
            if not self._counts or (now < self._send_at and not at_once):
                return {}
            counts, self._counts = self._counts, {}
            self._send_at = now + SEND_EVERY
            return counts

    def commands(self, counts: Counts) -> tuple[Command, ...]:
        """Return the commands that send counts: one for each count, and one for each hour's TTL."""
        counting = [
            Command(("ZINCRBY", self._key(hour), count, member))
            for (hour, member), count in counts.items()
        ]
        hours = sorted({hour for hour, _ in counts})
        return (*counting, *(Command(("EXPIRE", self._key(hour), _COUNTS_TTL)) for hour in hours))

    def _key(self, hour: int) -> str:
        return f"{self._prefix}:events:{hour}"
