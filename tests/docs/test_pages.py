"""What the documentation names is there: tests, pages, headings; and its Python runs."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette

from tests.docs.pages import (
    PAGES,
    ROOT,
    Block,
    anchors,
    blocks,
    files_of_tests,
    links,
    name_of,
    named_tests,
)
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from pathlib import Path

TESTED_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "docs/local.md": "tests/local/test_docs.py",
}
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
APPLICATIONS = [
    block
    for block in PYTHON
    if block.page not in TESTED_ELSEWHERE
    and block.file is None  # tests/docs/test_following.py writes and runs files
    and not block.text.startswith("# before\n")  # it is another package's
    and any(start in block.text for start in ("\napp = ", "\nUPSTASH_MIDDLEWARE = "))
]
in_each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@in_each_page
def test_every_test_that_a_page_names_exists(page: Path):
    """A table of evidence is worth what its last column is."""
    files = files_of_tests()
    everywhere = frozenset[str]().union(*files.values())
    missing = [
        (file, name)
        for file, name in named_tests(page)
        if name not in (everywhere if file is None else files.get(file, ()))
        and f"{name}.py" not in {path.rpartition("/")[2] for path in files}
    ]
    assert not missing


@in_each_page
def test_every_link_within_the_repository_leads_somewhere(page: Path):
    """To a file that is there, and to a heading of it where it names one."""
    broken = [
        link.target
        for link in links(page)
        if not link.file.exists()
        or (link.file.suffix == ".md" and link.anchor and link.anchor not in anchors(link.file))
    ]
    assert not broken


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_python_block_compiles(block: Block):
    """Fragments may await what in a handler they would."""
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", APPLICATIONS, ids=str)
def test_every_whole_application_and_configuration_is_accepted(
    block: Block, monkeypatch: pytest.MonkeyPatch
):
    """It is made as a server would make it, so that each of its settings is checked."""
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", "token")
    names: dict[str, Any] = {"__name__": "documented"}
    exec(compile(block.text, str(block), "exec"), names)
    if isinstance(app := names.get("app"), Starlette):
        app.build_middleware_stack()
    if "UPSTASH_MIDDLEWARE" in names:
        settings_from(names["UPSTASH_MIDDLEWARE"], {})


def test_the_checks_see_what_is_wrong(tmp_path: Path):
    """Or they would pass over everything."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A `title`, here\n[x](gone.md) [y](page.md#a-title-here) [z](#nowhere)\n"
        "`test_gone` `tests/a.py::test_b` ```\n\n```python\n`test_in_a_block`\n```\n"
    )
    assert [link.target for link in links(page) if not link.file.exists()] == ["gone.md"]
    assert anchors(page) == {"a-title-here"}
    assert named_tests(page) == [(None, "test_gone"), ("tests/a.py", "test_b")]
    assert [block.line for block in blocks(page)] == [6]


def test_whoever_is_said_to_test_a_pages_python_is_there():
    """These pages' blocks are run by tests of their own."""
    assert all((ROOT / file).exists() for file in TESTED_ELSEWHERE.values())
