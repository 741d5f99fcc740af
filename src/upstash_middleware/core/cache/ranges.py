"""Range requests (RFC 9110 §14) answered from what is stored; one range at a time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.dates import parse_date
from upstash_middleware.core.cache.fields import is_strong
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.messages import Headers

_ONE_RANGE = re.compile(
    r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*", re.IGNORECASE
)

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")

UNSATISFIABLE = range(0)
"""A range of which the representation has no byte."""


def wanted_range(request: Headers, stored: StoredResponse) -> range | None:
    """Return the bytes that a request asks for; None where it is to be answered whole.

    That is so without Range, with one that is invalid or of several ranges (which a server may
    ignore, §14.2), and where If-Range does not hold.
    """
    value = request.combined("range")
    if value is None or not _if_range_holds(request, stored):
        return None
    return _resolved(value, stored.length)


def _resolved(value: str, length: int) -> range | None:
    """Return the bytes that one range means of so many, None where it is invalid."""
    found = _ONE_RANGE.fullmatch(value)
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, stop = max(0, length - int(suffix)), length
    else:
        start, stop = int(first), int(last) + 1 if last else length
        if last and int(last) < int(first):
            return None
    stop = min(stop, length)
    return range(start, stop) if start < stop else UNSATISFIABLE


@dataclass(frozen=True, slots=True)
class Part:
    """What a Content-Range says that a response holds (§14.4)."""

    first: int
    last: int
    total: int | None
    """The length of the whole; None where it was not known."""

    def __str__(self) -> str:
        return f"bytes {self.first}-{self.last}/{'*' if self.total is None else self.total}"

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing from it."""
        return self.first == 0 and self.reaches_the_end

    @property
    def reaches_the_end(self) -> bool:
        """Whether its last byte is the whole's."""
        return self.total == self.last + 1


def part_held(headers: Headers) -> Part | None:
    """Return the part that a 206 holds; None where that is not one valid range."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range") or "")
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if last < first or (total is not None and total <= last):
        return None
    return Part(first, last, total)


def wanted_of_part(request: Headers, stored: StoredResponse) -> range | None:
    """Return the bytes of a stored part's body that a request asks for (RFC 9111 §3.3).

    None where it asks for more than that part, or for the whole. Places are counted from the
    part's end where the request counts from the whole's.
    """
    part, value = part_held(stored.headers), request.combined("range")
    found = _ONE_RANGE.fullmatch(value) if value is not None else None
    if part is None or found is None or not _if_range_holds(request, stored):
        return None
    first, last, suffix = found.groups()
    if not last and not part.reaches_the_end:
        return None
    length = stored.length
    if suffix is not None:
        start, stop = length - int(suffix), length
    else:
        start, stop = int(first) - part.first, int(last) + 1 - part.first if last else length
    return range(start, stop) if 0 <= start < stop <= length else None


def _if_range_holds(request: Headers, stored: StoredResponse) -> bool:
    """Whether If-Range is absent or names what is stored, by a strong validator (§13.1.5)."""
    condition = request.get("if-range")
    if condition is None:
        return True
    if condition.startswith('"'):
        return is_strong(condition) and condition == stored.headers.get("etag")
    modified = stored.headers.get("last-modified")
    return condition == modified and _is_strong_date(modified, stored)


def _is_strong_date(modified: str, stored: StoredResponse) -> bool:
    """Whether it is more than a second older than the response's Date (RFC 9110 §8.8.2.2)."""
    at = parse_date(modified, stored.stored_at)
    date = parse_date(stored.headers.get("date") or "", stored.stored_at)
    return at is not None and (stored.stored_at if date is None else date) - at >= 1
