"""Server-sent events: subscriptions and MONITOR, from the first event to the client's leaving."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from upstash_middleware.local import LocalUpstash

DEADLINE = 5.0


@contextlib.contextmanager
def stream(http: httpx.Client, path: str) -> Iterator[Iterator[str]]:
    """The data of the events at `path`, one after another."""
    headers = {"Accept": "text/event-stream", "Upstash-Encoding": "base64"}
    with http.stream("POST", path, headers=headers, timeout=DEADLINE) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.iter_lines()
        yield (line.removeprefix("data: ") for line in lines if line)


def until(condition) -> None:
    """Wait for what another thread does, at most DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_subscriber_gets_what_is_published(http: httpx.Client):
    with stream(http, "/subscribe/chat") as events:
        assert next(events) == "subscribe,chat,1"
        assert http.get("/publish/chat/hello").json() == {"result": 1}
        assert http.post("/publish/chat", content=b"how, are you?").json() == {"result": 1}
        assert next(events) == "message,chat,hello"
        assert next(events) == "message,chat,how, are you?"


def test_several_channels_can_be_subscribed_at_once(http: httpx.Client):
    with stream(http, "/subscribe/a/b%2Fc") as events:
        assert [next(events), next(events)] == ["subscribe,a,1", "subscribe,b/c,2"]
        http.get("/publish/b%2Fc/x")
        assert next(events) == "message,b/c,x"


def test_a_pattern_is_told_with_the_channel(http: httpx.Client):
    with stream(http, "/psubscribe/news.*") as events:
        assert next(events) == "psubscribe,news.*,1"
        http.get("/publish/news.sport/goal")
        assert next(events) == "pmessage,news.*,news.sport,goal"


def test_a_payload_of_two_lines_stays_one_event(http: httpx.Client):
    with stream(http, "/subscribe/c") as events:
        next(events)
        http.post("/publish/c", content=b"one\ntwo")
        assert [next(events), next(events)] == ["message,c,one", "two"]


def test_the_subscription_ends_when_the_client_leaves(http: httpx.Client):
    def subscribers() -> object:
        return http.get("/pubsub/numsub/chat").json()["result"]

    with stream(http, "/subscribe/chat") as events:
        next(events)
        assert subscribers() == ["chat", 1]
    until(lambda: subscribers() == ["chat", 0])


def test_monitor_shows_commands_and_scripts_as_they_were_sent(http: httpx.Client):
    with stream(http, "/monitor") as events:
        assert next(events) == '"OK"'
        http.post("/", json=["SET", "k", 'a"b'])
        http.post("/", json=["EVAL", "return redis.call('GET', KEYS[1])", 1, "k"])
        assert next(events).endswith(r'[0 0.0.0.0:0] "SET" "k" "a\"b"')
        assert next(events).endswith('"EVAL" "return redis.call(\'GET\', KEYS[1])" "1" "k"')
        assert next(events).endswith('[0 lua] "GET" "k"')


def test_monitor_does_not_show_what_only_this_server_does(http: httpx.Client):
    script = "#!lua flags=allow-key-locking\nreturn redis.call('GET', KEYS[1])"
    with stream(http, "/monitor") as events:
        next(events)
        http.post("/", json=["EVAL", script, 1, "k"])
        assert '"EVAL"' in next(events)
        assert next(events).endswith('[0 lua] "GET" "k"')


def test_head_tells_that_there_is_a_stream_and_subscribes_nobody(
    upstash: LocalUpstash, http: httpx.Client
):
    answer = http.head("/subscribe/chat")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream"
    assert upstash.bill().commands == 0
    assert http.get("/publish/chat/x").json() == {"result": 0}


@pytest.mark.parametrize("path", ["/subscribe", "/psubscribe", "/monitor/x"])
def test_a_stream_with_the_wrong_number_of_names_is_refused(http: httpx.Client, path: str):
    answer = http.post(path)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("ERR wrong number of arguments for ")


def test_a_stream_needs_the_token(upstash: LocalUpstash, http: httpx.Client):
    answer = http.post("/subscribe/chat", headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401


def test_the_read_only_token_subscribes_and_does_not_monitor(
    upstash: LocalUpstash, http: httpx.Client
):
    http.headers["Authorization"] = f"Bearer {upstash.read_only_token}"
    with stream(http, "/subscribe/chat") as events:
        assert next(events) == "subscribe,chat,1"
    answer = http.post("/monitor")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("NOPERM ")
