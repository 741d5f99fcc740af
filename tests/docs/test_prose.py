"""The check of the pages' English finds what is hard to read, and reads no code."""

from __future__ import annotations

import tomllib

import pytest

from documentation.prose import (
    ACCEPTED,
    Finding,
    findings,
    is_accepted,
    pages,
    prose_blocks,
    unused,
)
from tests.docs.pages import ROOT


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The page is fetched anew.", "anew"),
        ("Upstash is\nasked once.", "is asked"),
        ("It has [a page of its own](a.md).", "of its own"),
        ("| what | stands where |", "stands"),
        ("Use it in order to cache.", "in order to"),
        ("A word" + " and a word" * 10 + ".", "A word and a word and …"),
    ],
)
def test_what_is_hard_to_read_is_found(text: str, found: str) -> None:
    assert [each.text for each in findings("a.md", text)] == [found]


@pytest.mark.parametrize(
    "text",
    [
        "```python\nfetched = anew\n```",
        "It is `fetched anew`, and ``whoever` is``.",
        "<!-- fetched anew -->",
        "![anew](a.png)",
        "[it](anew.md)",
        "HTTP stands for a protocol.",
        "One sentence has ten words" + " and some" * 10 + ". Another" + " has some" * 10 + ".",
    ],
)
def test_code_and_plain_sentences_are_accepted(text: str) -> None:
    assert list(findings("a.md", text)) == []


def test_a_finding_has_the_number_of_its_line() -> None:
    text = "# Title\n\n```\ncode\n```\n\nA `span\nof code` and\nwhoever reads.\n"
    assert [each.line for each in findings("a.md", text)] == [9]
    assert [block.line for block in prose_blocks(text)] == [1, 7]


def test_an_exception_has_a_page_a_rule_and_a_text() -> None:
    finding = Finding("docs/a.md", 1, "plain", "Stands", "")
    assert is_accepted(finding, [{"page": "docs/*.md", "rule": "plain", "text": "stands"}])
    assert not is_accepted(finding, [{"page": "docs/b.md"}])
    assert not is_accepted(finding, [{"page": "docs/a.md", "rule": "long"}])
    assert not is_accepted(finding, [{"page": "docs/a.md", "text": "stood"}])


def test_an_exception_without_a_finding_is_found() -> None:
    needed, gone = {"page": "docs/a.md", "text": "stand?"}, {"page": "docs/b.md"}
    finding = Finding("docs/a.md", 1, "plain", "Stands", "")
    assert unused([finding], [needed, gone]) == [gone]


def test_each_exception_has_a_reason_and_is_about_a_page() -> None:
    names = [page.relative_to(ROOT).as_posix() for page in pages()]
    settings = tomllib.loads(ACCEPTED.read_text())
    assert all(each["reason"] for each in settings["accepted"])
    assert set(settings["recorded"]) <= set(names)
