"""The entry's format: what goes in comes out, and nothing else is taken for an entry."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from upstash_middleware.core.cache.entries import (
    Damaged,
    Epoch,
    Epochs,
    StoredResponse,
    VariantIndex,
    body_of,
    decode,
    encode,
    encode_for_script,
    pack,
)
from upstash_middleware.core.cache.http.directives import Staleness
from upstash_middleware.messages import Headers

KEY = "test:cache:entry:http://shop.test/page"
PLAIN = StoredResponse(
    status=200,
    headers=Headers([(b"Content-Type", b"text/plain"), (b"X", b"\xe9"), (b"X", b"")]),
    stored_at=1700000000.25,
    initial_age=1.5,
    lifetime=60.0,
    stale=Staleness(30.0, 0.0, forbidden=True),
    packed=b"\x00\xff body",
    length=7,
    tags=("product:7", "product"),
    epochs=Epochs(
        Epoch("a", ""),
        Epoch(),
        "g",
        {"product:7": Epoch("h", "s"), "product": Epoch()},
        {"under:/shop/": Epoch("d", ""), "rule:/shop/{id}": Epoch()},
    ),
)
INDEX = VariantIndex(
    ("accept", "foo"),
    ("product",),
    {"0a1b": 1700000060},
    Epochs(Epoch("a", "b"), scopes={"rule:/shop/{id}": Epoch("r", "")}),
)


@pytest.mark.parametrize("value", [PLAIN, INDEX], ids=["response", "index"])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "text"])
def test_an_entry_reads_back_as_it_was_written(value, raw):
    """Repeated fields, their order and spelling, bytes beyond ASCII and epochs included."""
    assert decode(KEY, encode(KEY, value, raw=raw)) == value


def test_the_text_form_can_travel_inside_a_pipeline():
    """A pipeline carries text only."""
    assert encode(KEY, PLAIN, raw=False).isascii()


def test_a_script_can_add_the_epochs_of_the_last_tags():
    """What stands between the two parts is ``|`` and the epoch, for each."""
    known = replace(PLAIN, epochs=replace(PLAIN.epochs, tags={"product:7": Epoch("h", "s")}))
    start, end = encode_for_script(KEY, known)
    assert decode(KEY, start + b"|:" + end) == PLAIN
    assert decode(KEY, start + end) is None
    assert decode(KEY, start + b"|:|:" + end) is None


def test_an_entry_of_another_key_is_none():
    """The checksum covers the key, so that no mix-up of keys can serve another's page."""
    assert decode(KEY + "?a", encode(KEY, PLAIN, raw=True)) is None


@given(st.data())
def test_a_damaged_entry_is_none_or_has_other_epochs_only(data):
    """Whatever byte changes: a miss, or epochs that have to match those of now anyway."""
    whole = bytearray(encode(KEY, PLAIN, raw=data.draw(st.booleans())))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    read = decode(KEY, bytes(whole))
    assert read is None or (
        isinstance(read, StoredResponse) and replace(read, epochs=PLAIN.epochs) == PLAIN
    )


@given(st.binary())
def test_bytes_that_are_no_entry_are_none(junk):
    """Never an error."""
    assert decode(KEY, junk) is None
    assert decode(KEY, b"\x01" + junk) is None
    assert decode(KEY, b"1" + junk) is None


def whole(body: bytes, **fields: str) -> StoredResponse:
    return replace(PLAIN, headers=Headers.of(**fields), packed=body, length=len(body))


def test_a_body_is_compressed_where_that_pays():
    """And not where it is short, encoded or packed already."""
    text = b"the same words again " * 100
    packed = pack(whole(text))
    assert packed.compressed
    assert len(packed.packed) < len(text) / 5
    assert body_of(packed) == text
    for plain in (
        whole(b"short"),
        whole(random.Random(7).randbytes(2000)),
        whole(text, content_encoding="gzip"),
        whole(text, content_type="image/PNG"),
    ):
        assert pack(plain) == plain


def test_a_body_that_inflates_to_another_length_is_damaged():
    """No more is inflated than was stored, whatever the bytes say."""
    bomb = zlib.compress(b"\x00" * 10_000_000)
    for packed in (bomb, b"junk", zlib.compress(b"short")):
        with pytest.raises(Damaged):
            body_of(replace(PLAIN, packed=packed, length=7, compressed=True))
