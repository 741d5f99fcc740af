"""Compares a run through the middleware with one without it; differences.toml lists exceptions."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DIFFERENCES = Path(__file__).with_name("differences.toml")


@dataclass(frozen=True)
class Results:
    """One run of a suite, as ``inside/around.py`` writes it."""

    outcomes: dict[str, str]
    texts: dict[str, str]
    requests: dict[str, int]
    reports: dict[str, str]
    seconds: float = 0.0
    only_again: dict[str, str] = field(default_factory=dict)
    """Outcomes of tests that only the second run of the baseline has."""

    @classmethod
    def read(cls, file: Path, seconds: float) -> Results:
        """Read a results file."""
        data = json.loads(file.read_text())
        return cls(data["outcomes"], data["texts"], data["requests"], data["reports"], seconds)

    def add(self, again: Results) -> None:
        """Add another run of the baseline; what differs between the two says nothing."""
        for test, outcome in again.outcomes.items():
            if test not in self.outcomes:
                self.only_again[test] = outcome
            elif self.outcomes[test] != outcome:
                self.outcomes[test] = _UNSTABLE

    def seen(self) -> int:
        """Return how many requests the middleware decided about."""
        return sum(self.requests.values())


@dataclass(frozen=True)
class Expectations:
    """What differences.toml says about one framework."""

    requests: Mapping[str, int]
    """By mode: the fewest requests that the middleware has to see."""
    differences: tuple[Mapping[str, Any], ...]
    """Tests and modes, with the reason why these tests cannot pass in these modes."""

    @classmethod
    def read(cls, framework: str, file: Path = DIFFERENCES) -> Expectations:
        """Read the part of a framework."""
        part = tomllib.loads(file.read_text()).get(framework, {})
        return cls(part.get("requests", {}), tuple(part.get("differences", ())))


@dataclass(frozen=True)
class Comparison:
    """What a run in the middleware differs in."""

    tests: int
    unexplained: frozenset[str]
    """Tests with another outcome that differences.toml does not list."""
    explained: int
    problems: tuple[str, ...]


def compare(
    framework: str, mode: str, baseline: Results, result: Results, expected: Expectations
) -> Comparison:
    """Compare a run with the baseline.

    Tests that the baseline did not run count as passed there.
    """
    where = f"{framework}, {mode}"
    outcomes = baseline.only_again | baseline.outcomes
    different = {
        test: (before, after)
        for test, after in result.outcomes.items()
        if (before := outcomes.get(test, _WITHOUT_BASELINE.get(after, after))) != after
        and before != _UNSTABLE
    }
    different |= {
        test: (before, "not run")
        for test, before in baseline.outcomes.items()
        if test not in result.outcomes
    }
    different |= {
        test: ("passed", report) for test, report in result.reports.items() if test not in different
    }
    patterns = {
        pattern: entry.get("sometimes", False)
        for entry in expected.differences
        if mode in entry["modes"]
        for pattern in entry["tests"]
    }
    explained = {
        pattern: [test for test in different if fnmatchcase(test, pattern.replace("[", "[[]"))]
        for pattern in patterns
    }
    known = {test for tests in explained.values() for test in tests}
    unknown = {test: change for test, change in different.items() if test not in known}
    problems = [
        f"{where}: {test}: {before} without the middleware, {after} with it"
        f"\n{result.texts.get(test, '')}"
        for test, (before, after) in sorted(unknown.items())
    ]
    problems += [
        f"{where}: differences.toml lists {pattern!r}, which does not differ: remove it"
        for pattern, tests in explained.items()
        if not tests and not patterns[pattern]
    ]
    least = expected.requests.get(mode, 0)
    if result.seen() < least:
        problems.append(f"{where}: the middleware saw {result.seen()} requests of at least {least}")
    return Comparison(len(result.outcomes), frozenset(unknown), len(known), tuple(problems))


_UNSTABLE = "unstable"
_WITHOUT_BASELINE = {"failed": "passed", "error": "passed"}
