"""The site: its navigation has every page, links out of docs/ hold, and what is wrong is found."""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from documentation.site import faults, on_site, repository, unfound
from tests.docs.pages import ROOT, blocks, prose

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
PAGES = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
AWAY = "https://host.example/owner/repository/blob/main"


def test_every_page_is_in_the_navigation_once() -> None:
    """A page that nobody finds helps nobody: add it in zensical.toml."""
    named = re.findall(r'"([\w/-]+\.md)"', json.dumps(CONFIGURATION["nav"]))
    assert sorted(named) == sorted(PAGES)


@pytest.mark.parametrize(
    ("target", "page", "leads_to"),
    [
        ("../tests/a.py", "failure.md", f"{AWAY}/tests/a.py"),
        ("../../tests/a.py#L3", "how-to/tags.md", f"{AWAY}/tests/a.py#L3"),
        ("../SECURITY.md", "security.md", f"{AWAY}/SECURITY.md"),
        ("../caching.md#tags", "how-to/tags.md", "../caching.md#tags"),
        ("#here", "caching.md", "#here"),
        ("https://www.rfc-editor.org/rfc/rfc9111", "caching.md", None),
        ("mailto:a@example.org", "caching.md", None),
    ],
)
def test_a_link_out_of_the_pages_leads_to_the_repository(
    target: str, page: str, leads_to: str | None
) -> None:
    """And all others stay as they are."""
    assert on_site(target, page, AWAY) == (leads_to or target)


def site_of(folder: Path, body: str) -> list[str]:
    """Return what is wrong with a site of one page."""
    (folder / "page").mkdir()
    (folder / "page" / "index.html").write_text(body)
    (folder / "index.html").write_text('<h1 id="top">Home</h1>')
    return list(faults(folder))


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ('<a href="../#top">x</a> <a href="#a">y</a> <p id="a">', None),
        ('<a href="../gone/">x</a>', "../gone/ leads nowhere"),
        ('<a href="../#gone">x</a>', "../#gone names an anchor that is not there"),
        ('<img src="gone.svg">', "loads gone.svg, which is not there"),
        ('<script src="https://cdn.example/x.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="https://fonts.example/css">', "from elsewhere"),
        (f'<a href="{repository()}/tests/docs/test_site.py">x</a>', None),
        (f'<a href="{repository()}/tests/gone.py">x</a>', "is no file of the repository"),
    ],
)
def test_what_is_wrong_with_a_site_is_found(tmp_path: Path, body: str, wrong: str | None) -> None:
    """Each of these would otherwise be seen by a reader first."""
    found = site_of(tmp_path, body)
    assert found == [] if wrong is None else wrong in found[0]


def test_a_page_that_the_search_does_not_find_is_found(tmp_path: Path) -> None:
    """The search's own index has a title for each page."""
    for name in ("troubleshooting", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text("")
    items = [{"location": "troubleshooting/", "title": "Troubleshooting"}]
    (tmp_path / "search.json").write_text(json.dumps({"items": items}))
    assert list(unfound(tmp_path)) == ["secret/: is not in search.json"]


def test_every_page_begins_with_its_one_title() -> None:
    """It is what the navigation, the browser and a search show."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        assert re.match(r"# \S", page.read_text()), page
        assert len(re.findall(r"^# ", prose(page), re.MULTILINE)) == 1, page


def test_no_block_is_wider_than_a_page_shows() -> None:
    """Code of at most 100 characters; what programs print may be longer."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in blocks(page):
            if block.language == "python":
                assert max(map(len, block.text.splitlines())) <= 100, block
