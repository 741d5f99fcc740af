"""What the middleware's rate limits keep on Redis, read by its documented format.

A limit's key is ``PREFIX:RULE:IDENTIFIER:STATE``, where no part but the prefix holds a colon.
STATE is a window's number, or ``bucket.MS``, ``gcra.LIMIT.MS``, ``log.MS`` or ``slots``; the value
is text.  Only reading may live here, and no quota: that stands in the application's rules alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import unquote

_DAY: Final = 86_400_000
_ROUND: Final = (_DAY, 3_600_000, 60_000, 1000, 1)
_LONGEST_WINDOW: Final = 400 * _DAY
_STATE: Final = re.compile(r"bucket\.N|gcra\.N\.N|log\.N|slots|N".replace("N", "[0-9]{1,15}"))
_DIGITS: Final = re.compile(r"[0-9]+")
_NUMBER: Final = re.compile(rb"-?\d{1,15}")
_PAIR: Final = re.compile(rb"(\d{1,15}):(-?\d{1,16})")
_SDK: Final = "@upstash/ratelimit"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose limit it is, and by which rule."""

    prefix: str
    rule: str
    kind: str
    """What kind of thing identifies: ``ip``, ``user``; empty for what the SDKs write."""
    identifier: str
    """As it was before it was written into a key; ``#…`` is a hash."""


@dataclass(frozen=True, slots=True)
class WindowCounter:
    """Units used in one window of a fixed or sliding window limit."""

    subject: Subject
    used: int
    number: int
    window_ms: int
    """Found out: the only round length in which this window's number is of now."""
    algorithm: str
    """``fixed window`` or ``sliding window``, by how long it is kept; else just ``window``."""

    @property
    def starts_ms(self) -> int:
        """When the window begins, ms since 1970."""
        return self.number * self.window_ms


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket."""

    subject: Subject
    interval_ms: int
    refilled_ms: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Level:
    """GCRA as a leaky bucket: `level` is in units of `window_ms`, and drains by `limit` each ms."""

    subject: Subject
    limit: int
    window_ms: int
    at_ms: int
    level: int

    def units_at(self, now_ms: int) -> float:
        """How many units are still in the bucket."""
        passed = max(0, now_ms - self.at_ms)
        return max(0, self.level - passed * self.limit) / self.window_ms

    @property
    def empty_ms(self) -> int:
        """When nothing is left in it, ms since 1970."""
        return self.at_ms + -(-self.level // self.limit)


@dataclass(frozen=True, slots=True)
class Log:
    """A sliding log: each request's time (ms since 1970) and cost, oldest first."""

    subject: Subject
    window_ms: int
    entries: tuple[tuple[int, int], ...]

    def used_at(self, now_ms: int) -> int:
        """The units that count at a time."""
        return sum(cost for time, cost in self.entries if time > now_ms - self.window_ms)


@dataclass(frozen=True, slots=True)
class Slots:
    """Requests at once: when each slot expires (ms since 1970), and the token of its holder."""

    subject: Subject
    entries: tuple[tuple[int, int], ...]

    def held_at(self, now_ms: int) -> int:
        """How many are taken at a time."""
        return sum(expiry > now_ms for expiry, _ in self.entries)


LimitState: TypeAlias = WindowCounter | Bucket | Level | Log | Slots


def read_limit(key: str, value: bytes, now_ms: int, ttl_ms: int) -> LimitState | None:
    """The state that stands at a key with so long to live, or None for whatever is none."""
    base, _, state = key.rpartition(":")
    if not base or _STATE.fullmatch(state) is None:
        return None
    subject = _subject(base)
    numbers = [int(number) for number in _DIGITS.findall(state)]
    match state.partition(".")[0]:
        case "bucket":
            return _bucket(subject, numbers[0], value)
        case "gcra":
            return _level(subject, numbers[0], numbers[1], value)
        case "log" | "slots":
            return _entries(subject, numbers, value)
        case _:
            return _counter(subject, numbers[0], value, now_ms, ttl_ms)


def _subject(base: str) -> Subject:
    if base.startswith(f"{_SDK}:"):
        return Subject(_SDK, "", "", base.removeprefix(f"{_SDK}:"))
    prefix, rule, identifier = ["", "", *base.rsplit(":", 2)][-3:]
    kind, equals, value = identifier.partition("=")
    if not equals:
        kind, value = "", identifier
    return Subject(prefix, unquote(rule), unquote(kind), unquote(value))


def _bucket(subject: Subject, interval_ms: int, value: bytes) -> Bucket | None:
    found = _PAIR.fullmatch(value)
    if found is None or not interval_ms:
        return None
    return Bucket(subject, interval_ms, int(found[1]), int(found[2]))


def _level(subject: Subject, limit: int, window_ms: int, value: bytes) -> Level | None:
    found = _PAIR.fullmatch(value)
    if found is None or not limit or not window_ms:
        return None
    return Level(subject, limit, window_ms, int(found[1]), max(0, int(found[2])))


def _entries(subject: Subject, window_ms: list[int], value: bytes) -> Log | Slots | None:
    pairs = [_PAIR.fullmatch(entry) for entry in value.split(b",")] if value else []
    entries = tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair)
    if len(entries) < len(pairs):
        return None
    return Log(subject, window_ms[0], entries) if window_ms else Slots(subject, entries)


def _counter(
    subject: Subject, number: int, value: bytes, now_ms: int, ttl_ms: int
) -> WindowCounter | None:
    if not _NUMBER.fullmatch(value) or number < 2 or ttl_ms < 0:
        return None
    # The window is this one, the one before or the next: so its length is known to one part in
    # its number, and people choose round ones.
    least, most = now_ms / (number + 3), now_ms / (number - 1)
    for unit in _ROUND:
        window = int(most // unit) * unit
        if least < window <= _LONGEST_WINDOW:
            algorithm = _algorithm(number, window, now_ms + ttl_ms)
            if algorithm is None and subject.prefix == _SDK:
                algorithm = "window"
            if algorithm is not None:
                return WindowCounter(subject, max(0, int(value)), number, window, algorithm)
    return None


def _algorithm(number: int, window: int, expires_ms: int) -> str | None:
    """Which algorithm keeps a counter so long: until it counts no more, and an eighth, and 1 s."""
    for name, counts_until in (("fixed", number + 1), ("sliding", number + 2)):
        expected = counts_until * window + window // 8 + 1000
        if abs(expires_ms - expected) <= min(window / 4, 5000):
            return f"{name} window"
    return None
