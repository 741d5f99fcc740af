"""Drawings in SVG: the bill over time, and where in its life a value is.

Only drawing may live here.  The pictures hold shapes, stretched to whatever width there is;
words stand beside them as text, so that a telephone does not make them small.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console.markup import Html, h
from upstash_middleware.local.console.wording import amount, duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.local.history import Spent

BARS: Final = 60
SERIES: Final = 5
OTHERS: Final = "others"
_HEIGHT: Final = 100.0
_GAP: Final = 0.2
_LINES: Final = 4


@dataclass(frozen=True, slots=True)
class Chart:
    """Commands over time, by name."""

    picture: Html
    names: Sequence[str]
    """Of the series, the largest first; their place is their colour."""


def bill_chart(spent: Iterable[Spent], now: float, span: float) -> Chart:
    """The commands of the last `span` seconds, in BARS bars, each stacked by command."""
    bars: list[Counter[str]] = [Counter() for _ in range(BARS)]
    for sample in spent:
        place = BARS - 1 - int((now - sample.at) / span * BARS)
        if 0 <= place < BARS:
            bars[place].update(sample.by_command)
    total: Counter[str] = sum(bars, Counter())
    names = [name for name, _ in total.most_common(SERIES)]
    if len(total) > len(names):
        names.append(OTHERS)
    top = _round_up(max(bar.total() for bar in bars))
    drawn = [_bar(place, bar, names, top, span) for place, bar in enumerate(bars) if bar.total()]
    lines = [
        h("line", x1=0, x2=BARS, y1=f"{y:g}", y2=f"{y:g}", class_="grid")
        for y in (step * _HEIGHT / _LINES for step in range(_LINES + 1))
    ]
    words = f"Commands over the last {duration(span)}: {amount(total.total())} in all"
    svg = h(
        "svg",
        h("title", words, id="chart-title"),
        h("g", lines, aria_hidden="true"),
        drawn,
        viewBox=f"0 0 {BARS} {_HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
        aria_labelledby="chart-title",
    )
    scale = [h("span", _short(top * step / _LINES)) for step in range(_LINES, -1, -1)]
    times = [h("span", f"\N{MINUS SIGN}{duration(span * part)}") for part in (1, 0.75, 0.5, 0.25)]
    return Chart(
        h(
            "div",
            h("div", scale, class_="scale", aria_hidden="true"),
            svg,
            h("div", times, h("span", "now"), class_="times", aria_hidden="true"),
            class_="chart",
        ),
        names,
    )


def _bar(place: int, bar: Counter[str], names: Sequence[str], top: float, span: float) -> Html:
    parts, below = [], 0.0
    counts = [(name, bar[name]) for name in names if name != OTHERS]
    counts.append((OTHERS, bar.total() - sum(count for _, count in counts)))
    for series, (name, count) in enumerate(counts):
        if not count:
            continue
        height = count / top * _HEIGHT
        parts.append(
            h(
                "rect",
                x=f"{place + _GAP / 2:g}",
                y=f"{_HEIGHT - below - height:.2f}",
                width=f"{1 - _GAP:g}",
                height=f"{height:.2f}",
                class_=series_class(SERIES if name == OTHERS else series),
            )
        )
        below += height
    told = ", ".join(f"{name} {amount(count)}" for name, count in counts if count)
    ago = duration((BARS - place - 1) * span / BARS)
    return h("g", h("title", f"{ago} ago: {told}"), parts)


def series_class(series: int) -> str:
    """The class of a series's colour."""
    return f"s{series}"


def _round_up(value: float) -> float:
    """The next number that reads well on a scale of four steps."""
    if value <= _LINES:
        return float(_LINES)
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value
    )


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a time line: how long it is, and what it is, by the class of its colour."""

    seconds: float
    kind: str


def time_line(stretches: Sequence[Stretch], passed: float, words: str) -> Html:
    """A bar of stretches one after another, with a mark where `passed` seconds are over."""
    whole = sum(max(0.0, stretch.seconds) for stretch in stretches) or 1.0
    parts, at = [], 0.0
    for stretch in stretches:
        width = max(0.0, stretch.seconds) / whole * 100
        parts.append(_block(at, width, stretch.kind))
        at += width
    return _line(parts, min(1.0, max(0.0, passed / whole)) * 100, words)


def marks_line(marks: Iterable[float], words: str) -> Html:
    """A bar with marks on it, each at its share of the whole; it ends now."""
    lines = [
        h("rect", x=f"{share * 100:.2f}", y=3, width=0.4, height=10, class_="mark")
        for share in marks
        if 0 <= share <= 1
    ]
    return _line([_block(0, 100, "rest"), *lines], 100, words)


def _block(x: float, width: float, kind: str) -> Html:
    return h("rect", x=f"{x:.2f}", y=4, width=f"{width:.2f}", height=8, class_=kind)


def _line(parts: Sequence[Html], now: float, words: str) -> Html:
    mark = h("rect", x=f"{min(99.5, now):.2f}", y=0, width=0.5, height=16, class_="now")
    return h(
        "svg",
        h("title", words),
        list(parts),
        mark,
        viewBox="0 0 100 16",
        preserveAspectRatio="none",
        role="img",
        aria_label=words,
        class_="line",
    )
