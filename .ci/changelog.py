"""Say which fragments of the changelog are not well-formed, and what would be: ``make lint``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
WIDTH = 100


def wrong(folder: Path, kinds: list[str], ignored: list[str]) -> Iterator[str]:
    """Yield what is wrong with the fragments of a folder."""
    name = re.compile(rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(kinds)})\.md")
    for path in sorted(folder.iterdir()):
        if path.name in ignored:
            continue
        if name.fullmatch(path.name) is None:
            known = ", ".join(kinds)
            yield f"{path.name}: should be called WHAT-IT-IS.KIND.md, KIND one of {known}"
            continue
        text = path.read_text()
        if not text.endswith("\n") or not text.strip().endswith((".", ".)")):
            yield f"{path.name}: should be whole sentences and end with a line break"
        if re.match(r"\s*[-*#]", text):
            yield f"{path.name}: should begin with its text; the bullet is made from the template"
        if any(len(line) > WIDTH or line != line.rstrip() for line in text.splitlines()):
            yield f"{path.name}: should have lines of {WIDTH} characters at most, no space after"


def main() -> int:
    """Print what is wrong with the project's own, and return how many things are."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = [each["directory"] for each in settings["type"]]
    found = list(wrong(ROOT / settings["directory"], kinds, settings["ignore"]))
    for each in found:
        print(f"changelog.d/{each}", file=sys.stderr)
    return len(found)


if __name__ == "__main__":
    sys.exit(main())
