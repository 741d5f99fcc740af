"""Real servers give back the slices of their processes when they stop or reload."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
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
