"""The JavaScript SDKs as clients, driven by Node: the suites in tests/node.

They need Node and the packages that `make test-all` installs into tests/node.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from upstash_middleware.local import LocalUpstash

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITES = Path(__file__).parent.parent / "node"


@pytest.fixture(scope="module")
def second_region() -> Iterator[dict[str, str]]:
    """The environment of another database, for what spans several."""
    with LocalUpstash() as second:
        yield {f"SECOND_{name}": value for name, value in second.env.items()}


@pytest.mark.node
@pytest.mark.parametrize("suite", sorted(path.name for path in SUITES.glob("*.test.mjs")))
def test_the_suite_passes(upstash: LocalUpstash, second_region: dict[str, str], suite: str):
    assert (SUITES / "node_modules").is_dir(), "tests/node has no packages: run `make test-all`"
    done = subprocess.run(
        ["node", "--test", suite],
        cwd=SUITES,
        env=os.environ | upstash.env | second_region,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
