"""Pipelines and transactions: which members run, and what is answered when one is bad."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

NOT_AN_INTEGER = {"error": "ERR value is not an integer or out of range"}


@pytest.mark.parametrize("path", ["/pipeline", "/multi-exec"])
def test_a_member_that_fails_leaves_the_others_executed(http: httpx.Client, path: str):
    members = [["SET", "k", "text"], ["INCR", "k"], ["APPEND", "k", "!"]]
    answer = http.post(path, json=members)
    assert answer.status_code == 200
    assert answer.json() == [{"result": "OK"}, NOT_AN_INTEGER, {"result": 5}]


@pytest.mark.parametrize(
    "bad", [["SET", "k"], ["NO.SUCH"], ["BLPOP", "k", 0], ["EVAL"], ["JSON.SET", "k", "$", "1"]]
)
def test_a_member_that_is_no_command_spoils_a_transaction_and_not_a_pipeline(
    http: httpx.Client, bad: list[object]
):
    members = [["SET", "k", "v"], bad]
    answer = http.post("/multi-exec", json=members)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("ERR ")
    assert http.get("/get/k").json() == {"result": None}
    first, second = http.post("/pipeline", json=members).json()
    assert first == {"result": "OK"}
    assert second["error"].startswith("ERR ")


@pytest.mark.parametrize("path", ["/pipeline", "/multi-exec"])
@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", "[1]", '["PING"]', "[null]", "[[]]", '[["SET","k","v"],["SET","k",null]]'],
)
def test_a_batch_that_cannot_be_read_is_refused_whole(http: httpx.Client, path: str, body: str):
    answer = http.post(path, content=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)
    assert http.get("/get/k").json() == {"result": None}


def test_scripts_in_a_transaction_answer_and_are_billed(upstash: LocalUpstash, http: httpx.Client):
    script = "#!lua flags=allow-key-locking\nreturn {redis.call('INCR', KEYS[1]), 'x'}"
    members = [["EVAL", script, 1, "n"], ["EVAL", "return nope", 0], ["GET", "n"]]
    first, second, third = http.post("/multi-exec", json=members).json()
    assert (first, third) == ({"result": [1, "x"]}, {"result": "1"})
    assert "nonexistent global variable 'nope'" in second["error"]
    assert upstash.bill().by_command == {"EVAL": 2, "INCR": 1, "GET": 1}


def test_nobody_sees_the_middle_of_a_transaction(upstash: LocalUpstash, http: httpx.Client):
    seen, done = set(), threading.Event()

    def watch() -> None:
        headers = {"Authorization": f"Bearer {upstash.token}"}
        with httpx.Client(base_url=upstash.url, headers=headers) as other:
            while not done.is_set():
                seen.add(tuple(other.get("/mget/a/b").json()["result"]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    while not seen:
        time.sleep(0.01)
    for number in range(50):
        members = [["SET", "a", number], ["GET", "a"], ["SET", "b", number]]
        assert len(http.post("/multi-exec", json=members).json()) == 3
    done.set()
    watcher.join()
    assert seen
    assert all(a == b for a, b in seen)
