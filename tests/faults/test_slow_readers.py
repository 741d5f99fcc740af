"""A client that reads slowly delays nobody: under gunicorn, waitress, uvicorn and granian."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from examples.demo.servers import free_port
from tests.patience import patient_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

ROOT = Path(__file__).parents[2]
APPS = "tests.faults.slow_readers_apps"
WAITRESS = (
    "from waitress import serve; from {apps} import {app}; serve({app}(), port={port}, threads=8)"
)
GRANIAN = "-m granian --port PORT --factory"
SERVERS = {
    "gunicorn-flask": f"-m gunicorn --threads 8 --bind 127.0.0.1:PORT {APPS}:of_flask()",
    "gunicorn-django": f"-m gunicorn --threads 8 --bind 127.0.0.1:PORT {APPS}:django_wsgi()",
    "waitress-django": "django_wsgi",
    "uvicorn-starlette": f"-m uvicorn --port PORT --factory {APPS}:of_starlette",
    "uvicorn-django": f"-m uvicorn --port PORT --factory {APPS}:django_asgi",
    "granian-starlette": f"{GRANIAN} --interface asgi {APPS}:of_starlette",
    "granian-flask": f"{GRANIAN} --interface wsgi --blocking-threads 8 {APPS}:of_flask",
}
STARTING = 60.0
IN_VAIN = 20.0
"""Seconds; half of what anybody would wait for a response that does not come."""


def command(name: str, port: int) -> list[str]:
    words = SERVERS[name]
    if name.startswith("waitress"):
        return ["-c", WAITRESS.format(apps=APPS, app=words, port=port)]
    return words.replace("PORT", str(port)).split()


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest,
    upstash_server: LocalUpstash,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[int]:
    """Each server in turn; give its port."""
    upstash_server.flush()
    port = free_port()
    directory = tmp_path_factory.mktemp("server")
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command(request.param, port)],
            cwd=ROOT,
            env=patient_environment()
            | upstash_server.env
            | {"SLOW_READERS_DIRECTORY": str(directory)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + STARTING
            while not answers(port):
                assert time.monotonic() < deadline, log.read_text()
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers, which could outlive it
            process.wait()


def answers(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return True


@contextmanager
def slow_reader(port: int, path: str) -> Iterator[None]:
    """Ask for a page and read nothing but the beginning of it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(STARTING)
        client.connect(("127.0.0.1", port))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        yield


def begin_of(port: int, path: str) -> httpx.Response:
    """Ask for a page and return its head, and the connection, once its body has begun."""
    with httpx.stream(
        "GET", f"http://127.0.0.1:{port}{path}", timeout=IN_VAIN, trust_env=False
    ) as page:
        next(page.iter_raw())
    return page


@pytest.mark.parametrize("path", ["/large", "/file", "/endless"])
def test_a_client_that_reads_slowly_delays_nobody(server: int, path: str) -> None:
    with slow_reader(server, path), ThreadPoolExecutor(3) as clients:
        pages = list(clients.map(lambda _: begin_of(server, path), range(3)))
    assert [page.status_code for page in pages] == [200] * 3


def test_a_file_that_is_not_stored_is_not_said_to_be(server: int) -> None:
    """``wsgi.file_wrapper`` and ``http.response.pathsend``: then the server sends it itself."""
    url = f"http://127.0.0.1:{server}/small"
    first = httpx.get(url, timeout=IN_VAIN, trust_env=False).headers["cache-status"]
    deadline = time.monotonic() + STARTING
    while "; stored" in first:  # it is stored after the last byte
        status = httpx.get(url, timeout=IN_VAIN, trust_env=False).headers["cache-status"]
        if "; hit" in status:
            break
        assert time.monotonic() < deadline, status
