"""Under gunicorn with threads, and under waitress: what only a real wire shows."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.patience import patient_environment
from tests.wsgi.served_app import LONGEST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

ROOT = Path(__file__).parents[2]
THREADS = 12


WAITRESS = """
import socket, sys
from waitress import serve
from tests.wsgi.served_app import app
listening = socket.socket(fileno=int(sys.argv[1]))
serve(app, sockets=[listening], threads=int(sys.argv[2]), send_bytes=1, asyncore_use_poll=True)
"""
"""It holds pieces back until they are 18 kB unless ``send_bytes`` says otherwise, and cannot select
a socket with a number above 1,023, which this process may have passed on."""


def command(server: str, descriptor: int, tmp_path: Path) -> list[str]:
    """Return what starts a server of the application on a socket."""
    if server == "waitress":
        return [sys.executable, "-c", WAITRESS, str(descriptor), str(THREADS)]
    bound = ["--bind", f"fd://{descriptor}", "--threads", str(THREADS)]
    quiet = ["--log-level", "warning", "--worker-tmp-dir", str(tmp_path)]
    return [sys.executable, "-m", "gunicorn", *bound, *quiet, "tests.wsgi.served_app:app"]


@pytest.fixture(params=["gunicorn", "waitress"])
def server(
    request: pytest.FixtureRequest, upstash: LocalUpstash, tmp_path: Path
) -> Iterator[httpx.Client]:
    """A client of a server in a process of its own, on a socket that is already listening."""
    upstash.restore_time()  # to that of the process
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        process = subprocess.Popen(
            command(request.param, listening.fileno(), tmp_path),
            cwd=ROOT,
            env=patient_environment() | upstash.env,
            pass_fds=[listening.fileno()],
        )
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)


def test_the_first_piece_arrives_while_the_application_still_makes_the_next(server: httpx.Client):
    with server.stream("GET", "/stream") as response:
        pieces = response.iter_bytes()
        assert next(pieces) == b"first\n"
        assert response.headers["cache-status"] == "upstash-middleware; fwd=uri-miss"
        assert server.get("/release").text == "released\n"
        assert b"".join(pieces) == b"more\n" * 500_000


@pytest.mark.parametrize("server", ["gunicorn"], indirect=True)
def test_the_client_does_not_wait_for_what_follows_the_last_byte(server: httpx.Client):
    """The store comes after the application's close, which is held back here.

    Waitress holds the end of a response back until then.
    """
    began = time.monotonic()
    assert server.get("/closing-late").text == "all\n"
    assert time.monotonic() - began < LONGEST_SECONDS / 2
    # Over a connection of its own: the other's thread is still busy with the close.
    assert httpx.get(server.base_url.join("/release"), trust_env=False).text == "released\n"
    eventually_hit(server, "/closing-late")


def test_a_response_that_the_client_has_left_is_not_stored(server: httpx.Client):
    with server.stream("GET", "/stream") as response:
        next(response.iter_bytes())
    server.get("/release")
    server.get("/end")
    time.sleep(0.2)  # what would be stored is stored after that
    again = server.get("/stream")
    assert "hit" not in again.headers["cache-status"]
    assert again.text.startswith("first\nmore\n")


def test_a_request_that_would_make_thousands_of_tags_delays_no_other(server: httpx.Client):
    server.get("/products/7")
    longest = []
    with ThreadPoolExecutor(2) as threads:
        for _ in range(3):
            target = server.base_url.join("/products/" + ":" * 4000)  # gunicorn takes no more
            hostile = threads.submit(httpx.get, target, timeout=30, trust_env=False)
            waits = []
            for _ in range(10):
                began = time.monotonic()
                server.get("/products/7")
                waits.append(time.monotonic() - began)
            longest.append(max(waits))
            assert "fwd=bypass" in hostile.result().headers["cache-status"]
    assert min(longest) < 5, "each would take longer"


def test_threads_that_ask_at_once_share_one_quota(server: httpx.Client):
    with ThreadPoolExecutor(THREADS) as threads:
        answers = list(threads.map(lambda _: server.get("/limited"), range(40)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 30
    passed = [answer for answer in answers if answer.status_code == 200]
    remaining = sorted(int(answer.headers["x-ratelimit-remaining"]) for answer in passed)
    assert remaining == list(range(10)), "each of those that passed was told another number"


def eventually_hit(server: httpx.Client, path: str) -> None:
    """Wait until the page is stored."""
    deadline = time.monotonic() + 20
    while "hit" not in server.get(path).headers["cache-status"]:
        assert time.monotonic() < deadline, f"{path} was never stored"
        time.sleep(0.05)
