"""What programs write into pages is what they would write now."""

from __future__ import annotations

import os

import pytest

from documentation.tables import REGIONS, own_costs, with_region
from tests.docs.pages import ROOT


@pytest.mark.parametrize(("page", "name"), REGIONS)
def test_the_documentation_shows_what_its_programs_make(page: str, name: str) -> None:
    """``make docs-tables`` writes it."""
    file, text = ROOT / "docs" / page, REGIONS[page, name]()
    if os.environ.get("WRITE_DOCS_TABLES"):
        file.write_text(with_region(file.read_text(), name, text))
    assert with_region(file.read_text(), name, text) == file.read_text()


def test_the_price_of_a_row_is_its_commands_times_the_price_of_one() -> None:
    assert "| allowed, one limit | 1 | 3 | $6.00 |" in own_costs()
    assert "| a limit and a cache hit | 1 | 4 | $8.00 |" in own_costs()


def test_a_page_without_the_region_is_refused() -> None:
    with pytest.raises(ValueError, match="one region 'x', and has 0"):
        with_region("nothing", "x", "text")


def test_an_empty_region_ends_where_its_own_end_stands() -> None:
    page = "<!-- made: a -->\n<!-- /made -->\nkept\n<!-- made: b -->\nold\n<!-- /made -->\n"
    made = with_region(with_region(page, "a", "A"), "b", "B")
    assert made == page.replace("a -->\n", "a -->\n\nA\n\n").replace("old", "\nB\n")
