"""``python -m benchmarks``: measure in rounds, and write ``docs/benchmarks.md`` with its plot."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from benchmarks import core, plots, report, starting
from benchmarks.measuring import measure_round
from benchmarks.rows import ROWS, SETTINGS, Row, Setting
from benchmarks.stage import ROOT, Stage
from benchmarks.targets import NEAR, needed

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.measuring import Round

_QUICK_ROUNDS, _ROUNDS = 3, 5
_MORE_OFTEN = 2
"""How many times more often than others those are measured that the figures to reach compare."""
_QUICK_SECONDS, _SECONDS = 0.6, 1.5
_CORES = {"one": ("0", "1"), "free": None}


def main() -> int:
    """Run what the command line asks for."""
    options = _parsed()
    seconds = options.seconds or (_QUICK_SECONDS if options.quick else _SECONDS)
    count = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    pairs = chosen(options.rows, quick=options.quick)
    if not pairs:
        print(
            f"no row is called {options.rows!r}; there are:",
            *[row.name for row in ROWS],
            sep="\n  ",
        )
        return 2
    cores = _CORES[options.cores]
    if cores:
        os.sched_setaffinity(0, {int(cores[1])})
    begun = time.monotonic()
    round_trips = sorted({pair[1] for pair in pairs}, key=str)
    rounds: list[Round] = []
    micro: dict[str, float] = {}
    compared = _compared(pairs)
    often = [compared] * _MORE_OFTEN if compared and not options.quick else []
    with Stage(cores) as stage:
        for number in range(count):
            print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
            for asked in [pairs, *often]:
                say = _say(options.verbose)
                rounds.append(measure_round(stage, asked, round_trips, seconds, say))
            for name, work in core.benchmarks().items():
                micro[name] = min(core.microseconds(work), micro.get(name, math.inf))
    imports = starting.milliseconds(5 if options.quick else 15)
    page = report.document(rounds, micro, imports)
    print(page)
    if options.write:
        folder = ROOT / "docs" / "benchmarks"
        folder.mkdir(exist_ok=True)
        (ROOT / "docs" / "benchmarks.md").write_text(page)
        plotted = NEAR if NEAR in round_trips else round_trips[0]
        (folder / "rates.svg").write_text(plots.rates(rounds, plotted))
    print(f"took {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


def chosen(patterns: str, *, quick: bool) -> list[tuple[Row, Setting]]:
    """Return the rows, with settings, whose names one of the patterns (``a*|b*``) matches."""
    wanted = needed()
    return [
        (row, setting)
        for row in ROWS
        for setting in SETTINGS
        if (not quick or (row.name, setting) in wanted)
        and any(fnmatch(row.name, pattern) for pattern in patterns.split("|"))
    ]


def _compared(pairs: list[tuple[Row, Setting]]) -> list[tuple[Row, Setting]]:
    """Return the pairs that the figures to reach compare."""
    compared = needed()
    return [(row, setting) for row, setting in pairs if (row.name, setting) in compared]


def _say(verbose: bool) -> Callable[[str], None]:
    return (lambda line: print(line, file=sys.stderr, flush=True)) if verbose else (lambda _: None)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", default="*", help="patterns of row names: 'Flask*|Django*'")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="for each measurement")
    parser.add_argument("--quick", action="store_true", help="only what the figures to reach need")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument(
        "--cores",
        choices=_CORES,
        default="free",
        help="'one' keeps applications on one processor and all else on another",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
