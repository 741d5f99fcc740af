"""docs/settings.md and docs/reference/names.md say what the code says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from documentation.reference import settings_page
from tests.docs.pages import ROOT

DOCUMENT = ROOT / "docs" / "settings.md"
NAMES = ROOT / "docs" / "reference" / "names.md"
# In a process of its own: Django's settings can be made once only.
MADE = """
from django.conf import settings
settings.configure()
from documentation.reference import names_page
print(names_page(), end="")
"""


@pytest.fixture(autouse=True)
def patient_calls() -> None:
    """Leave the deadlines at their defaults, which the page shows."""


def names() -> str:
    done = subprocess.run(
        [sys.executable, "-c", MADE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_documentation_shows_every_setting():
    """``make docs-tables`` writes it."""
    if os.environ.get("WRITE_DOCS_TABLES"):
        DOCUMENT.write_text(settings_page())
    assert DOCUMENT.read_text() == settings_page()


def test_every_setting_has_a_meaning():
    """A row without one would help nobody."""
    rows = [line for line in settings_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_documentation_shows_every_public_name():
    """``make docs-tables`` writes it."""
    made = names()
    if os.environ.get("WRITE_DOCS_TABLES"):
        NAMES.write_text(made)
    assert NAMES.read_text() == made


def test_every_public_name_is_said_something_about():
    """Its docstring, or that it is another module's."""
    entries = NAMES.read_text().split("\n### `")[1:]
    assert len(entries) > 80
    silent = [
        entry.partition("`")[0]
        for entry in entries
        if not entry.partition("`\n")[2].rpartition("```\n")[2].partition("\n## ")[0].strip()
    ]
    assert silent == []
