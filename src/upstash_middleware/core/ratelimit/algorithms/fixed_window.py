"""The fixed window: one counter for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import Check, Limit

if TYPE_CHECKING:
    from collections.abc import Sequence


class FixedWindow(Limit, frozen=True):
    """At most ``limit`` units in each window of ``per`` seconds, cut at multiples of ``per``.

    Across a boundary twice the limit may pass within one window's length.
    Raises ConfigurationError.
    """

    limit: int
    per: Duration

    name: ClassVar[str] = "fixed"
    word: ClassVar[str | None] = "fixed"
    kept_for: ClassVar[int] = 0
    """For how many further windows the counter is kept."""

    def script_numbers(self) -> tuple[int, int, int]:
        return (self.limit, self.milliseconds, self.kept_for * self.milliseconds)

    def keys(self, base: str, now_ms: int) -> tuple[str, ...]:
        number = now_ms // self.milliseconds
        return (f"{base}:{number}", f"{base}:{number + 1}")

    def refund_keys(self, base: str, where: int, now_ms: int) -> tuple[str, ...]:  # noqa: ARG002
        return (f"{base}:{where}",)

    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        window = self.milliseconds
        key = 0 if values[1] is None else 1
        used, number = values[key] or 0, now // window + key
        reset, left = (number + 1) * window, self.limit - used
        return Check(
            passes=now if cost <= left else reset,
            remaining=max(0, left),
            reset=reset,
            key=key,
            value=used + cost,
            counts_until=reset + self.kept_for * window,
            remaining_after=left - cost,
            reset_after=reset,
            where=number,
        )


class KeptFixedWindow(FixedWindow, frozen=True):
    """A fixed window in a bucket whose counters a sliding window weighs for one more window."""

    kept_for: ClassVar[int] = 1
