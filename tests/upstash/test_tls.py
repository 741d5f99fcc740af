"""TLS as a part of connecting: within the deadline, and only with whom a certificate vouches."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trustme

from tests.upstash.support import executing, pipeline
from upstash_middleware.errors import DeadlineExceeded, NotConnected
from upstash_middleware.upstash import Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOKEN = "a-token-that-nobody-may-see"


@pytest.fixture(params=["pyreqwest", "httpx"])
def library(request):
    return request.param


@pytest.fixture(params=["sync", "async"])
def talk(request, library):
    """Return what opens a client to a URL."""
    return lambda url: executing(request.param, Credentials(url, TOKEN), library)


@contextmanager
def listening(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Serve each connection in a thread until the block ends; yield the address."""
    ended = threading.Event()
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)

        def accept() -> None:
            while not ended.is_set():
                with suppress(TimeoutError):
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=serve, args=(connection, ended)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"https://localhost:{server.getsockname()[1]}"
        finally:
            ended.set()
            for thread in (accepting, *threads):
                thread.join(10)


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
    with listening(serve) as url, talk(url) as execute:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            execute(pipeline(("GET", "k"), reads_only=True, deadline=0.4))
        assert 0.35 <= time.monotonic() - began < 5


def test_a_handshake_that_is_given_up_leaves_no_connection_behind(talk):
    left = threading.Event()

    def serve(connection: socket.socket, ended: threading.Event) -> None:
        trickles(connection, ended)
        left.set()

    with listening(serve) as url, talk(url) as execute:
        with pytest.raises(DeadlineExceeded):
            execute(pipeline(("GET", "k"), reads_only=True, deadline=0.3))
        assert left.wait(10), "the client has not closed it"


def test_who_has_no_certificate_that_is_trusted_is_not_connected_and_gets_no_token(talk):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    received: list[bytes] = []

    def serve(connection: socket.socket, _ended: threading.Event) -> None:
        connection.settimeout(10)
        with (
            connection,
            suppress(OSError),
            context.wrap_socket(connection, server_side=True) as own,
        ):
            received.append(own.recv(1000))

    with listening(serve) as url, talk(url) as execute, pytest.raises(NotConnected) as raised:
        execute(pipeline(("INCR", "k"), deadline=5.0))
    assert TOKEN not in f"{raised.value!r}"
    assert not any(received)
