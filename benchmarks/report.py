"""From rounds of measurements to ``docs/benchmarks.md``: medians, spreads, and what was reached."""

from __future__ import annotations

import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import ROWS, SETTINGS, Setting
from benchmarks.targets import BARE_ROUND_TRIP, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.measuring import Measured, Round

_NAMES = (
    "upstash-ratelimit", "upstash-redis", "httpx", "redis", "slowapi",
    "fastapi-limiter", "Flask-Limiter", "fastapi-cache2", "flask-caching", "hishel", "starlette",
    "fastapi", "flask", "django", "uvicorn", "gunicorn", "granian",
)  # fmt: skip

_PROFILE = Path(__file__).with_name("profile.md")
"""What was seen with a profiler; written by hand, to be looked at again when the figures change."""

_INTRODUCTION = """\
# Benchmarks

<!-- Made by `make bench`; do not edit. -->

What a request costs with this package around an application, beside what else there is. The
program is in `benchmarks/`; `make bench` runs all of it, `make bench QUICK=1` what the figures to
reach need, in under two minutes, and `make bench ROWS='Flask*' ROUNDS=7` some rows more often.

All rows run once in each round, in random order, so that whatever else the machine does meets all
of them; a ratio is always of two measurements of one round, and those that are compared run soon
after each other, and in more rounds. Shown are the median over the rounds and, in brackets, the
lowest and the highest.
"""


def document(rounds: Sequence[Round], core: dict[str, float], starting: dict[str, float]) -> str:
    """Return the whole page."""
    parts = [
        _INTRODUCTION,
        _machine(sum(len(one) == len(rounds[0]) for one in rounds), len(rounds)),
        "## The figures to reach\n",
        _targets(rounds, core, starting),
        "## Rows\n",
        _LEGEND,
        *[_rows(rounds, setting) for setting in SETTINGS if _measured(rounds, setting)],
        "## The core without I/O\n",
        _table(("what", "µs"), [(name, f"{took:.1f}") for name, took in core.items()]),
        "## Starting\n",
        _STARTING,
        _table(("import", "ms"), [(name, f"{took:.0f}") for name, took in starting.items()]),
        _PROFILE.read_text(),
    ]
    return "\n".join(parts)


_STARTING = """\
Processor time that an import adds to a process that does nothing, or that has imported asyncio,
as an ASGI server has.
"""

_LEGEND = """\
`CPU` is the worker's processor time per request, and `added` what of it is more than in the bare
application. `calls` are HTTP requests to Upstash per request, `commands` what Upstash bills (the
inner calls of scripts included; of peers on Redis over TCP, what it would bill), `bytes` what goes
over the wire to the store and back, and `$/million` the price of a million such requests.

![requests per second](benchmarks/rates.svg)
"""


def _machine(rounds: int, compared: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _NAMES)
    return (
        f"Measured in {rounds} rounds, and in {compared} what the figures to reach compare, "
        f"on {os.cpu_count()} processors ({_processor()}), "
        f"{platform.system()} {platform.release()}, CPython {platform.python_version()}; "
        "one worker, load and stores on the same machine; load average at the end, other work "
        f"included: {os.getloadavg()[1]:.1f}. With {versions}.\n"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _measured(rounds: Sequence[Round], setting: Setting) -> bool:
    return any((row.name, setting) in rounds[0] for row in ROWS)


def _targets(rounds: Sequence[Round], core: dict[str, float], starting: dict[str, float]) -> str:
    lines = []
    for target in TARGETS:
        ratios = [ratio for one in rounds if (ratio := target.ratio(one)) is not None]
        if ratios:
            middle = statistics.median(ratios)
            bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
            lines.append(
                (target.what, bound, _spread(ratios, "{:.2f}"), _yes(target.reached(middle)))
            )
    hit = core["cache hit: the whole decision"]
    lines.append(
        ("cache hit's decision without I/O, µs", "at most 15", f"{hit:.1f}", _yes(hit <= 15))
    )
    whole = starting["… with the ASGI middleware and its client, beside asyncio"]
    lines.append(
        (
            "import with all that the first request needs, ms",
            "at most 40",
            f"{whole:.0f}",
            _yes(whole <= 40),
        )
    )
    return _table(("measure", "to reach", "measured", "reached"), lines)


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"


def _rows(rounds: Sequence[Round], setting: Setting) -> str:
    lines = [
        (BARE_ROUND_TRIP, *_figures(rounds, BARE_ROUND_TRIP, "", setting))
        if (BARE_ROUND_TRIP, setting) in rounds[0]
        else None,
        *[
            (row.name, *_figures(rounds, row.name, row.bare, setting))
            for row in ROWS
            if (row.name, setting) in rounds[0]
        ],
    ]
    head = (
        "row", "requests/s", "p50 ms", "p99 ms", "CPU µs", "added µs", "calls", "commands",
        "bytes", "$/million",
    )  # fmt: skip
    latency = "no latency added" if not setting.milliseconds else "5 ms added"
    plural = "s" if setting.connections > 1 else ""
    title = f"### {latency}, {setting.connections} connection{plural}\n\n"
    return title + _table(head, [line for line in lines if line])


def _figures(rounds: Sequence[Round], name: str, bare: str, setting: Setting) -> tuple[str, ...]:
    having = [one for one in rounds if (name, setting) in one]
    ones = [one[name, setting] for one in having]
    added = [
        one[name, setting].cpu - one[bare, setting].cpu for one in having if (bare, setting) in one
    ]

    def middle(figure: Callable[[Measured], float]) -> float:
        return statistics.median(map(figure, ones))

    return (
        _spread([one.rate for one in ones], "{:.0f}"),
        f"{middle(lambda one: one.p50) * 1e3:.2f}",
        f"{middle(lambda one: one.p99) * 1e3:.2f}",
        f"{middle(lambda one: one.cpu) * 1e6:.0f}",
        f"{statistics.median(added) * 1e6:.0f}" if added else "",
        f"{middle(lambda one: one.calls):.2f}",
        f"{middle(lambda one: one.commands):.2f}",
        f"{middle(lambda one: one.wire_bytes):.0f}",
        f"{middle(lambda one: one.dollars_per_million):.2f}",
    )


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = (
        form.format(value) for value in (statistics.median(values), min(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["--:"] * (len(head) - 1)], *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
