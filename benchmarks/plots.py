"""The plot: requests per second of each row as bars, in SVG that reads on light and on dark."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from benchmarks.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.measuring import Round
    from benchmarks.rows import Setting

_LINE, _LABELS, _BARS, _MARGIN = 20, 330, 480, 28
_PEERS = (
    "upstash_ratelimit", "redis.asyncio", "slowapi", "upstash-redis", "hishel", "fastapi-limiter",
    "fastapi-cache2", "Flask-Limiter", "flask-caching", "cache middleware",
)  # fmt: skip

_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.bare { fill: #8c959f } .peer { fill: #bf8700 } .ours { fill: #1a7f64 }
.spread { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .bare { fill: #6e7681 } .peer { fill: #d29922 } .ours { fill: #3fb68b }
  .spread { stroke: #e6edf3 }
}
</style>"""


def rates(rounds: Sequence[Round], setting: Setting) -> str:
    """Return a bar for each row's median rate, with a line from the lowest to the highest."""
    measured = {
        row.name: [one[row.name, setting].rate for one in rounds if (row.name, setting) in one]
        for row in ROWS
        if (row.name, setting) in rounds[0]
    }
    widest = max(max(values) for values in measured.values())
    height = _LINE * len(measured) + 2 * _MARGIN
    bars = [
        _bar(number, name, values, _BARS / widest)
        for number, (name, values) in enumerate(measured.items())
    ]
    width = _LABELS + _BARS + 90
    title = (
        f"requests per second, {setting.connections} connections, "
        f"{setting.milliseconds} ms of latency added"
    )
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" role="img"',
            f'  viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
            f'  aria-label="{title}">',
            _STYLE,
            f'<text x="{_LABELS}" y="18">{title}</text>',
            *bars,
            "</svg>\n",
        ]
    )


def _bar(number: int, name: str, values: Sequence[float], scale: float) -> str:
    top = _MARGIN + number * _LINE
    middle, low, high = (
        value * scale for value in (statistics.median(values), min(values), max(values))
    )
    line = top + 9
    return (
        f'<text x="{_LABELS - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>'
        f'<rect class="{_kind(name)}" x="{_LABELS}" y="{top + 2}" height="14" '
        f'width="{middle:.1f}"/>'
        f'<line class="spread" x1="{_LABELS + low:.1f}" x2="{_LABELS + high:.1f}" '
        f'y1="{line}" y2="{line}"/>'
        f'<text x="{_LABELS + high + 6:.1f}" y="{top + 13}">{statistics.median(values):.0f}</text>'
    )


def _kind(name: str) -> str:
    what = name.partition(": ")[2]
    if what.startswith("bare"):
        return "bare"
    return "peer" if what.startswith(_PEERS) else "ours"
