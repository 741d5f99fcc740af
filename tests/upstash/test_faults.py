"""What each fault of the network becomes, over real sockets, in both libraries and both kinds.

The server is the tests' own (raw_server.py), so that nothing rests on the local Upstash.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from tests.upstash.raw_server import (
    answer,
    drop,
    flood,
    half_a_head,
    not_http,
    raw_server,
    reset,
    silent,
    trickle,
    truncate,
    truncate_and_reset,
)
from tests.upstash.support import executing, pipeline
from upstash_middleware.errors import (
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    Refused,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import AsyncClient, Credentials

TOKEN = "a-token-that-nobody-may-see"
GET = ("GET", "k")
ONE = answer(b":1\r\n")


@pytest.fixture(params=["sockets", "httpx"])
def library(request):
    return request.param


@pytest.fixture(
    params=[(kind, over) for over in ("sockets", "httpx", "own") for kind in ("sync", "async")],
    ids="-".join,
)
def talk(request):
    """Return what opens a client to a URL; ``own`` is the application's httpx client."""
    kind, library = request.param
    return lambda url: executing(kind, Credentials(url, TOKEN), library)


@pytest.fixture
def closed_url():
    """A loopback address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def failure(talk, *behaviours, command=GET, reads_only=False, deadline=20.0):
    """Return the error of one call, and the server that it was made to."""
    with (
        raw_server(*behaviours) as server,
        talk(server.url) as execute,
        pytest.raises(UpstashError) as raised,
    ):
        execute(pipeline(command, reads_only=reads_only, deadline=deadline))
    assert TOKEN not in f"{raised.value}{raised.value!r}"
    return raised.value, server


def test_a_refused_connection_is_not_connected_and_quick(talk, closed_url):
    with talk(closed_url) as execute:
        begun = time.monotonic()
        with pytest.raises(NotConnected):
            execute(pipeline(GET, deadline=20.0))
        assert time.monotonic() - begun < 15


def test_a_host_that_does_not_exist_is_not_connected(talk):
    with talk("http://no-such-host.invalid") as execute, pytest.raises(NotConnected):
        execute(pipeline(GET, deadline=20.0))


@pytest.mark.parametrize("behaviour", [drop, reset, half_a_head])
def test_a_connection_that_ends_after_the_request_is_lost_and_a_write_is_not_repeated(
    talk, behaviour
):
    error, server = failure(talk, behaviour, ONE, command=("INCR", "k"))
    assert type(error) is ConnectionLost
    assert len(server.requests) == 1


@pytest.mark.parametrize("behaviour", [drop, reset, half_a_head])
def test_what_only_reads_is_sent_once_more_after_it_was_lost(talk, behaviour):
    with raw_server(behaviour, ONE) as server, talk(server.url) as execute:
        assert execute(pipeline(GET, reads_only=True)) == [1]
        assert len(server.requests) == 2


def test_what_only_reads_is_not_sent_a_third_time(talk):
    error, server = failure(talk, drop, drop, ONE, reads_only=True)
    assert type(error) is ConnectionLost
    assert len(server.requests) == 2


def test_a_body_that_ends_early_is_an_unexpected_answer(talk):
    error, server = failure(talk, truncate)
    assert type(error) is UnexpectedAnswer
    assert len(server.requests) == 1


def test_a_body_that_is_reset_midway_is_one_of_two_clear_errors(talk):
    error, _ = failure(talk, truncate_and_reset)
    assert type(error) in {ConnectionLost, UnexpectedAnswer}


def test_what_is_not_http_is_an_unexpected_answer(talk):
    error, _ = failure(talk, not_http)
    assert type(error) is UnexpectedAnswer


@pytest.mark.parametrize("behaviour", [silent, trickle])
def test_the_deadline_holds_for_the_whole_call_also_when_the_answer_trickles(talk, behaviour):
    begun = time.monotonic()
    error, server = failure(talk, behaviour, deadline=0.4, reads_only=True)
    assert type(error) is DeadlineExceeded
    assert 0.4 <= time.monotonic() - begun < 10  # the answer would take 12
    assert len(server.requests) == 1


@pytest.mark.parametrize("piece", [b"1\r\n \r\n" * 10_000, b"10000\r\n" + b" " * 0x10000 + b"\r\n"])
def test_the_deadline_holds_while_bytes_come_without_a_pause(talk, piece):
    begun = time.monotonic()
    error, _ = failure(talk, flood(piece), deadline=0.4, reads_only=True)
    assert type(error) in {DeadlineExceeded, UnexpectedAnswer}
    assert time.monotonic() - begun < 20


def test_other_tasks_go_on_while_an_answer_comes_without_a_pause(library):
    """What a server sends without end takes a call's time, not the event loop's."""

    async def turns_meanwhile(url):
        client = AsyncClient(Credentials(url, TOKEN), transport=library)
        call = asyncio.ensure_future(client.execute(pipeline(GET, deadline=20.0)))
        turns = 0
        while not call.done() and turns < 1000:
            turns += 1
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        await client.aclose()
        return turns

    with raw_server(flood(b"10000\r\n" + b" " * 0x10000 + b"\r\n")) as server:
        assert asyncio.run(turns_meanwhile(server.url)) > 20


def test_the_deadline_holds_when_a_connection_is_never_accepted(talk):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        begun = time.monotonic()
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        with talk(url) as execute, pytest.raises(DeadlineExceeded):
            execute(pipeline(GET, deadline=0.3))
        assert time.monotonic() - begun < 20
        for one in waiting:
            one.close()


def test_a_proxys_html_is_an_unexpected_answer_that_shows_its_beginning(talk):
    page = b"<html><h1>502 Bad Gateway</h1>" + b"x" * 9000 + TOKEN.encode()
    error, _ = failure(talk, answer(page, status=502, content_type="text/html"))
    assert type(error) is UnexpectedAnswer
    assert "502 Bad Gateway" in str(error)
    assert len(str(error)) < 400


def test_a_redirect_is_not_followed(talk):
    moved = answer(b"", status=302, headers=b"Location: /elsewhere\r\n")
    error, server = failure(talk, moved, ONE)
    assert type(error) is UnexpectedAnswer
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_refused_and_not_shown(talk, status):
    said = b'{"error":"WRONGPASS invalid token ' + TOKEN.encode() + b'"}'
    error, _ = failure(talk, answer(said, status=status, content_type="application/json"))
    assert type(error) is Refused
    assert "WRONGPASS" in str(error)


def test_a_command_that_failed_is_a_value_also_in_json_with_status_400(talk):
    said = answer(b'{"error":"ERR no"}', status=400, content_type="application/json")
    with raw_server(said) as server, talk(server.url) as execute:
        (reply,) = execute(pipeline(GET))
    assert isinstance(reply, CommandError)


def test_one_connection_serves_many_calls(talk):
    with raw_server(answer(b":1\r\n")) as server:
        with talk(server.url) as execute:
            for _ in range(5):
                assert execute(pipeline(GET)) == [1]
        assert server.connections == 1


def test_cookies_are_not_kept(library):
    """Nor by httpx, unless its client is the application's own."""
    with raw_server(answer(b":1\r\n", headers=b"Set-Cookie: a=b\r\n")) as server:
        for kind in ("sync", "async"):
            with executing(kind, Credentials(server.url, TOKEN), library) as execute:
                for _ in range(2):
                    assert execute(pipeline(GET)) == [1]
        assert not any(b"cookie" in head.lower() for head, _ in server.requests)


def test_a_connection_that_the_server_closed_while_it_idled_costs_no_call(talk):
    closed = threading.Event()

    async def answer_and_close(connection):
        await ONE(connection)
        connection.close()
        await connection.ended()
        closed.set()

    with raw_server(answer_and_close) as server, talk(server.url) as execute:
        for _ in range(5):
            assert execute(pipeline(("INCR", "k"))) == [1]
            assert closed.wait(20)
            closed.clear()
        assert len(server.requests) == 5


def test_the_head_of_a_request_is_what_upstash_documents(talk):
    with raw_server(ONE) as server, talk(server.url) as execute:
        execute(pipeline(("SET", "k", "v")))
    (head, body) = server.requests[0]
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post / http/1.1"
    assert {
        f"authorization: bearer {TOKEN}",
        "upstash-response-format: resp2",
        "content-type: application/json",
        "accept-encoding: identity",
    } <= set(lines)
    assert len([line for line in lines if line.startswith("upstash-telemetry-")]) == 3
    assert body == b'["SET","k","v"]'


def test_telemetry_can_be_turned_off(library):
    with raw_server(ONE) as server:
        credentials = Credentials(server.url, TOKEN, telemetry=False)
        with executing("sync", credentials, library) as execute:
            execute(pipeline(GET))
    assert b"telemetry" not in server.requests[0][0].lower()


@pytest.mark.parametrize("token", [b"\xff\xfe", b"a b", b"x" * 5000, b"\x01"])
def test_a_sync_token_that_is_no_token_is_not_sent_back(talk, token):
    odd = answer(b":1\r\n", headers=b"Upstash-Sync-Token: " + token + b"\r\n")
    with raw_server(odd, ONE) as server, talk(server.url) as execute:
        for _ in range(2):
            try:
                execute(pipeline(GET))
            except UpstashError:
                continue
    assert b"sync-token" not in server.requests[-1][0].lower()


def test_the_sync_token_goes_back_with_the_next_call(talk):
    first = answer(b":1\r\n", headers=b"Upstash-Sync-Token: abc=\r\n")
    with raw_server(first, ONE) as server, talk(server.url) as execute:
        execute(pipeline(GET))
        execute(pipeline(GET))
    assert b"\r\nupstash-sync-token: abc=\r\n" in server.requests[1][0].lower()
