"""What a warm process sends and receives for a request, in bytes on the wire: it must not grow.

Round trips and billed commands are counted in every framework by ``contract/test_budgets.py``.
"""

from __future__ import annotations

import selectors
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.util import setup_testing_defaults

import pytest

from tests.upstash.listening import listening
from upstash_middleware import CacheRule
from upstash_middleware.wsgi import UpstashMiddleware

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

PAGE = b"A page that is long enough for its body to be more than its entry's head. " * 5
PAGE_FIELDS = [("Content-Type", "text/html; charset=utf-8"), ("ETag", '"1"')]
HEAD_SENT, HEAD_RECEIVED = 420, 140
"""Bytes of the head of a call and of its answer; what is above them is the bodies'."""


class Wire:
    """Passes bytes on to the local Upstash and counts them."""

    def __init__(self, upstash: LocalUpstash) -> None:
        parts = urlsplit(upstash.url)
        self._address = (parts.hostname, parts.port)
        self.sent = self.received = 0

    def serve(self, client: socket.socket, ended: threading.Event) -> None:
        """Pass on one connection until either side ends it."""
        with (
            client,
            socket.create_connection(self._address) as server,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while not ended.is_set():
                for key, _ in ready.select(0.05):
                    source: Any = key.fileobj
                    if not (data := source.recv(65536)):
                        return
                    if source is client:
                        self.sent += len(data)
                    else:
                        self.received += len(data)
                    key.data.sendall(data)


class Process:
    """An application behind the middleware, whose bytes and calls are counted."""

    def __init__(self, upstash: LocalUpstash, wire: Wire, app: Any) -> None:
        self._upstash = upstash
        self._wire = wire
        self._app = app

    def serve(self, path: str = "/products/7") -> None:
        """Serve a request."""
        environ: dict[str, Any] = {"PATH_INFO": path, "REMOTE_ADDR": "203.0.113.7"}
        setup_testing_defaults(environ)
        body = self._app(environ, lambda status, fields, exc_info=None: lambda data: None)
        for _ in body:
            pass
        body.close()

    def cost(self, path: str = "/products/7") -> tuple[int, int, int]:
        """Return what one more request takes: calls, and bytes sent and received beyond heads."""
        before = self._wire.sent, self._wire.received
        self._upstash.reset_bill()
        self.serve(path)
        sent, received = self._wire.sent - before[0], self._wire.received - before[1]
        calls = self._upstash.bill().requests
        return calls, sent - calls * HEAD_SENT, received - calls * HEAD_RECEIVED


def page(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [*PAGE_FIELDS, ("Content-Length", str(len(PAGE)))])
    return [PAGE]


@pytest.fixture
def process(upstash: LocalUpstash) -> Iterator[Callable[..., Process]]:
    """Start a process with these settings, and let it serve what warms it up."""
    with ExitStack() as running:

        def start(**arguments: Any) -> Process:
            wire = Wire(upstash)
            port = running.enter_context(listening(wire.serve))
            app = UpstashMiddleware(
                page,
                url=f"http://127.0.0.1:{port}",
                token=upstash.token,
                deadline=20.0,
                cache_deadline=20.0,
                **arguments,
            )
            one = Process(upstash, wire, app)
            for _ in range(2):
                one.serve()
            return one

        yield start


CACHE = (CacheRule("/{page:path}", ttl=60, tags=("products",)),)


@pytest.mark.parametrize(
    ("arguments", "sent", "received"),
    [
        pytest.param({"default_limit": "1000/hour"}, 300, 50, id="one limit"),
        pytest.param(
            {"default_limit": "1000/hour; 100/minute; 10000/day"}, 720, 140, id="three limits"
        ),
        pytest.param({"cache": CACHE}, 260, len(PAGE) + 240, id="a hit"),
        pytest.param(
            {"default_limit": "1000/hour", "cache": CACHE}, 560, len(PAGE) + 300, id="both"
        ),
    ],
)
def test_a_warm_request_takes_one_call_and_no_more_bytes_than_this(
    process, arguments, sent, received
):
    calls, bytes_sent, bytes_received = process(**arguments).cost()
    assert calls == 1
    assert bytes_sent <= sent
    assert bytes_received <= received


def test_a_denial_that_is_remembered_takes_nothing(process):
    one = process(default_limit="1/hour")
    assert one.cost() == (0, 0, 0)


def test_a_miss_sends_the_page_once(process):
    one = process(cache=CACHE)
    calls, bytes_sent, _ = one.cost("/products/8")
    assert calls == 2
    assert bytes_sent <= len(PAGE) + 560


def test_a_second_limit_costs_less_than_the_first(process):
    _, one, _ = process(default_limit="1000/hour").cost()
    _, two, _ = process(default_limit="1000/hour; 100/minute").cost()
    assert two < 2 * one
