"""``python -m benchmarks``: measure in rounds, and write ``docs/benchmarks.md``.

``make bench`` runs it in an environment of its own that has the peers.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from fnmatch import fnmatch
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks import client, page, starting
from benchmarks.load import cookie_of, get, load
from benchmarks.page import Measured
from benchmarks.rows import COMPARISONS, ROWS, USUAL
from benchmarks.stage import ROOT, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.page import Round
    from benchmarks.rows import Row

_ROUNDS, _SECONDS = 5, 1.2
_QUICK_ROUNDS, _QUICK_SECONDS = 1, 0.5
_SETTLE_SECONDS = 0.15
_RECOVERY_SECONDS = 3.0

Pair = tuple["Row", int]
"""A row and a number of connections."""


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="*", help="patterns of row names: 'Flask*|Django*'")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    seconds = _QUICK_SECONDS if options.quick else _SECONDS
    blocks = _blocks(options.rows)
    if not blocks:
        print("no such row; there are:", *[row.name for row in ROWS], sep="\n  ")
        return 2
    begun, rounds = time.monotonic(), []
    latencies = {0, *(row.latency for row, _ in chain(*blocks))}
    with Stage(sorted(latencies)) as stage:
        for number in range(options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)):
            print(f"round {number + 1}", file=sys.stderr, flush=True)
            random.shuffle(blocks)
            for block in blocks:
                random.shuffle(block)
            rounds.append(_measured(stage, chain(*blocks), seconds))
        calls = {}
        if options.rows == "*":
            calls = client.measured(stage.upstash_url, min(seconds, 1.0), len(rounds))
    imports = starting.milliseconds(3 if options.quick else 15)
    text = page.document(rounds, calls, imports)
    print(text)
    if options.write:
        (ROOT / "docs" / "benchmarks.md").write_text(text)
    print(f"took {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


def _blocks(patterns: str) -> list[list[Pair]]:
    """Return what is measured, in blocks of rows that are compared and so measured together."""
    wanted = patterns.split("|")
    chosen = {row.name: row for row in ROWS if any(fnmatch(row.name, each) for each in wanted)}
    blocks: dict[object, list[Pair]] = {}
    for name, row in chosen.items():
        compared = [each for each in COMPARISONS if name in {each.ours, each.other}]
        counts = {USUAL, *chain(*(each.connections for each in compared))}
        for connections in counts:
            key = (row.framework if compared else name, connections)
            blocks.setdefault(key, []).append((row, connections))
    for connections in {count for _, count in chain(*blocks.values())} - {USUAL}:
        bare = chosen.get("Starlette: bare")
        if bare is not None:
            blocks["Starlette", connections].append((bare, connections))
    return list(blocks.values())


def _measured(stage: Stage, pairs: Iterable[Pair], seconds: float) -> Round:
    found: Round = {}
    for row, connections in pairs:
        try:
            one = _measure(stage, row, connections, seconds)
        except RuntimeError:  # a machine that stood still for a moment opened the circuit
            time.sleep(_RECOVERY_SECONDS)
            one = _measure(stage, row, connections, seconds)
        found[row.name, connections] = one
        print(f"{row.name}, {connections}: {one.rate:.0f}/s", file=sys.stderr, flush=True)
    return found


def _measure(stage: Stage, row: Row, connections: int, seconds: float) -> Measured:
    """Measure one row; raises RuntimeError where it answers anything but what it should."""
    port = stage.serve(row)
    request = get(row.path, cookie_of(port, row.login) if row.login else "")
    load(port, request, 1, _SETTLE_SECONDS / 3)  # alone, so that caches fill without a stampede
    load(port, request, connections, _SETTLE_SECONDS)
    before, cpu = stage.counts(row.latency), stage.cpu_seconds(row)
    result = load(port, request, connections, seconds)
    time.sleep(0.02)  # for what comes after the last byte: stores
    after, cpu_after = stage.counts(row.latency), stage.cpu_seconds(row)
    if set(result.statuses) != {row.status}:
        raise RuntimeError(f"{row.name} answered {result.statuses}, expected {row.status}")
    count = len(result.latencies)
    return Measured(
        result.rate,
        result.percentile(0.5),
        result.percentile(0.99),
        (cpu_after - cpu) / count,
        (after.calls - before.calls) / count,
        (after.commands - before.commands) / count,
    )


if __name__ == "__main__":
    sys.exit(main())
