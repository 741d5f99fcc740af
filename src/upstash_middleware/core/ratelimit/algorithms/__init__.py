"""The algorithms. Each has a module, a ``.lua`` file of the same name, and an entry below.

The module contains the class that users create, the keys, the script's arguments, and the algorithm
in Python for counting in this process. The ``.lua`` file contains the algorithm for Upstash.
"""

from __future__ import annotations

import re

from upstash_middleware.core.clock import unit_seconds
from upstash_middleware.core.ratelimit.algorithms.concurrency import Concurrency
from upstash_middleware.core.ratelimit.algorithms.fixed_window import FixedWindow
from upstash_middleware.core.ratelimit.algorithms.gcra import GCRA
from upstash_middleware.core.ratelimit.algorithms.limit import Limit
from upstash_middleware.core.ratelimit.algorithms.sliding_log import SlidingLog
from upstash_middleware.core.ratelimit.algorithms.sliding_window import SlidingWindow
from upstash_middleware.core.ratelimit.algorithms.token_bucket import TokenBucket
from upstash_middleware.errors import ConfigurationError

__all__ = [
    "ALGORITHMS",
    "GCRA",
    "Concurrency",
    "FixedWindow",
    "Limit",
    "SlidingLog",
    "SlidingWindow",
    "TokenBucket",
    "parse_limits",
]

ALGORITHMS: dict[str, type[Limit]] = {
    "fixed_window": FixedWindow,
    "sliding_window": SlidingWindow,
    "gcra": GCRA,
    "sliding_log": SlidingLog,
    "token_bucket": TokenBucket,
    "concurrency": Concurrency,
}
"""The algorithms, by the name of their files."""

_BY_WORD: dict[str, type[FixedWindow | SlidingWindow | GCRA | SlidingLog]] = {
    limit.word: limit  # type: ignore[misc]
    for limit in ALGORITHMS.values()
    if limit.word is not None
}
# Compiled at the first use, for quick imports.
_AT_ONCE = r"(?i)([0-9]+(?:_[0-9]+)*)\s+at\s+once"
_LIMIT = (
    r"(?i)(?:(?P<algorithm>[a-z]+)\s+)?(?P<limit>[0-9]+(?:_[0-9]+)*)\s*(?:/|\s+per\s|\s+in\s)\s*"
    r"(?P<count>[0-9]+(?:\.[0-9]+)?)?\s*(?P<unit>[a-z]+)(?:\s+burst\s+(?P<burst>[0-9]+(?:_[0-9]+)*))?"
)


def parse_limits(text: str) -> tuple[Limit, ...]:
    """Parse one or several limits, separated by semicolons or commas.

    A limit is ``[fixed|sliding|gcra|log] COUNT/[N]UNIT [burst B]``, with units from ``ms`` to
    ``month`` (30 days). The default algorithm is a sliding window, or GCRA with a burst.
    ``COUNT at once`` is a Concurrency.
    Raises ConfigurationError.
    """
    return tuple(_parse_limit(part.strip(), text) for part in re.split("[;,]", text))


def _parse_limit(part: str, text: str) -> Limit:
    if slots := re.fullmatch(_AT_ONCE, part):
        return Concurrency(int(slots[1]))
    found = re.fullmatch(_LIMIT, part)
    if found is None:
        shown = repr(part) if part == text else f"{part!r} in {text!r}"
        raise ConfigurationError(
            f"{shown} is not a limit; write for instance '10/10s', "
            "'5 per minute; 100 per day' or '10/s burst 20'"
        )
    unit = unit_seconds(found["unit"])
    if unit is None:
        known = "ms, s, min, h, day, week, month"
        raise ConfigurationError(
            f"{part!r}: unknown unit of time {found['unit']!r}; known: {known}"
        )
    limit, per = int(found["limit"]), float(found["count"] or 1) * unit
    word = (found["algorithm"] or ("gcra" if found["burst"] else "sliding")).lower()
    if word not in _BY_WORD:
        known = ", ".join(_BY_WORD)
        raise ConfigurationError(f"{part!r}: unknown algorithm {word!r}; known: {known}")
    if not found["burst"]:
        return _BY_WORD[word](limit, per)
    if word != "gcra":
        raise ConfigurationError(f"{part!r}: only 'gcra' has a burst; leave out {word!r}")
    return GCRA(limit, per, int(found["burst"]))
