"""Rules that share a bucket count together, and each decides by its own limit."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor, inf
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from upstash_middleware import (
    GCRA,
    FixedWindow,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.wsgi import RateLimitMiddleware

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.local import LocalUpstash

HOUR = 3600
SLACK = 1.5
"""Seconds by which the time of a decision is unknown here; no two waits of a test are so close."""
Limit = FixedWindow | SlidingWindow | SlidingLog | TokenBucket | GCRA


def ok(_environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


class Application:
    """A WSGI application behind the rules; ``get`` returns the status and the fields."""

    def __init__(self, rules: Iterable[RateLimitRule], **more: Any) -> None:
        given = {"rate_limits": list(rules), "default_limit": None, "deadline": 20.0, **more}
        self._app: Any = RateLimitMiddleware(ok, **given)

    def get(self, path: str, **variables: str) -> tuple[int, dict[str, str]]:
        environ: dict[str, Any] = {"PATH_INFO": path, "REMOTE_ADDR": "203.0.113.7", **variables}
        setup_testing_defaults(environ)
        started: list[Any] = []
        body = self._app(environ, lambda *head: started.append(head))
        list(body)
        body.close()
        ((status, fields),) = started
        return int(status[:3]), {name.lower(): value for name, value in fields}

    def passes(self, *paths: str) -> list[bool]:
        return [self.get(path)[0] == 200 for path in paths]


# The definition: what a bucket has counted, as each limit sees it. Times are in seconds.


@dataclass
class Bucket:
    """What requests have taken; limits with the same kind of state and window share it."""

    units: dict[Any, list[tuple[float, int]]] = field(default_factory=dict)
    levels: dict[Any, tuple[float, Fraction, Fraction]] = field(default_factory=dict)

    def left(self, limit: Limit, now: float) -> int:
        window = seconds(limit)
        taken = self.units.get(state(limit), [])
        match limit:
            case FixedWindow():
                return limit.limit - within(taken, now // window * window)
            case SlidingWindow():
                start = now // window * window
                rest = Fraction(int((start + window - now) * 1000), window * 1000)
                weighed = int(within(taken, start - window, start) * rest)
                return limit.limit - weighed - within(taken, start)
            case SlidingLog():
                return limit.limit - within(taken, now - window)
            case TokenBucket():
                return limit.capacity - int(self._used(limit, now))
            case GCRA():
                return floor((limit.burst or limit.limit) - self._used(limit, now))

    def take(self, limit: Limit, now: float, cost: int) -> None:
        if not isinstance(limit, TokenBucket | GCRA):
            self.units.setdefault(state(limit), []).append((now, cost))
            return
        refill = limit.refill if isinstance(limit, TokenBucket) else limit.limit
        since = self._since(limit, now)
        rate = Fraction(refill, seconds(limit))
        self.levels[state(limit)] = since, self._used(limit, now) + cost, rate

    def _used(self, limit: TokenBucket | GCRA, now: float) -> Fraction:
        """Units that are not refilled yet, at the rate of the limit that was the last to take."""
        since, used, rate = self.levels.get(state(limit), (now, Fraction(0), Fraction(1)))
        passed = max(0.0, self._since(limit, now) - since)
        return max(Fraction(0), used - Fraction(passed) * rate)

    def _since(self, limit: TokenBucket | GCRA, now: float) -> float:
        since, used, rate = self.levels.get(state(limit), (now, Fraction(0), Fraction(1)))
        if isinstance(limit, GCRA):
            return now
        refilled = since + max(0, (now - since) // seconds(limit)) * seconds(limit)
        return now if Fraction(refilled - since) * rate >= used else refilled


def seconds(limit: Limit) -> int:
    assert isinstance(limit.per, int)
    return limit.per


def state(limit: Limit) -> Any:
    windows = isinstance(limit, FixedWindow | SlidingWindow)
    return "window" if windows else type(limit), seconds(limit)


def within(taken: list[tuple[float, int]], begin: float, end: float = inf) -> int:
    return sum(units for at, units in taken if begin <= at < end)


@dataclass(frozen=True)
class Rule:
    path: str
    limit: Limit
    cost: int = 1
    shadow: bool = False

    def covers(self, path: str) -> bool:
        return self.path in {path, "/{any}"}


def covering(rules: list[Rule], path: str, match: str) -> list[Rule]:
    found = []
    for rule in rules:
        if rule.covers(path):
            found.append(rule)
            if match == "first" and not rule.shadow:
                break
    return found


def decide(bucket: Bucket, covered: list[Rule], now: float) -> tuple[bool, list[Rule]]:
    """Return whether a request passes, and the rules whose limits take its cost."""
    cost = cost_of(covered)
    enforced = [rule for rule in covered if not rule.shadow]
    allowing = [rule for rule in covered if bucket.left(rule.limit, now) >= cost]
    passes = all(rule in allowing for rule in enforced)
    if not enforced:
        return True, allowing
    return passes, [*enforced, *(rule for rule in covered if rule.shadow)] if passes else []


def cost_of(covered: list[Rule]) -> int:
    return max((rule.cost for rule in covered), default=0)


def limits() -> st.SearchStrategy[Limit]:
    few, hours = st.integers(2, 6), st.sampled_from([HOUR, 2 * HOUR])
    return st.one_of(
        st.builds(FixedWindow, few, hours),
        st.builds(SlidingWindow, few, hours),
        st.builds(SlidingLog, few, hours),
        st.builds(TokenBucket, few, st.integers(1, 3), st.just(HOUR)),
        st.builds(GCRA, few, st.just(HOUR), few),
    )


def rules() -> st.SearchStrategy[list[Rule]]:
    paths, costs = st.sampled_from(["/a", "/b", "/{any}"]), st.sampled_from([1, 1, 1, 2])
    shadow = st.sampled_from([False, False, False, True])
    rule = st.builds(Rule, paths, limits(), costs, shadow)
    return st.lists(rule, min_size=2, max_size=4, unique=True)


def steps() -> st.SearchStrategy[list[tuple[str, int]]]:
    """Paths and the seconds to wait before: most requests come while denials are remembered."""
    paths, waits = st.sampled_from(["/a", "/b"]), st.sampled_from([0, 0, 0, 7, 420, 1260])
    return st.lists(st.tuples(paths, waits), min_size=4, max_size=14)


class Time:
    """The time of the application and of its Upstash, which starts 18 s after a window begins."""

    def __init__(self, upstash: LocalUpstash) -> None:
        self._upstash, self._moved = upstash, 0
        self.advance(2 * HOUR - int(time.time()) % (2 * HOUR) + 18)

    def advance(self, seconds: int) -> None:
        self._upstash.advance(seconds)
        self._moved += seconds

    def now(self) -> float:
        return time.time() + self._moved


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(several=rules(), steps=steps(), match=st.sampled_from(["first", "all"]))
@example(
    [Rule("/a", SlidingWindow(2, HOUR)), Rule("/b", SlidingWindow(6, HOUR))],
    [("/a", 0)] * 3 + [("/b", 0)] * 5 + [("/a", 0)],
    "first",
)
@example(
    [Rule("/{any}", SlidingWindow(6, HOUR)), Rule("/a", FixedWindow(2, HOUR))],
    [("/a", 0)] * 3 + [("/b", 0)] * 5 + [("/a", 0)],
    "all",
)
@example(
    [Rule("/a", SlidingWindow(6, HOUR), shadow=True), Rule("/a", SlidingWindow(2, HOUR))],
    [("/a", 0)] * 5 + [("/a", 1260)] * 3,
    "first",
)
def test_each_rule_of_a_bucket_decides_by_its_own_limit(
    upstash: LocalUpstash, several: list[Rule], steps: list[tuple[str, int]], match: Any
) -> None:
    """Whichever rules cover a request, and while denials are remembered."""
    upstash.reset()
    clock, bucket = Time(upstash), Bucket()
    application = Application(
        (
            RateLimitRule(
                rule.path,
                rule.limit,
                cost=rule.cost,
                shadow=rule.shadow,
                bucket="shared",
                name=f"rule {index}",
            )
            for index, rule in enumerate(several)
        ),
        match=match,
    )
    for path, wait in steps:
        clock.advance(wait)
        covered = covering(several, path, match)
        before = decide(bucket, covered, clock.now() - SLACK)
        status, fields = application.get(path)
        now = clock.now()
        expected = decide(bucket, covered, now + SLACK)
        if before != expected:  # at this moment something ends
            return
        passes, taking = expected
        assert (status == 200) is passes
        taken = set()
        for rule in taking:
            if state(rule.limit) not in taken:
                taken.add(state(rule.limit))
                bucket.take(rule.limit, now, cost_of(covered))
        for rule in covered if passes else ():
            if not rule.shadow and is_steady(bucket, rule.limit, now):
                left = max(0, bucket.left(rule.limit, now))
                name = f"rule {several.index(rule)}"
                assert f'"{name}";r={left}' in fields["ratelimit"]


def is_steady(bucket: Bucket, limit: Limit, now: float) -> bool:
    return bucket.left(limit, now - SLACK) == bucket.left(limit, now + SLACK)
