"""The changelog's fragments: the check sees what is wrong, and each becomes a line."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

import pytest

from documentation.changelog import changelog
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


def test_the_site_shows_what_has_changed_since_the_last_version(tmp_path: Path):
    (tmp_path / "changelog.d").mkdir()
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n<!-- towncrier release notes start -->\n\n## 1.0.0\n\n- It works.\n"
    )
    assert changelog(tmp_path) == "## 1.0.0\n\n- It works.\n"
    (tmp_path / "changelog.d" / "b.fixed.md").write_text("One bug\nless.\n")
    (tmp_path / "changelog.d" / "a.added.md").write_text(
        "A [feature](docs/a.md), [b](b.md), [c](https://c.example).\n"
    )
    (tmp_path / "changelog.d" / "README.md").write_text("About.\n")
    assert changelog(tmp_path) == (
        "## Not yet released\n\n### Added\n\n- A [feature](a.md), [b](../b.md), [c](https://c.example).\n\n"
        "### Fixed\n\n- One bug\n  less.\n\n"
        "## 1.0.0\n\n- It works.\n"
    )
