"""The algorithms in Python, for counting in this process; the script's, line for line.

Functions of values, a time and a cost; where the values are kept is in ``local``. A test holds
that they and the script always say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from upstash_middleware.core.ratelimit.limits import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    quota,
    window_ms,
)
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Taken:
    """What taking the cost would leave behind."""

    key: int
    """Which of the limit's keys is written."""
    value: Any
    counts_until: int
    remaining: int
    reset: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a limit stands at a time, and how it would after taking. Times are ms since 1970."""

    passes: int
    """When a request of this cost would pass; not after now if it does at once."""
    remaining: int
    reset: int
    taken: Taken
    where: int = 0
    """Which part of the state would be written: a window's number, an entry's time."""


def standing(limit: Limit, values: Sequence[Any], now: int, cost: int) -> Standing:
    """Return how a limit stands for a request of this cost."""
    match limit:
        case FixedWindow():
            return _fixed(limit, values, now, cost)
        case SlidingWindow():
            return _sliding(limit, values, now, cost)
        case TokenBucket():
            return _bucket(limit, values, now, cost)
        case GCRA():
            return _gcra(limit, values, now, cost)
        case SlidingLog():
            return _log(limit, values, now, cost)
        case Concurrency():
            raise TypeError("slots are not counted locally; a rule refuses it")
    assert_never(limit)


def _fixed(limit: FixedWindow, values: Sequence[Any], now: int, cost: int) -> Standing:
    window = window_ms(limit)
    key = 0 if values[1] is None else 1
    used, reset = values[key] or 0, (now // window + 1 + key) * window
    left = limit.limit - used
    taken = Taken(key, used + cost, reset, left - cost, reset)
    return Standing(now if cost <= left else reset, max(0, left), reset, taken, now // window + key)


def _sliding(limit: SlidingWindow, values: Sequence[Any], now: int, cost: int) -> Standing:
    window, key = window_ms(limit), 1 if values[2] is None else 2
    start = (now // window - 1 + key) * window
    previous, used = values[key - 1] or 0, values[key] or 0
    weight = previous * (start + window - max(now, start)) // window
    left = limit.limit - used - weight
    taken = Taken(
        key,
        used + cost,
        start + 2 * window,
        left - cost,
        _sliding_reset(start, window, previous, used + cost, now),
    )
    passes = now
    if cost > left:
        room = limit.limit - used - cost
        older = (start + window, previous, room)
        newer = (start + 2 * window, used, limit.limit - cost)
        end, count, space = older if room >= 0 else newer
        passes = end - _longest_rest(count, space, window)
    reset = _sliding_reset(start, window, previous, used, now)
    return Standing(passes, max(0, left), reset, taken, start // window)


def _sliding_reset(start: int, window: int, previous: int, used: int, now: int) -> int:
    if used:
        return start + 2 * window - _longest_rest(used, 0, window)
    return max(now, start + window - _longest_rest(previous, 0, window)) if previous else now


def _longest_rest(count: int, room: int, window: int) -> int:
    """Return the largest r with ``count * r // window <= room``, for count > room."""
    return ((room + 1) * window - 1) // count if count else 0


def _bucket(limit: TokenBucket, values: Sequence[Any], now: int, cost: int) -> Standing:
    interval, capacity = window_ms(limit), limit.capacity
    refilled, tokens = values[0] or (now, capacity)
    leading = max(now, refilled)
    passed = (leading - refilled) // interval
    if tokens + passed * limit.refill >= capacity:
        refilled, tokens = leading, capacity
    else:
        refilled, tokens = refilled + passed * interval, tokens + passed * limit.refill

    def holds(target: int, has: int) -> int:
        return refilled + -(-max(0, target - has) // limit.refill) * interval

    after = tokens - cost
    reset = holds(capacity, after)
    passes = now if cost <= tokens else holds(cost, tokens)
    taken = Taken(0, (refilled, after), reset, after, reset)
    return Standing(passes, tokens, holds(capacity, tokens), taken)


def _gcra(limit: GCRA, values: Sequence[Any], now: int, cost: int) -> Standing:
    window, burst = window_ms(limit), quota(limit)
    at, level = values[0] or (now, 0)
    leading = max(now, at)
    level = max(0, level - (leading - at) * limit.limit)
    after = level + cost * window
    excess = after - burst * window
    reset = leading + -(-after // limit.limit)
    taken = Taken(0, (leading, after), reset, -excess // window, reset)
    return Standing(
        now if excess <= 0 else leading + -(-excess // limit.limit),
        max(0, (burst * window - level) // window),
        leading + -(-level // limit.limit),
        taken,
    )


def _log(limit: SlidingLog, values: Sequence[Any], now: int, cost: int) -> Standing:
    window, entries = window_ms(limit), values[0] or ()
    at = max(now, entries[-1][0]) if entries else now
    counting = tuple((time, units) for time, units in entries if time > at - window)
    left = limit.limit - sum(units for _, units in counting)
    reset = counting[-1][0] + window if counting else now
    taken = Taken(0, (*counting, (at, cost)), at + window, left - cost, at + window)
    passes = now if cost <= left else _freed_at(counting, cost - left, window)
    return Standing(passes, max(0, left), reset, taken, at)


def _freed_at(entries: tuple[tuple[int, int], ...], excess: int, window: int) -> int:
    """Return when so many units of the log have grown too old to count."""
    freed, moment = 0, 0
    for time, units in entries:
        freed, moment = freed + units, time + window
        if freed >= excess:
            break
    return moment
