"""RFC 9213: directives that are meant for this cache, as a structured field (RFC 8941)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.world import Site, reply
from upstash_middleware.core.cache.http.directives import targeted_directives


@pytest.mark.parametrize(
    ("cdn", "control", "hit"),
    [
        ("max-age=60", None, True),
        ("max-age=99999999999", None, True),
        ("max-age=60", "no-store", True),
        ("max-age=60", "private", True),
        ("max-age=60", "max-age=0", True),
        ("foobar, max-age=60", "no-store", True),
        ("max-age=60;a=1", "no-store", True),
        ("max-age=60, no-store=?0", "no-store", True),
        ("max-age=0", "max-age=60", False),
        ("no-store", "max-age=60", False),
        ("private", "max-age=60", False),
        ("no-cache", "max-age=60", False),
        ("max-age=60, no-store", "max-age=60", False),
        ("max-age=-1", "max-age=60", False),
        # invalid ones are ignored, and so is an empty one
        ("max-age=60, &&&", "no-store", False),
        ("&&&", "max-age=60", True),
        ('max-age="60"', "no-store", False),
        ("max-age=60.0", "no-store", False),
        ("max-age", "no-store", False),
        ("max-age =60", "no-store", False),
        ("max-age= 60", "no-store", False),
        ("MaX-aGe=60", "no-store", False),
        ("max-age=60,", "no-store", False),
        ("", "max-age=60", True),
        ("", "no-store", False),
    ],
)
def test_a_valid_targeted_field_overrides_cache_control_and_an_invalid_one_is_ignored(
    cdn, control, hit
):
    """RFC 9213 §2.1, §2.2."""
    site = Site()
    fields = {"cdn_cache_control": cdn} | ({"cache_control": control} if control else {})
    site.app = lambda _: reply(**fields)
    site.visit()
    assert site.visit().hit is hit


@pytest.mark.parametrize(
    ("cdn", "expires", "hit"),
    [
        ("max-age=60", "Thu, 01 Jan 1970 00:00:00 GMT", True),
        ("max-age=60", "0", True),
        ("max-age=0", "Tue, 14 Nov 2023 23:13:20 GMT", False),
        ("foo", "Tue, 14 Nov 2023 23:13:20 GMT", False),
    ],
)
def test_beside_a_targeted_field_expires_does_not_count(cdn, expires, hit):
    """RFC 9213 §2.2."""
    site = Site()
    site.app = lambda _: reply(cdn_cache_control=cdn, expires=expires)
    site.visit()
    assert site.visit().hit is hit


def test_the_field_passes_on_to_the_client():
    """RFC 9213 §2.2: other caches on the way may be meant too."""
    site = Site()
    site.app = lambda _: reply(cdn_cache_control="max-age=60")
    assert site.visit().headers.get("cdn-cache-control") == "max-age=60"
    assert site.visit().headers.get("cdn-cache-control") == "max-age=60"


def test_the_first_of_several_targets_that_is_there_counts():
    """RFC 9213 §2.2: the target list, most specific first."""
    site = Site(options={"targets": ("Upstash-Cache-Control", "CDN-Cache-Control")})
    site.app = lambda _: reply(upstash_cache_control="max-age=0", cdn_cache_control="max-age=60")
    site.visit()
    assert not site.visit().hit
    site.app = lambda _: reply(upstash_cache_control="&", cdn_cache_control="max-age=60")
    site.visit()
    assert site.visit().hit


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", None),
        ("a", {"a": None}),
        ("a=1, b=-2.5 ,\tc=?0", {"a": "1", "b": ""}),
        ('a="x\\"y"', {"a": 'x"y'}),
        ("a=tok/en, *b=:aGk=:", {"a": "tok/en", "*b": ""}),
        ("a=(1 2);q=3, b;c;d=?1", {"a": "", "b": None}),
        ("a=( 1  2 )", {"a": ""}),
        ("a=1, a=2", {"a": "2"}),
        ("A=1", None),
        ("a=", None),
        ("a=1 b=2", None),
        ("a=1.", None),
        ("a=1234567890123456", None),
        ('a="x', None),
        ("a=(1", None),
        ("a=(1,2)", None),
        ("a=?2", None),
        ("a;B", None),
        ("é", None),
    ],
)
def test_dictionaries_are_parsed_strictly(text, arguments):
    """RFC 8941 §4.2.2; the value False means that a directive does not apply."""
    assert targeted_directives(text) == arguments


@given(st.text(alphabet='a=1;,()"\\?:.- \tZ*é', max_size=20))
def test_no_text_breaks_the_parser(text):
    """Directives or none."""
    found = targeted_directives(text)
    assert found is None or isinstance(found, dict)
