"""The threat model in the documentation; that the tests it names exist is tested with all pages."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"


def test_every_line_of_what_is_not_trusted_names_a_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith("| what |")]
    assert len(claims) > 15
    assert [row for row in claims if "[`test_" not in row.split("|")[3]] == []
