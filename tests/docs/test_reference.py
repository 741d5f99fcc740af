"""docs/settings.md says what the code says."""

from __future__ import annotations

import os

from tests.docs.pages import ROOT
from tests.docs.reference import document

DOCUMENT = ROOT / "docs" / "settings.md"


def test_the_documentation_shows_every_setting():
    """``make docs-tables`` writes it."""
    if os.environ.get("WRITE_DOCS_TABLES"):
        DOCUMENT.write_text(document())
    assert DOCUMENT.read_text() == document()


def test_every_setting_has_a_meaning():
    """A row without one would help nobody."""
    rows = [line for line in document().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert not [row for row in rows if row.endswith("|  |")]
