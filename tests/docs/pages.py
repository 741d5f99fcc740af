"""The pages of the documentation, and what they say that can be checked: reading only.

Pages are the Markdown files in docs/ and at the root.
"""

from __future__ import annotations

import ast
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ("tests", "examples", "benchmarks")
PAGES = sorted([*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")])

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*?)\n(.*?)^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*?) *$", re.MULTILINE)
_TEST = re.compile(r"test_\w+")
_FILE = re.compile(r"# ([\w/.-]+\.\w+)(, at the end)?\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code."""

    page: str
    """Its path below the root, or only its name."""
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it is, by its first line: ``# shop.py``, ``# a/b.py, at the end``."""
        named = _FILE.match(self.text)
        return named[1] if named else None

    @property
    def continues(self) -> bool:
        """Whether it stands at the end of that file, and is not all of it."""
        named = _FILE.match(self.text)
        return named is not None and named[2] is not None


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a place in this repository."""

    page: Path
    text: str
    target: str

    @property
    def file(self) -> Path:
        """Where it leads."""
        path = self.target.partition("#")[0]
        return (self.page.parent / path).resolve() if path else self.page

    @property
    def anchor(self) -> str:
        """The heading that it leads to; empty for the page itself."""
        return self.target.partition("#")[2]


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks, with the indentation of their fence taken off."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        indent, _, info, body = match.groups()
        line = text.count("\n", 0, match.start()) + 2
        language = (info.split() or [""])[0]
        body = "".join(each.removeprefix(indent) for each in body.splitlines(keepends=True))
        found.append(Block(name_of(page), line, language, body))
    return found


def name_of(page: Path) -> str:
    """Return what a page is called here: its path below the root, or only its name."""
    inside = page.is_relative_to(ROOT)
    return page.relative_to(ROOT).as_posix() if inside else page.name


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[Link]:
    """Return a page's links into this repository."""
    found = [Link(page, *pair) for pair in _LINK.findall(prose(page))]
    return [link for link in found if not re.match(r"[a-z]+:", link.target)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def named_tests(page: Path) -> list[tuple[str | None, str]]:
    """Return the tests that a page names: the file that it says, None if it says none, and name.

    ``test_x``, ``tests/a/test_b.py::test_x``, and a link's text, which is in the linked file.
    """
    found: list[tuple[str | None, str]] = [
        (link.file.relative_to(ROOT).as_posix(), link.text.strip("`"))
        for link in links(page)
        if link.file.suffix == ".py" and _TEST.fullmatch(link.text.strip("`"))
    ]
    for code in _CODE.findall(_LINK.sub("", prose(page))):
        path, _, name = code.rpartition("::")
        if _TEST.fullmatch(name):
            found.append((path.partition("::")[0] or None, name))
    return found


@cache
def files_of_tests() -> dict[str, frozenset[str]]:
    """Return the names of all test functions and methods, by their file's path."""
    return {
        path.relative_to(ROOT).as_posix(): _tests_in(path)
        for folder in TESTS
        for path in sorted((ROOT / folder).rglob("test_*.py"))
    }


def _tests_in(path: Path) -> frozenset[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and node.name.startswith("test_")
    )


def clear_of_a_minutes_end() -> None:
    """Wait until no window of a minute ends while a page is followed: it counts anew then."""
    if (past := time.time() % 60) > 40:
        time.sleep(60 - past)
