"""How amounts, times and bytes are said to people.  Nothing is marked up here."""

from __future__ import annotations

import datetime as dt
from typing import Final

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))
_HIDDEN: Final = 2


def duration(seconds: float) -> str:
    """Seconds as people say them: ``8.5 s``, ``2 min``, ``3 h``, ``5 d``; ``120 ms``."""
    for unit, length in _UNITS:
        if seconds >= _HIDDEN * length:
            return f"{round(seconds / length, 1):g} {unit}"
    if 0 < seconds < 1:
        return f"{round(seconds * 1000):d} ms"
    return f"{round(seconds, 1):g} s"


def size(count: int) -> str:
    """Bytes as people say them: ``812 B``, ``4.2 KiB``."""
    for unit, length in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= length:
            return (
                f"{count / length:.3g} {unit}"
                if count < length * 1000
                else f"{count // length} {unit}"
            )
    return f"{count} B"


def amount(count: float) -> str:
    """A number with its thousands set apart."""
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def dollars(value: float) -> str:
    """US dollars: two digits of cents, more where that would say nothing."""
    if value and value < 0.01:
        return f"${value:.6f}".rstrip("0")
    return f"${value:,.2f}"


def moment(seconds: float) -> str:
    """A time since 1970 as date and time in UTC; empty for what is no date."""
    try:
        at = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return at.strftime("%Y-%m-%d %H:%M:%S")


def ago(seconds: float, now: float) -> str:
    """How far a time is from now: ``3 s ago``, ``in 2 min``."""
    if seconds <= now:
        return f"{duration(now - seconds)} ago"
    return f"in {duration(seconds - now)}"


def text(data: bytes) -> str:
    """Bytes as one line of text; what does not print is shown as an escape."""
    return "".join(map(_shown, data.decode("utf-8", "backslashreplace")))


def block(data: bytes) -> str:
    """Bytes as text of several lines."""
    decoded = data.decode("utf-8", "backslashreplace")
    return "".join(each if each in "\n\t" else _shown(each) for each in decoded)


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def is_text(data: bytes) -> bool:
    """Whether bytes begin as text does; the last character may be cut."""
    beginning = data[:2048]
    try:
        decoded = beginning.decode()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3 or error.start == 0:
            return False
        decoded = beginning[: error.start].decode()
    return all(each.isprintable() or each in "\r\n\t" for each in decoded)


def dump(data: bytes) -> str:
    """Bytes in hexadecimal, sixteen to a line, beside what of them is text."""
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{start:06x}  {row.hex(' '):47}  {shown}")
    return "\n".join(lines)
