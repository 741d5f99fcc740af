"""Rounds of measurements: every row once in each, so that what changes on the machine meets all."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.load import get, load, post
from benchmarks.targets import BARE_ROUND_TRIP, needed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from benchmarks.rows import Row, Setting
    from benchmarks.stage import Stage

_SETTLE_SECONDS = 0.15
_RECOVERY_SECONDS = 3.0
_DOLLARS_PER_COMMAND = 0.20 / 100_000

_ROUND_TRIP = (
    b'["EVAL","return {1,2,3,4,5}",3,"upstash-middleware:default:127.0.0.1:1795412","a","b",1]'
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a row did in one round; per request where nothing else is said."""

    rate: float
    """Requests per second."""
    p50: float
    """Seconds, as p99."""
    p99: float
    cpu: float
    """Seconds of the worker's processors."""
    calls: float
    commands: float
    wire_bytes: float

    @property
    def dollars_per_million(self) -> float:
        """The price of a million such requests at Upstash."""
        return self.commands * _DOLLARS_PER_COMMAND * 1_000_000


Round = dict[tuple[str, "Setting"], Measured]


def measure_round(
    stage: Stage,
    pairs: Iterable[tuple[Row, Setting]],
    round_trips: Iterable[Setting],
    seconds: float,
    say: Callable[[str], None],
) -> Round:
    """Measure all pairs once, in an order of their own."""
    measured: Round = {}
    for setting in round_trips:
        measured[BARE_ROUND_TRIP, setting] = measure_round_trip(stage, setting, seconds)
    for row, setting in _in_an_order(pairs):
        measured[row.name, setting] = one = measure(stage, row, setting, seconds)
        say(f"{row.name}, {setting.milliseconds} ms, {setting.connections}: {one.rate:.0f}/s")
    return measured


def _in_an_order(pairs: Iterable[tuple[Row, Setting]]) -> list[tuple[Row, Setting]]:
    """Return the pairs in random order, but those that are compared soon after each other."""
    compared = needed()
    blocks: dict[object, list[tuple[Row, Setting]]] = {}
    for row, setting in pairs:
        block = (setting, row.kind) if (row.name, setting) in compared else (setting, row.name)
        blocks.setdefault(block, []).append((row, setting))
    shuffled = list(blocks.values())
    random.shuffle(shuffled)
    for block in shuffled:
        random.shuffle(block)
    return [pair for block in shuffled for pair in block]


def measure(stage: Stage, row: Row, setting: Setting, seconds: float) -> Measured:
    """Measure one row; once more where it answers anything but what it should.

    A machine that stands still for a moment makes circuits open, and what passes them by is not
    what the row is to show. Raises RuntimeError where that does not help.
    """
    try:
        return _measured(stage, row, setting, seconds)
    except RuntimeError:
        time.sleep(_RECOVERY_SECONDS)
        return _measured(stage, row, setting, seconds)


def _measured(stage: Stage, row: Row, setting: Setting, seconds: float) -> Measured:
    port = stage.serve(row, setting.milliseconds)
    request = get(row.path, row.headers)
    load(port, request, 1, _SETTLE_SECONDS / 3)  # alone, so that caches fill without a stampede
    load(port, request, setting.connections, _SETTLE_SECONDS)
    used, cpu = stage.meter(), stage.cpu_seconds(row, setting.milliseconds)
    result = load(port, request, setting.connections, seconds)
    time.sleep(0.02)  # what comes after the last byte: stores
    after, cpu_after = stage.meter(), stage.cpu_seconds(row, setting.milliseconds)
    count = len(result.latencies)
    wrong = {status: n for status, n in result.statuses.items() if status != row.status}
    if wrong:
        raise RuntimeError(f"{row.name} answered {wrong} where {row.status} was expected")
    calls, commands = after.calls - used.calls, after.commands - used.commands
    wire = after.redis_bytes - used.redis_bytes
    if not row.redis:
        wire = after.http_bytes - used.http_bytes
    return Measured(
        result.rate,
        result.percentile(0.5),
        result.percentile(0.99),
        (cpu_after - cpu) / count,
        calls / count,
        commands / count,
        (wire if commands else 0) / count,
    )


def measure_round_trip(stage: Stage, setting: Setting, seconds: float) -> Measured:
    """Measure one script's call over a plain socket: the least that any client can take."""
    request = post("/", _ROUND_TRIP, "Upstash-Response-Format: resp2\r\n")
    port = stage.upstash_port(setting.milliseconds)
    result = load(port, request, setting.connections, seconds)
    return Measured(result.rate, result.percentile(0.5), result.percentile(0.99), 0, 1, 1, 0)
