"""What an application reads of a body that a limit has read before it."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.wsgi import EnvironBody

if TYPE_CHECKING:
    from collections.abc import Callable


class Connection:
    """A server's stream: short reads, and beyond the body it would wait for ever."""

    def __init__(self, body: bytes, *, ends: bool, most: int = 3) -> None:
        self.body = BytesIO(body)
        self.left = len(body)
        self.ends = ends
        self.most = most

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = self.left
        elif not self.ends:
            assert size <= self.left, "it waits for ever"
            size = min(size, self.most)
        return self.taken(self.body.read(size))

    def readline(self, size: int = -1) -> bytes:
        return self.taken(self.body.readline(size))

    def taken(self, data: bytes) -> bytes:
        self.left -= len(data)
        return data


def environ(body: bytes, *, announced: bool) -> dict[str, Any]:
    length = {"CONTENT_LENGTH": str(len(body))} if announced else {"wsgi.input_terminated": True}
    return {"wsgi.input": Connection(body, ends=not announced), **length}


def read_all(stream: Any) -> list[bytes]:
    pieces = []
    while piece := stream.read(2):
        pieces.append(piece)
    return pieces


def into(stream: Any) -> list[bytes]:
    """Read as Werkzeug does."""
    pieces, room = [], bytearray(4)
    while size := stream.readinto(room):
        pieces.append(bytes(room[:size]))
    return pieces


READERS: list[Callable[[Any], list[bytes]]] = [
    lambda stream: [stream.read()],
    lambda stream: [stream.read(-1)],
    lambda stream: [stream.read(None)],
    read_all,
    into,
    list,
    lambda stream: stream.readlines(),
    lambda stream: [stream.readline(), stream.readline(2), stream.readline(), stream.read()],
]


@given(
    st.text("ab\n", max_size=20).map(str.encode),
    st.booleans(),
    st.integers(1, 25),
    st.sampled_from(READERS),
)
def test_it_reads_what_it_would_have_read(
    body: bytes, announced: bool, limit: int, reader: Callable[[Any], list[bytes]]
) -> None:
    """And nothing is read beyond the body."""
    given = environ(body, announced=announced)
    expected = body if len(body) <= limit else None
    assert EnvironBody(given).read(limit) == expected
    assert EnvironBody(given).read(limit) == expected  # as several rules do
    if expected is not None:
        assert b"".join(reader(given["wsgi.input"])) == body
        assert given["wsgi.input"].read(9) == b""
    elif not announced:
        assert b"".join(reader(given["wsgi.input"])) == body


@given(st.text("ab\n", min_size=1).map(str.encode), st.integers(1, 9))
def test_lines_are_those_of_the_whole_body(body: bytes, limit: int) -> None:
    given = environ(body, announced=False)
    EnvironBody(given).read(limit)
    assert list(given["wsgi.input"]) == BytesIO(body).readlines()


def test_what_is_announced_as_too_long_is_not_read():
    given = environ(b"a" * 9, announced=True)
    assert EnvironBody(given).read(8) is None
    assert given["wsgi.input"].read() == b"a" * 9


@pytest.mark.parametrize("length", [{}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "x"}])
def test_without_a_length_nothing_is_read_that_may_never_end(length: dict[str, str]):
    stream = Connection(b"abc", ends=False)
    assert EnvironBody({"wsgi.input": stream, **length}).read(9) == b""
    assert stream.left == 3


class Broken(Connection):
    def read(self, size: int = -1) -> bytes:
        if self.left <= 3:
            raise OSError("the client has left")
        return super().read(size)


def test_a_connection_that_breaks_breaks_for_the_application_in_the_same_place():
    given: dict[str, Any] = {"wsgi.input": Broken(b"name=ada", ends=False), "CONTENT_LENGTH": "8"}
    assert EnvironBody(given).read(9) is None
    assert given["wsgi.input"].read(6) == b"name=a"
    with pytest.raises(OSError, match="the client has left"):
        given["wsgi.input"].read(1)


def test_a_body_that_is_cut_short_is_not_used():
    stream = BytesIO(b"name=ad")
    given: dict[str, Any] = {"wsgi.input": stream, "CONTENT_LENGTH": "8"}
    assert EnvironBody(given).read(9) is None
    assert given["wsgi.input"].read(8) == b"name=ad"
