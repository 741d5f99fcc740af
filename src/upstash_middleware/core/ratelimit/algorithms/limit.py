"""What all limits have in common, whichever algorithm counts them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.clock import seconds_in
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

# With these bounds the script only computes with whole numbers that a double represents exactly.
MAX_QUOTA = 10**15 - 1
"""Also the largest integer of a structured field (RFC 9651 §3.3.1)."""
MAX_WINDOW_MS = 400 * 24 * 60 * 60 * 1000


class Check(Struct, frozen=True):
    """The state of a limit now, and after a cost is taken; times are ms since 1970."""

    passes: int
    """When a request of this cost would pass; not after now if it does at once."""
    remaining: int
    reset: int
    key: int
    """Which of the limit's keys is written when the cost is charged."""
    value: Any
    counts_until: int
    remaining_after: int
    reset_after: int
    state_part: int = 0
    """Which part of the state is written: a window's number, an entry's time."""


class State(Struct, frozen=True):
    """The state of a limit as it is on Redis, for people to read."""

    label: str
    """What `used` counts, such as ``Tokens used``."""
    used: float
    """At the time of reading."""
    facts: Sequence[tuple[str, str, int]] = ()
    """What else is known: a label, the kind of number, and the number. Kinds are ``units``, ``ms``
    for a duration, and ``at`` for a time in ms since 1970."""


class Limit(Struct, frozen=True, dict=True):
    """Base of the limits that a rule can set.

    The algorithm's ``.lua`` file defines what a limit does; ``check`` is the same in Python, for
    counting in this process.
    """

    name: ClassVar[str]
    """What the script calls the algorithm."""
    title: ClassVar[str]
    """What people call it."""
    word: ClassVar[str | None] = None
    """What the algorithm is called in text such as ``"fixed 10/s"``; None without a notation."""
    refills: ClassVar[bool] = False
    """Whether used units come back at the limit's own rate, as in a bucket."""
    windows: ClassVar[bool] = False
    """Whether its keys are windows' numbers, and units go back to the window they were taken in."""
    has_slots: ClassVar[bool] = False
    """Whether a request takes a slot, which is released when it ends."""
    quotas: ClassVar[tuple[str, ...]] = ("limit",)
    """The fields that are numbers of units."""
    window: ClassVar[str] = "per"
    """The field that is a duration."""

    # The window, a bucket's interval, a slot's lifetime.
    @cached_property
    def milliseconds(self) -> int:
        value: object = getattr(self, self.window)
        seconds = seconds_in(value)
        if seconds is not None and seconds > 0:
            milliseconds = seconds * 1000
            whole = round(milliseconds) if milliseconds <= MAX_WINDOW_MS else 0
            if whole >= 1 and abs(milliseconds - whole) < 1e-6 * whole:
                return whole
        raise ConfigurationError(
            f"{self}: {self.window} should be a number of seconds, a timedelta or text such as "
            f"'60s', in whole milliseconds and from 0.001 s to 400 days, not {value!r}"
        )

    # The script's arguments a, b and c.
    @cached_property
    def numbers(self) -> tuple[str, ...]:
        return tuple(map(str, self.script_numbers()))

    # The script's arguments for one charge; `changes` says that a key may override the quota, and
    # `slot` identifies the request's slot where the limit has some.
    def words(
        self, cost: int, group: int = 0, slot: int = 0, *, changes: bool = False
    ) -> tuple[str, ...]:
        a, b, c = self.numbers
        if slot and self.has_slots:
            c = str(slot)
        fits = "1" if cost <= self.highest_cost else "0"
        return (str(group), self.name, str(cost), a, b, c, fits, "1" if changes else "0")

    # The draft's q: the most units that can pass at once.
    @property
    def quota(self) -> int:
        return self.limit  # type: ignore[attr-defined, no-any-return]

    # The draft's w: within how many milliseconds a quota used up is whole again.
    @property
    def span_ms(self) -> int:
        return self.milliseconds

    # A higher cost is always denied.
    @property
    def highest_cost(self) -> int:
        return self.quota

    # The keys of the limit's state, in the script's order; `base` is PREFIX:RULE:IDENTIFIER. For
    # windows the next one's key is among them, which a process whose clock leads may have begun.
    # No key contains a quota, so that used units are found again when the quota changes.
    def keys(self, base: str, now_ms: int) -> tuple[str, ...]:  # noqa: ARG002
        return (f"{base}:{self.name}.{self.milliseconds}",)

    # The keys that units taken from a part of the state are refunded to.
    def refund_keys(self, base: str, part: int, now_ms: int) -> tuple[str, ...]:
        return (f"{base}:{part}",) if self.windows else self.keys(base, now_ms)

    # Until when units that were taken from `part` may be used, in ms since 1970; `reset` is the
    # script's.
    def taken_until(self, part: int, reset: int) -> int:  # noqa: ARG002
        return reset

    # Whether a call whose verdict is about `part` can give back units taken from `taken_part`.
    def gives_back(self, taken_part: int, part: int) -> bool:
        return not self.windows or taken_part == part

    # How many of so many units may be given back after a time: those that have come back by
    # themselves may have been used by others.
    def returnable(self, units: int, held_ms: int) -> int:  # noqa: ARG002
        return units

    # Equal for two limits if they count in the same keys.
    def state(self, base: str) -> tuple[str, int]:
        return self.keys(base, 0)[-1], self.milliseconds

    # The limit with a share of its quota, 1 unit at least.
    def share(self, share: float) -> Self:
        parts = {name: max(1, int(getattr(self, name) * share)) for name in self.quotas}
        return replace(self, **parts)

    # `values` are those of `keys`, None where there is none.
    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        raise NotImplementedError

    # The state at a key with this TTL, None if another algorithm's or none. The key's last part is
    # `name`, perhaps with the window, and the value has the form that common.lua writes.
    @classmethod
    def read_state(cls, last_part: str, value: str, now_ms: int, ttl_ms: int) -> State | None:  # noqa: ARG003
        name, _, window = last_part.partition(".")
        if name != cls.name:
            return None
        try:
            entries = [
                tuple(whole_number(number) for number in entry.split(":"))
                for entry in (value.split(",") if value else ())
            ]
            return cls.describe(entries, whole_number(window or "0"), now_ms)
        except (ValueError, ZeroDivisionError):
            return None

    # Raises ValueError or ZeroDivisionError for entries that this algorithm does not write.
    @classmethod
    def describe(cls, entries: Sequence[tuple[int, ...]], window: int, now: int) -> State:
        raise NotImplementedError

    def script_numbers(self) -> tuple[int, int, int]:
        return (self.quota, self.milliseconds, 0)

    # The limit with these numbers of the script. Raises ConfigurationError.
    @classmethod
    def from_script(cls, a: int, b: int, c: int) -> Limit:  # noqa: ARG003
        return cls(a, b / 1000)

    def __post_init__(self) -> None:
        for name in self.quotas:
            self.check_units(name)
        _ = self.milliseconds  # raises for a wrong one
        self.check_numbers()

    # Raises ConfigurationError for numbers that the algorithm cannot count with.
    def check_numbers(self) -> None:
        pass

    def check_units(self, name: str) -> None:
        value: object = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_QUOTA:
            raise ConfigurationError(
                f"{self}: {name} should be a whole number from 1 to {MAX_QUOTA}, not {value!r}"
            )


def whole_number(text: str) -> int:
    """Read a number of a size that a script writes. Raises ValueError."""
    if len(text) > 17:
        raise ValueError(text)
    return int(text)
