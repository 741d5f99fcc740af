"""Where the runtime finishes first, all is done before the client has the last byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.asgi.fakes import FakeHalf, whole
from tests.wsgi.fakes import TEXT, FakeRuntime, Server, environ_of, replying
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.wsgi import Middleware

if TYPE_CHECKING:
    from collections.abc import Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.runtime import Runtime


class Closing:
    """An iterable that notes what had been done when it was closed."""

    def __init__(self, half: FakeHalf, *pieces: bytes) -> None:
        self._half = half
        self._pieces = iter(pieces)
        self.settled_before: list[int] = []

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self.settled_before.append(self._half.settled)


def around(app: WSGIApplication, half: FakeHalf) -> tuple[Middleware, FakeRuntime]:
    runtime = FakeRuntime(half)
    runtime.finishes_first = True
    return Middleware(app, cast("Runtime", runtime)), runtime


@pytest.mark.parametrize("told", [True, False], ids=["with Content-Length", "without"])
def test_the_exchange_is_finished_before_the_end(told):
    """Of a length that is known the last piece is held back, else the end."""
    half = FakeHalf()
    iterable = Closing(half, b"one ", b"two")

    def app(_: WSGIEnvironment, start_response: StartResponse) -> Closing:
        start_response("200 OK", [*TEXT, ("Content-Length", "7")] if told else list(TEXT))
        return iterable

    server = Server()
    server.call(around(app, half)[0], environ_of("POST"))
    assert server.take() == b"one "
    assert half.settled == 0
    assert server.take() == b"two"
    assert half.settled == told
    with pytest.raises(StopIteration):
        server.take()
    assert half.settled == 1
    server.close()
    assert (half.settled, half.finished) == (1, [True])
    assert iterable.settled_before == [0], "what the application commits there comes first"


@pytest.mark.parametrize(
    ("app", "environ"),
    [
        (replying(b"x"), environ_of()),
        (replying(b"x", b""), environ_of("HEAD")),
        (replying(status="204 No Content"), environ_of()),
        (replying(), environ_of()),
    ],
    ids=["one piece", "HEAD", "no content", "nothing"],
)
def test_the_first_that_a_server_gets_is_all_where_there_is_no_more(app, environ):
    half, server = FakeHalf(), Server()
    server.call(around(app, half)[0], environ)
    next(iter(server.iterable), None)
    assert (half.settled, half.finished) == (1, [True])
    server.close()
    assert half.settled == 1


def test_our_own_response_is_held_back_too():
    half, server = FakeHalf(head=lambda _: whole(200, b"stored")), Server()
    server.call(around(replying(b"x"), half)[0])
    assert server.take() == b"stored"
    assert half.settled == 1


def test_a_body_that_is_longer_than_announced_is_not_complete():
    half, server = FakeHalf(), Server()
    app = replying(b"one", b"more", fields=[*TEXT, ("Content-Length", "3")])
    server.call(around(app, half)[0])
    assert [server.take(), server.take()] == [b"one", b"more"]
    server.close()
    assert half.finished == [False]


def test_a_response_that_breaks_off_is_not_complete():
    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"half"
        raise OSError("gone")

    half, server = FakeHalf(), Server()
    server.call(around(app, half)[0])
    assert server.take() == b"half"
    with pytest.raises(OSError, match="gone"):
        server.take()
    server.close()
    assert half.finished == [False]


@pytest.mark.parametrize("lazily", [True, False])
def test_a_response_may_stand_in_for_one_that_was_not_begun(lazily):
    """RFC 5861 §4; the exception, which the server does not get to see, is told to observers."""

    def raising(_: WSGIEnvironment, _start_response: StartResponse) -> Iterator[bytes]:
        raise OSError("the database is away")

    def raising_lazily(environ: WSGIEnvironment, start: StartResponse) -> Iterator[bytes]:
        yield from raising(environ, start)

    half, server = FakeHalf(stands_in=whole(200, b"stale")), Server()
    app, runtime = around(raising_lazily if lazily else raising, half)
    server.call(app)
    assert server.take() == b"stale"
    server.close()
    assert (server.status, half.finished) == ("200 OK", [True])
    (event,) = runtime.observed
    assert isinstance(event, UserCodeFailed)
    assert str(event.error) == "the database is away"


def test_without_a_stand_in_the_exception_passes():
    def raising(_: WSGIEnvironment, _start_response: StartResponse) -> Iterator[bytes]:
        raise OSError("the database is away")

    half = FakeHalf()
    app, runtime = around(raising, half)
    with pytest.raises(OSError, match="away"):
        Server().call(app)
    assert half.finished == [False]
    assert not runtime.observed
