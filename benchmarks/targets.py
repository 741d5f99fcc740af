"""The figures to reach, each a ratio of two measurements of one round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.rows import Setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.measuring import Measured

Results = "Mapping[tuple[str, Setting], Measured]"
Figure = Literal["rate", "p50", "calls", "cpu", "added_p50"]

BARE_ROUND_TRIP = "a bare round trip"


@dataclass(frozen=True, slots=True)
class Side:
    """One measurement of a ratio."""

    row: str
    setting: Setting


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio and its bound; ``at_most`` turns the comparison round."""

    what: str
    figure: Figure
    ours: Side
    other: Side | None
    bound: float
    at_most: bool = False

    def ratio(self, results: Mapping[tuple[str, Setting], Measured]) -> float | None:
        """Return the ratio in one round, or None where something was not measured."""
        ours = results.get((self.ours.row, self.ours.setting))
        other = results.get((self.other.row, self.other.setting)) if self.other else None
        if ours is None or (self.other and other is None):
            return None
        if other is None:
            return float(getattr(ours, self.figure))
        if self.figure == "added_p50":
            bare = results.get(("Starlette: bare", self.ours.setting))
            return None if bare is None else (ours.p50 - bare.p50) / other.p50
        return float(getattr(ours, self.figure)) / float(getattr(other, self.figure))

    def reached(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio <= self.bound if self.at_most else ratio >= self.bound


NEAR, FAR = Setting(0, 16), Setting(5, 64)


def _rate(what: str, ours: str, other: str, bound: float, setting: Setting = NEAR) -> Target:
    return Target(what, "rate", Side(ours, setting), Side(other, setting), bound)


TARGETS = (
    _rate(
        "one limit against upstash_ratelimit with sniffio",
        "Starlette: one limit",
        "Starlette: upstash_ratelimit",
        10,
    ),
    _rate(
        "one limit against upstash_ratelimit without sniffio",
        "Starlette: one limit",
        "Starlette: upstash_ratelimit, no sniffio",
        15,
    ),
    _rate(
        "one limit against redis.asyncio EVALSHA over TCP",
        "Starlette: one limit",
        "Starlette: redis.asyncio EVALSHA",
        1.3,
    ),
    _rate(
        "one limit without coalescing against the same",
        "Starlette: one limit, not coalesced",
        "Starlette: redis.asyncio EVALSHA",
        0.8,
    ),
    Target(
        "HTTP calls per request, 64 connections",
        "calls",
        Side("Starlette: one limit", Setting(0, 64)),
        None,
        0.1,
        at_most=True,
    ),
    Target(
        "CPU per request at 64 connections and 5 ms against 1 connection",
        "cpu",
        Side("Starlette: one limit", FAR),
        Side("Starlette: one limit", Setting(5, 1)),
        1.0,
        at_most=True,
    ),
    Target(
        "added p50 at 5 ms, 1 connection, against one bare round trip",
        "added_p50",
        Side("Starlette: one limit", Setting(5, 1)),
        Side(BARE_ROUND_TRIP, Setting(5, 1)),
        1.2,
        at_most=True,
    ),
    Target(
        "limit and hit against the limit alone, p50",
        "p50",
        Side("Starlette: limit and hit", NEAR),
        Side("Starlette: one limit", NEAR),
        1.1,
        at_most=True,
    ),
    _rate("blocked against the bare app", "Starlette: blocked", "Starlette: bare", 0.75),
    _rate(
        "hit against a hand-written cache on upstash-redis",
        "Starlette: hit, 1 KB",
        "Starlette: upstash-redis cache, hit",
        15,
    ),
    _rate(
        "hit from L1 against the bare app",
        "Starlette: hit from L1, 1 KB",
        "Starlette: bare, 1 KB",
        0.8,
    ),
    _rate(
        "Flask: one limit against upstash_ratelimit",
        "Flask: one limit",
        "Flask: upstash_ratelimit",
        2,
    ),
    _rate(
        "Django WSGI: one limit against upstash_ratelimit",
        "Django WSGI: one limit",
        "Django WSGI: upstash_ratelimit",
        2,
    ),
    _rate(
        "Django ASGI: one limit against upstash_ratelimit",
        "Django ASGI: one limit",
        "Django ASGI: upstash_ratelimit",
        3,
    ),
)


def needed() -> set[tuple[str, Setting]]:
    """Return all that the targets compare: what the quick form measures."""
    sides = {side for target in TARGETS for side in (target.ours, target.other) if side}
    bare = {("Starlette: bare", side.setting) for side in sides}
    return {(side.row, side.setting) for side in sides} | bare
