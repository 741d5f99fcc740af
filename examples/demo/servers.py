"""The examples as server processes on free loopback ports; none outlives the demo."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

_EXAMPLES = Path(__file__).parent.parent
_START_SECONDS = 30.0

_UVICORN = ("-m", "uvicorn", "app:app", "--log-level", "warning", "--port", "{port}")
_COMMANDS = {
    "starlette": _UVICORN,
    "fastapi": _UVICORN,
    "flask": ("-m", "flask", "--app", "app", "run", "--port", "{port}"),
    "django": ("manage.py", "runserver", "--noreload", "{port}"),
}
_PREPARATIONS = {"django": ("manage.py", "migrate", "--verbosity", "0")}

FRAMEWORKS = tuple(_COMMANDS)


@contextmanager
def serving(framework: str, upstash: LocalUpstash) -> Iterator[str]:
    """Run a framework's example against the local Upstash and give its address."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "log").open("w+") as log:
        environment = os.environ | upstash.env | {"EXAMPLE_DATA": directory}
        folder = _EXAMPLES / framework
        if framework in _PREPARATIONS:
            command = [sys.executable, *_PREPARATIONS[framework]]
            subprocess.run(command, cwd=folder, env=environment, check=True)
        command = [sys.executable, *(word.format(port=port) for word in _COMMANDS[framework])]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_it_answers(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: TextIO) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, timeout=1)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    log.seek(0)
    raise RuntimeError(f"the example did not start at {url}:\n{log.read()}")


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
