"""Coalescing across threads: what shares a call, and that it takes nothing from a pipeline.

The transport is the test's: a call is under way until the test answers it.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.upstash.support import pipeline
from upstash_middleware.errors import ConnectionLost, DeadlineExceeded, NotConnected, Refused
from upstash_middleware.upstash import Client, Credentials, Response, batching

SECONDS = 30


class Wire:
    """A Transport whose calls are answered by the test, each echoing its commands."""

    def __init__(self):
        self.calls = []
        self.ends = []
        self.threads = []
        self._lock = threading.Lock()

    def send(self, call, seconds):
        end: queue.Queue[Any] = queue.Queue()
        with self._lock:
            self.calls.append(call)
            self.ends.append(end)
            self.threads.append(threading.get_ident())
        answer = end.get(timeout=SECONDS)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self):
        pass

    def commands(self, index):
        """Return the commands of a call."""
        words = json.loads(self.calls[index].body)
        return words if self.calls[index].path == "/pipeline" else [words]

    def answer(self, index, *replies):
        """Response a call: with these RESP2 replies, or with the last word of each command."""
        echoed = [f"+{words[-1]}\r\n".encode() for words in self.commands(index)]
        body = b"".join(replies or echoed)
        self.ends[index].put(Response(200, "application/octet-stream", body))

    def fail(self, index, error):
        self.ends[index].put(error)


class World:
    """A client over a Wire, and threads that use it."""

    def __init__(self, threads):
        self.wire = Wire()
        credentials = Credentials("https://db.example", "s3cret")
        self.client = Client(credentials, deadline=60.0, transport=lambda _: self.wire)
        self._threads = threads

    def begin(self, *commands, **options):
        """Begin to execute commands in a thread, and wait until it waits for others' calls."""
        calls, waiting = len(self.wire.calls), self.client.waiting
        future = self._threads.submit(self.client.execute, pipeline(*commands, **options))
        until(
            lambda: len(self.wire.calls) > calls or self.client.waiting > waiting or future.done()
        )
        return future

    def until_calls(self, count):
        until(lambda: len(self.wire.calls) == count)


def until(holds):
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """Let a slow machine not pass for calls that do not end, nor for a long way."""
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 25.0)
    monkeypatch.setattr(batching, "SECONDS_BETWEEN_CALLS", 1000.0)


@pytest.fixture
def world():
    with ThreadPoolExecutor(16) as threads:
        yield World(threads)


def test_pipelines_that_meet_share_the_next_call_and_each_gets_its_own_replies(world):
    first = world.begin(("ECHO", "a"))
    shared = [
        world.begin(("ECHO", "b")),
        world.begin(("ECHO", "c"), ("ECHO", "d")),
        world.begin(("ECHO", "e")),
    ]
    assert len(world.wire.calls) == 1
    world.wire.answer(0)
    world.until_calls(2)
    assert [words[-1] for words in world.wire.commands(1)] == ["b", "c", "d", "e"]
    world.wire.answer(1)
    assert first.result(SECONDS) == [b"a"]
    assert [one.result(SECONDS) for one in shared] == [[b"b"], [b"c", b"d"], [b"e"]]


def test_a_pipeline_that_meets_nothing_goes_at_once_as_it_is(world):
    for number in range(3):
        one = world.begin(("ECHO", f"{number}"))
        assert world.wire.calls[-1].path == "/"
        world.wire.answer(number)
        assert one.result(SECONDS) == [f"{number}".encode()]


def test_those_who_come_while_a_shared_call_is_under_way_share_the_one_after(world):
    first, second = world.begin(("ECHO", "a")), world.begin(("ECHO", "b"))
    world.wire.answer(0)
    world.until_calls(2)
    third, fourth = world.begin(("ECHO", "c")), world.begin(("ECHO", "d"))
    world.wire.answer(1)
    world.until_calls(3)
    world.wire.answer(2)
    results = [one.result(SECONDS) for one in (first, second, third, fourth)]
    assert results == [[b"a"], [b"b"], [b"c"], [b"d"]]
    assert len(world.wire.calls) == 3


def test_a_short_deadline_ends_its_own_pipeline_only(world):
    first = world.begin(("ECHO", "a"))
    short = world.begin(("ECHO", "short"), deadline=0.2)
    long = world.begin(("ECHO", "long"))
    with pytest.raises(DeadlineExceeded, match=r"0\.2 s"):
        short.result(SECONDS)
    world.wire.answer(0)
    world.until_calls(2)
    assert world.wire.commands(1) == [["ECHO", "long"]]
    world.wire.answer(1)
    assert (first.result(SECONDS), long.result(SECONDS)) == ([b"a"], [b"long"])


def test_a_deadline_that_ends_within_a_shared_call_takes_nothing_from_the_others(world):
    first = world.begin(("ECHO", "a"))
    long = world.begin(("ECHO", "long"))
    short = world.begin(("ECHO", "short"), deadline=0.5)
    world.wire.answer(0)
    world.until_calls(2)
    with pytest.raises(DeadlineExceeded):
        short.result(SECONDS)
    world.wire.answer(1)
    assert (first.result(SECONDS), long.result(SECONDS)) == ([b"a"], [b"long"])


def test_a_short_deadline_is_kept_by_the_first_of_a_shared_call_too(world):
    first = world.begin(("ECHO", "a"))
    short = world.begin(("ECHO", "short"), deadline=0.5)
    long = world.begin(("ECHO", "long"))
    world.wire.answer(0)
    world.until_calls(2)
    with pytest.raises(DeadlineExceeded, match=r"0\.5 s"):
        short.result(SECONDS / 2)
    world.wire.answer(1)
    assert (first.result(SECONDS), long.result(SECONDS)) == ([b"a"], [b"long"])


def test_a_call_that_hangs_holds_up_once_and_then_nobody(world, monkeypatch):
    hanging = world.begin(("ECHO", "hangs"))
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 0.1)
    waited = world.begin(("ECHO", "waits"))
    world.until_calls(2)
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 25.0)
    world.wire.answer(1)
    assert waited.result(SECONDS) == [b"waits"]
    at_once = world.begin(("ECHO", "goes"))
    assert len(world.wire.calls) == 3
    world.wire.answer(2)
    assert at_once.result(SECONDS) == [b"goes"]
    world.wire.answer(0)
    assert hanging.result(SECONDS) == [b"hangs"]


@pytest.mark.parametrize("error", [NotConnected("no"), Refused("no"), DeadlineExceeded("1 s")])
def test_an_error_of_the_whole_call_is_raised_in_each_as_its_own(world, error):
    first = world.begin(("ECHO", "a"))
    shared = [world.begin(("ECHO", "b")), world.begin(("ECHO", "c"))]
    world.wire.answer(0)
    world.until_calls(2)
    world.wire.fail(1, error)
    if isinstance(error, NotConnected):  # what was never sent is sent once more
        world.until_calls(3)
        world.wire.fail(2, error)
    raised = [one.exception(SECONDS) for one in shared]
    assert [type(one) for one in raised] == [type(error)] * 2
    assert raised[0] is not raised[1]
    assert first.result(SECONDS) == [b"a"]


def test_after_a_loss_only_the_pipelines_that_only_read_are_sent_once_more(world):
    first = world.begin(("ECHO", "a"))
    writer = world.begin(("INCR", "n"))
    reader = world.begin(("GET", "b"), reads_only=True)
    world.wire.answer(0)
    world.until_calls(2)
    world.wire.fail(1, ConnectionLost("gone"))
    world.until_calls(3)
    assert world.wire.commands(2) == [["GET", "b"]]
    world.wire.answer(2)
    assert reader.result(SECONDS) == [b"b"]
    assert isinstance(writer.exception(SECONDS), ConnectionLost)
    assert first.result(SECONDS) == [b"a"]


def test_a_thread_that_is_interrupted_while_it_calls_for_others_leaves_nobody_waiting(world):
    first = world.begin(("ECHO", "a"))
    follows, leads = world.begin(("ECHO", "b")), world.begin(("ECHO", "c"))  # the later deadline
    world.wire.answer(0)
    world.until_calls(2)
    world.wire.fail(1, KeyboardInterrupt())
    assert isinstance(leads.exception(SECONDS), KeyboardInterrupt)
    assert isinstance(follows.exception(SECONDS), ConnectionLost)
    after = world.begin(("ECHO", "d"))
    world.wire.answer(2)
    assert (first.result(SECONDS), after.result(SECONDS)) == ([b"a"], [b"d"])


def test_much_to_send_goes_by_itself(world):
    first = world.begin(("ECHO", "a"))
    large = world.begin(("SET", "k", "v" * (batching.ALONE_BYTES + 1)))
    assert len(world.wire.calls) == 2
    world.wire.answer(1, b"+OK\r\n")
    assert large.result(SECONDS) == [b"OK"]
    world.wire.answer(0)
    assert first.result(SECONDS) == [b"a"]


def test_it_can_be_switched_off():
    wire = Wire()
    client = Client(
        Credentials("https://db.example", "t"), transport=lambda _: wire, coalesce=False
    )
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(client.execute, pipeline(("ECHO", word))) for word in "ab"]
        until(lambda: len(wire.calls) == 2)
        wire.answer(0)
        wire.answer(1)
        assert sorted(one.result(SECONDS) for one in both) == [[b"a"], [b"b"]]


@pytest.mark.parametrize("patience", [25.0, 0.001, 0.0004])
def test_many_threads_at_once_each_get_their_own_replies(monkeypatch, patience):
    """Without a hand on the wire: whatever meets whatever, also losing patience as it is woken."""
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", patience)

    class Echo:
        def __init__(self):
            self.calls = 0

        def send(self, call, seconds):
            self.calls += 1
            time.sleep(0.0005)
            words = json.loads(call.body)
            words = words if call.path == "/pipeline" else [words]
            body = b"".join(f"+{each[-1]}\r\n".encode() for each in words)
            return Response(200, "application/octet-stream", body)

        def close(self):
            pass

    echo = Echo()
    client = Client(Credentials("https://db.example", "t"), transport=lambda _: echo)

    def ask(number):
        return [client.execute(pipeline(("ECHO", f"{number}.{n}"))) for n in range(200)]

    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(ask, range(16)))
    assert results == [[[f"{one}.{n}".encode()] for n in range(200)] for one in range(16)]
    assert echo.calls < 16 * 200, "some have shared"
