"""HTTP-dates (RFC 9110 §5.6.7): text to seconds since 1970 and back; no clock.

The three formats are read strictly, since RFC 9111 §5.3 counts anything else as a time in the
past; case alone makes no difference (§4.2). Names of days and months are fixed, whatever the
process's locale.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LONG_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NUMBER_OF_MONTH = {name.lower(): number for number, name in enumerate(_MONTHS, start=1)}

_MONTH = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_FORMATS = tuple(
    re.compile(text, re.IGNORECASE | re.ASCII)
    for text in (
        rf"(?:{'|'.join(_DAYS)}), (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"(?:{'|'.join(_LONG_DAYS)}), (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"(?:{'|'.join(_DAYS)}) {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)


def parse_date(text: str, now: float) -> float | None:
    """Return an HTTP-date as seconds since 1970, or None for anything else.

    ``now`` settles the century of a two-digit year: one that seems more than 50 years ahead is
    the most recent past year with these digits (RFC 9110 §5.6.7).
    """
    for pattern in _FORMATS:
        if (found := pattern.fullmatch(text.strip(" \t"))) is not None:
            return _seconds(found.groupdict(), now)
    return None


def _seconds(parts: dict[str, str], now: float) -> float | None:
    year = int(parts["year"])
    if len(parts["year"]) == 2:
        this_year = time.gmtime(now).tm_year
        year += this_year - this_year % 100
        if year > this_year + 50:
            year -= 100
    # A leap second is a valid time; datetime knows none, so it counts as the second before.
    second = min(int(parts["second"]), 59) if parts["second"] == "60" else int(parts["second"])
    try:
        moment = datetime(
            year,
            _NUMBER_OF_MONTH[parts["month"].lower()],
            int(parts["day"]),
            int(parts["hour"]),
            int(parts["minute"]),
            second,
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return moment.timestamp()


def format_date(seconds: float) -> str:
    """Return seconds since 1970 as an IMF-fixdate: ``Sun, 06 Nov 1994 08:49:37 GMT``."""
    at = time.gmtime(seconds)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )
