"""The pytest plugin, as a project that installs the package sees it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUITE = """
import os
import httpx

def run(upstash, *command):
    headers = {"Authorization": "Bearer " + os.environ["UPSTASH_REDIS_REST_TOKEN"]}
    return httpx.post(os.environ["UPSTASH_REDIS_REST_URL"], json=command, headers=headers)

def test_one(upstash):
    assert run(upstash, "INCR", "n").json() == {"result": 1}

def test_two(upstash):
    assert upstash.bill().requests == 0
    assert run(upstash, "INCR", "n").json() == {"result": 1}

def test_faults(upstash, upstash_faults):
    upstash_faults(fault="quota")
    assert run(upstash, "PING").status_code == 400

def test_after(upstash):
    assert run(upstash, "PING").status_code == 200

def test_without(monkeypatch):
    assert "UPSTASH_REDIS_REST_URL" not in os.environ
"""


def pytest_in(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_suite.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_its_fixtures_give_each_test_a_server_of_its_own(tmp_path: Path):
    done = pytest_in(tmp_path)
    assert "5 passed" in done.stdout, done.stdout


def test_workers_of_xdist_do_not_meet(tmp_path: Path):
    done = pytest_in(tmp_path, "-n", "2", "-W", "error")
    assert "5 passed" in done.stdout, done.stdout


def test_loading_it_imports_nothing_of_the_package():
    code = (
        "import sys, pytest_upstash_middleware\n"
        "print([name for name in sys.modules if name.startswith(('upstash', 'http'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_is_found_by_pytest_once_installed(tmp_path: Path):
    done = pytest_in(tmp_path, "--fixtures")
    for name in ("upstash_server [session scope]", "upstash --", "upstash_faults --"):
        assert name in done.stdout
