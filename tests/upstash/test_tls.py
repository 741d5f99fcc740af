"""TLS as a part of connecting: within the deadline, and only with whom a certificate vouches."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from tests.upstash.listening import answered, listening, next_request
from tests.upstash.support import executing, pipeline
from tests.upstash.test_sockets import FORKING
from upstash_middleware.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import Credentials, tls
from upstash_middleware.upstash.sockets import Connection, Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOKEN = "a-token-that-nobody-may-see"
RESP2 = b"application/octet-stream"


@pytest.fixture(params=["sockets", "httpx"])
def library(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def talk(request, library):
    """Return what opens a client to a URL."""
    return lambda url: executing(request.param, Credentials(url, TOKEN), library)


def says_nothing(connection: socket.socket, ended: threading.Event) -> None:
    """Take the client's hello and answer none."""
    with connection:
        ended.wait(30)


def trickles(connection: socket.socket, ended: threading.Event) -> None:
    """Begin a record of 16 kB and send a byte of it now and then."""
    with connection, suppress(OSError):
        connection.sendall(b"\x16\x03\x03\x40\x00")
        while not ended.wait(0.02):
            connection.sendall(b"\x02")


@pytest.mark.parametrize("serve", [says_nothing, trickles])
def test_the_deadline_holds_while_a_handshake_never_ends(talk, serve):
    with listening(serve) as port, talk(f"https://localhost:{port}") as execute:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            execute(pipeline(("GET", "k"), reads_only=True, deadline=0.4))
        assert 0.35 <= time.monotonic() - began < 20


def test_a_handshake_that_is_given_up_leaves_no_connection_behind(talk):
    left = threading.Event()

    def serve(connection: socket.socket, ended: threading.Event) -> None:
        trickles(connection, ended)
        left.set()

    with listening(serve) as port, talk(f"https://localhost:{port}") as execute:
        with pytest.raises(DeadlineExceeded):
            execute(pipeline(("GET", "k"), reads_only=True, deadline=0.3))
        assert left.wait(20), "the client has not closed it"


def test_who_has_no_certificate_that_is_trusted_is_not_connected_and_gets_no_token(talk):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    received: list[bytes] = []

    def serve(connection: socket.socket, _ended: threading.Event) -> None:
        connection.settimeout(20)
        with (
            connection,
            suppress(OSError),
            context.wrap_socket(connection, server_side=True) as own,
        ):
            received.append(own.recv(1000))

    with (
        listening(serve) as port,
        talk(f"https://localhost:{port}") as execute,
        pytest.raises(NotConnected) as raised,
    ):
        execute(pipeline(("INCR", "k"), deadline=20.0))
    assert TOKEN not in f"{raised.value!r}"
    assert not any(received)


def test_who_does_not_speak_tls_is_not_connected(talk):
    def plain(connection: socket.socket, _ended: threading.Event) -> None:
        with connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    def closes(connection: socket.socket, _ended: threading.Event) -> None:
        connection.recv(1000)
        connection.close()

    for serve in (plain, closes):
        with (
            listening(serve) as port,
            talk(f"https://localhost:{port}") as execute,
            pytest.raises(NotConnected),
        ):
            execute(pipeline(("INCR", "k"), deadline=20.0))


AUTHORITY = trustme.CA()


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Have the test's authority be the only one that is trusted; return where it is."""
    path = tmp_path / "authorities.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    tls.context.cache_clear()
    yield path
    tls.context.cache_clear()


def server_context(authority: trustme.CA = AUTHORITY, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(
        *options.pop("names", ("localhost", "127.0.0.1")), **options
    ).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class Served:
    """Answers over TLS; its ways to end a connection are the tests'."""

    def __init__(self, context: ssl.SSLContext, *, answers: int = 1000) -> None:
        self.context = context
        self.answers = answers
        self.connections = 0
        self.ended = 0
        self.protocols: set[str | None] = set()
        self.resumed: list[bool | None] = []

    def __call__(self, connection: socket.socket, _ended: threading.Event) -> None:
        connection.settimeout(20)
        with connection, suppress(OSError):
            self.connections += 1
            with self.context.wrap_socket(connection, server_side=True) as secured:
                self.protocols.add(secured.selected_alpn_protocol())
                self.resumed.append(secured.session_reused)
                for _ in range(self.answers):
                    if next_request(secured) is None:
                        break
                    self.answer(secured)
        self.ended += 1

    def answer(self, secured: ssl.SSLSocket) -> None:
        secured.sendall(answered(b":1\r\n"))

    def wait_for_ends(self, number: int) -> None:
        """Block until so many connections have ended."""
        until = time.monotonic() + 20
        while self.ended < number:
            assert time.monotonic() < until, f"{self.ended} have ended, not {number}"
            time.sleep(0.01)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_one_connection_serves_many_calls_to_whom_a_trusted_authority_vouches_for(
    talk, trusted, version, host
):
    context = server_context()
    context.minimum_version = context.maximum_version = version
    served = Served(context)
    with listening(served) as port, talk(f"https://{host}:{port}") as execute:
        for _ in range(3):
            assert execute(pipeline(("INCR", "k"), deadline=20.0)) == [1]
    assert served.connections == 1
    assert served.protocols == {"http/1.1"}


@pytest.mark.parametrize("answers", [1, 2])
def test_a_connection_that_was_closed_while_it_idled_costs_no_call_over_tls(talk, trusted, answers):
    served = Served(server_context(), answers=answers)
    with listening(served) as port, talk(f"https://localhost:{port}") as execute:
        for number in range(1, 5):
            assert execute(pipeline(("INCR", "k"), deadline=20.0)) == [1]
            served.wait_for_ends(number // answers)
    assert served.connections == 4 // answers


def test_large_calls_and_answers_arrive_whole_over_tls(talk, trusted):
    class Echo(Served):
        def answer(self, secured: ssl.SSLSocket) -> None:
            secured.sendall(answered(b"$3000000\r\n" + b"y" * 3_000_000 + b"\r\n"))

    with listening(Echo(server_context())) as port, talk(f"https://localhost:{port}") as execute:
        command = ("SET", "k", "x" * 3_000_000)
        for _ in range(2):
            assert execute(pipeline(command, deadline=20.0)) == [b"y" * 3_000_000]


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (lambda: server_context(names=("other.example",)), "localhost"),
        (
            lambda: server_context(
                not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1)
            ),
            "expired",
        ),
        (lambda: server_context(trustme.CA()), "unable to get local issuer certificate"),
    ],
    ids=["another host's", "expired", "another authority's"],
)
def test_a_certificate_that_is_not_to_be_trusted_is_named_as_the_reason(
    talk, library, trusted, context: Callable[[], ssl.SSLContext], said
):
    served = Served(context())
    with (
        listening(served) as port,
        talk(f"https://localhost:{port}") as execute,
        pytest.raises(NotConnected, match=said) as raised,
    ):
        execute(pipeline(("INCR", "k"), deadline=20.0))
    assert library == "httpx" or "its certificate is not to be trusted" in str(raised.value)


def test_why_a_handshake_failed_is_in_the_error(trusted):
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-RSA-AES128-SHA")  # none that this side offers
    with (
        listening(Served(context)) as port,
        executing("sync", Credentials(f"https://localhost:{port}", TOKEN), "sockets") as execute,
        pytest.raises(NotConnected, match=r"the TLS handshake failed: [A-Z]+"),
    ):
        execute(pipeline(("INCR", "k"), deadline=20.0))


class Broken(Served):
    """Ends the connection under TLS, which says nothing of it."""

    def __init__(self, said: bytes) -> None:
        super().__init__(server_context())
        self.said = said

    def answer(self, secured: ssl.SSLSocket) -> None:
        secured.sendall(self.said)
        with socket.socket(fileno=os.dup(secured.fileno())) as below:
            below.shutdown(socket.SHUT_WR)
        raise ConnectionAbortedError


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\n", ConnectionLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", UnexpectedAnswer),
        (b"HTTP/1.1 200 OK\r\nContent-Type: " + RESP2 + b"\r\n\r\n:1\r\n", UnexpectedAnswer),
    ],
)
def test_an_end_of_which_tls_says_nothing_ends_no_answer(trusted, said, error):
    """RFC 9112 §9.8: anybody on the way can make it."""
    for kind in ("sync", "async"):
        with listening(Broken(said)) as port:
            credentials = Credentials(f"https://localhost:{port}", TOKEN)
            with executing(kind, credentials, "sockets") as execute:
                with pytest.raises(UpstashError) as raised:
                    execute(pipeline(("INCR", "k"), deadline=20.0))
                assert type(raised.value) is error


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_next_connection_resumes_the_session_of_the_last(trusted, kind, version):
    """RFC 8446 §2.2, RFC 5077: nothing is to be verified again."""
    context = server_context()
    context.minimum_version = context.maximum_version = version
    served = Served(context, answers=1)
    with (
        listening(served) as port,
        executing(kind, Credentials(f"https://localhost:{port}", TOKEN), "sockets") as execute,
    ):
        for number in range(3):
            assert execute(pipeline(("INCR", "k"), deadline=20.0)) == [1]
            served.wait_for_ends(number + 1)
    assert served.resumed == [False, True, True]


def test_a_server_that_has_forgotten_the_session_is_verified_anew(trusted):
    served = Served(server_context(), answers=1)
    with (
        listening(served) as port,
        executing("sync", Credentials(f"https://localhost:{port}", TOKEN), "sockets") as execute,
    ):
        assert execute(pipeline(("INCR", "k"), deadline=20.0)) == [1]
        served.wait_for_ends(1)
        served.context = server_context()
        assert execute(pipeline(("INCR", "k"), deadline=20.0)) == [1]
        served.wait_for_ends(2)
        served.context = server_context(trustme.CA())
        with pytest.raises(NotConnected):
            execute(pipeline(("INCR", "k"), deadline=20.0))
    assert served.resumed == [False, False]


class Pair:
    """A client's Connection and, in memory, the server's side of TLS over it."""

    def __init__(self) -> None:
        pair = socket.socketpair()
        near, self.far = Socket(fileno=pair[0].detach()), pair[1]
        near.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server_context().wrap_bio(self.incoming, self.outgoing, server_side=True)
        state = tls.Tls("localhost", tls.Resumption())
        self.connection = Connection(near, state)
        self.incoming.write(state.begin(b"a call"))
        while not state.ready:
            with suppress(ssl.SSLWantReadError):
                self.server.do_handshake()
            to_send, _, _ = state.receive(self.outgoing.read())
            self.incoming.write(to_send)
        self.server.do_handshake()
        assert self.server.read() == b"a call"

    def close(self) -> None:
        self.connection.close()
        self.far.close()


@pytest.fixture
def pair(trusted: Path) -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_session_tickets_that_come_late_leave_a_connection_usable(pair):
    """TLS 1.3 sends them after the handshake; they are no answer, and no end."""
    tickets = pair.outgoing.read()
    assert tickets
    pair.far.sendall(tickets[:20])
    assert pair.connection.is_usable()
    pair.far.sendall(tickets[20:])
    assert pair.connection.is_usable()
    assert pair.connection.is_usable()


def test_data_that_nobody_asked_for_make_a_connection_unusable(pair):
    pair.server.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    pair.far.sendall(pair.outgoing.read())
    assert not pair.connection.is_usable()


def test_an_announced_end_makes_a_connection_unusable(pair):
    with suppress(ssl.SSLWantReadError):
        pair.server.unwrap()
    pair.far.sendall(pair.outgoing.read())
    assert not pair.connection.is_usable()


@pytest.mark.parametrize("said", [b"", b"\x17\x03\x03\x00\x20" + b"x" * 32])
def test_an_end_without_a_word_or_what_is_no_tls_makes_a_connection_unusable(pair, said):
    pair.far.sendall(said)
    pair.far.close()
    assert not pair.connection.is_usable()


def test_the_last_of_the_handshake_travels_with_the_first_call(trusted):
    """As one packet, and not as one that waits for the other to be acknowledged."""
    state = tls.Tls("localhost", tls.Resumption())
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context().wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(state.begin(b"a call"))
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    incoming.write(state.receive(outgoing.read())[0])
    server.do_handshake()
    assert server.read() == b"a call"


def test_where_the_system_knows_no_authority_certifis_are_trusted(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    tls.context.cache_clear()
    assert tls.context().cert_store_stats()["x509_ca"] > 50
    tls.context.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_says_nothing_over_its_parents_connection(trusted):
    """Not even that it ends, which the server would take for the parent's word."""
    served = Served(server_context())
    with listening(served) as port:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", FORKING, f"https://localhost:{port}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert served.connections == 2
