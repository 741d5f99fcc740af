"""State that a process keeps between requests: denials, the server's clock, local counters."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from upstash_middleware.core.flow import Command
from upstash_middleware.core.ratelimit.charges import FOLLOWS, Charge, DenialKey, Verdict
from upstash_middleware.core.ratelimit.decision import Decision, remembered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Reply
    from upstash_middleware.core.ratelimit.algorithms.limit import Check

_MAX_DENIALS = 10_000


class _Denial(Struct, frozen=True):
    decision: Decision
    at_ms: int
    until_ms: int
    until_monotonic: float
    """The end by the monotonic clock, so that setting the wall clock back does not extend it."""


class Denials:
    """Remembers denials, so that the same request needs no call. Thread-safe.

    A denial is remembered until the same request would be allowed, but at most ``longest`` seconds,
    after which a quota that was raised or reset elsewhere is noticed; 0 disables this. If running
    requests may be refunded, denials are uncertain and not remembered, unless the cost exceeds the
    limit.
    """

    def __init__(self, longest: float, most: int = _MAX_DENIALS) -> None:
        self._longest_ms = int(longest * 1000)
        self._most = most
        self._denials: OrderedDict[DenialKey, _Denial] = OrderedDict()
        self.bases: dict[str, set[DenialKey]] = {}
        """The remembered denials, by the beginning of their Redis keys."""
        self._uncertain: set[str] = set()
        self._lock = threading.Lock()
        self.forgotten: int = 0
        """Counts each forgetting of denials, so that a denial from before is not remembered."""

    def mark_uncertain(self, base: str) -> None:
        """Note that denials of a rule, given by the beginning of its keys, may end early."""
        self._uncertain.add(base)

    def remember(
        self, key: DenialKey, decision: Decision, at_ms: int, time: ServerClock, base: str
    ) -> None:
        """Remember that a request was denied by a call at ``at_ms``.

        ``base`` is the beginning of the rule's keys.
        """
        wait = self._longest_ms
        if decision.retry_after is not None:
            if base in self._uncertain:
                return
            wait = min(wait, round(decision.retry_after * 1000))
        if wait <= 0:
            return
        denial = _Denial(decision, at_ms, at_ms + wait, time.monotonic() + wait / 1000)
        with self._lock:
            self._denials[key] = denial
            self._denials.move_to_end(key)
            self.bases.setdefault(key[0], set()).add(key)
            if len(self._denials) > self._most:
                self._remove(next(iter(self._denials)))

    def recall(self, key: DenialKey, time: ServerClock) -> Decision | None:
        """Return the remembered denial of a request, with its remaining wait, or None."""
        denial = self._denials.get(key)
        if denial is None:
            return None
        now_ms = time.now_ms()
        if denial.at_ms <= now_ms < denial.until_ms and time.monotonic() < denial.until_monotonic:
            return remembered(denial.decision, now_ms - denial.at_ms)
        with self._lock:
            self._remove(key)
        return None

    def forget(self, base: str) -> None:
        """Forget denials under keys that begin with ``base``."""
        with self._lock:
            self.forgotten += 1
            for key in tuple(self.bases.get(base, ())):
                self._remove(key)

    def forget_rule(self, base: str) -> None:
        """Forget the denials of a rule, given by the beginning of its keys."""
        for each in [known for known in tuple(self.bases) if known.startswith(base)]:
            self.forget(each)
        self.forgotten += 1  # also for the denial of a call that has not returned yet

    def clear(self) -> None:
        """Forget all denials."""
        with self._lock:
            self.forgotten += 1
            self._denials.clear()
            self.bases.clear()

    def _remove(self, key: DenialKey) -> None:
        if self._denials.pop(key, None) is not None:
            of_base = self.bases[key[0]]
            of_base.discard(key)
            if not of_base:
                del self.bases[key[0]]


TIME = Command(("TIME",), reads_only=True)
_LEARN_EVERY = 3600.0
"""Seconds between TIME commands."""
_RETRY_AFTER = 10.0
"""Seconds after which a TIME command without a reply is repeated."""
_MAX_CLOCK_DRIFT = 0.25
"""Seconds by which wall and monotonic clock may diverge before the offset is measured again."""


class ServerClock:
    """The database's clock: this machine's wall clock, plus an offset learned from TIME commands.

    TIME is sent together with script calls. Thread-safe without a lock, because each update is a
    single assignment.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = 0.0
        self._learn_at = float("-inf")
        self._apart: float | None = None

    def now(self) -> float:
        """Return the database's time in seconds since 1970."""
        return self._clock.wall() + self._offset

    def now_ms(self) -> int:
        """Return the database's time in whole milliseconds since 1970."""
        return round((self._clock.wall() + self._offset) * 1000)

    def monotonic(self) -> float:
        """Return the time of the monotonic clock, in seconds."""
        return self._clock.monotonic()

    def both(self) -> tuple[float, int]:
        """Return the results of ``monotonic`` and ``now_ms``."""
        clock = self._clock
        return clock.monotonic(), round((clock.wall() + self._offset) * 1000)

    def begin_call(self) -> tuple[int, float | None]:
        """Return the database's time in milliseconds; also the time for ``learn`` if TIME is due.

        TIME is due at first, every hour, and after the wall clock was set or the process was
        frozen. Other calls then do not send it for some seconds.
        """
        monotonic, wall = self._clock.monotonic(), self._clock.wall()
        now_ms, apart = round((wall + self._offset) * 1000), wall - monotonic
        if self._apart is not None and abs(apart - self._apart) > _MAX_CLOCK_DRIFT:
            self._learn_at = float("-inf")
            self._apart = apart
        if monotonic < self._learn_at:
            return now_ms, None
        self._learn_at = monotonic + _RETRY_AFTER
        return now_ms, wall

    def learn(self, reply: Reply, sent: float) -> None:
        """Learn the offset from the reply to TIME. Other replies are ignored."""
        match reply:
            case [bytes(seconds), bytes(micros)] if seconds.isdigit() and micros.isdigit():
                server = int(seconds) + int(micros) / 1_000_000
            case _:
                return
        received = self._clock.wall()
        # If the server's time lies between sending and receiving, the clocks may be equal.
        agrees = sent <= server <= received
        self._offset = 0.0 if agrees else server - (sent + received) / 2
        monotonic = self._clock.monotonic()
        self._learn_at, self._apart = monotonic + _LEARN_EVERY, received - monotonic


class LocalCounters:
    """Counts in this process as the script does on Redis. Thread-safe.

    Used for rules with ``on_error="local"`` while Upstash is unreachable: the same algorithms and
    keys, in a bounded table. Local counts are never sent to Upstash.
    """

    def __init__(self, most_keys: int = 10_000) -> None:
        self._most_keys = most_keys
        self._values: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def decide(
        self, charges: Sequence[Charge], now: int, *, peek: bool = False
    ) -> tuple[Verdict, ...]:
        """Check all charges, and take those of a group all or none; ``now`` is in ms since 1970.

        With ``peek``, nothing is charged.
        """
        with self._lock:
            checks, denied = [], set[int]()
            for charge in charges:
                keys = charge.limit.keys(charge.base, now)
                values = [self._value(key, now) for key in keys]
                check = charge.limit.check(values, now, charge.cost)
                allowed = check.passes <= now and charge.cost <= charge.limit.highest_cost
                checks.append((charge, check, keys[check.key], allowed))
                if not allowed and charge.group != FOLLOWS:
                    denied.add(charge.group)
            if peek:
                denied.update(charge.group for charge in charges)
            if 0 in denied:
                denied.add(FOLLOWS)
            # If an enforced and a shadow rule share a key, the enforced one writes it.
            written: set[str] = set()
            for charge, check, key, _ in sorted(checks, key=lambda each: each[0].group == FOLLOWS):
                if charge.group not in denied and key not in written:
                    written.add(key)
                    self._put(key, check)
        return tuple(
            _verdict(charge, check, now, allowed=allowed, taken=charge.group not in denied)
            for charge, check, _, allowed in checks
        )

    def _value(self, key: str, now: int) -> Any:
        expires, value = self._values.get(key, (0, None))
        return value if expires > now else None

    def _put(self, key: str, check: Check) -> None:
        self._values[key] = (check.counts_until, check.value)
        self._values.move_to_end(key)
        if len(self._values) > self._most_keys:
            self._values.popitem(last=False)


def _verdict(charge: Charge, check: Check, now: int, *, allowed: bool, taken: bool) -> Verdict:
    fits = charge.cost <= charge.limit.highest_cost
    return Verdict(
        allowed,
        max(0, check.remaining_after if taken else check.remaining),
        max(0, (check.reset_after if taken else check.reset) - now),
        max(0, check.passes - now) if fits else None,
        check.state_part,
        int(charge.limit.numbers[0]),
    )
