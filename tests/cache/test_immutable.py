"""RFC 8246: a response that does not change while it is fresh is not validated on a reload."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.world import Site, reply, request


def site_with(control: str, profile: str = "conforming", **options: Any) -> Site:
    """Return a site with a page that is 30 seconds old."""
    site = Site(options={"profile": profile, **options})
    site.app = lambda _: reply(b"stored", cache_control=control, etag='"a"')
    site.visit()
    site.clock.advance(30)
    return site


@pytest.mark.parametrize("asked", ["max-age=0", "max-age=10"])
@pytest.mark.parametrize(
    ("control", "hit"),
    [
        ("max-age=60, immutable", True),
        ("max-age=60, immutable=1", True),
        ('max-age=60, immutable="no"', True),
        ("max-age=60, immutable, IMMUTABLE", True),
        ("max-age=60", False),
        ("max-age=60, immutablefoo", False),
    ],
)
def test_a_reload_does_not_validate_an_immutable_response(control, hit, asked):
    """§2: its arguments and repetitions mean nothing."""
    answer = site_with(control).visit(request(cache_control=asked))
    assert answer.hit is hit
    assert hit or "fwd=request" in answer.cache_status


def test_a_reload_with_a_condition_gets_a_304_without_the_application():
    """§2.1: a proxy may anticipate the answer."""
    site = site_with("max-age=60, immutable")
    answer = site.visit(request(cache_control="max-age=0", if_none_match='"a"'))
    assert (answer.status, answer.hit, site.rendered) == (304, True, 1)


@pytest.mark.parametrize("asked", [{"cache_control": "no-cache"}, {"pragma": "no-cache"}])
def test_a_forced_reload_validates_it(asked):
    """§3: it repairs what is corrupt."""
    site = site_with("max-age=60, immutable")
    answer = site.visit(request(**asked))
    assert not answer.hit
    assert site.forwarded is not None
    assert site.forwarded.headers.get("if-none-match") == '"a"'
    assert not site.visit(request(cache_control="max-age=0, no-cache")).hit


def test_once_it_is_stale_it_is_validated_as_any_other():
    """§2: it holds while the response is fresh."""
    site = site_with("max-age=60, stale-while-revalidate=600, immutable", background_refresh=True)
    site.clock.advance(30)
    answer = site.visit(request(cache_control="max-age=0"))
    assert not answer.hit
    assert "fwd=stale" in answer.cache_status


def test_a_soft_purge_ends_its_freshness():
    """Whoever purges it says that it has changed."""
    site = site_with("max-age=60, immutable")
    site.purge("/page", soft=True)
    assert not site.visit(request(cache_control="max-age=0")).hit


def test_in_a_request_it_means_nothing():
    """§2."""
    site = site_with("max-age=60")
    assert not site.visit(request(cache_control="max-age=0, immutable")).hit
    assert site.visit(request(cache_control="immutable")).hit


def test_what_else_the_client_asks_for_still_counts():
    """RFC 9111 §5.2.1.3: a reload does not say for how long it needs the response."""
    site = site_with("max-age=60, immutable")
    assert not site.visit(request(cache_control="max-age=0, min-fresh=31")).hit


@pytest.mark.parametrize(
    ("cdn", "control", "hit"),
    [
        ("max-age=60, immutable", "max-age=60", True),
        ("max-age=60", "max-age=60, immutable", False),
    ],
)
def test_beside_a_targeted_field_that_one_counts(cdn, control, hit):
    """RFC 9213 §2.2."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(cache_control=control, cdn_cache_control=cdn)
    site.visit()
    site.clock.advance(30)
    assert site.visit(request(cache_control="max-age=0")).hit is hit


def test_a_reload_is_answered_from_memory():
    """As any other hit."""
    site = site_with("max-age=60, immutable", l1_bytes=1_000_000, l1_seconds=60.0)
    assert site.visit().billed == ["MGET"]
    assert site.visit(request(cache_control="max-age=0")).billed == []


def test_in_profile_safe_no_reload_validates():
    """Clients do not command the cache there."""
    assert site_with("max-age=60", "safe").visit(request(cache_control="max-age=0")).hit
