"""The local Upstash as a client of it sees it first: commands, pipelines, scripts, the bill."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from upstash_ratelimit import FixedWindow, Ratelimit
from upstash_redis import Redis

from upstash_middleware.local import LocalUpstash


@pytest.fixture
def redis(upstash: LocalUpstash):
    """The Python SDK's client."""
    with Redis.from_env() as client:
        yield client


@pytest.fixture
def http(upstash: LocalUpstash):
    """A plain HTTP client that shows the token."""
    headers = {"Authorization": f"Bearer {upstash.token}"}
    with httpx.Client(base_url=upstash.url, headers=headers) as client:
        yield client


def test_a_value_that_was_set_can_be_read(redis: Redis):
    redis.set("ключ", "ünïcode")
    assert redis.get("ключ") == "ünïcode"


def test_each_test_begins_with_an_empty_database_and_no_bill(upstash: LocalUpstash, redis: Redis):
    assert redis.dbsize() == 0
    assert upstash.bill().requests == 1
    redis.set("left behind", "x")


def test_each_test_begins_empty_in_either_order(upstash: LocalUpstash, redis: Redis):
    assert redis.dbsize() == 0
    assert upstash.bill().requests == 1
    redis.set("left behind", "x")


def test_a_pipeline_answers_in_order_and_a_transaction_too(redis: Redis):
    for batch in (redis.pipeline(), redis.multi()):
        batch.set("n", 1)
        batch.incr("n")
        batch.mget("n", "none")
        assert batch.exec() == [True, 2, ["2", None]]


def test_a_raw_body_becomes_the_last_argument_and_comes_back_as_it_was(http: httpx.Client):
    value = bytes(range(256))
    assert http.post("/set/k?PX=60000", content=value).json() == {"result": "OK"}
    answer = http.post("/", json=["GET", "k"], headers={"Upstash-Response-Format": "resp2"})
    assert answer.content == b"$256\r\n" + value + b"\r\n"
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_wrong_token_is_refused(upstash: LocalUpstash):
    answer = httpx.post(upstash.url, json=["PING"], headers={"Authorization": "Bearer no"})
    assert answer.status_code == 401
    assert answer.json()["error"].startswith("WRONGPASS invalid or missing auth token")


def test_a_script_answers_to_the_sha_of_its_own_text(redis: Redis):
    text = "#!lua flags=allow-key-locking\nreturn redis.call('INCR', KEYS[1])"
    sha = redis.script_load(text)
    assert redis.evalsha(sha, keys=["n"]) == 1
    assert redis.eval(text, keys=["n"]) == 2
    assert redis.script_exists(sha) == [True]


def test_the_bill_counts_the_inner_calls_of_scripts(upstash: LocalUpstash, redis: Redis):
    redis.ping()
    redis.time()
    redis.eval("redis.call('SET', KEYS[1], 1) return redis.pcall('GET', KEYS[1])", keys=["k"])
    bill = upstash.bill()
    assert bill.requests == 3
    assert bill.by_command == {"TIME": 1, "EVAL": 1, "SET": 1, "GET": 1}
    assert bill.commands == 4


def test_the_bill_is_read_and_reset_over_http_without_a_token(upstash: LocalUpstash, redis: Redis):
    redis.set("k", "v")
    bill = httpx.get(f"{upstash.url}/-/bill").json()
    assert (bill["requests"], bill["commands"], bill["by_command"]) == (1, 1, {"SET": 1})
    assert httpx.post(f"{upstash.url}/-/bill/reset").json()["requests"] == 0
    assert upstash.bill().commands == 0


def test_the_limiters_of_upstash_ratelimit_work(redis: Redis):
    limit = Ratelimit(redis=redis, limiter=FixedWindow(max_requests=2, window=60)).limit
    assert [limit("me").allowed for _ in range(3)] == [True, True, False]


@pytest.mark.anyio
async def test_it_runs_as_an_async_context_manager():
    async with LocalUpstash() as upstash, httpx.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {upstash.token}"}
        answer = await client.post(upstash.url, json=["ECHO", "hi"], headers=headers)
        assert answer.json() == {"result": "hi"}


def test_the_command_prints_two_exports_when_it_is_ready():
    command = [sys.executable, "-m", "upstash_middleware.local", "--port", "0", "--token", "t t"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url_line, token_line = process.stdout.readline(), process.stdout.readline()
            assert token_line == "export UPSTASH_REDIS_REST_TOKEN='t t'\n"
            url = url_line.removeprefix("export UPSTASH_REDIS_REST_URL=").strip()
            assert httpx.post(
                url, json=["PING"], headers={"Authorization": "Bearer t t"}
            ).is_success
        finally:
            process.terminate()
    assert process.returncode == 0
