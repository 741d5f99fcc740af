"""What a client sends, and sends again, for a pipeline; with both kinds of client.

The clock and the transport are the test's; a step may say how many seconds it took.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.upstash.support import pipeline
from upstash_middleware.core.flow import Command, Script
from upstash_middleware.errors import (
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    Refused,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import (
    AsyncClient,
    Client,
    Credentials,
    Response,
    SyncToken,
    client,
)

TEXT = "return 1"
SCRIPT = Script(TEXT, hashlib.sha1(TEXT.encode()).hexdigest())
LIMIT = Command(("EVALSHA", SCRIPT.sha, 1, "key", "arg"), script=SCRIPT)
READ = Command(("GET", "k"), reads_only=True)
NOSCRIPT = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"


def resp(body, sync_token=None):
    return Response(200, "application/octet-stream", body, sync_token)


class Play:
    """A transport that answers by a list of steps: a response, an error, or a delay before it."""

    now = 100.0

    def __init__(self, *steps, sync_token=None):
        self.steps = list(steps)
        self.sent = []
        self.seconds = []
        self.sync_token = sync_token or SyncToken()

    def run(self, *commands, deadline=1.0):
        """Perform commands with both kinds of client."""
        steps = list(self.steps)
        options: dict[str, Any] = {
            "transport": lambda _: self,
            "sync_token": self.sync_token,
            "coalesce": False,
        }
        credentials = Credentials("https://db.example", "secret")
        performed = pipeline(*commands, deadline=deadline)
        results = []
        async_client = AsyncClient(credentials, **options | {"transport": lambda _: Async(self)})

        async def executed(pipeline):
            return await async_client.execute(pipeline)

        for execute in (Client(credentials, **options).execute, _run(executed)):
            self.steps, self.sent, self.seconds = list(steps), [], []
            try:
                results.append(execute(performed))
            except UpstashError as error:
                results.append(error)
            assert not self.steps
        assert [*map(repr, results[:1])] == [*map(repr, results[1:])]
        if isinstance(results[0], UpstashError):
            raise results[0]
        return results[0]

    def send(self, call, seconds):
        self.sent.append(call)
        self.seconds.append(seconds)
        step = self.steps.pop(0)
        if isinstance(step, float):
            Play.now += step
            step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def commands_sent(self):
        return [json.loads(call.body) for call in self.sent]


class Async:
    """The same transport for event loops."""

    def __init__(self, play):
        self.play = play

    async def send(self, call, seconds, loop=None):
        return self.play.send(call, seconds)


def _run(function):
    return lambda argument: asyncio.run(function(argument))


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    clock = SimpleNamespace(
        monotonic=lambda: Play.now, time=lambda: Play.now, perf_counter=lambda: Play.now
    )
    monkeypatch.setattr(client, "time", clock)


def test_one_call_whose_time_is_the_deadline():
    play = Play(resp(b"$1\r\nv\r\n"))
    assert play.run(READ) == [b"v"]
    assert [call.path for call in play.sent] == ["/"]
    assert play.seconds == [1.0]


def test_only_the_members_that_met_noscript_are_sent_again_in_one_call_and_in_full():
    play = Play(resp(b":5\r\n" + NOSCRIPT + b"$1\r\nv\r\n" + NOSCRIPT), resp(b":1\r\n:2\r\n"))
    assert play.run(("INCR", "n"), LIMIT, READ, LIMIT) == [5, 1, b"v", 2]
    in_full = ["EVAL", TEXT, "1", "key", "arg"]
    assert [call.path for call in play.sent] == ["/pipeline", "/pipeline"]
    assert play.commands_sent()[1] == [in_full, in_full]


def test_a_single_script_is_sent_again_by_itself():
    play = Play(resp(NOSCRIPT), resp(b":1\r\n"))
    assert play.run(LIMIT) == [1]
    assert play.commands_sent()[1] == ["EVAL", TEXT, "1", "key", "arg"]


def test_noscript_of_a_command_without_its_script_is_its_reply():
    (reply,) = Play(resp(NOSCRIPT)).run(("EVALSHA", SCRIPT.sha, 0))
    assert isinstance(reply, CommandError)
    assert reply.code == "NOSCRIPT"


def test_a_script_that_only_reads_keeps_to_the_read_only_form():
    command = Command(("EVALSHA_RO", SCRIPT.sha, 0), reads_only=True, script=SCRIPT)
    play = Play(resp(NOSCRIPT), resp(b":1\r\n"))
    assert play.run(command) == [1]
    assert play.commands_sent()[1] == ["EVAL_RO", TEXT, "0"]


@pytest.mark.parametrize("commands", [(LIMIT,), (READ,), (READ, LIMIT)])
def test_what_was_never_sent_is_sent_once_more_whatever_it_is(commands):
    play = Play(NotConnected("refused"), resp(b":1\r\n" * len(commands)))
    assert play.run(*commands) == [1] * len(commands)
    assert play.sent[0] == play.sent[1]


def test_two_refused_connections_are_not_connected():
    play = Play(NotConnected("refused"), NotConnected("refused again"))
    with pytest.raises(NotConnected, match="again"):
        play.run(READ)
    assert len(play.sent) == 2


@pytest.mark.parametrize("commands", [(LIMIT,), (READ, LIMIT)])
def test_what_writes_is_not_repeated_after_it_was_lost(commands):
    play = Play(ConnectionLost("gone"))
    with pytest.raises(ConnectionLost):
        play.run(*commands)
    assert len(play.sent) == 1


def test_what_writes_is_not_repeated_when_it_was_lost_at_the_second_attempt():
    play = Play(NotConnected("refused"), ConnectionLost("gone"))
    with pytest.raises(ConnectionLost):
        play.run(LIMIT)
    assert len(play.sent) == 2


def test_what_only_reads_is_sent_once_more_after_it_was_lost():
    play = Play(ConnectionLost("gone"), resp(b":1\r\n:2\r\n"))
    assert play.run(READ, READ) == [1, 2]


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), UnexpectedAnswer("html")])
def test_other_failures_are_never_repeated(error):
    play = Play(error)
    with pytest.raises(type(error)):
        play.run(READ)
    assert len(play.sent) == 1


def test_the_in_full_form_is_not_repeated_when_it_was_lost():
    play = Play(resp(b":5\r\n" + NOSCRIPT), ConnectionLost("gone"))
    with pytest.raises(ConnectionLost):
        play.run(("INCR", "n"), LIMIT)


def test_every_further_call_has_only_the_time_that_is_left():
    play = Play(0.25, NotConnected("slow to refuse"), 0.5, resp(NOSCRIPT), resp(b":1\r\n"))
    assert play.run(LIMIT) == [1]
    assert play.seconds == [1.0, 0.75, 0.25]


def test_no_further_call_is_made_when_no_time_is_left():
    play = Play(1.0, resp(NOSCRIPT))
    with pytest.raises(DeadlineExceeded, match="within 1 s"):
        play.run(LIMIT)
    assert len(play.sent) == 1


def test_a_deadline_that_is_over_before_the_first_call_makes_none():
    play = Play()
    with pytest.raises(DeadlineExceeded):
        play.run(LIMIT, deadline=0.0)
    assert play.sent == []


def test_a_quota_that_is_used_up_refuses_the_whole():
    said = b'{"error":"ERR max requests limit exceeded. Limit: 500000, Usage: 500000."}'
    with pytest.raises(Refused, match="500000"):
        Play(Response(400, "application/json", said)).run(READ, READ)


def test_the_sync_token_of_an_answer_goes_with_the_next_call_of_any_client():
    shared = SyncToken()
    Play(resp(b":1\r\n", "first"), sync_token=shared).run(READ)
    play = Play(resp(b":1\r\n"), sync_token=shared)
    play.run(READ)
    assert play.sent[0].sync_token == "first"


def test_the_sync_token_that_stays_is_that_of_the_latest_sent_call():
    token = SyncToken()
    first, second = next(token.numbers), next(token.numbers)
    token.keep(second, "later")
    token.keep(first, "earlier")
    assert token.latest == "later"


def test_a_call_that_is_repeated_takes_the_sync_token_that_has_arrived_meanwhile():
    class Meanwhile(Play):
        """A transport on which another call ends while each one is under way."""

        def send(self, call, seconds):
            number = next(self.sync_token.numbers)
            self.sync_token.keep(number, f"token-{number}")
            tokens.append((call.sync_token, self.sync_token.latest))
            return super().send(call, seconds)

    tokens: list[tuple[str | None, str | None]] = []
    Meanwhile(ConnectionLost("reset"), resp(b":1\r\n")).run(READ)
    (_, first), (repeated, _), _, _ = tokens
    assert repeated == first


def test_an_answer_without_a_sync_token_leaves_the_last_one():
    shared = SyncToken()
    Play(resp(b":1\r\n", "kept"), sync_token=shared).run(READ)
    Play(resp(b":1\r\n"), sync_token=shared).run(READ)
    assert shared.latest == "kept"
