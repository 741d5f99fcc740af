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


class Server:
    """An example's process, which can be started again."""

    def __init__(self, framework: str, environment: dict[str, str], log: TextIO) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._folder = _EXAMPLES / framework
        self._command = [word.format(port=port) for word in _COMMANDS[framework]]
        self._environment = environment
        self._log = log
        if framework in _PREPARATIONS:
            command = [sys.executable, *_PREPARATIONS[framework]]
            subprocess.run(command, cwd=self._folder, env=environment, check=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._process = subprocess.Popen(
            [sys.executable, *self._command],
            cwd=self._folder,
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )
        _wait_until_it_answers(self.url, self._process, self._log)

    def stop(self) -> None:
        """End it, and all that it remembers."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Begin with a new process."""
        self.stop()
        self.start()


@contextmanager
def serving(framework: str, upstash: LocalUpstash) -> Iterator[Server]:
    """Run a framework's example against the local Upstash."""
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "log").open("w+") as log:
        server = Server(framework, os.environ | upstash.env | {"EXAMPLE_DATA": directory}, log)
        try:
            server.start()
            yield server
        finally:
            server.stop()


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
