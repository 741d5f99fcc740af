"""docs/command-line.md: every command in it runs, and its tables are those of the code."""

from __future__ import annotations

import re
import shlex
import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import ROOT, blocks
from upstash_middleware.cli.output import Exit
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Call
    from upstash_middleware.local import LocalUpstash

PAGE = ROOT / "docs" / "command-line.md"
COMMANDS = [
    found.group(1).strip()
    for block in blocks(PAGE)
    if block.language == "shell"
    for found in re.finditer(r"upstash-middleware ([^;\n]+)", block.text)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_page_answers(
    call: Call,
    shop: str,
    upstash: LocalUpstash,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Yes or no, and not that it was called wrongly."""
    if "completion" in command:  # it writes to the shell's own files
        assert "--install-completion" in call("--help").out
        return
    (tmp_path / "urls.txt").write_text("https://shop.example/products/7\n")
    monkeypatch.chdir(tmp_path)
    told = call(*shlex.split(command.replace("shop:app", shop)))
    assert (told.code in {Exit.DONE, Exit.NO}, told.err) == (True, "")
    assert told.out


def test_each_exit_code_is_in_the_page_s_table() -> None:
    """And no other."""
    table = PAGE.read_text().partition("## Exit codes")[2].partition("With `--json`")[0]
    assert [int(code) for code in re.findall(r"^\| (\d) \|", table, re.MULTILINE)] == list(Exit)


def test_the_rule_file_of_the_page_is_right() -> None:
    """It is what settings are made of."""
    (toml,) = [block.text for block in blocks(PAGE) if block.language == "toml"]
    settings = settings_from(tomllib.loads(toml), {})
    assert (len(settings.rate_limits), len(settings.cache)) == (1, 1)
