"""How the console shows amounts, times, bytes, stretches of time and the bill's chart."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from upstash_middleware.local.valkey import Failure, NullArray, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.local.billing import Sample
    from upstash_middleware.local.faults import Faults
    from upstash_middleware.local.valkey import Reply

MAX_SHOWN: Final = 16 * 1024
"""Characters of a value that a page shows."""
_MAX_WORD: Final = 120
_SHA: Final = re.compile(rb"[0-9a-f]{40}")


def duration(seconds: float) -> str:
    """Seconds for people: ``8.5 s``, ``2 min``, ``3 h``, ``5 d``; ``120 ms``."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{round(seconds / length, 1):g} {unit}"
    if 0 < seconds < 1:
        return f"{round(seconds * 1000):d} ms"
    return f"{round(seconds, 1):g} s"


def size(count: int) -> str:
    """Bytes for people: ``812 B``, ``4.2 KiB``."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= length * 1000:
            return f"{count // length} {unit}"
        if count >= length:
            return f"{count / length:.3g} {unit}"
    return f"{count} B"


def amount(count: float) -> str:
    """A number with separated thousands, and two decimals if it has a fraction."""
    whole = count == int(count)
    return f"{count:,.{0 if whole else 2}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


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
    """Bytes as one line of text, with escapes for what is not printable."""
    return "".join(map(_printable, data.decode("utf-8", "backslashreplace")))


def shorten(data: bytes, most: int = 1024) -> str:
    """The first bytes as text, and the size if there are more."""
    return text(data) if len(data) <= most else f"{text(data[:most])}… ({size(len(data))})"


def word(data: bytes) -> str:
    """An argument of a command, shortened."""
    if _SHA.fullmatch(data):
        return f"{data[:8].decode()}…"
    if len(data) <= _MAX_WORD:
        return text(data) or '""'
    return f"{text(data[:_MAX_WORD])}…"


def summarize_reply(reply: Reply) -> str:
    """A reply in a few words."""
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


def summarize_faults(faults: Faults) -> str:
    """The simulated faults in a few words."""
    parts = []
    if faults.fault:
        share = f" {faults.probability * 100:g} %" if faults.probability < 1 else ""
        parts.append(faults.fault.value + share)
    if faults.latency_ms or faults.jitter_ms:
        jitter = f"+{faults.jitter_ms:g}" if faults.jitter_ms else ""
        parts.append(f"{faults.latency_ms:g}{jitter} ms late")
    return ", ".join(parts) or "none"


def view_bytes(data: bytes, length: int) -> tuple[str, str]:
    """How to show the beginning of a string of `length` bytes: as what text, and with what note.

    JSON is indented, text is shown as it is, and everything else in hexadecimal.
    """
    if (indented := _indented_json(data)) is not None:
        shown, note, cut = indented[:MAX_SHOWN], "JSON, indented", len(indented) > MAX_SHOWN
    elif _is_text(data):
        shown, note, cut = _block(data[:MAX_SHOWN]), "", length > MAX_SHOWN
    else:
        shown, note = _hexadecimal(data[: MAX_SHOWN // 8]), "not text, in hexadecimal"
        cut = length > MAX_SHOWN // 8
    return shown, ", ".join(filter(None, [note, "the first part" if cut else ""]))


def _indented_json(data: bytes) -> str | None:
    if len(data) > 64 * MAX_SHOWN or data[:1] not in (b"{", b"["):
        return None
    try:
        indented = json.dumps(json.loads(data), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return _block(indented.encode("utf-8", "backslashreplace"))


def _is_text(data: bytes) -> bool:
    """Whether bytes begin as text; the last character may be cut."""
    beginning = data[:2048]
    try:
        decoded = beginning.decode()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3 or error.start == 0:
            return False
        decoded = beginning[: error.start].decode()
    return all(each.isprintable() or each in "\r\n\t" for each in decoded)


def _block(data: bytes) -> str:
    decoded = data.decode("utf-8", "backslashreplace")
    return "".join(each if each in "\n\t" else _printable(each) for each in decoded)


def _hexadecimal(data: bytes) -> str:
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):47}  {shown}")
    return "\n".join(lines)


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def response_spans(
    stored: StoredResponse, now: float, ttl: float
) -> list[tuple[str, float, float]]:
    """The life of a stored response that expires in `ttl` seconds, as spans of a time line."""
    fresh = max(0.0, stored.lifetime - stored.initial_age)
    rules = stored.stale
    grace = 0.0 if rules.forbidden else max(rules.while_revalidate, rules.if_error)
    stale_at, unusable_at = stored.stored_at + fresh, stored.stored_at + fresh + grace
    spans = [(f"fresh, {duration(fresh)}", stored.stored_at, stale_at)]
    if grace:
        spans.append((f"stale but usable, {duration(grace)}", stale_at, unusable_at))
    if now + ttl > unusable_at:
        spans.append(("kept for revalidation", unusable_at, now + ttl))
    return spans


# The bill's chart.

BARS: Final = 60
_SERIES: Final = 5
_STEPS: Final = 4


class Chart(Struct, frozen=True):
    """Commands over time as stacked bars; coordinates are within 60 by 100."""

    title: str
    names: Sequence[str]
    """Of the series, the largest first, and ``others`` at the end."""
    bars: Sequence[tuple[str, Sequence[tuple[int, int, float, float]]]]
    """Of each bar its title, and of its parts the series, the place, the top and the height."""
    scale: Sequence[str]
    """The labels of the horizontal lines, from top to bottom."""
    times: Sequence[str]


def bill_chart(samples: Iterable[Sample], now: float, span: float) -> Chart:
    """The commands of the last `span` seconds."""
    counts: list[Counter[str]] = [Counter() for _ in range(BARS)]
    for sample in samples:
        place = BARS - 1 - int((now - sample.at) / span * BARS)
        if 0 <= place < BARS:
            counts[place].update(sample.by_command)
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
    """The next number that divides well into the steps of a scale."""
    if value <= _STEPS:
        return float(_STEPS)
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * power >= value
    )
