"""The base class of limits, with everything that does not depend on the algorithm."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.clock import seconds_in
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

# With these bounds, the script computes only with integers that a double represents exactly.
MAX_QUOTA = 10**15 - 1
"""The largest integer of a structured field (RFC 9651 §3.3.1)."""
MAX_WINDOW_MS = 400 * 24 * 60 * 60 * 1000


class Check(Struct, frozen=True):
    """The state of a limit now, and after a charge. Times are in milliseconds since 1970."""

    passes: int
    """When a request of this cost would be allowed; now or earlier if it is allowed at once."""
    remaining: int
    reset: int
    key: int
    """The index of the limit's key that a charge writes."""
    value: Any
    counts_until: int
    remaining_after: int
    reset_after: int
    state_part: int = 0
    """The part of the state that is written: the number of a window, or the time of an entry."""


class State(Struct, frozen=True):
    """The state of a limit on Redis, described for users."""

    label: str
    """The name of ``used``, such as ``Tokens used``."""
    used: float
    """The value when the state was read."""
    facts: Sequence[tuple[str, str, int]] = ()
    """More values: a label, the kind, and the number. Kinds are ``units``, ``ms`` for a duration,
    and ``at`` for a time in milliseconds since 1970."""


class Limit(Struct, frozen=True, dict=True):
    """The base class of the limits that a rule can have.

    The algorithm is defined by its ``.lua`` file. ``check`` implements it in Python, for counting
    in this process.
    """

    name: ClassVar[str]
    """The name of the algorithm in the script."""
    title: ClassVar[str]
    """The name of the algorithm for users."""
    word: ClassVar[str | None] = None
    """The name in text such as ``"fixed 10/s"``; None if the algorithm has no text form."""
    refills: ClassVar[bool] = False
    """Whether used units return continuously, as in a token bucket."""
    windows: ClassVar[bool] = False
    """Whether keys contain the numbers of windows, and refunds go to the window of the charge."""
    has_slots: ClassVar[bool] = False
    """Whether a request takes a slot, which is released at its end."""
    quotas: ClassVar[tuple[str, ...]] = ("limit",)
    """The names of fields that are numbers of units."""
    window: ClassVar[str] = "per"
    """The name of the field that is a duration."""

    # The length of the window, of a bucket's interval, or of a slot's lifetime.
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

    # The script's arguments for one charge. `changes` is whether a key may override the quota, and
    # `slot` identifies the request's slot if the limit has slots.
    def words(
        self, cost: int, group: int = 0, slot: int = 0, *, changes: bool = False
    ) -> tuple[str, ...]:
        a, b, c = self.numbers
        if slot and self.has_slots:
            c = str(slot)
        fits = "1" if cost <= self.highest_cost else "0"
        return (str(group), self.name, str(cost), a, b, c, fits, "1" if changes else "0")

    # `q` in RateLimit-Policy: the maximum number of units that can be allowed at once.
    @property
    def quota(self) -> int:
        return self.limit  # type: ignore[attr-defined, no-any-return]

    # `w` in RateLimit-Policy, in milliseconds: the time after which a used quota is whole again.
    @property
    def span_ms(self) -> int:
        return self.milliseconds

    # Requests with a higher cost are always denied.
    @property
    def highest_cost(self) -> int:
        return self.quota

    # The keys of the limit's state, in the script's order; `base` is PREFIX:RULE:IDENTIFIER. For
    # windows, they include the next window's key, because another process's clock may be ahead.
    # Keys contain no quota, so used units are kept when the quota changes.
    def keys(self, base: str, now_ms: int) -> tuple[str, ...]:  # noqa: ARG002
        return (f"{base}:{self.name}.{self.milliseconds}",)

    # The keys to which units taken from a part of the state are refunded.
    def refund_keys(self, base: str, part: int, now_ms: int) -> tuple[str, ...]:
        return (f"{base}:{part}",) if self.windows else self.keys(base, now_ms)

    # The time until which units taken from `part` may be used, in ms since 1970; `reset` is from
    # the script's reply.
    def taken_until(self, part: int, reset: int) -> int:  # noqa: ARG002
        return reset

    # Whether a call with a verdict on `part` can return units taken from `taken_part`.
    def gives_back(self, taken_part: int, part: int) -> bool:
        return not self.windows or taken_part == part

    # How many of the units may be returned after they were held for a time. Units that would have
    # refilled by then are excluded, because other requests may have used them.
    def returnable(self, units: int, held_ms: int) -> int:  # noqa: ARG002
        return units

    # Two limits have equal states if they count in the same keys.
    def state(self, base: str) -> tuple[str, int]:
        return self.keys(base, 0)[-1], self.milliseconds

    # The limit with a share of its quota, at least 1 unit.
    def share(self, share: float) -> Self:
        parts = {name: max(1, int(getattr(self, name) * share)) for name in self.quotas}
        return replace(self, **parts)

    # `values` are the values of `keys`; None for a missing key.
    def check(self, values: Sequence[Any], now: int, cost: int) -> Check:
        raise NotImplementedError

    # The state at a key with this TTL; None if the key belongs to another algorithm. `last_part` is
    # `name`, optionally with the window, and `value` has the format of common.lua.
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

    # The limit for these arguments of the script. Raises ConfigurationError.
    @classmethod
    def from_script(cls, a: int, b: int, c: int) -> Limit:  # noqa: ARG003
        return cls(a, b / 1000)

    def __post_init__(self) -> None:
        for name in self.quotas:
            self.check_units(name)
        _ = self.milliseconds  # raises for an invalid duration
        self.check_numbers()

    # Raises ConfigurationError for values that the algorithm does not support.
    def check_numbers(self) -> None:
        pass

    def check_units(self, name: str) -> None:
        value: object = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_QUOTA:
            raise ConfigurationError(
                f"{self}: {name} should be a whole number from 1 to {MAX_QUOTA}, not {value!r}"
            )


def whole_number(text: str) -> int:
    """Parse an integer in the range that scripts write. Raises ValueError."""
    if len(text) > 17:
        raise ValueError(text)
    return int(text)
