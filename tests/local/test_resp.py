"""RESP2: what is written is what is read, however the bytes are cut on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.local.resp import (
    Failure,
    MalformedReply,
    NullArray,
    ReplyReader,
    Status,
    encode_commands,
    encode_reply,
)

LINE = st.binary(max_size=20).filter(lambda line: b"\r" not in line and b"\n" not in line)
REPLIES = st.recursive(
    st.one_of(
        st.none(),
        st.binary(max_size=30),
        st.integers(-(2**63), 2**63 - 1),
        LINE.map(Status),
        LINE.map(Failure),
        st.just(NullArray()),
    ),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(REPLIES, max_size=5), st.lists(st.integers(1, 9), min_size=1, max_size=50))
def test_replies_are_read_as_they_were_written_wherever_the_bytes_are_cut(replies, cuts):
    data = b"".join(map(encode_reply, replies))
    reader, read = ReplyReader(), []
    position = index = 0
    while position < len(data):
        end = position + cuts[index % len(cuts)]
        read += reader.feed(data[position:end])
        position, index = end, index + 1
    assert read == replies


def test_a_reply_that_is_not_resp2_is_said_to_be_so():
    with pytest.raises(MalformedReply, match="cannot begin with '%'"):
        ReplyReader().feed(b"%1\r\n")


def test_commands_are_arrays_of_strings_whatever_bytes_they_hold():
    assert encode_commands([[b"GET", b"\r\n"], [b"PING"]]) == (
        b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n*1\r\n$4\r\nPING\r\n"
    )
