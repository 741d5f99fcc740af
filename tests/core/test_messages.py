"""Messages keep what came, and compare as HTTP does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.messages import Headers, HTTPRequest, normal_path

FIELDS = Headers([(b"Vary", b"Accept"), (b"X-A", b"1"), (b"vary", b"Cookie"), (b"X-A", b"\xff")])


def test_names_compare_without_case_and_lines_keep_their_order():
    assert FIELDS.lines("vary") == ["Accept", "Cookie"]
    assert FIELDS.combined("vary") == "Accept, Cookie"
    assert FIELDS.get("vary") == "Accept"
    assert FIELDS.get("age") is None
    assert "x-a" in FIELDS


def test_every_byte_of_a_value_survives_as_latin_1():
    assert FIELDS.lines("x-a") == ["1", "\xff"]
    assert FIELDS.raw[3] == (b"X-A", b"\xff")


def test_changing_headers_makes_new_ones():
    assert FIELDS.without("vary").raw == ((b"X-A", b"1"), (b"X-A", b"\xff"))
    assert FIELDS.setting("x-a", "2").lines("x-a") == ["2"]
    assert FIELDS.lines("x-a") == ["1", "\xff"]


def test_the_repr_of_headers_holds_no_value():
    assert "secret" not in repr(Headers.of(authorization="Bearer secret"))


def test_one_spelling_of_a_path_rfc3986_section_6_2_2():
    assert normal_path("/%7euser/%e2%82%ac") == "/~user/%E2%82%AC"
    assert normal_path("/a%2fb") == "/a%2Fb" != normal_path("/a/b")
    assert normal_path("/100%") == "/100%25"
    assert normal_path("/é") == "/%C3%A9"


@given(st.text())
def test_normalising_a_path_twice_changes_nothing_more(path):
    once = normal_path(path)
    assert normal_path(once) == once
    assert once.isascii()


def test_a_request_without_a_raw_path_gets_one_from_its_path():
    assert HTTPRequest("GET", "/a b/c").raw_path == "/a%20b/c"


def test_each_method_takes_a_name_in_any_case():
    headers = Headers([(b"X-API-Key", b"1"), (b"x-api-key", b"2"), (b"Accept", b"*/*")])
    for name in ("X-API-Key", "x-api-key", "X-Api-KEY"):
        assert name in headers
        assert headers.get(name) == "1"
        assert headers.lines(name) == ["1", "2"]
        assert headers.combined(name) == "1, 2"
        assert headers.repeats(name)
        assert headers.without(name).raw == ((b"Accept", b"*/*"),)
        assert headers.setting(name, "3").lines(name) == ["3"]
    assert headers.get("X-Other") is None
    assert headers.lines("X-Other") == []
    assert "X-Other" not in headers


def test_a_default_is_given_for_an_absent_field():
    headers = Headers.of(x_tokens="3")
    assert headers.get("x-tokens", "1") == "3"
    assert headers.get("x-other", "1") == "1"
