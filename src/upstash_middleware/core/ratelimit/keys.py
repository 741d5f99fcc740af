"""Names of keys on Redis: ``PREFIX:RULE:IDENTIFIER:WINDOW``.

The last part is a window's number, or begins with the name of the algorithm that has a
namespace of its own. The parts before it come escaped (``identify.escape``), so that no two
keys are the same by concatenation. No command is made here.
"""

from __future__ import annotations

from typing import assert_never

from upstash_middleware.core.ratelimit.limits import (
    GCRA,
    Concurrency,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
    window_ms,
)


def limit_keys(base: str, limit: Limit, now_ms: int) -> tuple[str, ...]:
    """Return the keys that a limit's state may be in at ``now_ms``, in the script's order.

    ``base`` is ``PREFIX:RULE:IDENTIFIER``. For windows the next one's key is among them: a
    process whose clock leads may have begun it.
    """
    number = now_ms // limit.milliseconds
    match limit:
        case FixedWindow():
            return (f"{base}:{number}", f"{base}:{number + 1}")
        case SlidingWindow():
            return (f"{base}:{number - 1}", f"{base}:{number}", f"{base}:{number + 1}")
        case TokenBucket():
            return (f"{base}:bucket.{window_ms(limit)}",)
        case GCRA():
            # A level is counted in units of both numbers, so other numbers are another state.
            return (f"{base}:gcra.{limit.limit}.{window_ms(limit)}",)
        case SlidingLog():
            return (f"{base}:log.{window_ms(limit)}",)
        case Concurrency():
            return (f"{base}:slots",)
    assert_never(limit)
