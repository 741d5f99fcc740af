"""The generic cell rate algorithm (GCRA), in the form of a leaky bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from msgspec.structs import replace

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_WINDOW_MS, Check, Limit, State
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_PRODUCT = 2**52


class GCRA(Limit, frozen=True):
    """``limit`` units per ``per`` seconds, evenly spaced, of which ``burst`` can be used at once.

    The generic cell rate algorithm (ITU-T I.371) in its leaky-bucket form. It is equivalent to a
    token bucket that refills continuously. The default of ``burst`` is ``limit``.

    Args:
        limit: The units in ``per`` seconds, at least 1.
        per: The window: seconds, a timedelta, or text such as ``"1 minute"``.
        burst: The units that can be used at once; None means ``limit``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    limit: int
    per: Duration
    burst: int | None = None

    name: ClassVar[str] = "gcra"
    title: ClassVar[str] = "GCRA"
    word: ClassVar[str | None] = "gcra"
    refills: ClassVar[bool] = True

    @property
    def quota(self) -> int:
        return self.limit if self.burst is None else self.burst

    @property
    def span_ms(self) -> int:
        return -(-self.quota * self.milliseconds // self.limit)

    def share(self, share: float) -> Self:
        burst = max(1, int(self.quota * share))
        return replace(self, limit=max(1, int(self.limit * share)), burst=burst)

    def check_numbers(self) -> None:
        if self.burst is not None:
            self.check_units("burst")
        if self.quota * self.milliseconds > _MAX_PRODUCT or self.span_ms > MAX_WINDOW_MS:
            raise ConfigurationError(
                f"{self}: the burst times the window in ms should be at most 2^52, and a burst "
                "should refill within 400 days; choose a smaller burst or window"
            )

    def script_numbers(self) -> tuple[int, int, int]:
        return (self.limit, self.milliseconds, self.quota)

    @classmethod
    def from_script(cls, a: int, b: int, c: int) -> GCRA:
        return cls(a, b / 1000, c)

    def returnable(self, units: int, held_ms: int) -> int:
        return max(0, units - -(-held_ms * self.limit // self.milliseconds))

    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        window, capacity = self.milliseconds, self.quota * self.milliseconds
        at, level, rate = values[0] or (now, 0, self.limit)
        leading = max(now, at)
        level = max(0, level - (leading - at) * rate)
        after = level + cost * window
        excess = after - capacity
        reset = leading + -(-after // self.limit)
        return Check(
            passes=now if excess <= 0 else leading + -(-excess // rate),
            remaining=max(0, (capacity - level) // window),
            reset=leading + -(-level // rate),
            key=0,
            value=(leading, after, self.limit),
            counts_until=reset,
            remaining_after=-excess // window,
            reset_after=reset,
        )

    @classmethod
    def describe(cls, entries: Sequence[tuple[int, ...]], window: int, now: int) -> State:
        ((at, level, limit),) = entries
        facts = [
            ("Drains", "units", limit),
            ("Every", "ms", window),
            ("Written", "at", at),
            ("Empty", "at", at + -(-level // limit)),
        ]
        return State("In the bucket", max(0, level - max(0, now - at) * limit) / window, facts)
