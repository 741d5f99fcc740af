"""The same requests under each algorithm: what passed, what was left, and when the next passes.

LocalCounters decides as the script on Upstash does, line for line. Here it is given a pattern of
requests and told the time; what it answers is what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from documentation.pictures.svg import arrow, cross, dot, line, path, picture, text
from upstash_middleware import GCRA, FixedWindow, SlidingLog, SlidingWindow, TokenBucket
from upstash_middleware.core.ratelimit.charges import Charge
from upstash_middleware.core.ratelimit.memory import LocalCounters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.core.ratelimit import Limit
    from upstash_middleware.core.ratelimit.charges import Verdict

LIMITS: Final[dict[str, Limit]] = {
    "fixed-window": FixedWindow(5, per=10),
    "sliding-window": SlidingWindow(5, per=10),
    "sliding-log": SlidingLog(5, per=10),
    "gcra": GCRA(5, per=10),
    "token-bucket": TokenBucket(5, refill=5, per=10),
}
"""Each algorithm with five units in ten seconds, by the name of its picture."""

# A rush across a window's end, somebody who does not wait, a rush after a rest.
ARRIVALS: Final = (
    *(8200, 8600, 9000, 9400, 9800, 10200, 10600, 11000, 11400, 11800),
    *(13000, 14500, 16000, 17500, 19000),
    *(25000, 25400, 25800, 26200, 26600, 27000, 27400),
    *(28500, 30500, 32500, 34500),
)
"""When the requests come, in ms."""
LASTS: Final = 36_000
"""How much time is shown, in ms."""

_START = 1_700_000_000_000
_STEP = 50
_LEFT, _WIDTH, _TOP, _HEIGHT = 40, 660, 40, 90


@dataclass(frozen=True, slots=True)
class Request:
    """A request and what was decided; times in ms from the picture's left."""

    at: int
    passed: bool
    retry_after: int | None


@dataclass(frozen=True, slots=True)
class History:
    """What a limit did with the pattern."""

    requests: tuple[Request, ...]
    remaining: tuple[tuple[int, int], ...]
    """Time in ms and units, as a request at that time would have found them."""

    @property
    def passed(self) -> int:
        """How many requests passed."""
        return sum(request.passed for request in self.requests)

    @property
    def most_within_a_window(self) -> int:
        """How many passed at most within any ten seconds."""
        times = [request.at for request in self.requests if request.passed]
        return max(sum(start <= at < start + 10_000 for at in times) for start in times)


def history(limit: Limit) -> History:
    """Put the pattern to a limit."""
    counters = LocalCounters()
    requests, remaining = [], []
    for now in range(0, LASTS + 1, _STEP):
        if now in ARRIVALS:
            remaining.append((now, _ask(counters, limit, now, taking=False).remaining))
            verdict = _ask(counters, limit, now, taking=True)
            requests.append(Request(now, verdict.allowed, verdict.retry_ms))
        remaining.append((now, _ask(counters, limit, now, taking=False).remaining))
    return History(tuple(requests), tuple(remaining))


def _ask(counters: LocalCounters, limit: Limit, now: int, *, taking: bool) -> Verdict:
    # What can never fit takes nothing, and is told what is left.
    cost = 1 if taking else limit.quota + 1
    (verdict,) = counters.decide([Charge("picture", limit, cost)], _START + now)
    return verdict


def drawn(name: str) -> str:
    """Return the picture of a limit."""
    limit = LIMITS[name]
    shown = history(limit)
    title = f"{_said(name)}: {shown.passed} of {len(ARRIVALS)} requests pass"
    parts = [
        text(_LEFT, 18, title, "bold"),
        text(_LEFT + _WIDTH, 18, "units left, and requests below", "small quiet", "end"),
        *_scale(limit),
        path(
            [(_LEFT, _y(0, limit)), *_steps(shown, limit), (_x(LASTS), _y(0, limit))], "good-area"
        ),
        path(_steps(shown, limit), "good-line"),
        *_requests(shown),
        *_waits(shown),
        *_legend(),
    ]
    return picture(_LEFT + _WIDTH + 20, _TOP + _HEIGHT + 102, title, parts)


def rows_of_algorithms() -> Iterator[tuple[str, str, str]]:
    """Return of each algorithm how many requests pass, and how many at most within a window."""
    for name, limit in LIMITS.items():
        shown = history(limit)
        passed = f"{shown.passed} of {len(ARRIVALS)}"
        yield f"[{_said(name)}](#{name})", passed, str(shown.most_within_a_window)


def _said(name: str) -> str:
    words = name.replace("-", " ")
    return words.upper() if words == "gcra" else words


def _x(at: float) -> float:
    return round(_LEFT + at / LASTS * _WIDTH, 1)


def _y(units: float, limit: Limit) -> float:
    return round(_TOP + _HEIGHT * (1 - units / limit.quota), 1)


def _scale(limit: Limit) -> Iterator[str]:
    bottom = _TOP + _HEIGHT
    for units in range(limit.quota + 1):
        yield line((_LEFT, _y(units, limit)), (_LEFT + _WIDTH, _y(units, limit)), "grid")
        yield text(_LEFT - 8, _y(units, limit) + 4, str(units), "small quiet", "end")
    for second in range(0, LASTS // 1000 + 1, 5):
        x, edge = _x(second * 1000), second % 10 == 0
        yield line((x, _TOP), (x, bottom + 62), "line dashed" if edge else "grid")
        yield text(x, bottom + 76, f"{second} s", "small quiet", "middle")


def _steps(shown: History, limit: Limit) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    before = None
    for at, units in shown.remaining:
        if units != before:
            if before is not None:
                points.append((_x(at), _y(before, limit)))
            points.append((_x(at), _y(units, limit)))
            before = units
    points.append((_x(LASTS), _y(shown.remaining[-1][1], limit)))
    return points


def _requests(shown: History) -> Iterator[str]:
    for request in shown.requests:
        yield (dot if request.passed else cross)(_x(request.at), _TOP + _HEIGHT + 18)


def _waits(shown: History) -> Iterator[str]:
    """Draw how long the first of those that are denied in a row is told to wait."""
    row = 0
    for before, request in zip(shown.requests, shown.requests[1:], strict=False):
        if request.passed or not before.passed or not request.retry_after:
            continue
        y = _TOP + _HEIGHT + 36 + 16 * (row % 2)
        start, end = _x(request.at), _x(min(LASTS, request.at + request.retry_after))
        yield arrow((start, y), (end, y), "wait")
        yield text(end + 4, y + 4, f"{request.retry_after / 1000:g} s", "small wait-text")
        row += 1


def _legend() -> Iterator[str]:
    y = _TOP + _HEIGHT + 94
    yield dot(_LEFT + 4, y - 4)
    yield text(_LEFT + 14, y, "passed", "small")
    yield cross(_LEFT + 74, y - 4)
    yield text(_LEFT + 84, y, "denied", "small")
    yield arrow((_LEFT + 140, y - 4), (_LEFT + 166, y - 4), "wait")
    yield text(_LEFT + 174, y, "Retry-After of a first denial, to the millisecond", "small")
