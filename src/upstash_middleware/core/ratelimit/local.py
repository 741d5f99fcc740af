"""Counting in this process, while Upstash cannot be asked: the policy ``local``.

The same algorithms on the same keys, in a bounded table; nothing of it ever reaches Upstash.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, assert_never

from upstash_middleware.core.ratelimit.algorithms import Standing, standing
from upstash_middleware.core.ratelimit.keys import limit_keys
from upstash_middleware.core.ratelimit.limits import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    quota,
)
from upstash_middleware.core.ratelimit.script import Verdict
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.ratelimit.script import Charge

MOST_KEYS = 10_000


class LocalCounters:
    """Decides as the script does, for this process alone; safe under threads."""

    def __init__(self, most_keys: int = MOST_KEYS) -> None:
        self._most_keys = most_keys
        self._values: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def decide(self, charges: Sequence[Charge], now: int) -> tuple[Verdict, ...]:
        """Check all charges and take those of a group all or none; ``now`` in ms since 1970."""
        with self._lock:
            return self._decide(charges, now)

    def _decide(self, charges: Sequence[Charge], now: int) -> tuple[Verdict, ...]:
        keys = [limit_keys(charge.base, charge.limit, now) for charge in charges]
        found = [
            standing(charge.limit, [self._value(key, now) for key in own], now, charge.cost)
            for charge, own in zip(charges, keys, strict=True)
        ]
        fits = [charge.fits for charge in charges]
        denied = {
            charge.group
            for charge, stands, can in zip(charges, found, fits, strict=True)
            if stands.passes > now or not can
        }
        verdicts = []
        for charge, stands, own, can in zip(charges, found, keys, fits, strict=True):
            taken = charge.group not in denied
            if taken:
                self._put(own[stands.taken.key], stands)
            verdicts.append(_verdict(stands, now, taken=taken, fits=can))
        return tuple(verdicts)

    def _value(self, key: str, now: int) -> Any:
        expires, value = self._values.get(key, (0, None))
        return value if expires > now else None

    def _put(self, key: str, stands: Standing) -> None:
        self._values[key] = (stands.taken.counts_until, stands.taken.value)
        self._values.move_to_end(key)
        if len(self._values) > self._most_keys:
            self._values.popitem(last=False)


def share_of(limit: Limit, share: float) -> Limit:
    """Return the limit with this share of its quota, 1 unit at least."""

    def part(units: int) -> int:
        return max(1, int(units * share))

    match limit:
        case TokenBucket():
            return replace(limit, capacity=part(limit.capacity), refill=part(limit.refill))
        case GCRA():
            return replace(limit, limit=part(limit.limit), burst=part(quota(limit)))
        case FixedWindow() | SlidingWindow() | SlidingLog() | Concurrency():
            return replace(limit, limit=part(limit.limit))
    assert_never(limit)


def _verdict(stands: Standing, now: int, *, taken: bool, fits: bool) -> Verdict:
    after = stands.taken if taken else stands
    return Verdict(
        allowed=fits and stands.passes <= now,
        remaining=after.remaining,
        reset_ms=max(0, after.reset - now),
        retry_ms=max(0, stands.passes - now) if fits else None,
        where=stands.where,
    )
