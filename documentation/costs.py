"""What a million requests cost: commands as they were measured, times Upstash's price.

The commands of this package are those of the README's table, which the tests count on the wire;
those of the peers are what `make bench` counted and docs/benchmarks.md says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from documentation.addresses import ROOT
from documentation.regions import table
from upstash_middleware.local.billing import DOLLARS_PER_COMMAND

if TYPE_CHECKING:
    from collections.abc import Iterator

_MILLION: Final = 1_000_000
_OURS: Final = frozenset({"one limit", "three limits", "hit, 1 KB", "limit and hit"})
_COMPARED: Final = {
    "one limit, the request passes": (
        "Starlette: one limit",
        "Starlette: upstash_ratelimit",
        "Starlette: slowapi",
        "FastAPI: fastapi-limiter",
        "Flask: Flask-Limiter",
    ),
    "a page from the cache": (
        "Starlette: hit, 1 KB",
        "Starlette: upstash-redis cache, hit",
        "Starlette: hishel, hit",
        "FastAPI: fastapi-cache2, hit",
        "Flask: flask-caching, hit",
        "Django WSGI: cache middleware, hit",
    ),
}
_OVER_HTTP: Final = ("upstash_ratelimit", "upstash-redis")


def own() -> str:
    """Return the table of this package's costs, by the README's."""
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", _section(readme), re.MULTILINE)
    priced = [
        (what, commands, re.sub(r"\d+", lambda found: _dollars(int(found[0])), commands))
        for what, commands in rows
        if commands[0].isdecimal() and "N" not in commands
    ]
    return table(("a request that is …", ">commands", ">a million of them"), priced)


def compared() -> str:
    """Return the table of this package beside others, by docs/benchmarks.md."""
    return table(
        ("", "with", "over", ">commands", ">a million of them"), list(_compared(measured()))
    )


def _compared(commands: dict[str, float]) -> Iterator[tuple[str, ...]]:
    for what, names in _COMPARED.items():
        for name in names:
            framework, _, row = name.partition(": ")
            ours = row in _OURS
            who = "**upstash-middleware**" if ours else row.removesuffix(", hit")
            over = "HTTP" if ours or row.startswith(_OVER_HTTP) else "Redis's TCP"
            count = commands[name]
            yield what, f"{who}, {framework}", over, f"{count:g}", _dollars(count)


def measured() -> dict[str, float]:
    """Return what each row of the benchmarks takes, in commands a request."""
    report = (ROOT / "docs" / "benchmarks.md").read_text()
    lines = report.partition("\n| row |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {row[0]: float(row[-1]) for row in rows}


def _dollars(commands: float) -> str:
    return f"${commands * _MILLION * DOLLARS_PER_COMMAND:.2f}"


def _section(readme: str) -> str:
    return readme.partition("## What it costs")[2].partition("\n## ")[0]
