"""What was decoded is taken again for the very same bytes alone, and in bounded room."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.cache.test_entries import INDEX, KEY, PLAIN
from tests.cache.world import Site, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.cache import entries as decoded
from upstash_middleware.core.cache.entries import Decoded, StoredResponse, decode, encode, pack

LONG = b"a page " * 500
COMPRESSED = pack(replace(PLAIN, packed=LONG, length=len(LONG)))


@pytest.fixture
def calls(monkeypatch):
    """The keys that entries were decoded for."""
    calls = []

    def counted(key, data, sealing=None):
        calls.append(key)
        return decode(key, data, sealing)

    monkeypatch.setattr(decoded, "decode", counted)
    return calls


@pytest.mark.parametrize("entry", [PLAIN, INDEX], ids=["response", "index"])
def test_the_same_bytes_are_decoded_once(calls, entry):
    data, known = encode(KEY, entry, raw=True), Decoded()
    assert known.read(KEY, data) == entry
    assert known.read(KEY, bytes(bytearray(data))) == entry
    assert calls == [KEY]


def test_other_bytes_at_the_same_key_are_another_entry(calls):
    known = Decoded()
    known.read(KEY, encode(KEY, PLAIN, raw=True))
    newer = replace(PLAIN, stored_at=PLAIN.stored_at + 1)
    assert known.read(KEY, encode(KEY, newer, raw=True)) == newer
    assert known.read(KEY, None) is None
    assert known.read(KEY, encode(KEY, newer, raw=True)) == newer
    assert calls == [KEY, KEY, KEY]


@pytest.mark.parametrize("where", [1, 20, 60, -1])
def test_a_damaged_copy_of_what_is_known_is_no_entry(where):
    data, known = encode(KEY, PLAIN, raw=True), Decoded()
    assert known.read(KEY, data) == PLAIN
    damaged = bytearray(data)
    damaged[where] ^= 1
    assert known.read(KEY, bytes(damaged)) != PLAIN
    assert known.read(KEY, data) == PLAIN


def test_the_bytes_of_one_key_are_no_entry_of_another():
    data, known = encode(KEY, PLAIN, raw=True), Decoded()
    assert known.read(KEY, data) == PLAIN
    assert known.read(KEY + "2", data) is None


def test_a_compressed_body_is_opened_once():
    assert COMPRESSED.compressed
    found = Decoded().read(KEY, encode(KEY, COMPRESSED, raw=True))
    assert isinstance(found, StoredResponse)
    assert (found.packed, found.compressed) == (LONG, False)


def test_what_does_not_open_is_left_to_whoever_asks_for_it():
    wrong = replace(COMPRESSED, length=COMPRESSED.length + 1)
    assert Decoded().read(KEY, encode(KEY, wrong, raw=True)) == wrong


def test_room_is_bounded_and_a_large_entry_takes_none(calls, monkeypatch):
    monkeypatch.setattr(decoded, "ROOM", 2000)
    known = Decoded()
    pages = [replace(PLAIN, packed=b"x" * 500, length=500, stored_at=float(n)) for n in range(9)]
    for number, page in enumerate(pages):
        assert known.read(f"k{number}", encode(f"k{number}", page, raw=True)) == page
    assert known._known.size <= 2000
    large = replace(PLAIN, packed=b"x" * decoded.LARGEST, length=decoded.LARGEST)
    assert known.read("large", encode("large", large, raw=True)) == large
    assert "large" not in known._known


def test_what_is_known_of_urls_is_bounded_in_number_and_length():
    site = Site((CacheRule("/{rest:path}", ttl=60),))
    for number in range(600):
        site.visit(request(f"/pages/{number}"))
    site.visit(request("/" + "x" * 600))
    places = site.cache._resources
    assert len(places) <= 512
    assert all(sum(map(len, asked)) <= 512 for asked in places)
