"""The documentation's pictures are what its programs draw, and those ask the package's own code."""

from __future__ import annotations

import os
from xml.etree import ElementTree as ET

import pytest

from documentation.pictures import PICTURES
from documentation.pictures.freshness import GRACE, ordinarily, phases, purged_softly, when_failing
from documentation.pictures.limits import ARRIVALS, LIMITS, history
from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "pictures"


@pytest.mark.parametrize("name", PICTURES)
def test_the_documentation_shows_each_picture_as_it_is_drawn(name: str) -> None:
    """``make docs-tables`` writes it."""
    file = FOLDER / f"{name}.svg"
    if os.environ.get("WRITE_DOCS_TABLES"):
        file.write_text(PICTURES[name]())
    assert file.read_text() == PICTURES[name]()
    ET.fromstring(file.read_text())


def test_no_picture_is_left_of_what_is_drawn_no_more() -> None:
    assert {file.stem for file in FOLDER.glob("*.svg")} == set(PICTURES)


@pytest.mark.parametrize("name", LIMITS)
def test_what_was_told_to_wait_so_long_passes_then_and_no_earlier(name: str) -> None:
    """The drawn Retry-After is the one that the algorithm holds to."""
    shown = history(LIMITS[name])
    assert len(shown.requests) == len(ARRIVALS)
    for request in shown.requests:
        assert request.passed is (request.retry_after == 0)
    assert any(not request.passed for request in shown.requests)


def test_only_the_fixed_window_lets_more_than_the_limit_pass_within_its_length() -> None:
    """As the page says; a bucket that was full gives its burst and what has come since."""
    most = {name: history(limit).most_within_a_window for name, limit in LIMITS.items()}
    assert most["fixed-window"] == 10
    assert most["sliding-log"] == 5


def test_the_phases_end_where_the_directives_say() -> None:
    assert [end for _, end, _ in phases(ordinarily)][:3] == [60, 90, 60 + int(GRACE)]
    assert (90, 180, ("stale", "fallback")) in phases(when_failing)
    assert [end for _, end, _ in phases(purged_softly)][:3] == [30, 90, 60 + int(GRACE)]
