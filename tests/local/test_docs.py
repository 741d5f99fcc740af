"""What docs/local.md and docs/local-unsupported.md say is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import upstash_redis.commands

from upstash_middleware.local import Fault
from upstash_middleware.local.__main__ import main
from upstash_middleware.local.commands import ONLY_AT_VALKEY

if TYPE_CHECKING:
    import httpx

    from upstash_middleware.local import LocalUpstash

DOCS = Path(__file__).parents[2] / "docs"
LOCAL = (DOCS / "local.md").read_text()
UNSUPPORTED = (DOCS / "local-unsupported.md").read_text()


def test_its_python_runs_as_printed(upstash: LocalUpstash):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", LOCAL, re.DOTALL):
        exec(compile(block, "local.md", "exec"), names)
    test = names["test_a_greeting_is_kept"]
    assert callable(test)
    test(upstash)


def test_every_fault_has_its_row():
    rows = re.findall(r"^\| `([a-z-]+)` \| .* \| (?:no|yes|\*\*yes\*\*) \|$", LOCAL, re.MULTILINE)
    assert set(rows) == {fault.value for fault in Fault}


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
        assert option == "--help" or f"`{option}" in LOCAL, option


def test_every_command_of_the_sdk_runs_here_or_is_listed(http: httpx.Client):
    listed = set(re.findall(r"[A-Z.]+", UNSUPPORTED.partition("XACKDEL")[0]))
    source = inspect.getsource(upstash_redis.commands)
    sent = set(re.findall(r'(?:List = |execute\()\[\s*"([A-Z.]+)"', source))
    assert len(sent) > 150
    for name in sent:
        error = http.post("/", json=[name]).json().get("error", "")
        unknown = "unknown command" in error or "not available" in error
        assert unknown is (name in listed), name


def test_every_command_that_is_listed_as_missing_says_so(http: httpx.Client):
    rows = re.findall(r"^\| \w+ \| ([A-Z., ]+) \|$", UNSUPPORTED, re.MULTILINE)
    names = ", ".join(rows).split(", ")
    assert len(names) > 60
    for name in names:
        answer = http.post("/", json=[name, "k", "v"])
        assert answer.status_code == 400
        assert f"'{name}' is at Upstash" in answer.json()["error"]


def test_what_is_said_to_be_refused_since_only_valkey_has_it_is_refused(http: httpx.Client):
    (sentence,) = re.findall(r"^([A-Z_, ]+ and [A-Z]+) exist in Valkey", UNSUPPORTED, re.MULTILINE)
    names = sentence.replace(" and ", ", ").split(", ")
    assert set(names) == ONLY_AT_VALKEY
    for name in names:
        assert "not available" in http.post("/", json=[name, "k", "v"]).json()["error"]
