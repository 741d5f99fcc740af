"""Rules match the same paths under every server: with a prefix, without, and in any spelling.

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
from typing import TYPE_CHECKING

import pytest

from tests.patience import patient_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

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


@pytest.fixture(scope="module")
def running(upstash_server: LocalUpstash) -> Iterator[Running]:
    """Start servers as they are asked for."""
    found = Running(upstash_server.env)
    yield found
    found.stop()


SITES = [(name, framework) for name, server in SERVERS.items() for framework in server.frameworks]


@pytest.fixture(scope="module", params=SITES, ids=["-".join(each) for each in SITES])
def site(request: pytest.FixtureRequest, running: Running) -> Site:
    """Each application under each server that serves it."""
    name, framework = request.param
    return Site(SERVERS[name], framework, running.port_of(SERVERS[name]))


@pytest.fixture(autouse=True)
def _empty(upstash: LocalUpstash) -> None:
    """Begin with nothing counted or stored."""


MOUNTS = {"starlette": ("/sub", "/open"), "fastapi": ("/open",), "flask": ("/sub", "/open")}
MOUNTS["django"] = ()  # it has none
SPELLINGS = (
    *("/login", "//login", "///login", "/%2Flogin", "/%2flogin", "/login/", "/login//"),
    *("/login%2F", "/login%0A", "/login%0D", "/login%20", "/%20login", "/login%00", "/login%FF"),
    *("/l%6Fgin", "/LOGIN", "/login;a=b", "/./login", "/x/../login", "/login/.", "/login?x"),
    *("/login%3Fx", "/login%5C", "/%5Clogin", "/login#x", "/login%C2%85", "/login%E2%80%A8"),
)


def test_no_spelling_of_a_path_reaches_a_view_whose_quota_is_used_up(site: Site):
    takes = site.server.takes
    assert len(site.reaches(*[f"{prefix}/login" for prefix in takes] * 3)) == 2, "the limit"
    prefixes = {f"{slashes}{prefix}" for prefix in takes for slashes in ("", "/", "/api", "//api")}
    if site.server is SERVERS["granian-wsgi"]:
        prefixes = {"/api", "/api/", "/api/api"}
    assert site.reaches(*[f"{prefix}{path}" for path in SPELLINGS for prefix in prefixes]) == []
    whole = [f"http://shop.test{prefix}/{path}" for path in ("login", "/login") for prefix in takes]
    assert site.reaches("login", "x/login", *whole) == []


def test_a_proxy_that_removes_the_prefix_and_one_that_does_not_share_quotas(site: Site):
    paths = [f"{prefix}/login" for prefix in site.server.takes]
    known = site.reaches(*paths)
    assert known
    assert len(site.reaches(*known * 2)) == 2 - len(known)


def test_mounted_applications_are_limited_from_inside_and_from_outside(site: Site):
    """The outer middleware's rules are written with the mount's path, the inner one's without."""
    # Starlette finds no mount below a root_path that a proxy has removed from the path.
    mounts = [
        [f"{prefix}{mount}" for prefix in reversed(site.server.takes)]
        for mount in MOUNTS[site.framework]
    ]
    for prefixes in mounts:
        assert len(site.reaches(*[f"{each}/login" for each in prefixes for _ in range(3)])) == 2
    for prefixes in mounts:  # a final line feed counts under the rules of all of them
        assert site.reaches(*[f"{each}{path}" for path in SPELLINGS for each in prefixes]) == []


def test_a_page_is_purged_by_the_url_that_clients_use(site: Site):
    known = [each for each in site.server.takes if site.request("GET", f"{each}/items/7")[0] == 200]
    assert known
    for each in known:
        first = site.request("GET", f"{each}/items/7")
        assert site.request("GET", f"{each}/items/7") == first, "it is stored"
        status, _ = site.request("GET", f"{each}/purge?url={site.server.prefix}/items/7")
        assert status == 200
        assert site.request("GET", f"{each}/items/7") != first


def test_a_prefix_that_the_client_chooses_opens_no_new_quota(site: Site):
    """gunicorn takes SCRIPT_NAME from peers that it trusts, ProxyFix X-Forwarded-Prefix."""
    reached = 0
    for number in range(4):
        for prefix in site.server.takes:
            for path, field in (
                (f"{prefix}/z{number}/login", "SCRIPT_NAME"),
                (f"{prefix}/login", "X-Forwarded-Prefix"),
            ):
                chosen = {field: f"{prefix}/z{number}"}
                reached += site.request("POST", path, **chosen)[1] == "logged in"
    assert reached == 2
