"""What a process still sends when it ends without a word, as WSGI servers' do: counts, slices."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from upstash_redis import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

PATIENCE = 20.0
DEADLINE = 2.0
LATENCY_MS = 60_000

WORKER = """
import sys
from wsgiref.util import setup_testing_defaults
from upstash_middleware.wsgi import RateLimitMiddleware

def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"page"]

app = RateLimitMiddleware(
    page,
    default_limit=sys.argv[3],
    analytics=sys.argv[4] or None,
    deadline=float(sys.argv[2]),
    transport=sys.argv[1],
)
environ = {"REMOTE_ADDR": "203.0.113.9"}
setup_testing_defaults(environ)
for _ in range(int(sys.argv[5])):
    app(environ, lambda *_: None).close()
print("served", flush=True)
sys.stdin.readline()
"""


@contextmanager
def worker(
    library: str,
    deadline: float,
    limits: str = "9/hour",
    analytics: str = "shop",
    requests: int = 1,
) -> Iterator[subprocess.Popen[str]]:
    """Run a process that has answered requests and ends when it is told to."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, library, str(deadline), limits, analytics, str(requests)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "served\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("library", ["sockets", "httpx"])
def test_counts_are_sent_when_the_interpreter_exits(upstash: LocalUpstash, library: str):
    upstash.restore_time()  # to that of the process
    with Redis(upstash.url, upstash.token) as redis, worker(library, PATIENCE) as process:
        assert redis.keys("shop:events:*") == []
        _, said = process.communicate("end\n", PATIENCE)
        assert process.returncode == 0
        assert "Traceback" not in said
        (key,) = redis.keys("shop:events:*")
        assert redis.zscore(key, '{"identifier":"203.0.113.9","success":true}') == 1


@pytest.mark.parametrize("library", ["sockets", "httpx"])
@pytest.mark.parametrize(
    ("limits", "analytics", "requests"),
    [("9/hour", "shop", 1), ("1000/day lease 1h", "", 30)],
    ids=["counts", "slices"],
)
def test_an_upstash_that_does_not_answer_holds_up_the_exit_for_the_deadline_only(
    upstash: LocalUpstash, library: str, limits: str, analytics: str, requests: int
):
    """And nothing is said of it: what is lost are counts, and quota until its window ends."""
    with worker(library, DEADLINE, limits, analytics, requests) as process:
        upstash.set_faults(latency_ms=LATENCY_MS)
        _, said = process.communicate("end\n", LATENCY_MS / 1000 - 10)
    upstash.set_faults()
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "rate limit settling" not in said


def test_slices_are_given_back_when_the_interpreter_exits(upstash: LocalUpstash):
    upstash.restore_time()
    rule = "fixed 1000/day lease 1h"
    with (
        worker("sockets", PATIENCE, rule, "", requests=30) as process,
        Redis(upstash.url, upstash.token) as redis,
    ):
        (key,) = redis.keys("*")
        assert int(redis.get(key) or 0) > 30
        process.communicate("end\n", PATIENCE)
        assert int(redis.get(key) or 0) == 30
