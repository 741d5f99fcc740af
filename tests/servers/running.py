"""Starts real servers, one at a time, with the applications of ``apps``.

A server is told that the application is mounted at ``/api``. Requests come as from a proxy that
removes that prefix, and as from one that does not.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.patience import patient_environment

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
ASGI, WSGI = ("starlette", "fastapi", "django"), ("flask", "django")
WAITRESS = """
from tests.servers.apps import wsgi
from waitress import serve
serve(wsgi, port=PORT, url_prefix="/api")
"""
RUNSERVER = """
import tests.servers.apps
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "runserver", "--noreload", "PORT"])
"""


@dataclass(frozen=True)
class Server:
    """How a server is started, and which of the applications it serves."""

    frameworks: tuple[str, ...]
    command: str
    """What follows ``python``; a program for ``-c`` where it has several lines."""
    environ: tuple[tuple[str, str], ...] = ()
    prefix: str = "/api"
    takes: tuple[str, ...] = ("", "/api")
    """The prefixes of what a proxy in front of it may send."""

    def argv(self, port: int) -> list[str]:
        """Return the whole command line."""
        command = self.command.replace("PORT", str(port))
        return [sys.executable, *(["-c", command] if "\n" in command else command.split())]


_APP = "tests.servers.apps"
SERVERS = {
    "uvicorn": Server(ASGI, f"-m uvicorn {_APP}:asgi --root-path /api --port PORT"),
    "uvicorn-h11": Server(ASGI, f"-m uvicorn {_APP}:asgi --root-path /api --port PORT --http h11"),
    "hypercorn": Server(ASGI, f"-m hypercorn {_APP}:asgi --root-path /api --bind 127.0.0.1:PORT"),
    "granian": Server(
        ASGI, f"-m granian {_APP}:asgi --interface asgi --url-path-prefix /api --port PORT"
    ),
    "gunicorn-asgi": Server(
        ASGI, f"-m gunicorn {_APP}:asgi -k asgi --root-path /api --bind 127.0.0.1:PORT"
    ),
    "gunicorn": Server(
        WSGI,
        f"-m gunicorn {_APP}:wsgi --bind 127.0.0.1:PORT",
        (("SCRIPT_NAME", "/api"),),
        takes=("/api",),
    ),
    "waitress": Server(WSGI, WAITRESS),
    # It removes as many characters as the prefix has, whichever they are.
    "granian-wsgi": Server(
        WSGI,
        f"-m granian {_APP}:wsgi --interface wsgi --url-path-prefix /api --port PORT",
        takes=("/api",),
    ),
    "hypercorn-wsgi": Server(
        WSGI, f"-m hypercorn wsgi:{_APP}:wsgi --root-path /api --bind 127.0.0.1:PORT"
    ),
    "runserver": Server(("django",), RUNSERVER, (("FORCE_SCRIPT_NAME", "/api"),), takes=("",)),
    "gunicorn-without": Server(
        WSGI, f"-m gunicorn {_APP}:wsgi --bind 127.0.0.1:PORT", prefix="", takes=("",)
    ),
    "uvicorn-without": Server(ASGI, f"-m uvicorn {_APP}:asgi --port PORT", prefix="", takes=("",)),
}


@dataclass(frozen=True)
class Site:
    """An application under a server."""

    server: Server
    framework: str
    port: int

    def request(self, method: str, path: str, **fields: str) -> tuple[int, str]:
        """Send a request with the path as it is; return the status and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in {"Host": f"{self.framework}.test", **fields}.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def reaches(self, *paths: str) -> list[str]:
        """Return the paths under which the view of ``/login`` is reached."""
        return [path for path in paths if self.request("POST", path)[1] == "logged in"]


class Running:
    """The server that is running, one at a time; tests of one server follow each other."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = environ
        self._server: Server | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def port_of(self, server: Server) -> int:
        """Return the port of a server, in a process of its own."""
        if server is not self._server:
            self.stop()
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._port = free.getsockname()[1]
            self._server, self._process = server, self._started(server)
        return self._port

    def _started(self, server: Server) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            server.argv(self._port),
            cwd=ROOT,
            env=patient_environment() | self._environ | dict(server.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.05)
        return process

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End the server's process."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
