"""The secret with which the cache is debugged."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.test_collapsing import Visitor, site_of_pages
from tests.cache.world import request
from upstash_middleware import ConfigurationError
from upstash_middleware.settings import settings_from

SECRET = "d" * 32


@pytest.mark.parametrize("secret", ["d" * 31, "with space" * 4, "é" * 32, 7])
def test_a_secret_that_can_be_guessed_or_not_be_sent_is_refused(secret: Any):
    with pytest.raises(
        ConfigurationError, match=r"^cache_debug: should be text of at least 32 characters"
    ):
        settings_from({"cache_debug": secret}, {})


def test_the_secret_is_in_no_repr():
    assert SECRET not in repr(settings_from({"cache_debug": SECRET}, {}))


def test_nobody_waits_for_a_response_that_is_for_whoever_debugs_alone():
    """The first of two requests at once debugs the cache; the second one is forwarded itself."""
    site = site_of_pages(debug=SECRET)
    debugs = Visitor.at(site, request(upstash_cache_debug=SECRET))
    other = Visitor.at(site)
    assert debugs.leads
    assert other.leads
    debugs.renders(b"told")
    other.renders(b"page")
    third = Visitor.at(site)
    assert third.answer is not None
    assert third.answer.body == b"page"
