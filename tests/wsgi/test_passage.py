"""How a response passes from the application to the server, by PEP 3333's calls."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper

import pytest

from tests.asgi.fakes import FakeHalf, adding, whole
from tests.wsgi.fakes import (
    TEXT,
    Server,
    around,
    checked,
    environ_of,
    replying,
    served,
    unused,
)
from upstash_middleware.messages import ResponseHead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def three(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
    """Answer three pieces from a generator, which starts when it is first asked."""
    start_response("200 OK", list(TEXT))
    yield b"one "
    yield b"two "
    yield b"three"


def test_a_response_passes_between_two_validators():
    half = FakeHalf(head=adding((b"X-RateLimit-Remaining", b"9")))
    for app in (replying(b"one ", b"two ", b"three"), three):
        server = served(checked(app, half))
        assert (server.status, server.body) == ("200 OK", b"one two three")
        assert server.fields == [*TEXT, ("X-RateLimit-Remaining", "9")]
    assert half.chunks == [b"one ", b"two ", b"three"] * 2
    assert half.finished == [True, True]
    assert half.settled == 2


def test_a_head_that_nobody_changes_is_the_application_s_own_to_the_letter():
    fields = [("x-lower", "1"), ("X-UPPER", "é"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    server = served(around(replying(b"x", b"y", status="200 Fine", fields=fields), FakeHalf()))
    assert server.status == "200 Fine"
    assert server.fields == fields


def test_a_head_that_gets_fields_keeps_its_status_line_and_spelling():
    half = FakeHalf(head=adding((b"Age", b"0")))
    app = replying(b"x", b"y", status="200 Fine", fields=[("x-lower", "1")])
    server = served(around(app, half))
    assert server.status == "200 Fine"
    assert server.fields == [("x-lower", "1"), ("Age", "0")]


def test_a_status_that_changes_gets_words_of_its_own():
    half = FakeHalf(head=lambda head: ResponseHead(503, head.headers))
    server = served(around(replying(b"x", status="200 Fine"), half))
    assert server.status == "503 Service Unavailable"


def test_the_first_piece_goes_out_before_the_second_is_made():
    half = FakeHalf()
    server = Server()
    made: list[str] = []

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        for name in ("one", "two"):
            made.append(name)
            yield name.encode()

    server.call(around(app, half))
    assert server.take() == b"one"
    assert made == ["one"]
    assert server.status == "200 OK"
    server.close()


def test_what_a_request_holds_is_renewed_once_a_piece_has_gone_out():
    """Never before the first, nor where the end is known to be near."""
    server = Server()
    renewed: list[int] = []
    half = FakeHalf(renews=lambda: renewed.append(len(server.pieces)))
    server.call(around(three, half))
    for _ in range(3):
        server.take()
    assert renewed == [1, 2]
    server.close()
    served(around(replying(b"whole"), half))
    assert renewed == [1, 2]


def test_what_a_request_holds_is_renewed_between_pieces_that_are_written():
    renewed: list[int] = []

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", list(TEXT))
        for piece in (b"one ", b"two "):
            write(piece)
            renewed.append(0)
        return ()

    half = FakeHalf(renews=lambda: renewed.append(1))
    assert served(around(app, half)).body == b"one two "
    assert renewed[:4] == [1, 0, 1, 0]


def test_empty_pieces_pass_at_their_place():
    """PEP 3333, "Middleware Handling of Block Boundaries": one piece out for each in."""
    server = served(around(replying(b"", b"x", b"", b"y"), FakeHalf()))
    assert server.pieces == [b"", b"x", b"", b"y"]


def test_a_head_is_out_when_the_application_has_returned():
    server = Server()
    server.call(around(replying(b"x"), FakeHalf()))
    assert server.status == "200 OK"
    server.close()


def test_a_file_wrapper_passes_piece_by_piece_and_is_closed():
    half = FakeHalf()
    file = BytesIO(b"0123456789")

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        return FileWrapper(file, 4)

    assert served(around(app, half)).pieces == [b"0123", b"4567", b"89"]
    assert file.closed
    assert half.finished == [True]


def test_a_response_without_pieces_is_started_and_complete():
    half = FakeHalf()
    server = served(checked(replying(status="204 No Content", fields=[]), half))
    assert (server.status, server.body) == ("204 No Content", b"")
    assert half.finished == [True]


def test_what_is_written_the_old_way_goes_out_at_once_and_in_order():
    half = FakeHalf(head=adding((b"Age", b"0")))
    server = Server()
    seen: list[bytes] = []

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", list(TEXT))
        write(b"one ")
        seen.extend(server.pieces)
        write(b"two ")
        return [b"three"]

    server.call(checked(app, half))
    server.pieces.extend(server.iterable)
    server.close()
    assert seen == [b"one "]
    assert server.body == b"one two three"
    assert server.field("Age") == "0"
    assert half.chunks == [b"one ", b"two ", b"three"]
    assert half.finished == [True]


def test_an_application_may_change_its_mind_before_anything_is_out():
    """PEP 3333, "The start_response() Callable": a second call with exc_info replaces the head."""
    half = FakeHalf(head=adding((b"Age", b"0")))

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        try:
            int("no number")
        except ValueError:
            start_response("500 Oops", list(TEXT), sys.exc_info())
        return [b"sorry"]

    server = served(checked(app, half))
    assert (server.status, server.body, server.field("Age")) == ("500 Oops", b"sorry", "0")
    assert [head.status for head in half.heads] == [500]
    assert half.finished == [True]


def late(after: bytes) -> WSGIApplication:
    """Return an application whose generator fails after a piece, and says so."""

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield after
        try:
            int("late")
        except ValueError:
            start_response("500 Oops", list(TEXT), sys.exc_info())
        yield b"sorry"

    return app


def test_a_change_of_mind_after_bytes_are_out_raises_and_nothing_is_complete():
    half = FakeHalf()
    with pytest.raises(ValueError, match="late"):
        served(around(late(b"x"), half))
    assert half.finished == [False]


def test_a_change_of_mind_after_an_empty_piece_reaches_the_server_and_is_not_recorded():
    half = FakeHalf()
    server = served(around(late(b""), half))
    assert (server.status, server.body) == ("500 Oops", b"sorry")
    assert half.chunks == [b""]
    assert half.finished == [False]


def test_starting_twice_without_exc_info_is_refused_as_a_server_would():
    half = FakeHalf()

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        start_response("200 OK", list(TEXT))
        return []

    with pytest.raises(AssertionError, match="without exc_info"):
        served(around(app, half))
    assert half.finished == [False]


def test_an_exception_of_the_application_passes_unchanged():
    half = FakeHalf()
    error = KeyError("its own")

    def app(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
        raise error

    with pytest.raises(KeyError) as caught:
        served(around(app, half))
    assert caught.value is error
    assert half.finished == [False]


def test_an_exception_half_way_passes_and_nothing_is_complete():
    half = FakeHalf()

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "1")])
        yield b"x"
        raise KeyError("its own")

    with pytest.raises(KeyError):
        served(around(app, half))
    assert half.finished == [False]


def test_a_client_that_leaves_closes_the_generator_and_nothing_is_complete():
    half = FakeHalf()
    ended: list[str] = []

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        try:
            while True:
                yield b"tick"
        except GeneratorExit:
            ended.append("closed")
            raise

    server = Server()
    server.call(around(app, half))
    server.take()
    server.close()
    assert ended == ["closed"]
    assert half.finished == [False]


def test_a_response_that_never_starts_is_left_to_the_server():
    half = FakeHalf()

    def app(_environ: WSGIEnvironment, _start_response: StartResponse) -> Iterable[bytes]:
        return []

    assert served(around(app, half)).status == ""
    assert half.heads == []


class Closing:
    """An iterable of one piece whose ``close`` is seen."""

    def __init__(self, events: list[str], error: Exception | None = None) -> None:
        self._events = events
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield b"x"

    def close(self) -> None:
        self._events.append("closed")
        if self._error is not None:
            raise self._error


def closing(iterable: Iterable[bytes]) -> WSGIApplication:
    """Return an application that returns that iterable."""

    def app(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        return iterable

    return app


def test_the_exchange_is_finished_after_the_application_has_closed():
    """What is committed there must come before an invalidation (RFC 9111 §4.4)."""
    events: list[str] = []

    class Half(FakeHalf):
        async def _settle(self) -> None:
            events.append("finished")

    served(around(closing(Closing(events)), Half()), environ_of("POST"))
    assert events == ["closed", "finished"]


def test_a_safe_request_is_finished_first_and_closed_when_the_server_closes():
    """It invalidates nothing, and what a ``close`` does may take long."""
    events: list[str] = []
    half, server = FakeHalf(), Server()
    server.call(around(closing(Closing(events)), half))
    assert list(server.iterable) == [b"x"]
    assert (half.finished, events) == ([True], [])
    server.close()
    server.close()
    assert (half.finished, events) == ([True], ["closed"]), "once, however often it is closed"


@pytest.mark.parametrize(("method", "complete"), [("GET", True), ("POST", False)])
def test_a_close_that_raises_passes_its_exception_to_the_server_s(method: str, complete: bool):
    half, server = FakeHalf(), Server()
    server.call(around(closing(Closing([], KeyError("its own"))), half), environ_of(method))
    assert list(server.iterable) == [b"x"]
    with pytest.raises(KeyError):
        server.close()
    server.close()
    assert half.finished == [complete]


def test_a_server_that_stops_at_the_last_announced_byte_has_given_all():
    half = FakeHalf()
    server = Server()
    server.call(around(replying(b"x", b"y", fields=[*TEXT, ("Content-Length", "2")]), half))
    server.take()
    server.take()
    server.close()
    assert half.finished == [True]


@pytest.mark.parametrize("length", ["3", "1"])
def test_a_body_of_another_length_than_announced_is_not_complete(length: str):
    half = FakeHalf()
    served(around(replying(b"x", b"y", fields=[*TEXT, ("Content-Length", length)]), half))
    assert half.finished == [False]


def test_a_single_piece_gets_the_length_that_the_server_cannot_see_any_more():
    """PEP 3333, "Handling the Content-Length Header": servers take it from a list of one."""
    server = served(around(replying(b"hello"), FakeHalf()))
    assert server.field("Content-Length") == "5"


@pytest.mark.parametrize(
    ("method", "status", "fields"),
    [
        ("HEAD", "200 OK", TEXT),
        ("GET", "204 No Content", []),
        ("GET", "304 Not Modified", []),
        ("GET", "200 OK", [("content-length", "5")]),
    ],
)
def test_no_length_is_added_where_it_would_be_wrong(
    method: str, status: str, fields: list[tuple[str, str]]
):
    app = replying(b"hello", status=status, fields=fields)
    assert served(around(app, FakeHalf()), environ_of(method)).fields == fields


def test_a_response_of_ours_is_given_without_calling_the_application():
    half = FakeHalf(response=whole(429, b"wait", [(b"Retry-After", b"3"), (b"X", b"1")]))
    server = served(around(unused, half))
    assert (server.status, server.body) == ("429 Too Many Requests", b"wait")
    assert server.fields == [("Retry-After", "3"), ("X", "1")]
    assert half.finished == [True]


def test_a_response_of_ours_that_the_client_does_not_take_is_not_complete():
    half = FakeHalf(response=whole(200, b"stored"))
    server = Server()
    server.call(around(unused, half))
    server.close()
    assert half.finished == [False]


def test_a_server_that_stops_at_the_last_byte_of_ours_has_given_all():
    half = FakeHalf(response=whole(200, b"stored"))
    server = Server()
    server.call(around(unused, half))
    assert server.take() == b"stored"
    server.close()
    assert half.finished == [True]


def test_head_gets_the_fields_and_no_body_from_us():
    half = FakeHalf(response=whole(200, b"stored", [(b"Content-Length", b"6")]))
    server = served(around(unused, half), environ_of("HEAD"))
    assert (server.status, server.body) == ("200 OK", b"")
    assert server.field("Content-Length") == "6"
    assert half.finished == [True]


def test_head_gets_no_body_from_an_application_that_gives_one():
    half = FakeHalf()
    app = replying(b"hel", b"lo", fields=[*TEXT, ("Content-Length", "5")])
    server = served(around(app, half), environ_of("HEAD"))
    assert server.pieces == [b"", b""]
    assert server.field("Content-Length") == "5"
    assert half.chunks == []
    assert half.finished == [True]


def test_a_whole_response_takes_the_place_of_the_application_s():
    """A 304 has confirmed the stored page: that goes out, and the application's body does not."""
    events: list[str] = []
    stored = whole(200, b"stored", [(b"Content-Type", b"text/html"), (b"Age", b"3")])
    lists = replying(b"thrown ", b"away", status="304 Not Modified", fields=[])

    def writes(_environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("304 Not Modified", [])
        write(b"thrown ")
        write(b"away")
        return Closing(events)

    for app in (lists, three, writes):
        half = FakeHalf(head=lambda _: stored)
        server = served(around(app, half))
        assert (server.status, server.body) == ("200 OK", b"stored")
        assert server.fields == [("Content-Type", "text/html"), ("Age", "3")]
        assert half.chunks == []
        assert half.finished == [True]
    assert events == ["closed"]


def test_a_server_that_refuses_the_head_still_closes_everything():
    events: list[str] = []
    half = FakeHalf()

    def refusing(*_: object) -> Any:
        raise ValueError("no such header")

    app = around(closing(Closing(events)), half)
    with pytest.raises(ValueError, match="no such header"):
        app(environ_of(), refusing)
    assert events == ["closed"]
    assert half.finished == [False]
