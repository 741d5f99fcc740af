"""The geometry of the console's drawings: commands over time, and where in its life a value is."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from upstash_middleware.local.console.formats import amount, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.local.billing import Sample
    from upstash_middleware.local.console.keys import SlidingLog, StoredResponse, WindowCounter

BARS: Final = 60
HEIGHT: Final = 100
_SERIES: Final = 5
_OTHERS: Final = "others"
_STEPS: Final = 4


class Bar(Struct, frozen=True):
    """One bar of the chart: its place from the left, and its parts from bottom to top."""

    place: int
    title: str
    parts: Sequence[tuple[int, float, float]]
    """Of each part the series, the top and the height."""


class Chart(Struct, frozen=True):
    """Commands over time, stacked by name."""

    title: str
    names: Sequence[str]
    """Of the series, the largest first."""
    bars: Sequence[Bar]
    scale: Sequence[str]
    """The labels of the horizontal lines, from top to bottom."""
    times: Sequence[str]

    def series(self, name: str) -> int:
        """The number of a series, which selects its colour."""
        return _SERIES if name == _OTHERS else self.names.index(name)


def bill_chart(samples: Iterable[Sample], now: float, span: float) -> Chart:
    """The commands of the last `span` seconds."""
    bars: list[Counter[str]] = [Counter() for _ in range(BARS)]
    for sample in samples:
        place = BARS - 1 - int((now - sample.at) / span * BARS)
        if 0 <= place < BARS:
            bars[place].update(sample.by_command)
    total: Counter[str] = sum(bars, Counter())
    names = [name for name, _ in total.most_common(_SERIES)]
    top = _round_up(max(bar.total() for bar in bars))
    return Chart(
        title=f"Commands over the last {duration(span)}: {amount(total.total())} in all",
        names=[*names, _OTHERS] if len(total) > len(names) else names,
        bars=[
            _bar(place, bar, names, top, (BARS - place - 1) * span / BARS)
            for place, bar in enumerate(bars)
            if bar.total()
        ],
        scale=[
            f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
            for value in (top * step / _STEPS for step in range(_STEPS, -1, -1))
        ],
        times=[f"\N{MINUS SIGN}{duration(span * part)}" for part in (1, 0.75, 0.5, 0.25)] + ["now"],
    )


def _bar(place: int, bar: Counter[str], names: Sequence[str], top: float, age: float) -> Bar:
    counts = [(name, bar[name]) for name in names]
    counts.append((_OTHERS, bar.total() - sum(count for _, count in counts)))
    parts, below = [], 0.0
    for series, (_, count) in enumerate(counts):
        height = count / top * HEIGHT
        if count:
            parts.append(
                (series if series < len(names) else _SERIES, HEIGHT - below - height, height)
            )
        below += height
    counted = ", ".join(f"{name} {amount(count)}" for name, count in counts if count)
    return Bar(place, f"{duration(age)} ago: {counted}", parts)


def _round_up(value: float) -> float:
    """The next number that divides well into the steps of a scale."""
    if value <= _STEPS:
        return float(_STEPS)
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value
    )


class TimeLine(Struct, frozen=True):
    """A horizontal bar of coloured blocks; positions and widths are in per cent."""

    title: str
    blocks: Sequence[tuple[str, float, float]]
    """Of each block the kind, which selects its colour, the position and the width."""
    now: float
    marks: Sequence[float] = ()


def _time_line(title: str, stretches: Sequence[tuple[str, float]], passed: float) -> TimeLine:
    """Stretches of seconds one after another, of which `passed` seconds are over."""
    whole = sum(max(0.0, seconds) for _, seconds in stretches) or 1.0
    blocks, at = [], 0.0
    for kind, seconds in stretches:
        width = max(0.0, seconds) / whole * 100
        blocks.append((kind, at, width))
        at += width
    return TimeLine(title, blocks, min(1.0, max(0.0, passed / whole)) * 100)


def window_line(counter: WindowCounter, now: float) -> TimeLine:
    """The window of a counter, and for a sliding window also the next one."""
    window, passed = counter.window_ms / 1000, now - counter.starts_ms / 1000
    stretches = [("fresh", window)]
    if counter.algorithm == "sliding window":
        stretches.append(("stale", window))
    return _time_line(f"{duration(max(0.0, passed))} since the window began", stretches, passed)


def log_line(log: SlidingLog, now: float) -> TimeLine:
    """The requests in the window of a sliding log, which ends now."""
    window, begin = log.window_ms / 1000, now - log.window_ms / 1000
    shares = [(at / 1000 - begin) / window for at, _ in log.entries] if window else []
    used = amount(log.used_at(int(now * 1000)))
    return TimeLine(
        f"{used} units in the last {duration(window)}",
        [("rest", 0, 100)],
        100,
        [share * 100 for share in shares if 0 <= share <= 1],
    )


def response_line(stored: StoredResponse, now: float, ttl: float) -> TimeLine:
    """A stored response, from the time it was stored until it expires in `ttl` seconds."""
    fresh, grace, rest = _phases(stored, now, ttl)
    passed = max(0.0, now - stored.head.stored_at)
    return _time_line(
        f"Stored {duration(passed)} ago; fresh for {duration(fresh)}",
        [("fresh", fresh), ("stale", grace), ("rest", rest)],
        passed,
    )


def response_legend(stored: StoredResponse, now: float, ttl: float) -> list[tuple[str, str]]:
    """The legend of `response_line`: colours and their meanings."""
    fresh, grace, rest = _phases(stored, now, ttl)
    legend = [("fresh", f"fresh, {duration(fresh)}")]
    if grace:
        legend.append(("stale", f"stale but usable, {duration(grace)}"))
    if rest * 50 > fresh + grace + rest:
        legend.append(("rest", "kept for revalidation"))
    return [*legend, ("now", "now")]


def _phases(stored: StoredResponse, now: float, ttl: float) -> tuple[float, float, float]:
    """For how many seconds it is fresh, may be used stale, and is kept after that."""
    head = stored.head
    while_revalidate, if_error, forbidden = head.stale
    fresh = max(0.0, head.lifetime - head.initial_age)
    grace = 0.0 if forbidden else max(while_revalidate, if_error)
    passed = max(0.0, now - head.stored_at)
    return fresh, grace, max(0.0, passed + ttl - fresh - grace)
