"""What a reader who follows a page to the letter sees is what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.following import (
    PATIENCE,
    environment,
    followed,
    following,
    patient,
    write,
)
from tests.docs.pages import PAGES, blocks, clear_of_a_minutes_end, name_of

if TYPE_CHECKING:
    from pathlib import Path

TESTED = [
    page
    for page in PAGES
    if any(block.file and block.file.startswith("test_") for block in blocks(page))
]


@pytest.mark.parametrize("page", followed(), ids=name_of)
def test_its_commands_print_what_stands_below_them(page: Path, tmp_path: Path) -> None:
    """Files are written, servers started, and curl is asked."""
    with following(tmp_path) as reader:
        for block in blocks(page):
            if block.language == "console":
                clear_of_a_minutes_end()
            reader.do(block)


@pytest.mark.parametrize("page", TESTED, ids=name_of)
def test_its_application_passes_the_tests_that_stand_beside_it(page: Path, tmp_path: Path) -> None:
    """They show what the page claims of it, with the package's own fixtures."""
    for block in blocks(page):
        if block.file:
            write(block, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(tmp_path)]
    # Plugins that no page's tests use; Hypothesis and Trio, for anyio, take long to import.
    unused = ("anyio", "cacheprovider", "hypothesispytest", "pytest_cov", "randomly", "timeout")
    for plugin in (*unused, "valkey", "xdist"):
        command += ["-p", f"no:{plugin}"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "app.add_middleware(\n    UpstashMiddleware,\n)",
        "app.add_middleware(CacheMiddleware, cache=[])",
        "UpstashMiddleware(\n    app,\n)",
        "UPSTASH_MIDDLEWARE = {}",
    ],
)
def test_a_machine_under_load_is_no_outage(text: str) -> None:
    """Wherever an application is told its settings, it is told to be patient."""
    assert re.search(r'deadline"?[=:] ?20.*cache_deadline"?[=:] ?20', patient(text), re.DOTALL)
    assert len(re.findall("cache_deadline", patient(text))) == 1
