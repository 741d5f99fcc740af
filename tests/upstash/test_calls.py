"""A pipeline's life as calls, without I/O: answers and failures are told by a script of the test.

The clock is the test's; a step may say how many seconds it took.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from tests.upstash.support import pipeline
from upstash_middleware.core.effects import Command, Script
from upstash_middleware.errors import (
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    Refused,
    UnexpectedAnswer,
)
from upstash_middleware.upstash import Answer, SyncToken
from upstash_middleware.upstash.calls import Deadline, Session, calls_for
from upstash_middleware.upstash.protocol import encode

TEXT = "return 1"
SCRIPT = Script(TEXT, hashlib.sha1(TEXT.encode()).hexdigest())
LIMIT = Command(("EVALSHA", SCRIPT.sha, 1, "key", "arg"), script=SCRIPT)
READ = Command(("GET", "k"), reads_only=True)
NOSCRIPT = b"-NOSCRIPT No matching script. Please use EVAL.\r\n"


def resp(body, sync_token=None):
    return Answer(200, "application/octet-stream", body, sync_token)


class Play:
    """Drives the calls of some commands by a list of steps: an answer, an error, or a delay."""

    def __init__(self, *steps, sync_token=None):
        self.steps = list(steps)
        self.sent = []
        self.seconds = []
        self.now = 100.0
        self.sync_token = sync_token or SyncToken()

    def run(self, *commands, deadline=1.0):
        until = Deadline(deadline, self.now + deadline, lambda: self.now)
        performed = pipeline(*commands)
        calls = calls_for(
            encode([command.args for command in performed.commands]),
            performed.commands,
            until,
            Session(self.sync_token, "secret"),
            repeat=performed.reads_only,
        )
        act: Any = calls.send
        value: Any = None
        try:
            while True:
                call, seconds = act(value)
                self.sent.append(call)
                self.seconds.append(seconds)
                act, value = self.next_step(calls)
        except StopIteration as end:
            assert not self.steps
            return end.value

    def next_step(self, calls):
        step = self.steps.pop(0)
        if isinstance(step, float):
            self.now += step
            step = self.steps.pop(0)
        return (calls.throw, step) if isinstance(step, Exception) else (calls.send, step)

    def commands_sent(self):
        return [json.loads(call.body) for call in self.sent]


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
        Play(Answer(400, "application/json", said)).run(READ, READ)


def test_the_sync_token_of_an_answer_goes_with_the_next_call_of_any_client():
    shared = SyncToken()
    Play(resp(b":1\r\n", "first"), sync_token=shared).run(READ)
    play = Play(resp(b":1\r\n"), sync_token=shared)
    play.run(READ)
    assert ("Upstash-Sync-Token", "first") in play.sent[0].headers


def test_the_sync_token_that_stays_is_that_of_the_latest_sent_call():
    token = SyncToken()
    first, second = token.number_call(), token.number_call()
    token.keep(second, "later")
    token.keep(first, "earlier")
    assert token.headers == (("Upstash-Sync-Token", "later"),)


def test_an_answer_without_a_sync_token_leaves_the_last_one():
    token = SyncToken()
    token.keep(token.number_call(), "kept")
    token.keep(token.number_call(), None)
    assert token.headers == (("Upstash-Sync-Token", "kept"),)
