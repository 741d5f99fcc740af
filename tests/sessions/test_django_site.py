"""A site with Django's auth, messages and admin on our sessions, run in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patient_environment

SITE = Path(__file__).parent / "django_site.py"
TESTS = re.findall(r"^def (test_\w+)", SITE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    command = [sys.executable, "-W", "error", "-m", "tests.sessions.django_site"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=patient_environment()
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("test", TESTS)
def test_on_a_site_of_its_own(results: dict[str, str], test: str) -> None:
    assert results[test] == ""
