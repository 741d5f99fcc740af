"""What becomes of a stored response as it ages, asked second by second of the cache's own rules."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

from documentation.pictures.svg import box, line, picture, text
from upstash_middleware import CacheRule, Headers, HTTPRequest
from upstash_middleware.core.cache.http.directives import control_of
from upstash_middleware.core.cache.http.fields import known_fields
from upstash_middleware.core.cache.http.reuse import Use, usable_for_error, use
from upstash_middleware.core.cache.http.storing import Candidate, Plan, plan
from upstash_middleware.core.cache.rules import SAFE
from upstash_middleware.messages import ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CACHE_CONTROL: Final = "max-age=60, stale-while-revalidate=30, stale-if-error=120"
GRACE: Final = 180.0
PURGED: Final = 30
"""When it is purged softly, in seconds, in the third row."""

_LASTS = 270
_LEFT, _WIDTH, _TOP, _ROW = 150, 560, 46, 54
_BAR = 26

Phase = tuple[str, str]
"""A colour, and words."""
_SAID: Final[dict[Use, Phase]] = {
    Use.FRESH: ("fresh", "used"),
    Use.STALE: ("stale", "used stale"),
    Use.STALE_WHILE_REVALIDATE: ("stale", "refreshed"),
    Use.FORWARD_STALE: ("ask", "the application is called with If-None-Match"),
    Use.FORWARD_REQUESTED: ("ask", "the application is asked"),
}
_GONE: Final[Phase] = ("", "")


def stored() -> Plan:
    """Return what is stored of a response with these directives and an ETag, received at 0."""
    headers = Headers.of(cache_control=CACHE_CONTROL, etag='"a"')
    candidate = Candidate(
        request=HTTPRequest("GET", "/"),
        rule=CacheRule("/"),
        profile=SAFE,
        head=ResponseHead(200, headers),
        control=control_of(headers, ()),
        vary=(),
        received_at=0.0,
        fields=known_fields(),
    )
    planned = plan(candidate, requested_at=0.0, grace=GRACE)
    if isinstance(planned, str):
        raise TypeError(planned)
    return planned


def ordinarily(second: int) -> Phase:
    """Say what becomes of a request for it."""
    return _phase(second)


def when_failing(second: int) -> Phase:
    """Say what becomes of one while the application answers 503."""
    found = _phase(second)
    if found in (_GONE, _SAID[Use.FRESH], _SAID[Use.STALE_WHILE_REVALIDATE]):
        return found
    stands_in = usable_for_error(stored().stored, second)
    return ("stale", "fallback") if stands_in else ("error", "the 503")


def purged_softly(second: int) -> Phase:
    """Say what becomes of one after a soft purge."""
    return _phase(second, purged_softly=second >= PURGED)


def phases(of: Callable[[int], Phase]) -> list[tuple[int, int, Phase]]:
    """Return from when to when, in seconds, the same becomes of a request."""
    found = []
    for phase, seconds in groupby(range(_LASTS), of):
        each = list(seconds)
        found.append((each[0], each[-1] + 1, phase))
    return found


def _phase(second: int, *, purged_softly: bool = False) -> Phase:
    planned = stored()
    if second >= planned.keep:
        return _GONE
    return _SAID[use(planned.stored, second, purged_softly=purged_softly, can_refresh=True)]


def drawn() -> str:
    """Return the picture."""
    rows = {
        "a request": ordinarily,
        "… while it fails": when_failing,
        f"purged softly at {PURGED} s": purged_softly,
    }
    title = f"A response with {CACHE_CONTROL} and an ETag, as it ages"
    bottom = _TOP + _ROW * len(rows)
    return picture(
        _LEFT + _WIDTH + 20,
        bottom + 40,
        title,
        [
            text(10, 18, "Cache-Control: " + CACHE_CONTROL, "bold"),
            *_scale(bottom),
            *(part for number, row in enumerate(rows) for part in _row(number, row, rows[row])),
            text(_LEFT + _WIDTH, bottom + 36, "age in seconds", "small quiet", "end"),
        ],
    )


def _x(second: int) -> float:
    return round(_LEFT + second / _LASTS * _WIDTH, 1)


def _scale(bottom: int) -> Iterator[str]:
    for second in range(0, _LASTS + 1, 30):
        yield line((_x(second), _TOP - 12), (_x(second), bottom + 4), "grid")
        yield text(_x(second), bottom + 20, str(second), "small quiet", "middle")


def _row(number: int, name: str, of: Callable[[int], Phase]) -> Iterator[str]:
    y = _TOP + number * _ROW
    yield text(10, y + 17, name)
    for start, end, (kind, said) in phases(of):
        x, width = _x(start), _x(end) - _x(start)
        if not kind:
            yield text(x + 4, y + 17, "gone", "small quiet")
            continue
        yield box(x + 1, y, round(width - 2, 1), _BAR, kind)
        if width > 6.2 * len(said):
            yield text(round(x + width / 2, 1), y + 17, said, "small on", "middle")
        else:
            yield text(round(x + 2, 1), y + 39, said, "small")
