"""The changelog's fragments: the check sees what is wrong, and each becomes a line."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

import pytest

from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def check() -> Any:
    """Return the module that `make lint` runs."""
    spec = spec_from_file_location("changelog", ROOT / ".ci" / "changelog.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a-thing.addded.md", "A thing.\n"),
        ("A_thing.added.md", "A thing.\n"),
        ("a-thing.md", "A thing.\n"),
        ("a-thing.added.rst", "A thing.\n"),
        ("a-thing.added.md", ""),
        ("a-thing.added.md", "- A thing.\n"),
        ("a-thing.added.md", "A thing\n"),
        ("a-thing.added.md", "A thing."),
        ("a-thing.added.md", "A thing. \n"),
        ("a-thing.added.md", f"A {'long ' * 20}thing.\n"),
    ],
)
def test_what_is_not_well_formed_is_told_by_name(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    (tmp_path / "fine.fixed.md").write_text("Fine: `it` works.\n")
    (tmp_path / "README.md").write_text("about")
    told = list(check().wrong(tmp_path, ["added", "fixed"], ["README.md"]))
    assert told
    assert all(each.startswith(f"{name}: should ") for each in told)


def test_the_fragments_that_are_there_are_well_formed():
    assert check().main() == 0


def test_each_fragment_becomes_a_line_of_the_section():
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"]
    drafted = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    section = " ".join(drafted.split())
    assert section.startswith("## 9.9.9 (")
    fragments = list((ROOT / "changelog.d").glob("*.*.md"))
    assert section.count(" - ") == len(fragments)
    for fragment in fragments:
        assert " ".join(fragment.read_text().split()) in section
