"""Who was let through and who was not, counted for the Upstash console's Rate Limit dashboard.

The keys and members are those of the JavaScript SDK: ``PREFIX:events:HOUR``, a sorted set of
compact JSON. Counts are collected here and sent with a later pipeline; nothing here sends.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Literal

from upstash_middleware.core.effects import Command
from upstash_middleware.core.ratelimit.compiled import bare_value

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.server_clock import ServerClock

SEND_EVERY = 10.0
"""Seconds for which counts are collected."""
MOST = 1000
"""Different counts that are held; when there are more, further ones are dropped."""
KEPT_FOR = 30 * 86_400
"""Seconds; the dashboard shows a week."""
_HOUR_MS = 3_600_000

Success = bool | Literal["denied"]
Counts = dict[tuple[int, str], int]
"""By hour (ms since 1970) and member."""


class Analytics:
    """Collects counts; safe under threads."""

    def __init__(self, prefix: str, time: ServerClock) -> None:
        self._prefix = prefix
        self._time = time
        self._counts: Counts = {}
        self._send_at = time.monotonic() + SEND_EVERY
        self._lock = threading.Lock()

    def count(self, decision: Decision) -> None:
        """Count a decision."""
        success: Success = "denied" if decision.settled_by == "deny list" else decision.allowed
        member = json.dumps(
            {"identifier": bare_value(decision.identifier), "success": success},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        now_ms = self._time.now_ms()
        key = (now_ms - now_ms % _HOUR_MS, member)
        with self._lock:
            if key in self._counts or len(self._counts) < MOST:
                self._counts[key] = self._counts.get(key, 0) + 1

    def take_due(self, *, at_once: bool = False) -> Counts:
        """Return what is to be sent now, nothing before its time unless ``at_once``."""
        now = self._time.monotonic()
        with self._lock:
            if not self._counts or (now < self._send_at and not at_once):
                return {}
            counts, self._counts = self._counts, {}
            self._send_at = now + SEND_EVERY
            return counts

    def give_back(self, counts: Counts) -> None:
        """Take back what could not be sent."""
        with self._lock:
            for key, count in counts.items():
                if key in self._counts or len(self._counts) < MOST:
                    self._counts[key] = self._counts.get(key, 0) + count

    def commands(self, counts: Counts) -> tuple[Command, ...]:
        """Return what sends the counts: one command each, and one for each hour's lifetime."""
        counting = [
            Command(("ZINCRBY", self._key(hour), count, member))
            for (hour, member), count in counts.items()
        ]
        hours = sorted({hour for hour, _ in counts})
        return (*counting, *(Command(("EXPIRE", self._key(hour), KEPT_FOR)) for hour in hours))

    def _key(self, hour: int) -> str:
        return f"{self._prefix}:events:{hour}"
