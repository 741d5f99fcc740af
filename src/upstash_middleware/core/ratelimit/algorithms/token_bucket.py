"""The token bucket, which is refilled at intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_WINDOW_MS, Check, Limit, State
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


class TokenBucket(Limit, frozen=True):
    """A bucket of ``capacity`` tokens that gets ``refill`` tokens at the end of each interval.

    The intervals of ``per`` seconds begin when the bucket was last full.

    Args:
        capacity: The maximum number of tokens in the bucket.
        refill: The number of tokens added at the end of each interval.
        per: The interval: seconds, a timedelta, or text such as ``"1 minute"``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    capacity: int
    refill: int
    per: Duration

    name: ClassVar[str] = "bucket"
    title: ClassVar[str] = "token bucket"
    refills: ClassVar[bool] = True
    quotas: ClassVar[tuple[str, ...]] = ("capacity", "refill")

    @property
    def quota(self) -> int:
        return self.capacity

    @property
    def span_ms(self) -> int:
        return -(-self.capacity // self.refill) * self.milliseconds

    def check_numbers(self) -> None:
        if self.span_ms > MAX_WINDOW_MS:
            raise ConfigurationError(f"{self}: the bucket should fill up within 400 days")

    def script_numbers(self) -> tuple[int, int, int]:
        return (self.capacity, self.refill, self.milliseconds)

    @classmethod
    def from_script(cls, a: int, b: int, c: int) -> TokenBucket:
        return cls(a, b, c / 1000)

    def returnable(self, units: int, held_ms: int) -> int:
        return max(0, units - (held_ms // self.milliseconds + 1) * self.refill)

    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        interval = self.milliseconds
        refilled, used, rate = values[0] or (now, 0, self.refill)
        leading = max(now, refilled)
        passed = (leading - refilled) // interval
        if passed * rate >= used:
            refilled, used = leading, 0
        else:
            refilled, used = refilled + passed * interval, used - passed * rate

        def refilled_at(tokens: int, rate: int) -> int:
            return refilled + -(-max(0, tokens) // rate) * interval

        after = used + cost
        reset = refilled_at(after, self.refill)
        return Check(
            passes=now if after <= self.capacity else refilled_at(after - self.capacity, rate),
            remaining=max(0, self.capacity - used),
            reset=refilled_at(used, rate),
            key=0,
            value=(refilled, after, self.refill),
            counts_until=reset,
            remaining_after=self.capacity - after,
            reset_after=reset,
        )

    @classmethod
    def describe(cls, entries: Sequence[tuple[int, ...]], window: int, now: int) -> State:
        ((refilled, used, refill),) = entries
        refills = max(0, now - refilled) // window
        facts = [
            ("Refills", "units", refill),
            ("Every", "ms", window),
            ("Refilled", "at", refilled + refills * window),
        ]
        return State("Tokens used", max(0, used - refills * refill), facts)
