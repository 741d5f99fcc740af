"""Client and AsyncClient against the local Upstash: what real commands answer, over real sockets.

Faults of the network are in test_faults.py; what is sent again, in test_calls.py.
"""

from __future__ import annotations

import hashlib

import pytest

from tests.upstash.support import executing, pipeline
from upstash_middleware.core.flow import Command, Script
from upstash_middleware.errors import CommandError
from upstash_middleware.upstash import Credentials

BINARY = bytes(range(256)) + b"\r\n\x00"
TEXT = "return {KEYS[1], ARGV[1], 7, false}"
SCRIPT = Script(TEXT, hashlib.sha1(TEXT.encode()).hexdigest())


@pytest.fixture(params=["sockets", "httpx", "own"])
def library(request):
    return request.param


@pytest.fixture
def credentials(upstash):
    return Credentials(upstash.url, upstash.token)


@pytest.fixture(params=["sync", "async"])
def execute(request, library, credentials):
    """Perform commands in one pipeline and return their replies, in a thread or a loop."""
    with executing(request.param, credentials, library) as performed:
        yield lambda *commands: performed(pipeline(*commands))


def test_single_commands_answer_bytes_numbers_and_nothing(execute):
    assert execute(("SET", "k", "vé")) == [b"OK"]
    assert execute(("GET", "k")) == ["vé".encode()]
    assert execute(("GET", "absent")) == [None]
    assert execute(("INCRBY", "n", 2**53)) == [2**53]


def test_a_pipeline_answers_in_order_and_a_failed_member_is_a_value(execute):
    replies = execute(("SET", "k", "v"), ("INCR", "k"), ("MGET", "k", "absent"), ("INCR", "n"))
    assert [replies[0], *replies[2:]] == [b"OK", [b"v", None], 1]
    assert isinstance(replies[1], CommandError)
    assert replies[1].code == "ERR"


def test_a_failed_single_command_is_a_value(execute):
    (reply,) = execute(("HGET", "k"))
    assert isinstance(reply, CommandError)


def test_an_empty_pipeline_makes_no_call(execute, upstash):
    assert execute() == []
    assert upstash.bill().requests == 0


def test_any_bytes_go_there_and_come_back(execute):
    assert execute(("SET", "a/key ?#%é", BINARY, "PX", 60_000)) == [b"OK"]
    assert execute(("GET", "a/key ?#%é"), ("STRLEN", "a/key ?#%é")) == [BINARY, len(BINARY)]
    (ttl,) = execute(("PTTL", "a/key ?#%é"))
    assert 0 < ttl <= 60_000
    assert execute(("ECHO", BINARY)) == [BINARY]


def test_a_script_that_the_server_does_not_know_is_sent_in_full_once(execute, upstash):
    call = Command(("EVALSHA", SCRIPT.sha, 1, "key", "word"), script=SCRIPT)
    assert execute(("INCR", "n"), call, ("INCR", "n")) == [1, [b"key", b"word", 7, None], 2]
    assert upstash.bill().requests == 2
    assert execute(call, ("GET", "n")) == [[b"key", b"word", 7, None], b"2"]
    assert upstash.bill().requests == 3
