"""Parts of pages that programs write: between ``<!-- made: NAME -->`` and ``<!-- /made -->``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def with_region(page: str, name: str, text: str) -> str:
    """Return the page with this text in its region. Raises ValueError where it has none."""
    pattern = rf"(<!-- made: {re.escape(name)} -->\n)(?:.*?\n)??(<!-- /made -->)"
    new, count = re.subn(
        pattern, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"the page should have one region {name!r}, and has {count}")
    return new


def table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table; columns after the first whose heading begins with ``>`` stand right."""
    bars = tuple("--:" if cell.startswith(">") else "---" for cell in heading)
    lines = [tuple(cell.removeprefix(">") for cell in heading), bars, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
