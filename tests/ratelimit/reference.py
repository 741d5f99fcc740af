"""The algorithms by their definitions, as plainly as they can be said; slow, and without a store.

Times are whole milliseconds. Retry-after is not computed but found, by trying.
"""

from __future__ import annotations

from fractions import Fraction

from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)


class Model:
    """One identifier's quota. A subclass tells the units left at a time, and takes some."""

    def __init__(self, limit: Limit) -> None:
        self.quota = limit.quota
        self.window = limit.milliseconds

    def left(self, now: int) -> int:
        raise NotImplementedError

    def add(self, now: int, cost: int) -> None:
        raise NotImplementedError

    def give(self, now: int, units: int, taken_at: int) -> None:
        """Give back what was taken at a time, as far as it still counts."""
        raise NotImplementedError

    def would_take(self, now: int, cost: int) -> bool:
        return cost <= self.left(now)

    def take(self, now: int, cost: int) -> bool:
        passes = self.would_take(now, cost)
        if passes:
            self.add(now, cost)
        return passes

    def remaining(self, now: int) -> int:
        return max(0, self.left(now))

    def first_pass(self, now: int, cost: int) -> int:
        """Find by bisection: what is left never shrinks while nobody asks."""
        early, late = now, now + 1
        while not self.would_take(late, cost):
            late += 2 * (late - now)
        while late - early > 1:
            middle = (early + late) // 2
            early, late = (early, middle) if self.would_take(middle, cost) else (middle, late)
        return late

    def whole_again(self, now: int) -> int:
        return now if self.left(now) == self.quota else self.first_pass(now, self.quota)


class Windows(Model):
    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.counts: dict[int, int] = {}

    def add(self, now: int, cost: int) -> None:
        number = now // self.window
        self.counts[number] = self.counts.get(number, 0) + cost

    def give(self, now: int, units: int, taken_at: int) -> None:
        number = taken_at // self.window
        self.counts[number] = max(0, self.counts[number] - units)


class FixedModel(Windows):
    def left(self, now: int) -> int:
        return self.quota - self.counts.get(now // self.window, 0)

    def whole_again(self, now: int) -> int:
        return (now // self.window + 1) * self.window


class SlidingModel(Windows):
    def left(self, now: int) -> int:
        number, elapsed = divmod(now, self.window)
        share = Fraction(self.window - elapsed, self.window)
        weighed = int(self.counts.get(number - 1, 0) * share)
        return self.quota - self.counts.get(number, 0) - weighed


class BucketModel(Model):
    """Steps through the refills one by one where they are few."""

    def __init__(self, limit: TokenBucket) -> None:
        super().__init__(limit)
        self.refill, self.tokens, self.since = limit.refill, self.quota, 0

    def _state(self, now: int) -> tuple[int, int]:
        tokens, since = self.tokens, self.since
        while tokens < self.quota and since + self.window <= now:
            tokens, since = min(self.quota, tokens + self.refill), since + self.window
        return tokens, (now if tokens == self.quota else since)

    def left(self, now: int) -> int:
        return self._state(now)[0]

    def add(self, now: int, cost: int) -> None:
        tokens, self.since = self._state(now)
        self.tokens = tokens - cost

    def give(self, now: int, units: int, taken_at: int) -> None:
        tokens, self.since = self._state(now)
        self.tokens = min(self.quota, tokens + units)


class GcraModel(Model):
    """The textbook's: a theoretical arrival time, as an exact fraction."""

    def __init__(self, limit: GCRA) -> None:
        super().__init__(limit)
        self.interval, self.arrival = Fraction(self.window, limit.limit), Fraction(0)

    def left(self, now: int) -> int:
        ahead = max(self.arrival, Fraction(now)) - now
        return (self.quota * self.interval - ahead) // self.interval

    def add(self, now: int, cost: int) -> None:
        self.arrival = max(self.arrival, Fraction(now)) + cost * self.interval

    def give(self, now: int, units: int, taken_at: int) -> None:
        self.arrival -= units * self.interval

    def whole_again(self, now: int) -> int:
        return max(now, -(-self.arrival // 1))


class LogModel(Model):
    def __init__(self, limit: SlidingLog) -> None:
        super().__init__(limit)
        self.log: list[tuple[int, int]] = []

    def left(self, now: int) -> int:
        return self.quota - sum(cost for time, cost in self.log if time > now - self.window)

    def add(self, now: int, cost: int) -> None:
        self.log.append((now, cost))

    def give(self, now: int, units: int, taken_at: int) -> None:
        for index, (time, cost) in enumerate(self.log):
            if time == taken_at:
                self.log[index] = (time, cost - min(cost, units))
                units -= min(cost, units)


def model_of(limit: Limit) -> Model:
    match limit:
        case FixedWindow():
            return FixedModel(limit)
        case SlidingWindow():
            return SlidingModel(limit)
        case TokenBucket():
            return BucketModel(limit)
        case GCRA():
            return GcraModel(limit)
        case SlidingLog():
            return LogModel(limit)
        case _:
            raise NotImplementedError(f"{limit}: nothing about it is a matter of time alone")
