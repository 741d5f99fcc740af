"""XREAD and XREADGROUP with BLOCK: who asks alone waits for data, and nobody else waits with it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

FOREVER = 0
GROUP = ["XREADGROUP", "GROUP", "g", "c"]


def result(http: httpx.Client, *command: object) -> object:
    answer = http.post("/", json=command, timeout=20)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


@pytest.mark.parametrize("read", [["XREAD"], GROUP], ids=["XREAD", "XREADGROUP"])
def test_it_waits_until_there_is_an_entry_while_others_are_served(
    upstash: LocalUpstash, http: httpx.Client, read: list[str]
):
    result(http, "XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    wanted = [*read, "BLOCK", FOREVER, "STREAMS", "s", ">" if len(read) > 1 else "0"]
    with (
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=upstash.url, headers=http.headers) as other,
    ):
        reading = pool.submit(result, other, *wanted)
        assert result(http, "PING") == "PONG"
        assert not reading.done()
        result(http, "XADD", "s", "1-1", "f", "v")
        assert reading.result() == [["s", [["1-1", ["f", "v"]]]]]
    assert upstash.bill().by_command[read[0]] == 1


def test_what_is_there_is_answered_at_once(http: httpx.Client):
    result(http, "XADD", "s", "1-1", "f", "v")
    assert result(http, "XREAD", "COUNT", 1, "block", FOREVER, "STREAMS", "s", 0) == [
        ["s", [["1-1", ["f", "v"]]]]
    ]


def test_after_its_time_there_is_nothing(http: httpx.Client):
    begun = time.monotonic()
    assert result(http, "XREAD", "BLOCK", 50, "STREAMS", "s", "$") is None
    assert time.monotonic() - begun >= 0.05


def test_nobody_waits_for_ever(http: httpx.Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("upstash_middleware.local.commands.MAX_WAIT_MS", 20)
    for milliseconds in (FOREVER, 3_600_000):
        assert result(http, "XREAD", "BLOCK", milliseconds, "STREAMS", "s", "$") is None


@pytest.mark.parametrize("path", ["/pipeline", "/multi-exec"])
def test_in_a_batch_it_does_not_wait(http: httpx.Client, path: str):
    """As in a transaction at Redis, where BLOCK is not heeded."""
    members = [["XREAD", "BLOCK", FOREVER, "STREAMS", "s", "$"], ["PING"]]
    assert http.post(path, json=members).json() == [{"result": None}, {"result": "PONG"}]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["XREAD", "BLOCK", "soon", "STREAMS", "s", "$"], "ERR timeout is not an integer"),
        (["XREAD", "BLOCK", -1, "STREAMS", "s", "$"], "ERR timeout is negative"),
        (["XREAD", "BLOCK"], "ERR wrong number of arguments for 'xread' command"),
        ([*GROUP, "BLOCK", 1, "STREAMS", "s", ">"], "NOGROUP No such key 's'"),
    ],
)
def test_a_wrong_wait_is_refused(http: httpx.Client, command: list[object], error: str):
    answer = http.post("/", json=command)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(error)


def test_a_clean_database_has_nobody_waiting_in_it(upstash: LocalUpstash, http: httpx.Client):
    result(http, "XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    with pytest.raises(httpx.ReadTimeout):
        http.post(
            "/",
            json=[*GROUP, "BLOCK", FOREVER, "STREAMS", "s", ">"],
            timeout=httpx.Timeout(20, read=0.2),
        )
    upstash.flush()
    result(http, "XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    result(http, "XADD", "s", "1-1", "f", "v")
    assert result(http, "XPENDING", "s", "g") == [0, None, None, None]


def test_the_server_stops_while_somebody_waits():
    from upstash_middleware.local import LocalUpstash  # noqa: PLC0415 - a server of its own

    with LocalUpstash() as server:
        headers = {"Authorization": f"Bearer {server.token}"}
        waiting = threading.Thread(target=_give_up, args=(server.url, headers))
        waiting.start()
        httpx.post(server.url, json=["PING"], headers=headers)
    waiting.join(30)
    assert not waiting.is_alive()


def _give_up(url: str, headers: dict[str, str]) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(
            url, json=["XREAD", "BLOCK", 0, "STREAMS", "s", "$"], headers=headers, timeout=20
        )
