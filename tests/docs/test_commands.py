"""The commands that pages name can be called as they stand: programs, subcommands, options."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, name_of
from upstash_middleware.cli.entry import main

if TYPE_CHECKING:
    from pathlib import Path

_SHELL = {"shell", "sh", "console", ""}
_GROUPS = {"limits", "cache", "rules", "sessions"}
_INLINE = re.compile(r"`((?:upstash-middleware|make) [^`\n]+)`")
_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(page: Path, program: str) -> list[str]:
    """Return the calls of a program in a page's shell blocks and between backticks."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(page)
        if block.language in _SHELL
        for line in block.text.replace("\\\n", " ").splitlines()
        if block.language != "console" or line.startswith("$ ")  # the others are printed
    ]
    lines += [found[1] for found in _INLINE.finditer(page.read_text())]
    called = [re.split(r"\s#|[;|&]|\s->", line)[0].strip() for line in lines]
    # With an ellipsis it is a pattern or the text of a message, and not a call.
    return [line for line in called if line.startswith(f"{program} ") and "…" not in line]


OURS = sorted({line for page in PAGES for line in commands(page, "upstash-middleware")})


@pytest.mark.parametrize("command", OURS)
def test_every_call_of_our_command_is_one_that_it_takes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its subcommand is there, and so is each option in that one's help."""
    monkeypatch.setenv("COLUMNS", "200")
    words = shlex.split(command.partition(" -- ")[0])[1:]  # after the dashes is another command
    if words[0].startswith("--"):
        path, options = [], words
    else:
        path, options = words[: 2 if words[0] in _GROUPS else 1], words
    assert main([*path, "--help"]) == 0
    told = capsys.readouterr().out
    for option in options:
        if option.startswith("--"):
            assert option.partition("=")[0] in told, option


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_target_of_make_is_in_the_makefile(page: Path) -> None:
    """Whatever variables are said with it."""
    named = {line.split()[1] for line in commands(page, "make") if "=" not in line.split()[1]}
    assert named <= _TARGETS


def test_the_commands_are_found_wherever_they_stand(tmp_path: Path) -> None:
    """Or nothing would be checked."""
    page = tmp_path / "page.md"
    page.write_text(
        "`make x`\n```shell\nmake y  # why\nA=1\nupstash-middleware ping \\\n --json\n```\n"
    )
    assert commands(page, "make") == ["make y", "make x"]
    assert commands(page, "upstash-middleware") == ["upstash-middleware ping   --json"]
    assert len(OURS) > 10
