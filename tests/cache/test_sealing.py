"""Entries under the application's keys: only what was sealed under one of them is used."""

from __future__ import annotations

import sys
from os import urandom

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.test_entries import INDEX, KEY, PLAIN
from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache.entries import (
    Sealing,
    Unsealed,
    decode,
    encode,
    encode_for_script,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import CacheEntryRefused
from upstash_middleware.settings import settings_from

OLD, NEW, FOREIGN = "old key " * 5, "new key " * 5, "foreign " * 5
ENCRYPT = pytest.mark.parametrize("encrypt", [False, True], ids=["signed", "encrypted"])


def sealing(*keys: str, encrypt: bool) -> Sealing:
    return Sealing(keys, encrypt=encrypt, randomness=urandom)


@ENCRYPT
@pytest.mark.parametrize("value", [PLAIN, INDEX], ids=["response", "index"])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "text"])
def test_a_sealed_entry_reads_back_as_it_was_written(value, raw, encrypt):
    own = sealing(NEW, encrypt=encrypt)
    assert decode(KEY, encode(KEY, value, raw=raw, sealing=own), own) == value


@ENCRYPT
def test_the_first_key_seals_and_each_opens(encrypt):
    """So a new key is put before the old one, which stays until what it sealed has expired."""
    before, both = sealing(OLD, encrypt=encrypt), sealing(NEW, OLD, encrypt=encrypt)
    after = sealing(NEW, encrypt=encrypt)
    of_before = encode(KEY, PLAIN, raw=True, sealing=before)
    of_both = encode(KEY, PLAIN, raw=True, sealing=both)
    assert decode(KEY, of_before, both) == decode(KEY, of_both, both) == PLAIN
    assert decode(KEY, of_both, after) == PLAIN
    assert decode(KEY, of_before, after) is None


@ENCRYPT
def test_what_is_under_no_key_of_ours_is_none(encrypt):
    """Unsealed, sealed by others, sealed the other way, and sealed where nobody asks for it."""
    own = sealing(NEW, encrypt=encrypt)
    for other in (None, sealing(FOREIGN, encrypt=encrypt), sealing(NEW, encrypt=not encrypt)):
        assert decode(KEY, encode(KEY, PLAIN, raw=True, sealing=other), own) is None
    assert decode(KEY, encode(KEY, PLAIN, raw=True, sealing=own)) is None


@ENCRYPT
def test_what_was_sealed_for_another_key_is_none(encrypt):
    """The seal covers the key."""
    own = sealing(NEW, encrypt=encrypt)
    sealed = own.seal(KEY, b"payload")
    assert bytes(own.open(KEY, memoryview(sealed))) == b"payload"
    with pytest.raises(Unsealed):
        own.open(KEY + "?a", memoryview(sealed))
    assert decode(KEY + "?a", encode(KEY, PLAIN, raw=True, sealing=own), own) is None


@settings(max_examples=300)
@given(st.data())
@ENCRYPT
def test_a_sealed_payload_that_was_changed_or_cut_does_not_open(encrypt, data):
    """Whatever byte it is, the id and the nonce included; and never another exception."""
    own = sealing(NEW, encrypt=encrypt)
    sealed = bytearray(own.seal(KEY, b"payload"))
    if data.draw(st.booleans()):
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del sealed[data.draw(st.integers(0, len(sealed) - 1)) :]
    with pytest.raises(Unsealed):
        own.open(KEY, memoryview(bytes(sealed)))


@given(st.binary())
@ENCRYPT
def test_no_bytes_under_an_id_of_ours_are_more_than_unsealed(encrypt, junk):
    own = sealing(NEW, encrypt=encrypt)
    with pytest.raises(Unsealed):
        own.open(KEY, memoryview(next(iter(own.keys)) + junk))


def test_what_is_encrypted_shows_nothing_of_head_or_body_and_is_never_the_same():
    own = sealing(NEW, encrypt=True)
    first, second = (encode(KEY, PLAIN, raw=True, sealing=own) for _ in range(2))
    assert first != second
    for clear in (b"response", b"Content-Type", b"body", b"product"):
        assert clear not in first
    assert b"Content-Type" in encode(KEY, PLAIN, raw=True, sealing=sealing(NEW, encrypt=False))


@ENCRYPT
def test_a_script_can_add_the_epochs_of_a_sealed_entry(encrypt):
    """They stand outside: a purge can be undone by whoever may write, a page not be forged."""
    own = sealing(NEW, encrypt=encrypt)
    start, end = encode_for_script(KEY, PLAIN, own)
    assert decode(KEY, start + end, own) == PLAIN


def visited(site: Site, path: str = "/page") -> bool:
    return site.visit(request(path, accept="a")).hit


def site_of(*keys: str, encrypt: bool = False) -> Site:
    site = Site(options={"keys": keys, "encrypt": encrypt})
    site.app = lambda _: reply(b"page", cache_control="max-age=60", vary="Accept", cache_tag="a")
    return site


def refused(site: Site) -> list[str]:
    return [event.key for event in site.events if isinstance(event, CacheEntryRefused)]


@ENCRYPT
def test_a_cache_with_keys_stores_and_finds_and_purges(encrypt):
    """With variants and tags, in two processes of the same keys."""
    site = site_of(NEW, encrypt=encrypt)
    assert not visited(site)
    assert visited(site)
    other = site.another_process()
    assert visited(other)
    other.purge(tags=("a",))
    assert not visited(site)
    assert refused(site) == refused(other) == []


@ENCRYPT
def test_what_others_wrote_is_a_miss_and_an_event_and_is_written_over(encrypt):
    forger = site_of()
    visited(forger)
    site = forger.another_process(keys=(NEW,), encrypt=encrypt)
    assert not visited(site)
    assert len(refused(site)) == 1
    assert "cache_keys" in str(site.events)
    assert visited(site)
    assert len(refused(site)) == 1


def test_a_damaged_entry_is_an_event_without_keys_too():
    site = site_of()
    visited(site)
    assert visited(site)
    for key, (value, until) in site.store.values.items():
        site.store.values[key] = (value[:-1] + bytes([value[-1] ^ 1]), until)
    assert not visited(site)
    assert set(refused(site)) == {key for key in site.store.values if ":entry:" in key}
    assert visited(site)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cache_keys": "x" * 32}, "cache_keys"),
        ({"cache_keys": ["x" * 31]}, "32 characters"),
        ({"cache_keys": [7]}, "cache_keys"),
        ({"cache_encrypt": True}, "it needs cache_keys"),
    ],
)
def test_keys_that_cannot_be_meant_are_refused_and_not_shown(given, said):
    with pytest.raises(ConfigurationError, match=said) as raised:
        settings_from(given, {})
    assert "xxx" not in str(raised.value)


def test_the_keys_are_not_in_the_repr():
    assert "new key" not in repr(settings_from({"cache_keys": [NEW]}, {}))


def test_encryption_without_its_package_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigurationError, match=r"upstash-middleware\[encryption\]"):
        settings_from({"cache_keys": [NEW], "cache_encrypt": True}, {})
