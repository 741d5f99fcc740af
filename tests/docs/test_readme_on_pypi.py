"""The check of the README as PyPI shows it finds links that lead nowhere."""

from __future__ import annotations

import re

import pytest

from documentation.readme import faults
from documentation.site import ROOT, repository
from tests.docs.pages import links

RAW = "https://raw.githubusercontent.com/upstash-middleware/upstash-middleware/main"


@pytest.mark.parametrize(
    "html",
    [
        f'<a href="{repository()}/docs/costs.md">x</a>',
        f'<a href="{repository()}/docs/costs.md#with-leases">x</a>',
        f'<a href="{repository().removesuffix("/blob/main")}#contributing">x</a>',
        '<a href="https://upstash.com/docs">x</a>',
        f'<img src="{RAW}/docs/images/console-light.png">',
    ],
)
def test_links_that_lead_somewhere_are_accepted(html: str) -> None:
    assert list(faults(html)) == []


@pytest.mark.parametrize(
    ("html", "wrong"),
    [
        ('<a href="docs/costs.md">x</a>', "should be a whole address"),
        ('<a href="#costs">x</a>', "should be a whole address"),
        (f'<a href="{repository()}/docs/gone.md">x</a>', "docs/gone.md is no file"),
        (f'<a href="{repository()}/docs/costs.md#gone">x</a>', "has no heading #gone"),
        ('<img src="docs/images/console-light.png">', "should be a whole address"),
        (f'<img src="{RAW}/docs/images/gone.png">', "should be a file of the repository"),
        (f'<img src="{RAW}/docs/pictures/request.svg">', "should be a raster image"),
    ],
)
def test_what_is_wrong_is_found(html: str, wrong: str) -> None:
    (found,) = faults(html)
    assert wrong in found


def test_the_readme_has_no_link_that_needs_the_repository() -> None:
    """The rendered page is checked in `make docs`, since its renderer is not installed here."""
    text = (ROOT / "README.md").read_text()
    assert links(ROOT / "README.md") == []
    addresses = re.findall(r"!?\[[^\]]*\]\(([^)]+)\)", text)
    html = "".join(f'<a href="{each}">' for each in addresses)
    assert len(addresses) > 20
    assert list(faults(html)) == []
