"""RESP2: what is written is what is read, however the bytes are cut on the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.local.valkey import (
    Failure,
    NullArray,
    Status,
    encode_reply,
    read_reply,
)

if TYPE_CHECKING:
    from upstash_middleware.local.valkey import Reply

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


async def read_all(parts: list[bytes]) -> list[Reply]:
    """The replies in these parts, which arrive one after another."""
    reader = asyncio.StreamReader()

    async def arrive() -> None:
        for part in parts:
            reader.feed_data(part)
            await asyncio.sleep(0)
        reader.feed_eof()

    arriving = asyncio.create_task(arrive())
    replies = []
    try:
        while True:
            replies.append(await read_reply(reader))
    except EOFError:
        await arriving
        return replies


@given(st.lists(REPLIES, max_size=5), st.lists(st.integers(1, 9), min_size=1, max_size=50))
def test_replies_are_read_as_they_were_written_wherever_the_bytes_are_cut(replies, cuts):
    data = b"".join(map(encode_reply, replies))
    parts: list[bytes] = []
    position = 0
    while position < len(data):
        size = cuts[len(parts) % len(cuts)]
        parts.append(data[position : position + size])
        position += size
    assert asyncio.run(read_all(parts)) == replies


def test_a_reply_that_is_not_resp2_is_said_to_be_so():
    with pytest.raises(ValueError, match="cannot begin with b'%'"):
        asyncio.run(read_all([b"%1\r\n"]))
