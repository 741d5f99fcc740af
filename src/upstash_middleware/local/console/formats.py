"""Formats amounts, times, bytes and the bill's chart for the console."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from upstash_middleware.local.valkey import Failure, NullArray, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.local.faults import Faults
    from upstash_middleware.local.valkey import Reply

MAX_SHOWN: Final = 16 * 1024
"""The most characters of a value that a page shows."""


def duration(seconds: float) -> str:
    """Seconds for people: ``8.5 s``, ``2 min``, ``3 h``, ``5 d``; ``120 ms``, ``0.35 ms``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{round(seconds / length, 1):g} {unit}"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 2}f} ms"
    return f"{round(seconds, 1):g} s"


def amount(count: float) -> str:
    """A number with separated thousands, and two decimals if it has a fraction."""
    whole = count == int(count)
    return f"{count:,.{0 if whole else 2}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def share(part: float) -> str:
    """A part of 1 in percent; small ones are not rounded to 0 %, nor large ones to 100 %."""
    if 0 < part < 0.01 or 0.99 < part < 1:
        return "< 1 %" if part < 0.5 else "> 99 %"
    return f"{part * 100:.0f} %"


def dollars(value: float) -> str:
    """US dollars with cents, or with more digits if they are less than one cent."""
    return f"${value:.6f}".rstrip("0") if value and value < 0.01 else f"${value:,.2f}"


def moment(seconds: float) -> str:
    """A time since 1970 as date and time in UTC; empty if it is not a date."""
    try:
        at = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return at.strftime("%Y-%m-%d %H:%M:%S")


def ago(seconds: float, now: float) -> str:
    """A time relative to now: ``3 s ago``, ``in 2 min``."""
    if seconds <= now:
        return f"{duration(now - seconds)} ago"
    return f"in {duration(seconds - now)}"


def text(data: bytes) -> str:
    """Bytes as one line of text; characters that are not printable are escaped."""
    return "".join(map(_printable, data.decode("utf-8", "backslashreplace")))


def shorten(data: bytes, most: int = 1024) -> str:
    """The first bytes as text."""
    return text(data) if len(data) <= most else f"{text(data[:most])}…"


def word(data: bytes) -> str:
    """An argument of a command or a reply, shortened."""
    return shorten(data, 120) or '""'


def summarize_reply(reply: Reply) -> str:
    """A short description of a reply."""
    match reply:
        case None | NullArray():
            return "nil"
        case bytes():
            return word(reply)
        case Status() | Failure():
            return word(reply.text)
        case list():
            return f"[{len(reply)}]"
        case _:
            return str(reply)


def reply_lines(reply: Reply, indent: str = "") -> str:  # noqa: PLR0911 - a table of cases
    """A reply in the format of redis-cli."""
    match reply:
        case None | NullArray():
            return "(nil)"
        case int():
            return f"(integer) {reply}"
        case bytes():
            shown = shorten(reply, MAX_SHOWN)
            return f'"{shown.replace(chr(34), chr(92) + chr(34))}"'
        case Status():
            return text(reply.text)
        case Failure():
            return f"(error) {text(reply.text)}"
        case list() if len(indent) > _MAX_DEPTH:
            return "…"
        case []:
            return "(empty array)"
    lines: list[str] = []
    for number, member in enumerate(reply[:_MEMBERS], start=1):
        mark = f"{number}) "
        deeper = indent + " " * len(mark)
        lines.append(f"{indent if lines else ''}{mark}{reply_lines(member, deeper)}")
    if len(reply) > _MEMBERS:
        lines.append(f"{indent}… {len(reply) - _MEMBERS} more")
    return "\n".join(lines)


_MEMBERS: Final = 200
_MAX_DEPTH: Final = 60
"""Characters of indentation."""


def summarize_faults(faults: Faults) -> str:
    """A short description of the simulated faults."""
    parts = []
    if faults.fault:
        share = f" {faults.probability * 100:g} %" if faults.probability < 1 else ""
        parts.append(faults.fault.value + share)
    if faults.latency_ms or faults.jitter_ms:
        jitter = f"+{faults.jitter_ms:g}" if faults.jitter_ms else ""
        parts.append(f"{faults.latency_ms:g}{jitter} ms late")
    return ", ".join(parts) or "none"


def view_bytes(data: bytes, length: int) -> tuple[str, bool]:
    """A value of `length` bytes, or its beginning, as lines of text; and whether it is complete.

    JSON is indented; characters that are not printable are escaped.
    """
    if len(data) <= 64 * MAX_SHOWN and data[:1] in (b"{", b"["):
        with suppress(msgspec.DecodeError, RecursionError):
            data = msgspec.json.format(data)
            length = len(data)
    characters = data[:MAX_SHOWN].decode("utf-8", "backslashreplace")
    shown = "".join(each if each in "\n\t" else _printable(each) for each in characters)
    return shown, length <= MAX_SHOWN


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


# The bill's chart.

BARS: Final = 60
_SERIES: Final = 5
_STEPS: Final = 4


class Chart(Struct, frozen=True):
    """Commands over time as stacked bars; coordinates are in an area of 60 by 100."""

    title: str
    names: Sequence[str]
    """The names of the series, largest first, and ``others`` at the end."""
    bars: Sequence[tuple[str, Sequence[tuple[int, int, float, float]]]]
    """The title of each bar, and series, position, top and height of each of its parts."""
    scale: Sequence[str]
    """The labels of the horizontal lines, from top to bottom."""
    times: Sequence[str]


def bill_chart(history: Iterable[tuple[int, Counter[str]]], now: float, span: float) -> Chart:
    """The commands of the last `span` seconds."""
    counts: list[Counter[str]] = [Counter() for _ in range(BARS)]
    for second, used in history:
        place = BARS - 1 - int((now - second) / span * BARS)
        if 0 <= place < BARS:
            counts[place].update(used)
    total: Counter[str] = sum(counts, Counter())
    names = [name for name, _ in total.most_common(_SERIES)]
    top = _round_up(max(count.total() for count in counts))
    bars = []
    for place, count in enumerate(counts):
        shown = [(name, count[name]) for name in names]
        shown.append(("others", count.total() - sum(number for _, number in shown)))
        parts, y = [], 100.0
        for series, (_, number) in enumerate(shown):
            y -= number / top * 100
            if number:
                parts.append((series, place, y, number / top * 100))
        words = ", ".join(f"{name} {amount(number)}" for name, number in shown if number)
        if parts:
            bars.append((f"{duration((BARS - place - 1) * span / BARS)} ago: {words}", parts))
    labels = (top * step / _STEPS for step in range(_STEPS, -1, -1))
    return Chart(
        title=f"Commands over the last {duration(span)}: {amount(total.total())} in all",
        names=[*names, "others"] if len(total) > len(names) else names,
        bars=bars,
        scale=[f"{label / 1000:g}k" if label >= 1000 else f"{label:g}" for label in labels],
        times=[f"\N{MINUS SIGN}{duration(span * part)}" for part in (1, 0.75, 0.5, 0.25)] + ["now"],
    )


def _round_up(value: float) -> float:
    """The next number that the steps of a scale divide well."""
    if value <= _STEPS:
        return float(_STEPS)
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value
    )
