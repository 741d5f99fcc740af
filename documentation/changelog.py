"""The changelog as the site shows it: changes since the last version, then the released ones."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from documentation.site import ROOT

if TYPE_CHECKING:
    from pathlib import Path

_START = "<!-- towncrier release notes start -->"
_LINK = re.compile(r"\]\((?![a-z]+:|#)")


def changelog(root: Path = ROOT) -> str:
    """Return the entries in Markdown, from the fragments and CHANGELOG.md below ``root``."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    sections = []
    for kind in settings["type"]:
        fragments = sorted((root / settings["directory"]).glob(f"*.{kind['directory']}.md"))
        if fragments:
            sections.append(f"### {kind['name']}")
            sections += [_item(fragment.read_text()) for fragment in fragments]
    unreleased = ["## Not yet released", *sections] if sections else []
    released = (root / settings["filename"]).read_text().partition(_START)[2].strip()
    text = "\n\n".join(filter(None, [*unreleased, released])) + "\n"
    # Links are from the root, where CHANGELOG.md is; the page is in docs/.
    return _LINK.sub("](../", text).replace("](../docs/", "](")


def _item(text: str) -> str:
    return "- " + "\n  ".join(text.strip().splitlines())
