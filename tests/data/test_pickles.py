"""Signed pickles: nothing is loaded that the application's keys have not signed."""

from __future__ import annotations

import pickle
from base64 import b64decode, b64encode
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.data.test_values import VALUES, same
from upstash_middleware.core.pickles import SignedPickles
from upstash_middleware.core.values import Unreadable

KEYS = [b"current", b"before"]
CODEC = SignedPickles(lambda: KEYS)
LOADED: list[str] = []


class Bomb:
    def __reduce__(self) -> Any:
        return LOADED.append, ("loaded",)


@given(VALUES)
@settings(max_examples=10)
def test_a_value_comes_back_as_pickle_brings_it_back(value: Any):
    assume(same(pickle.loads(pickle.dumps(value)), value))
    data = CODEC.encode(value)
    assert data.isascii()
    assert same(CODEC.decode(data), value)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_pickle_that_was_changed_anywhere_is_not_loaded(place: int, change: int):
    signed = CODEC.encode(Bomb())
    data = bytearray(signed)
    data[place % len(data)] ^= change
    with suppress(ValueError):  # the last character has bits that base64 does not use
        assume(
            b64decode(data[8:], validate=True) != b64decode(signed[8:]) or data[:8] != signed[:8]
        )
    with pytest.raises(Unreadable):
        CODEC.decode(bytes(data))
    assert LOADED == []


@given(st.binary())
def test_other_bytes_are_unreadable_or_an_integer(data: bytes):
    for each in (data, b"$pickle." + data, b"$pickle." + b64encode(data)):
        with suppress(Unreadable):
            assert type(CODEC.decode(each)) is int


def test_an_older_key_verifies_and_does_not_sign():
    before, after = SignedPickles(lambda: [b"before"]), SignedPickles(lambda: [b"after"])
    assert CODEC.decode(before.encode({1})) == {1}
    for data in (CODEC.encode({1}), after.encode({1})):
        with pytest.raises(Unreadable):
            before.decode(data)


@pytest.mark.parametrize(("value", "stored"), [(7, b"7"), (-(2**53), b"-9007199254740992")])
def test_integers_are_their_digits(value: int, stored: bytes):
    assert CODEC.encode(value) == stored


class Gone:
    pass


def test_a_pickle_of_a_class_that_is_gone_is_unreadable(monkeypatch: pytest.MonkeyPatch):
    data = CODEC.encode(Gone())
    monkeypatch.delitem(globals(), "Gone")
    with pytest.raises(Unreadable, match="can no longer be loaded"):
        CODEC.decode(data)
