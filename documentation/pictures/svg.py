"""Drawing in SVG that reads on light and on dark: lines, shapes, text; what they mean is elsewhere.

Colours are classes, so that one file follows ``prefers-color-scheme`` on the site and on GitHub.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

_STYLE: Final = """<style>
text { font: 13px system-ui, sans-serif; fill: #24292f }
.small { font-size: 11px } .quiet { fill: #57606a } .bold { font-weight: 600 }
.line { stroke: #8c959f; fill: none } .grid { stroke: #d0d7de; fill: none }
.dashed { stroke-dasharray: 4 3 } .box { fill: #f6f8fa; stroke: #8c959f }
.good { fill: #1a7f64 } .bad { stroke: #cf222e; stroke-width: 2; fill: none }
.good-line { stroke: #1a7f64; stroke-width: 1.5; fill: none } .good-area { fill: #1a7f6426 }
.wait { stroke: #9a6700; fill: none } .wait-text { fill: #7d4e00 }
.fresh { fill: #1a7f64 } .stale { fill: #9a6700 } .ask { fill: #57606a } .error { fill: #b62324 }
.on { fill: #ffffff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .quiet { fill: #9da7b3 } .line { stroke: #7d8590 }
  .grid { stroke: #30363d } .box { fill: #21262d; stroke: #7d8590 }
  .good { fill: #3fb68b } .bad { stroke: #ff7b72 }
  .good-line { stroke: #3fb68b } .good-area { fill: #3fb68b33 }
  .wait { stroke: #d29922 } .wait-text { fill: #e3b341 }
  .fresh { fill: #2ea07a } .stale { fill: #d29922 } .ask { fill: #8b949e } .error { fill: #ff8a80 }
  .on { fill: #0d1117 }
}
</style>"""


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return a whole picture; ``title`` is what it shows, for who does not see it."""
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" role="img"',
            f'  viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
            f'  aria-label="{escape(title, {chr(34): "&quot;"})}">',
            _STYLE,
            *parts,
            "</svg>\n",
        ]
    )


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    """Return a line of text; ``anchor`` is which of its ends is at ``x``."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(said)}</text>'


def line(start: tuple[float, float], end: tuple[float, float], kind: str = "line") -> str:
    """Return a straight line."""
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>'


def arrow(start: tuple[float, float], end: tuple[float, float], kind: str = "line") -> str:
    """Return a level line with a head at its end."""
    x, y = end
    back = x - 6 if x > start[0] else x + 6
    head = f"M{back:g} {y - 4:g} L{x:g} {y:g} L{back:g} {y + 4:g}"
    return line(start, end, kind) + f'<path d="{head}" class="{kind.replace(" dashed", "")}"/>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """Return a rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" class="{kind}"/>'


def dot(x: float, y: float) -> str:
    """Return what stands for a request that passed."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="4" class="good"/>'


def cross(x: float, y: float) -> str:
    """Return what stands for a request that was denied."""
    return f'<path d="M{x - 4:g} {y - 4:g} l8 8 m0 -8 l-8 8" class="bad"/>'


def path(points: list[tuple[float, float]], kind: str) -> str:
    """Return a line through points, or an area where its kind has it filled."""
    return f'<path d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}" class="{kind}"/>'
