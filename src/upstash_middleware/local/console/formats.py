"""How the console shows amounts, times, bytes and the like, as text."""

from __future__ import annotations

import datetime as dt
import json
import re
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.valkey import Failure, NullArray, Status

if TYPE_CHECKING:
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
    """A number with separated thousands."""
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


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
