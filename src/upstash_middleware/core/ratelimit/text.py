"""Limits written as text: ``"10/10s"``, ``"5 per minute; 100 per day"``, ``"10/s burst 20"``.

Only the notation is here; what a number may be is checked in ``limits``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from upstash_middleware.core.ratelimit.limits import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
)
from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = {
    "ms": 0.001, "millisecond": 0.001,
    "s": 1, "sec": 1, "second": 1,
    "m": 60, "min": 60, "minute": 60,
    "h": 3600, "hr": 3600, "hour": 3600,
    "d": 86_400, "day": 86_400,
    "w": 604_800, "week": 604_800,
    "month": 2_592_000,
}  # fmt: skip
"""A month is 30 days; windows are cut in UTC, not by any calendar."""

_ALGORITHMS: dict[str, Callable[[int, float], Limit]] = {
    "fixed": FixedWindow,
    "sliding": SlidingWindow,
    "gcra": GCRA,
    "log": SlidingLog,
}
_AT_ONCE = re.compile(r"([0-9][0-9_]*)\s+at\s+once", re.IGNORECASE)
_ONE_LIMIT = re.compile(
    r"(?:(?P<algorithm>[a-z]+)\s+)?(?P<limit>[0-9][0-9_]*)\s*(?:/|\s+per\s|\s+in\s)\s*"
    r"(?P<count>[0-9]+(?:\.[0-9]+)?)?\s*(?P<unit>[a-z]+)(?:\s+burst\s+(?P<burst>[0-9][0-9_]*))?",
    re.IGNORECASE,
)


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Parse one or several limits, separated by semicolons or commas.

    A limit is ``[fixed|sliding|gcra|log] COUNT/[N]UNIT [burst B]``; units reach from ``ms`` to
    ``month`` (30 days). Without a word it is a sliding window, with a burst it is a GCRA.
    ``COUNT at once`` is a Concurrency.
    Raises ConfigurationError.
    """
    parts = [part.strip() for part in re.split("[;,]", text)]
    return tuple(_one(part, text) for part in parts)


def _one(part: str, text: str) -> Limit:
    if slots := _AT_ONCE.fullmatch(part):
        return Concurrency(int(slots[1]))
    found = _ONE_LIMIT.fullmatch(part)
    if found is None:
        raise ConfigurationError(
            f"{_shown(part, text)} is not a limit; write for instance '10/10s', "
            "'5 per minute; 100 per day' or '10/s burst 20'"
        )
    limit, per = int(found["limit"]), float(found["count"] or 1) * _unit(found["unit"], part)
    algorithm = (found["algorithm"] or ("gcra" if found["burst"] else "sliding")).lower()
    if algorithm not in _ALGORITHMS:
        known = ", ".join(_ALGORITHMS)
        raise ConfigurationError(f"{part!r}: no algorithm is called {algorithm!r}; known: {known}")
    if not found["burst"]:
        return _ALGORITHMS[algorithm](limit, per)
    if algorithm != "gcra":
        raise ConfigurationError(f"{part!r}: only 'gcra' has a burst; leave out {algorithm!r}")
    return GCRA(limit, per, int(found["burst"]))


def _unit(unit: str, part: str) -> float:
    name = unit.lower()
    seconds = _SECONDS.get(name) or _SECONDS.get(name.removesuffix("s"))
    if seconds is None:
        known = "ms, s, min, h, day, week, month"
        raise ConfigurationError(f"{part!r}: no unit of time is called {unit!r}; known: {known}")
    return seconds


def _shown(part: str, text: str) -> str:
    return repr(part) if part == text else f"{part!r} in {text!r}"
