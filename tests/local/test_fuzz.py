"""Whatever bytes arrive, there is an end: an answer or a closed connection, and never a trace.

The requests are random, or valid ones with parts cut, swapped and overwritten.
"""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import httpx

    from upstash_middleware.local import LocalUpstash

DEADLINE = 10.0
FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)
NAMES = st.sampled_from(
    ["GET", "set", "EVAL", "EVALSHA", "SCRIPT", "FUNCTION", "FCALL", "XREAD", "SCAN", "BITOP",
     "XREADGROUP", "XDELEX", "XACKDEL", "MEMORY",
     "BLPOP", "SUBSCRIBE", "CLIENT", "MULTI", "EXEC", "QUIT", "RESET", "SELECT", "HELLO", "OBJECT",
     "RESTORE", "SORT", "MIGRATE", "PSYNC", "MONITOR", "", "\x00", "é"]
)  # fmt: skip
WORDS = st.sampled_from(
    ["BLOCK", "STREAMS", "GROUP", "IDS", "ACKED", "USAGE", "LOAD", "EXISTS", "0", "1", "k", ">"]
)
ARGUMENTS = st.one_of(WORDS, WORDS, JSON_VALUES)
COMMANDS = st.builds(lambda name, rest: [name, *rest], NAMES, st.lists(ARGUMENTS, max_size=6))
BODIES = st.one_of(
    st.binary(max_size=60),
    st.one_of(JSON_VALUES, COMMANDS, st.lists(COMMANDS, max_size=4)).map(
        lambda value: json.dumps(value).encode()
    ),
)
PATHS = st.sampled_from(
    ["/", "/pipeline", "/multi-exec", "/get/k", "/set/k?EX=%zz", "//", "/%", "/eval?a=&=b&&", "*",
     "/-/bill", "/-/", "/-/faults", "http://x/", "/subscribe", "/PIPELINE/x"]
)  # fmt: skip


def exchange(upstash: LocalUpstash, data: bytes) -> bytes:
    """All that comes back for these bytes, up to the end of the connection."""
    with socket.create_connection((upstash.host, upstash.port), timeout=DEADLINE) as connection:
        received = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:  # refused in the middle of sending: that is an end, too
            pass
        return received


def check(received: bytes) -> None:
    """Every answer in it is HTTP, none is a 500, and every refusal is a JSON error."""
    assert b"Traceback" not in received
    assert b" 500 Internal" not in received
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert found, head
        status = int(found[1])
        if status == 100:
            received = rest
            continue
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length, head
        body, received = rest[: int(length[1])], rest[int(length[1]) :]
        if status >= 400 and body and b"octet-stream" not in head:
            assert isinstance(json.loads(body)["error"], str)


def request(upstash: LocalUpstash, method: str, path: str, headers: str, body: bytes) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {upstash.token}\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@FUZZ
@given(data=st.binary(max_size=400))
def test_random_bytes_meet_an_end(upstash: LocalUpstash, data: bytes):
    check(exchange(upstash, data))


@FUZZ
@given(data=st.data())
def test_damaged_requests_meet_an_end(upstash: LocalUpstash, data: st.DataObject):
    draw = data.draw
    headers = draw(
        st.sampled_from(
            ["", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\n", "Upgrade: h2c\r\n",
             "Connection: upgrade\r\nUpgrade: h2c\r\n", "Content-Length: 3\r\n", "X\r\n",
             "\x00: a\r\n", "Upstash-Encoding: base64\r\n",
             "Upstash-Response-Format: resp2\r\n"]
        )
    )  # fmt: skip
    method = draw(st.sampled_from(["POST", "GET", "PUT", "HEAD", "CONNECT", "BREW", "post"]))
    whole = bytearray(request(upstash, method, draw(PATHS), headers, draw(BODIES)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, max(len(whole) - 1, 0)))
        end = draw(st.integers(start, min(len(whole), start + 20)))
        whole[start:end] = draw(st.binary(max_size=6))
    received = exchange(upstash, bytes(whole))
    if b"HEAD" in whole:  # its answers have a length, and no body
        assert b" 500 Internal" not in received
    else:
        check(received)


@FUZZ
@given(path=PATHS, body=BODIES)
def test_any_body_anywhere_is_answered(upstash: LocalUpstash, path: str, body: bytes):
    received = exchange(upstash, request(upstash, "POST", path, "", body))
    assert received.startswith(b"HTTP/1.1 ")
    check(received)


def test_requests_that_follow_on_one_connection_are_answered_in_order(upstash: LocalUpstash):
    bodies = [b'["ECHO","%d"]' % number for number in range(1000)]
    received = exchange(upstash, b"".join(request(upstash, "POST", "/", "", b) for b in bodies))
    assert re.findall(rb'"result":"(\d+)"', received) == [b"%d" % n for n in range(1000)]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS handshake
        (b"*1\r\n$4\r\nPING\r\n", 400),  # a Redis client
        (b"GET / HTTP/1.1\r\n" + b"X-Long: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 401),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(
    upstash: LocalUpstash, data: bytes, status: int
):
    with socket.create_connection((upstash.host, upstash.port), timeout=DEADLINE) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 %d " % status)
    check(received)


@pytest.mark.parametrize("target", ["http://x/echo/hi", "https://x:1/echo/hi?", "/echo/hi"])
def test_a_target_may_name_the_host(upstash: LocalUpstash, target: str):
    """RFC 9112 §3.2.2: a server accepts the absolute form."""
    received = exchange(upstash, request(upstash, "GET", target, "", b""))
    assert received.endswith(b'{"result":"hi"}')


def test_the_rest_of_a_request_is_not_waited_for_without_end(
    upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("upstash_middleware.local.http1.INCOMPLETE_SECONDS", 0.2)
    with socket.create_connection((upstash.host, upstash.port), timeout=DEADLINE) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n[")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_body_above_all_bounds_is_refused(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("upstash_middleware.local.http1.MAX_BODY_BYTES", 1000)
    received = exchange(upstash, request(upstash, "POST", "/pipeline", "", b"x" * 1001))
    assert received.startswith(b"HTTP/1.1 413 ")
    check(received)


def test_a_client_that_asks_first_is_told_to_continue(http: httpx.Client, upstash: LocalUpstash):
    data = request(upstash, "POST", "/", "Expect: 100-continue\r\n", b'["PING"]')
    assert exchange(upstash, data).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(
    upstash: LocalUpstash, http: httpx.Client, caplog: pytest.LogCaptureFixture
):
    data = request(upstash, "POST", "/", "", b'["SET","k","v"]')
    for cut in (1, 20, 60, len(data) - 1):
        with socket.create_connection((upstash.host, upstash.port)) as connection:
            connection.sendall(data[:cut])
    assert http.get("/get/k").json() == {"result": None}
    assert not caplog.records
