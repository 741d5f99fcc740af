"""Each example starts by the commands of its own README and does what the README says of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from examples.demo.servers import free_port
from tests.patience import patient_environment

EXAMPLES = Path(__file__).parent
PATIENCE = 60.0


@pytest.mark.parametrize("framework", ["starlette", "fastapi", "flask", "django"])
def test_the_commands_of_the_readme_start_the_example(framework: str, tmp_path: Path) -> None:
    upstash, url, script = started_by_the_readme(framework)
    environment = patient_environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "EXAMPLE_DATA": str(tmp_path),
    }
    with (tmp_path / "log").open("w+") as log:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=EXAMPLES / framework,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until_it_answers(upstash, shell)
            wait_until_it_answers(url, shell)
            statuses = statuses_until_one_is_denied(f"{url}/api/generate")
            first = httpx.get(f"{url}/catalogue/tea", timeout=PATIENCE)
            wait_until_it_is_stored(f"{url}/catalogue/tea")
        finally:
            os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(PATIENCE)
        log.seek(0)
        assert set(statuses[:-1]) == {200}, log.read()
        assert len(statuses) > 10, log.read()
        assert statuses[-1] == 429, log.read()
        assert "stored" in first.headers["cache-status"]


def statuses_until_one_is_denied(url: str) -> list[int]:
    """Return the statuses of POSTs up to the first that is not 200.

    The window of ten seconds may end between two of them, after which ten more are allowed.
    """
    deadline = time.monotonic() + PATIENCE
    statuses = [200]
    while statuses[-1] == 200 and time.monotonic() < deadline:
        statuses.append(httpx.post(url, timeout=PATIENCE).status_code)
    return statuses[1:]


def wait_until_it_is_stored(url: str) -> None:
    """Get a page until it is a hit; it is stored after its last byte."""
    deadline = time.monotonic() + PATIENCE
    while "; hit" not in (status := httpx.get(url, timeout=PATIENCE).headers["cache-status"]):
        assert time.monotonic() < deadline, status


def started_by_the_readme(framework: str) -> tuple[str, str, str]:
    """Return the addresses and the commands of the first block, on ports that are free.

    What is installed here already is not installed again.
    """
    block = re.search(
        r"```sh\n(.*?)```", (EXAMPLES / framework / "README.md").read_text(), re.DOTALL
    )
    assert block is not None
    script = block[1]
    assert script.startswith('pip install "../..[')
    script = re.sub(r"^pip install .*\n", "", script, flags=re.MULTILINE)
    upstash, application = free_port(), free_port()
    assert script.count("8079") == 2
    assert script.count("8000") == 1
    script = script.replace("8079", str(upstash)).replace("8000", str(application))
    return f"http://127.0.0.1:{upstash}", f"http://127.0.0.1:{application}", script


def wait_until_it_answers(url: str, shell: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and shell.poll() is None:
        try:
            httpx.get(url, timeout=PATIENCE)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"nothing answers at {url}")
