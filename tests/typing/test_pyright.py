"""pyright agrees with mypy on the public API, and finds a type for every name of it.

pyright brings its own JavaScript and needs a Node to run it, so this is of `make test-all`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.node


def pyright(*arguments: str) -> dict[str, Any]:
    """Run pyright on this Python's packages, with the Node that is there, and read its answer."""
    assert shutil.which("node"), "make test-all installs Node"
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT / "src"),
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    command = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, text=True, capture_output=True, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def said(diagnostic: dict[str, Any]) -> str:
    place = Path(diagnostic.get("file", "")).name
    line = diagnostic.get("range", {}).get("start", {}).get("line", -1) + 1
    return f"{place}:{line}: {diagnostic['message']}"


def test_what_users_write_has_the_types_that_mypy_finds_too():
    answer = pyright("--pythonpath", sys.executable)
    assert list(map(said, answer["generalDiagnostics"])) == []
    assert answer["summary"]["filesAnalyzed"] >= 8


def test_every_name_that_can_be_imported_has_a_type_of_its_own():
    """None that each type checker would have to guess."""
    answer = pyright("--verifytypes", "upstash_middleware", "--ignoreexternal")["typeCompleteness"]
    errors = [
        said(one)
        for symbol in answer["symbols"]
        for one in symbol["diagnostics"]
        if one["severity"] == "error"
    ]
    assert errors == []
    assert answer["completenessScore"] == 1
    assert answer["exportedSymbolCounts"]["withKnownType"] > 1000
