"""How many requests may be in flight at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA, Limit, State
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_LIMIT = 1000


class Concurrency(Limit, frozen=True):
    """At most ``limit`` requests at once.

    A slot is released when its request ends, however it ends; if the process crashes first, after
    ``longest`` seconds. While a response streams, its slot is renewed once half of that time has
    passed. So ``longest`` should be longer than a response takes to begin, and twice as long as the
    pause between two of its pieces. A response that is silent for longer loses its slot. When a
    slot will be free is not known, so no Retry-After is given.

    Args:
        limit: Requests at once, at least 1.
        longest: Seconds for which a slot is taken at most without being renewed; default 60.

    Raises:
        ConfigurationError: A value is wrong.
    """

    limit: int
    longest: Duration = 60.0

    name: ClassVar[str] = "slots"
    title: ClassVar[str] = "concurrency"
    has_slots: ClassVar[bool] = True
    window: ClassVar[str] = "longest"

    # A request takes one slot, whatever it costs.
    @property
    def highest_cost(self) -> int:
        return MAX_QUOTA

    def check_numbers(self) -> None:
        if self.limit > _MAX_LIMIT:
            raise ConfigurationError(f"{self}: limit should be at most {_MAX_LIMIT}")

    def keys(self, base: str, now_ms: int) -> tuple[str, ...]:  # noqa: ARG002
        return (f"{base}:slots",)

    @classmethod
    def describe(cls, entries: Sequence[tuple[int, ...]], window: int, now: int) -> State:  # noqa: ARG003
        facts = [(f"Slot {token} expires", "at", expiry) for expiry, token in entries]
        return State("In flight", sum(expiry > now for expiry, _ in entries), facts)
