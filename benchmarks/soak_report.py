"""What a soak has seen: what of it must never happen, and the report with its plots.

Nothing is run here. Times are seconds since the soak began.
"""

from __future__ import annotations

import os
import platform
from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.soak_app import CLOSED_QUOTA, DEADLINE, LOCAL_QUOTA, WINDOW, WORKERS

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE: Final = Path("docs/soak.md")
PLOTS: Final = Path("docs/benchmarks/soak.svg")
FLAT_KB: Final = 30_000
FLAT_DESCRIPTORS: Final = 40
SLACK: Final = 0.05
"""Seconds beside the deadline that 999 of 1000 requests take at most."""


@dataclass
class Seen:
    """What the clients have seen; each thread has one."""

    sent: array[float] = field(default_factory=lambda: array("d"))
    answered: array[float] = field(default_factory=lambda: array("d"))
    statuses: Counter[int] = field(default_factory=Counter)
    admitted: defaultdict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By path, when requests that passed a limit were sent and answered."""
    wrong: list[str] = field(default_factory=list)
    cut: int = 0
    """Connections that ended with a killed worker."""
    hits: int = 0

    def note(self, sent: float, answered: float, path: str, status: int) -> None:
        """Note a response."""
        self.sent.append(sent)
        self.answered.append(answered)
        self.statuses[status] += 1
        if status == 200 and path in {"/closed", "/local"}:
            self.admitted[path].append((sent, answered))

    @classmethod
    def of_all(cls, each: Sequence[Seen]) -> Seen:
        """Return what all threads have seen."""
        total = cls()
        for seen in each:
            total.sent += seen.sent
            total.answered += seen.answered
            total.statuses += seen.statuses
            total.wrong += seen.wrong
            total.cut += seen.cut
            total.hits += seen.hits
            for path, times in seen.admitted.items():
                total.admitted[path] += times
        return total

    def durations(self) -> list[float]:
        """Return how long the requests took, the quickest first."""
        return sorted(map(float.__sub__, self.answered, self.sent))


@dataclass(frozen=True)
class Sample:
    """A worker at a moment."""

    at: float
    worker: int
    kilobytes: int
    descriptors: int


@dataclass(frozen=True)
class Killed:
    """A worker's end."""

    at: float
    worker: int


@dataclass(frozen=True)
class Soaked:
    """A soak of so many seconds."""

    seconds: float
    seen: Seen
    samples: list[Sample]
    phases: list[tuple[float, str]]
    """When each began."""
    killed: list[Killed]


def most_in_a_stretch(admitted: Sequence[tuple[float, float]], seconds: float) -> int:
    """Return the most requests of which it is certain that they passed within so many seconds.

    They were sent and answered in a stretch of that length.
    """
    most, by_answer = 0, sorted(admitted, key=lambda times: times[1])
    answered = [times[1] for times in by_answer]
    for start, _ in admitted:
        within = by_answer[: bisect_right(answered, start + seconds)]
        most = max(most, sum(sent >= start for sent, _ in reversed(within[-4 * LOCAL_QUOTA :])))
    return most


def violations(soaked: Soaked, *, slack: float = SLACK) -> list[str]:
    """Return what must never happen and did; ``slack`` seconds are the application's own."""
    seen = soaked.seen
    found = [f"status {status}" for status in seen.statuses if status not in {200, 429, 503}]
    found += [f"a wrong byte at {path}" for path in seen.wrong[:5]]
    for path, bound in _bounds(soaked).items():
        most = most_in_a_stretch(seen.admitted[path], WINDOW)
        if most > bound:
            found.append(f"{most} passed {path} within {WINDOW:g} s, {bound} at most were to")
    slowest = quantile(seen.durations(), 0.999)
    if slowest > DEADLINE + slack:
        found.append(f"one request in a thousand took {slowest:.3f} s or longer")
    for worker, (first, last) in lives(soaked).items():
        if last.kilobytes - first.kilobytes > FLAT_KB:
            found.append(f"worker {worker} grew by {last.kilobytes - first.kilobytes} kB")
        if last.descriptors - first.descriptors > FLAT_DESCRIPTORS:
            found.append(f"worker {worker} opened {last.descriptors - first.descriptors} more")
    return found


def _bounds(soaked: Soaked) -> dict[str, int]:
    """Return how many may pass each limit in a window, by its policy.

    What is counted locally is beside what Redis has counted, and begins anew with each worker.
    """
    ends = sorted(one.at for one in soaked.killed)
    replaced = max((sum(at <= end < at + WINDOW for end in ends) for at in ends), default=0)
    share = LOCAL_QUOTA // WORKERS
    return {"/closed": CLOSED_QUOTA, "/local": 2 * LOCAL_QUOTA + share * replaced}


def lives(soaked: Soaked) -> dict[int, tuple[Sample, Sample]]:
    """Return each worker's first settled and last sample.

    It is settled when it has met each kind of request and of fault, once or in good part.
    """
    settled = min(90.0, soaked.seconds / 4)
    born: dict[int, float] = {}
    found: dict[int, tuple[Sample, Sample]] = {}
    for one in soaked.samples:
        if one.at - born.setdefault(one.worker, one.at) >= settled:
            found[one.worker] = (found[one.worker][0] if one.worker in found else one, one)
    return found


def quantile(durations: Sequence[float], share: float) -> float:
    """Return the response time that this share of requests did not exceed, in seconds."""
    return durations[min(len(durations) - 1, int(len(durations) * share))] if durations else 0.0


_HEADING = """# Soak test

A soak test runs an application for a long time while Upstash fails in different ways and workers
are killed. It checks that limits stay exact, that no response is damaged, and that memory does not
grow.

Six clients send mixed requests to four gunicorn workers of four threads each. The local Upstash
changes its simulated fault every few seconds, between a dozen of the faults in
[the fault matrix](fault-matrix.md). At every fifth change, one of the workers is
killed with SIGKILL, but never the first one.

The test fails if one of these happens:

- a response has a status other than 200, 429 and 503,
- a body is damaged; each body contains its own checksum,
- more requests pass than a limit and its policy allow: `/closed` has a limit of {closed} requests
  in any {window:g} seconds with `on_error="closed"`, `/local` one of {local} with
  `on_error="local"`,
- more than one request in a thousand takes longer than the deadline of {deadline:g} seconds plus
  {slack:.0f} ms,
- a worker that has settled grows by {flat:.0f} MB or by {descriptors} file descriptors.

## Result
"""

_FOOT = """## Reproduce

`python -m benchmarks.soak --seconds 1800 --write` runs the test and writes this page.
"""


def report(soaked: Soaked) -> str:
    """Return the report as Markdown."""
    seen, durations = soaked.seen, soaked.seen.durations()
    settled = list(lives(soaked).values())
    rows = [
        ("machine", f"{os.cpu_count()} cores, Python {platform.python_version()}"),
        ("duration", f"{soaked.seconds:g} s"),
        ("requests", f"{len(durations)}, of which {seen.hits} from the cache"),
        ("statuses", ", ".join(f"{code}: {n}" for code, n in sorted(seen.statuses.items()))),
        ("changes of the simulated fault", str(len(soaked.phases))),
        ("workers killed", f"{len(soaked.killed)}; {seen.cut} connections ended with them"),
        *(
            (f"most requests that `{path}` allowed within {WINDOW:g} s", f"{passed} of {bound}")
            for path, bound in _bounds(soaked).items()
            for passed in [most_in_a_stretch(seen.admitted[path], WINDOW)]
        ),
        ("damaged bodies", str(len(seen.wrong))),
        *(
            (f"response time, p{share * 100:g}", f"{quantile(durations, share) * 1000:.1f} ms")
            for share in (0.5, 0.9, 0.99, 0.999)
        ),
        ("memory growth of a worker", f"{_most_grown(settled, 'kilobytes') / 1024:.1f} MB at most"),
        ("growth of its file descriptors", f"{_most_grown(settled, 'descriptors')} at most"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    broken = violations(soaked)
    verdict = "None of the failures above happened."
    if broken:
        happened = "\n".join(f"- {one}" for one in broken)
        verdict = f"Of the failures above, these happened:\n\n{happened}"
    heading = _HEADING.format(
        closed=CLOSED_QUOTA,
        local=LOCAL_QUOTA,
        window=WINDOW,
        deadline=DEADLINE,
        slack=SLACK * 1000,
        flat=FLAT_KB / 1000,
        descriptors=FLAT_DESCRIPTORS,
    )
    image = f"![response times, memory and descriptors]({PLOTS.relative_to(PAGE.parent)})"
    return f"{heading}\n{verdict}\n\n| | |\n| --- | --- |\n{table}\n\n{image}\n\n{_FOOT}"


def _most_grown(settled: Sequence[tuple[Sample, Sample]], name: str) -> int:
    return max((getattr(last, name) - getattr(first, name) for first, last in settled), default=0)


_WIDTH, _HEIGHT, _LEFT, _GAP = 900, 150, 70, 46
_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #24292f }
path { fill: none; stroke-width: 1.2 } .axis { stroke: #8c959f; stroke-width: 1 }
.p50 { stroke: #1a7f64 } .p99 { stroke: #bf8700 } .p999 { stroke: #cf222e }
.worker { stroke: #0969da } .bound { stroke: #cf222e; stroke-dasharray: 4 3 }
.foul { fill: #8c959f; opacity: .18 } .killed { stroke: #24292f; stroke-dasharray: 1 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .p50 { stroke: #3fb68b } .p99 { stroke: #d29922 }
  .p999, .bound { stroke: #f85149 } .worker { stroke: #58a6ff } .killed { stroke: #e6edf3 }
}
</style>"""

_LEGEND = "minutes; grey: simulated faults; dotted: a worker is killed"

Line = tuple[str, list[tuple[float, float]]]


def plots(soaked: Soaked) -> str:
    """Return the plots as one SVG: response times, requests a second, memory, descriptors."""
    buckets = _buckets(soaked)
    width = soaked.seconds / len(buckets)
    middles = [(number + 0.5) * width for number in range(len(buckets))]
    times: list[Line] = [
        (
            name,
            [(at, quantile(one, share) * 1000) for at, one in zip(middles, buckets, strict=True)],
        )
        for name, share in (("p999", 0.999), ("p99", 0.99), ("p50", 0.5))
    ]
    rates: list[Line] = [
        ("p50", [(at, len(one) / width) for at, one in zip(middles, buckets, strict=True)])
    ]
    bound = (DEADLINE + SLACK) * 1000
    panels = [
        ("milliseconds: p50, p99 and p99.9; dashed, the deadline and 50 more", times, bound),
        ("requests a second", rates, None),
        ("memory of each worker, MB", _of_workers(soaked.samples, "kilobytes", 1024), None),
        ("descriptors of each worker", _of_workers(soaked.samples, "descriptors", 1), None),
    ]
    height = len(panels) * (_HEIGHT + _GAP) + 30
    label = "a soak: response times, requests a second, memory and descriptors"
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" role="img"',
            f'  viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"',
            f'  aria-label="{label}">',
            _STYLE,
            *(_panel(soaked, number, *panel) for number, panel in enumerate(panels)),
            f'<text x="{_LEFT}" y="{height - 8}">{_LEGEND}</text>',
            "</svg>\n",
        ]
    )


def _buckets(soaked: Soaked) -> list[list[float]]:
    """Return the durations of requests by when they were answered, in 180 stretches at most."""
    number = max(1, min(180, int(soaked.seconds // 2)))
    buckets: list[list[float]] = [[] for _ in range(number)]
    for sent, answered in zip(soaked.seen.sent, soaked.seen.answered, strict=True):
        buckets[min(number - 1, int(answered / soaked.seconds * number))].append(answered - sent)
    return [sorted(bucket) for bucket in buckets]


def _of_workers(samples: Sequence[Sample], name: str, unit: int) -> list[Line]:
    lines: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for one in samples:
        lines[one.worker].append((one.at, getattr(one, name) / unit))
    return [("worker", line) for line in lines.values()]


def _panel(
    soaked: Soaked, number: int, title: str, lines: Sequence[Line], bound: float | None
) -> str:
    top = number * (_HEIGHT + _GAP) + 24
    base, across = top + _HEIGHT, (_WIDTH - _LEFT - 10) / soaked.seconds
    highest = max([y for _, line in lines for _, y in line] + [bound or 0.0, 1.0]) * 1.05

    def at(x: float, y: float) -> str:
        return f"{_LEFT + x * across:.1f},{base - y / highest * _HEIGHT:.1f}"

    ends = [start for start, _ in soaked.phases[1:]] + [soaked.seconds]
    parts = [
        f'<rect class="foul" x="{_LEFT + start * across:.1f}" y="{top}" height="{_HEIGHT}" '
        f'width="{(end - start) * across:.1f}"/>'
        for (start, name), end in zip(soaked.phases, ends, strict=True)
        if name != "fine"
    ]
    parts += [
        f'<path class="killed" d="M{at(one.at, 0)} L{at(one.at, highest)}"/>'
        for one in soaked.killed
    ]
    parts += [
        f'<path class="{kind}" d="M{" L".join(at(x, y) for x, y in line)}"/>'
        for kind, line in lines
        if line
    ]
    if bound is not None:
        parts.append(f'<path class="bound" d="M{at(0, bound)} L{at(soaked.seconds, bound)}"/>')
    minutes = [soaked.seconds * share for share in (0, 0.25, 0.5, 0.75, 1)]
    parts += [
        f'<path class="axis" d="M{at(0, highest)} L{at(0, 0)} L{at(soaked.seconds, 0)}"/>',
        f'<text x="{_LEFT}" y="{top - 8}">{title}</text>',
        f'<text x="{_LEFT - 6}" y="{top + 10}" text-anchor="end">{highest:.0f}</text>',
        f'<text x="{_LEFT - 6}" y="{base}" text-anchor="end">0</text>',
        *(
            f'<text x="{_LEFT + x * across:.1f}" y="{base + 15}" text-anchor="middle">'
            f"{x / 60:.1f}</text>"
            for x in minutes
        ),
    ]
    return "\n".join(parts)
