"""What was read is understood again for the very same bytes alone."""

from __future__ import annotations

import pytest

from tests.cache.world import Site, reply, request

KEY = "test:cache:entry:http://shop.test/page"
LONG = b"a page " * 500


def site_with(body: bytes = b"page") -> Site:
    """A site whose page is stored, and was found once."""
    site = Site()
    site.app = lambda _: reply(body, cache_control="max-age=60")
    site.visit()
    assert site.visit().hit
    return site


def overwrite(site: Site, data: bytes, key: str = KEY) -> None:
    site.store.values[key] = (data, site.clock.now + 60)


def test_the_same_bytes_in_another_object_are_the_same_response():
    site = site_with()
    first = site.visit()
    overwrite(site, bytes(bytearray(site.store.values[KEY][0])))
    assert (site.visit().hit, site.visit().headers) == (True, first.headers)


def test_other_bytes_at_the_same_key_are_another_response():
    site = site_with()
    other = site.another_process()
    site.purge("/page")
    other.app = lambda _: reply(b"newer", cache_control="max-age=60")
    other.visit()
    assert site.visit().body == b"newer"
    del site.store.values[KEY]
    assert not site.visit().hit


@pytest.mark.parametrize("where", [1, 20, 60, -1])
def test_a_damaged_copy_of_what_is_known_is_no_entry(where):
    site = site_with()
    whole = site.store.values[KEY][0]
    damaged = bytearray(whole)
    damaged[where] ^= 1
    overwrite(site, bytes(damaged))
    asked = request()
    assert site.begin(asked).response is None
    overwrite(site, whole)
    assert site.visit(asked).hit


def test_the_bytes_of_one_key_are_no_entry_of_another():
    site = site_with()
    overwrite(site, site.store.values[KEY][0], f"{KEY}2")
    assert site.begin(request("/page2")).response is None


def test_a_compressed_body_is_sent_as_it_was():
    site = site_with(LONG)
    assert len(site.store.values[KEY][0]) < len(LONG) / 2
    assert [site.visit().body for _ in range(3)] == [LONG] * 3
