"""Real servers give back the slices of their processes when they stop or reload."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest
from upstash_redis import Redis

from tests.patience import patient_environment

if TYPE_CHECKING:
    from pathlib import Path

    from upstash_middleware.local import LocalUpstash

PATIENCE = 60.0
REQUESTS = 60
APPLICATION = """
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from upstash_middleware import flask, starlette

limit = {"default_limit": "fixed 1000/30d lease 1h"}

async def page(request):
    return PlainTextResponse("page")

asgi = Starlette(routes=[Route("/", page)])
asgi.add_middleware(starlette.UpstashMiddleware, **limit)
wsgi = Flask("shop", static_folder=None)
wsgi.add_url_rule("/", view_func=lambda: "page")
flask.UpstashMiddleware(wsgi, **limit)
"""
SERVERS = {
    "uvicorn": ("uvicorn", "shop:asgi", "--fd", "{fd}", "--log-level", "warning"),
    "gunicorn": ("gunicorn", "shop:wsgi", "--bind", "fd://{fd}", "--threads", "4"),
    "gunicorn with workers": (
        *("gunicorn", "shop:wsgi", "--bind", "fd://{fd}"),
        *("--workers", "2", "--threads", "4", "--preload"),
    ),
}


@pytest.mark.parametrize(
    ("server", "reloads"),
    [("uvicorn", False), ("gunicorn", False), ("gunicorn with workers", False), ("gunicorn", True)],
)
def test_slices_are_given_back(upstash: LocalUpstash, tmp_path: Path, server: str, reloads: bool):
    upstash.restore_time()  # to that of the processes
    (tmp_path / "shop.py").write_text(APPLICATION)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        Redis(upstash.url, upstash.token) as redis,
    ):
        words = [word.format(fd=listening.fileno()) for word in SERVERS[server]]
        with subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=tmp_path,
            env=patient_environment() | upstash.env,
            pass_fds=[listening.fileno()],
        ) as process:
            try:
                url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
                for _ in range(REQUESTS):
                    assert httpx.get(url, timeout=PATIENCE, trust_env=False).status_code == 200
                (key,) = redis.keys("*")
                assert int(redis.get(key) or 0) > REQUESTS
                if reloads:
                    process.send_signal(signal.SIGHUP)
                    end = time.monotonic() + PATIENCE
                    while int(redis.get(key) or 0) > REQUESTS and time.monotonic() < end:
                        time.sleep(0.05)
                else:
                    process.terminate()
                    process.wait(PATIENCE)
                assert int(redis.get(key) or 0) == REQUESTS
            finally:
                process.terminate()


WORKER = """
import sys
from wsgiref.util import setup_testing_defaults
from upstash_middleware.wsgi import RateLimitMiddleware

def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"page"]

app = RateLimitMiddleware(page, default_limit="fixed 10000/30d lease 5s", deadline=20)
environ = {"REMOTE_ADDR": "203.0.113.9"}
setup_testing_defaults(environ)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1])):
    app(environ, lambda *_: None).close()
"""


def test_a_client_of_8_processes_costs_15_round_trips_for_100_requests_at_most(
    upstash: LocalUpstash,
):
    upstash.restore_time()
    command = [sys.executable, "-c", WORKER, "250"]
    with ExitStack() as running:
        workers = [
            running.enter_context(
                subprocess.Popen(
                    command,
                    env=patient_environment() | upstash.env,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(8)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        upstash.reset_bill()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        assert [worker.wait(PATIENCE) for worker in workers] == [0] * 8
    bill = upstash.bill()
    assert bill.requests <= 0.15 * 8 * 250
    with Redis(upstash.url, upstash.token) as redis:
        (key,) = redis.keys("*")
        assert int(redis.get(key) or 0) == 8 * 250, "all slices have been given back"
