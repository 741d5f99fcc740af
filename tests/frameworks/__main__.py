"""``make test-frameworks``: the frameworks' own test suites, with the middleware around their apps.

Each suite is run without the middleware and then in each mode, and the outcomes are compared test
by test. See CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

from tests.frameworks import suites
from tests.frameworks.comparison import Comparison, Expectations, Results, compare
from tests.frameworks.suites import (
    BASELINE,
    BUILD,
    CACHE_MODES,
    MODES,
    SESSION_MODES,
    SUITES,
    Suite,
)
from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT = 1500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.frameworks", description=__doc__)
    parser.add_argument("--framework", action="append", choices=[suite.name for suite in SUITES])
    parser.add_argument("--mode", action="append", choices=MODES + SESSION_MODES + CACHE_MODES)
    parser.add_argument("--lock", action="store_true", help="write requirements/frameworks/*.txt")
    parser.add_argument("tests", nargs="*", help="tests or labels, instead of the whole suite")
    chosen = parser.parse_args()
    if chosen.lock:
        suites.lock()
        return 0
    wanted = [suite for suite in SUITES if suite.name in (chosen.framework or [suite.name])]
    if chosen.tests:
        wanted = [suite.of(*chosen.tests) for suite in wanted]
    return run(wanted, chosen.mode or MODES + SESSION_MODES + CACHE_MODES)


def run(wanted: Sequence[Suite], modes: Sequence[str]) -> int:
    """Run suites, print what differs and a table, and return the exit status."""
    wanted = [suite for suite in wanted if _modes(suite, modes)]
    runs = [(suite, mode) for suite in wanted for mode in (BASELINE, *_modes(suite, modes))]
    runs.sort(key=lambda run: run[0].full != run[1])  # the whole of Django takes the longest
    with (
        LocalUpstash() as upstash,
        closing(socket.socket()) as nobody,
        ThreadPoolExecutor(2) as workers,
    ):
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        frameworks = dict.fromkeys(suite.framework for suite in wanted)
        prepared = [
            workers.submit(prepare, framework)
            for framework in frameworks
            for prepare in (suites.environment, suites.sdist)
        ]
        for each in prepared:
            each.result()

        def start(suite: Suite, mode: str) -> Results:
            url = dead if mode == "dead" else upstash.url
            parts = () if suite.full == mode else suite.parts
            return perform(suite, mode, parts, url=url, token=upstash.token)

        started = [(suite, mode, workers.submit(start, suite, mode)) for suite, mode in runs]
        results = {(suite.name, mode): each.result() for suite, mode, each in started}
        for suite in wanted:
            baseline = results[suite.name, BASELINE]
            doubtful = {
                test
                for mode in _modes(suite, modes)
                for test in compared(suite, mode, results).unexplained
            }
            if doubtful:  # some tests depend on time, and some were in no run of the baseline
                name = f"{suite.name}-again"
                parts = tuple(sorted(doubtful))
                again = perform(suite, BASELINE, parts, url=dead, token="-", name=name)
                baseline.add(again)
    return report(wanted, modes, results)


def _modes(suite: Suite, chosen: Sequence[str]) -> list[str]:
    return [mode for mode in suite.modes if mode in chosen]


def perform(
    suite: Suite, mode: str, parts: tuple[str, ...], *, url: str, token: str, name: str = ""
) -> Results:
    """Run a suite in one mode, with its output in a log, and return its results."""
    folder = BUILD / "runs" / (name or f"{suite.name}-{mode}")
    sources = suites.unpack(suite.framework, folder)
    results, description = folder / "results.json", folder / "run.json"
    description.write_text(
        json.dumps(
            {
                "mode": mode,
                "url": url,
                "token": token,
                "prefix": f"{suite.name}-{mode}",
                "results": str(results),
            }
        )
    )
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        subprocess.run(
            [suites.environment(suite.framework), *suite.command, *parts],
            cwd=sources / suite.folder,
            env=suites.environ(suite.framework, description),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT,
            check=False,
        )
    if not results.exists():
        tail = (folder / "log").read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{suite.name} in mode {mode!r} did not come to its end:\n{tail}")
    return Results.read(results, time.monotonic() - began)


def compared(suite: Suite, mode: str, results: dict[tuple[str, str], Results]) -> Comparison:
    """Compare a run with the suite's baseline."""
    baseline, result = results[suite.name, BASELINE], results[suite.name, mode]
    return compare(suite.name, mode, baseline, result, Expectations.read(suite.name))


def report(
    wanted: Sequence[Suite], modes: Sequence[str], results: dict[tuple[str, str], Results]
) -> int:
    """Print what is wrong, the table and the closing line."""
    lines = [f"{'':13} {'mode':13} {'tests':>6} {'explained':>9} {'requests':>8} {'seconds':>7}"]
    passed = failed = 0
    for suite in wanted:
        for mode in _modes(suite, modes):
            result, found = results[suite.name, mode], compared(suite, mode, results)
            for problem in found.problems:
                print(problem)
            passed += found.tests - len(found.unexplained)
            failed += len(found.problems)
            lines.append(
                f"{suite.name:13} {mode:13} {found.tests:6} {found.explained:9} "
                f"{result.seen():8} {result.seconds:7.0f}"
            )
    print(*lines, "", f"{passed} passed, {failed} failed", sep="\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
