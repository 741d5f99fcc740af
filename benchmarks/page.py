"""From rounds of measurements to ``docs/benchmarks.md``: medians, and the spread of ratios."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import COMPARISONS, ROWS, USUAL
from documentation.site import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class Measured:
    """What a row did in one round; per request where nothing else is said."""

    rate: float
    """Requests per second."""
    p50: float
    """Seconds, as p99."""
    p99: float
    cpu: float
    """Seconds of processor time in the application's process."""
    calls: float
    """HTTP calls to Upstash."""
    commands: float
    """Commands that Upstash bills, or would bill."""


Round = dict[tuple[str, int], Measured]
"""By row and number of connections."""

_PACKAGES = (
    "upstash-ratelimit", "upstash-redis", "httpx", "redis", "slowapi", "fastapi-limiter",
    "Flask-Limiter", "fastapi-cache2", "flask-caching", "hishel", "starlette", "fastapi", "flask",
    "django", "uvicorn", "uvloop", "gunicorn",
)  # fmt: skip

_TOP = """\
# Benchmarks

<!-- Made by `make bench`; do not edit. -->

How fast is an application with upstash-middleware, compared with the same application with another
package or with nothing? This page shows requests per second, response times, processor time, and
what Upstash bills.

- All programs run on one machine, so the figures contain no network latency, except where a row's
  name says so. If Upstash is several milliseconds away, that latency outweighs all of these
  differences.
- Packages for Redis over TCP use a local Valkey. Packages for Upstash, also this one, use a
  stand-in for Upstash on the same Valkey.
- A ratio above 1 means that upstash-middleware is faster. The two measurements of a ratio run
  shortly after each other. The tables show the median of all rounds, and in brackets the lowest and
  the highest value.

## Compared with other packages
"""

_CLIENT = """
## The client

The client sends the calls to Upstash. `Redis` and `AsyncRedis` are [the SDK's commands](redis.md)
with this client. `CPU` is the processor time of one call in the process that makes it, on an event
loop of uvloop.
"""

_ROWS = f"""
## All measurements

All rows are measured with {USUAL} connections.

- `p50` and `p99` are response times.
- `CPU` is the processor time of a request in the application's process. `added` is the part of it
  that the application without any package does not need.
- `calls` are HTTP requests to Upstash for each request. `commands` are what Upstash bills for it,
  or would bill if the package used Upstash instead of Redis.
"""

_IMPORTS = """
## Import time

The processor time that an import adds to a process that has imported nothing, or only what the row
names.
"""

_METHOD = """
## How it is measured

Each application runs in one process: ASGI under uvicorn with uvloop and httptools, WSGI under
gunicorn with 16 threads. Another process sends the requests over plain sockets. Each socket sends
its next request when it has received the response. The stand-in for Upstash uses a Unix socket to
Valkey, and takes less time than a real server. All rows run once in each round, in random order.

`make bench` runs the programs in `benchmarks/` in 10 minutes and writes this page.
`make bench QUICK=1` runs one short round without writing the page.
`make bench ROWS='Flask*'` runs some rows.
"""


def document(rounds: Sequence[Round], calls: dict[str, str], imports: dict[str, float]) -> str:
    """Return the whole page; ``calls`` are the client's figures by what they are of."""
    parts = [_TOP, _compared(rounds)]
    if calls:
        parts += [_CLIENT, table(("what", ">measured"), list(calls.items()))]
    parts += [_ROWS, _rows(rounds)]
    if imports:
        lines = [(name, f"{took:.0f}") for name, took in imports.items()]
        parts += [_IMPORTS, table(("import", ">ms"), lines)]
    return "\n".join([*parts, _METHOD, _machine(len(rounds))])


def _compared(rounds: Sequence[Round]) -> str:
    lines = []
    for each in COMPARISONS:
        for connections in each.connections:
            sides = (each.ours, connections), (each.other, connections)
            having = [one for one in rounds if sides[0] in one and sides[1] in one]
            if not having:
                continue
            ratios = [one[sides[0]].rate / one[sides[1]].rate for one in having]
            ours, other = (statistics.median(one[side].rate for one in having) for side in sides)
            what = each.other.partition(": ")[2]
            lines.append(
                (each.ours, f"{what} ({each.note})", f"{connections}", f"{ours:.0f}",
                 f"{other:.0f}", spread(ratios))
            )  # fmt: skip
    head = (
        "upstash-middleware", "compared with", ">connections",
        ">requests/s", ">the other", ">ratio",
    )  # fmt: skip
    return table(head, lines)


def _rows(rounds: Sequence[Round]) -> str:
    lines = []
    for row in ROWS:
        having = [one for one in rounds if (row.name, USUAL) in one]
        if not having:
            continue
        ones = [one[row.name, USUAL] for one in having]
        added = [
            one[row.name, USUAL].cpu - one[row.bare, USUAL].cpu
            for one in having
            if (row.bare, USUAL) in one and row.name != row.bare
        ]

        def middle(figure: Callable[[Measured], float], ones: list[Measured] = ones) -> float:
            return statistics.median(map(figure, ones))

        lines.append(
            (
                row.name,
                f"{middle(lambda one: one.rate):.0f}",
                f"{middle(lambda one: one.p50) * 1e3:.2f}",
                f"{middle(lambda one: one.p99) * 1e3:.2f}",
                f"{middle(lambda one: one.cpu) * 1e6:.0f}",
                f"{statistics.median(added) * 1e6:.0f}" if added else "",
                f"{middle(lambda one: one.calls):.2f}",
                f"{middle(lambda one: one.commands):.2f}",
            )
        )
    head = (
        "row", ">requests/s", ">p50 ms", ">p99 ms", ">CPU µs", ">added µs", ">calls", ">commands",
    )  # fmt: skip
    return table(head, lines)


def _machine(rounds: int) -> str:
    versions = "; ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"Measured in {rounds} rounds on {os.cpu_count()} processors ({_processor()}), "
        f"{platform.system()} {platform.release()}, CPython {platform.python_version()}. The load, "
        "the stores and other programs shared the processors; the load average at the end was "
        f"{os.getloadavg()[1]:.1f}. Versions: {versions}.\n"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return the median of some values, with the lowest and the highest."""
    middle, low, high = map(form.format, (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
