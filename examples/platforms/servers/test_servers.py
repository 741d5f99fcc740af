"""Real servers with several processes: one count for all of them, and nobody's client shared."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from examples.demo.servers import free_port
from tests.patience import ONE_AUTHORITY, patient_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "platforms.md"
PATIENCE = 60.0
CLIENT = "203.0.113.7"
ALLOWED = 30
ASKED = 3 * ALLOWED

COMMANDS = re.findall(r"^(?:gunicorn|uvicorn|granian) .*8000.*$", PAGE.read_text(), re.MULTILINE)
PRELOADED = next(command for command in COMMANDS if "--preload" in command)


class Served(NamedTuple):
    """A running server, and the file of what it has said."""

    url: str
    log: Path

    def get(self, path: str, forwarded: str) -> httpx.Response:
        """Ask over a connection of its own, so that any worker may answer."""
        headers = {"X-Forwarded-For": forwarded}
        url = self.url + path
        return httpx.get(
            url, headers=headers, timeout=PATIENCE, trust_env=False, verify=ONE_AUTHORITY
        )


@contextmanager
def serving(
    command: str, upstash: LocalUpstash, directory: Path, **environment: str
) -> Iterator[Served]:
    """Run a server by the command of the page, on a free port, and leave no process behind."""
    port, log = free_port(), directory / "log"
    words = command.replace("8000", str(port)).split()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=HERE,
            env=patient_environment() | upstash.env | environment,
            stdout=output,
            stderr=output,
        )
        try:
            served = Served(f"http://127.0.0.1:{port}", log)
            wait_until_it_answers(served, process)
            yield served
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_it_answers(served: Served, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            served.get("/limited", "192.0.2.1")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the server did not start:\n{served.log.read_text()}")


def passing(served: Served, chains: list[str]) -> list[dict[str, Any]]:
    """Ask many at once, and return what those are answered that are not denied."""
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda chain: served.get("/limited", chain), chains))
    assert {each.status_code for each in answers} == {200, 429}
    return [each.json() for each in answers if each.status_code == 200]


@pytest.fixture(params=COMMANDS, scope="module")
def served(
    request: pytest.FixtureRequest,
    upstash_server: LocalUpstash,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """Each server of the page in turn."""
    upstash_server.flush()
    with serving(request.param, upstash_server, tmp_path_factory.mktemp("server")) as served:
        yield served


def test_one_quota_holds_for_all_processes_whatever_the_client_forwards(served: Served) -> None:
    """The proxy appends the address that it has seen; what stands before it is the client's."""
    passed = passing(served, [f"10.{n}.2.3, {CLIENT}" if n % 2 else CLIENT for n in range(ASKED)])
    assert len(passed) == ALLOWED
    assert {each["identifier"] for each in passed} == {f"ip={CLIENT}"}
    assert served.get("/limited", "203.0.113.8").status_code == 200, "another client"


def test_a_page_that_one_process_rendered_is_a_hit_in_the_others(served: Served) -> None:
    """It is stored after the last byte, for which no server makes its client wait."""
    deadline = time.monotonic() + PATIENCE
    clients = (f"198.51.{n // 250}.{n % 250}" for n in count())
    while "; hit" not in (stored := served.get("/page", next(clients))).headers["cache-status"]:
        assert time.monotonic() < deadline, "it was never stored"
        time.sleep(0.5)  # else the other process may miss it too, and store its own later
    processes: set[int] = set()
    while len(processes) < 2:
        assert time.monotonic() < deadline, "only one of the processes answers"
        processes.add(served.get("/limited", next(clients)).json()["process"])
    with ThreadPoolExecutor(8) as threads:
        again = list(threads.map(lambda _: served.get("/page", next(clients)), range(12)))
    assert {each.text for each in again} == {stored.text}


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_workers_do_not_share_the_client_of_a_preloaded_master(
    upstash: LocalUpstash, tmp_path: Path, used: bool
) -> None:
    """Each makes its own, also after a use before the fork."""
    upstash.restore_time()  # to that of the processes
    environment = {"PURGE_AT_START": "1"} if used else {}
    with serving(PRELOADED, upstash, tmp_path, **environment) as served:
        passed = passing(served, [CLIENT] * ASKED)
    assert len(passed) == ALLOWED
