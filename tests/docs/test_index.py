"""README and first page say the same, and the first page leads to every other."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT, blocks, links

INDEX = ROOT / "docs" / "index.md"


def test_the_first_page_leads_to_every_page() -> None:
    """But to parts of the evidence, to which the pages about it lead."""
    pages = set((ROOT / "docs").rglob("*.md"))
    linked = {link.file for link in links(INDEX)}
    evidence = {ROOT / "docs" / name for name in ("soak.md", "architecture.md")}
    assert pages - linked - {INDEX} <= evidence | {ROOT / "docs" / "local-unsupported.md"}


def test_the_first_page_has_the_readmes_sentences_and_settings() -> None:
    readme = (ROOT / "README.md").read_text()
    sentences = INDEX.read_text().split("\n\n")[1].replace("\n", " ").split(". ")
    assert sentences[0] in readme.replace("\n", " ")
    (code,) = (block.text for block in blocks(INDEX) if block.language == "python")
    arguments = re.findall(r"^    (\w+=[^#\n]*?),? *(?:#.*)?$", code, re.MULTILINE)
    assert len(arguments) == 5
    assert all(each in readme for each in arguments)
