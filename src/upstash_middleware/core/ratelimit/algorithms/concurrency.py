"""A limit on the number of concurrent requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from upstash_middleware.core.clock import Duration  # noqa: TC001 - for signatures
from upstash_middleware.core.ratelimit.algorithms.limit import MAX_QUOTA, Limit, State
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_LIMIT = 1000


class Concurrency(Limit, frozen=True):
    """At most ``limit`` concurrent requests.

    Each request takes a slot, which is released at the end of the request. If the process crashes,
    the slot expires after ``longest`` seconds. While a response streams, the slot is renewed after
    half of that time. ``longest`` should therefore be longer than the time to the first byte, and
    twice as long as the pause between two pieces. Otherwise the slot expires too early. There is no
    Retry-After, because it is unknown when a slot will be released.

    Args:
        limit: The number of concurrent requests, at least 1.
        longest: The seconds after which a slot expires if it is not renewed; default 60.

    Raises:
        ConfigurationError: A value is invalid.
    """

    limit: int
    longest: Duration = 60.0

    name: ClassVar[str] = "slots"
    title: ClassVar[str] = "concurrency"
    has_slots: ClassVar[bool] = True
    window: ClassVar[str] = "longest"

    # A request takes one slot, independent of its cost.
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
