"""The limits that a rule can set, as values; what they mean is decided by the script.

Every number is checked here, so that the script's arithmetic stays among the whole numbers that
a double holds exactly. No text is parsed here, and no key is made.
"""

from __future__ import annotations

from datetime import timedelta

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass, field

MAX_QUOTA = 10**15 - 1
"""Also the largest integer of a structured field (RFC 9651 §3.3.1)."""
MAX_WINDOW_MS = 400 * 24 * 60 * 60 * 1000
MAX_PRODUCT = 2**52
MAX_LOG = 1000

Duration = float | timedelta
"""Seconds, or a timedelta; whole milliseconds."""


@dataclass(frozen=True, slots=True)
class FixedWindow:
    """At most ``limit`` units in each window of ``per`` seconds, cut at multiples of ``per``.

    Across a boundary twice the limit may pass within one window's length.
    Raises ConfigurationError.
    """

    limit: int
    per: Duration
    milliseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_quota("limit", self.limit, self)
        _set_milliseconds(self, "per", self.per)


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """About ``limit`` units in any ``per`` seconds, estimated from two fixed windows.

    The previous window counts with the share of it that a window ending now still covers,
    rounded down. Raises ConfigurationError.
    """

    limit: int
    per: Duration
    milliseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_quota("limit", self.limit, self)
        _set_milliseconds(self, "per", self.per)


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A bucket of ``capacity`` tokens that gets ``refill`` tokens at the end of each ``per``.

    The intervals (seconds) are counted from the moment at which the bucket was last full.
    Raises ConfigurationError.
    """

    capacity: int
    refill: int
    per: Duration
    milliseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_quota("capacity", self.capacity, self)
        _check_quota("refill", self.refill, self)
        _set_milliseconds(self, "per", self.per)
        if span_ms(self) > MAX_WINDOW_MS:
            raise ConfigurationError(f"{self}: the bucket should fill up within 400 days")


@dataclass(frozen=True, slots=True)
class GCRA:
    """``limit`` units per ``per`` seconds evenly spaced, with ``burst`` units at once.

    The generic cell rate algorithm (ITU-T I.371), in its leaky-bucket form; the same as a token
    bucket that refills continuously. ``burst`` is ``limit`` unless said otherwise.
    Raises ConfigurationError.
    """

    limit: int
    per: Duration
    burst: int | None = None
    milliseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_quota("limit", self.limit, self)
        _set_milliseconds(self, "per", self.per)
        if self.burst is not None:
            _check_quota("burst", self.burst, self)
        if quota(self) * self.milliseconds > MAX_PRODUCT or span_ms(self) > MAX_WINDOW_MS:
            raise ConfigurationError(
                f"{self}: the burst times the window in ms should be at most 2^52, and a burst "
                "should be earned back within 400 days; choose a smaller burst or window"
            )


@dataclass(frozen=True, slots=True)
class SlidingLog:
    """At most ``limit`` units in any ``per`` seconds, exactly, each request being remembered.

    What is stored grows with the limit, so that is at most 1000. Raises ConfigurationError.
    """

    limit: int
    per: Duration
    milliseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_quota("limit", self.limit, self)
        _set_milliseconds(self, "per", self.per)
        if self.limit > MAX_LOG:
            raise ConfigurationError(
                f"{self}: a log's limit should be at most {MAX_LOG}; a SlidingWindow counts more"
            )


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most ``limit`` requests at once.

    A slot is given back when its request ends, on every way out; if the process dies first, after
    ``longest`` seconds. While a response streams, its slot is renewed once half of that time has
    passed. So ``longest`` should be longer than a response takes to begin, and twice as long as
    the pause between two of its pieces: one that is silent for longer loses its slot.
    When a slot will be free is not known, so no Retry-After is given.
    Raises ConfigurationError.
    """

    limit: int
    longest: Duration = 60.0
    milliseconds: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_quota("limit", self.limit, self)
        _set_milliseconds(self, "longest", self.longest)
        if self.limit > MAX_LOG:
            raise ConfigurationError(f"{self}: limit should be at most {MAX_LOG}")


Limit = FixedWindow | SlidingWindow | TokenBucket | GCRA | SlidingLog | Concurrency


def quota(limit: Limit) -> int:
    """Return the most units that can pass at once: the draft's ``q``."""
    match limit:
        case TokenBucket():
            return limit.capacity
        case GCRA():
            return limit.limit if limit.burst is None else limit.burst
        case FixedWindow() | SlidingWindow() | SlidingLog() | Concurrency():
            return limit.limit


def window_ms(limit: Limit) -> int:
    """Return the window, a bucket's interval, a slot's lifetime, in milliseconds."""
    return limit.milliseconds


def span_ms(limit: Limit) -> int:
    """Return within how many milliseconds a quota used up is whole again: the draft's ``w``."""
    match limit:
        case TokenBucket():
            return -(-limit.capacity // limit.refill) * window_ms(limit)
        case GCRA():
            return -(-quota(limit) * window_ms(limit) // limit.limit)
        case FixedWindow() | SlidingWindow() | SlidingLog() | Concurrency():
            return window_ms(limit)


def _check_quota(name: str, value: object, limit: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_QUOTA:
        raise ConfigurationError(
            f"{limit}: {name} should be a whole number from 1 to {MAX_QUOTA}, not {value!r}"
        )


def _set_milliseconds(limit: object, name: str, value: object) -> None:
    object.__setattr__(limit, "milliseconds", _milliseconds(name, value, limit))


def _milliseconds(name: str, value: object, limit: object) -> int:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and seconds > 0:
        milliseconds = seconds * 1000
        whole = round(milliseconds) if milliseconds <= MAX_WINDOW_MS else 0
        if whole >= 1 and abs(milliseconds - whole) < 1e-6 * whole:
            return whole
    raise ConfigurationError(
        f"{limit}: {name} should be seconds, in whole milliseconds and from 0.001 to "
        f"{MAX_WINDOW_MS // 1000} (400 days), not {value!r}"
    )
