"""The pytest plugin, as a project that installs the package sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

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
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "no:hypothesispytest", *options]  # which takes seconds to import
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


UNITTESTS = """
import os, unittest
import httpx
from upstash_middleware.local import local_upstash

def run(*command):
    headers = {"Authorization": "Bearer " + os.environ["UPSTASH_REDIS_REST_TOKEN"]}
    return httpx.post(os.environ["UPSTASH_REDIS_REST_URL"], json=command, headers=headers).json()

class One(unittest.TestCase):
    def setUp(self):
        self.upstash = self.enterContext(local_upstash())

    def test_one(self):
        self.assertEqual(self.upstash.bill().requests, 0)
        self.assertEqual(run("SET", "n", 1, "EX", 100), {"result": "OK"})
        self.upstash.advance(101)
        self.assertEqual(run("GET", "n"), {"result": None})
        self.upstash.set_faults(fault="quota")

    def test_two(self):
        self.test_one()

class Another(One):
    urls = set()

    def setUp(self):
        super().setUp()
        self.urls.add(self.upstash.url)

    @classmethod
    def tearDownClass(cls):
        assert len(cls.urls) == 1, cls.urls
        assert os.environ["UPSTASH_REDIS_REST_URL"] == "https://before"
        assert "UPSTASH_REDIS_REST_TOKEN" not in os.environ
"""


@pytest.mark.parametrize("runner", ["unittest", "pytest"])
def test_without_its_fixtures_a_test_has_a_server_of_its_own_too(tmp_path: Path, runner: str):
    """What the environment was before, and the machine's time, are restored."""
    (tmp_path / "test_suite.py").write_text(UNITTESTS)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", runner, "test_suite.py"],
        cwd=tmp_path,
        env=os.environ | {"UPSTASH_REDIS_REST_URL": "https://before"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


FORKED = """
import os
from upstash_middleware.local import local_upstash

with local_upstash() as upstash:
    child = os.fork()
    if child == 0:
        with local_upstash() as own:
            own.reset()
            os._exit(own.port == upstash.port)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    upstash.reset()
"""


def test_a_process_that_was_forked_has_a_server_of_its_own():
    """Django's parallel test runner forks."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
