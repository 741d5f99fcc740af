"""Field values: directives, lists, dates and Age, in every form they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.world import NOON
from upstash_middleware.core.cache.http.directives import (
    Directives,
    age_value,
    delta_seconds,
    entity_tags,
    format_date,
    is_strong,
    parse_date,
)
from upstash_middleware.messages import Headers, split_list

A_DATE = 784111777.0


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
    ],
)
def test_each_of_the_three_date_formats_is_read(text):
    """RFC 9110 §5.6.7."""
    assert parse_date(text, NOON) == A_DATE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun 06 Nov 1994 08:49:37 GMT",
        "Sun, 06  Nov 1994 08:49:37 GMT",
        "Sun, 06-Nov-1994 08:49:37 GMT",
        "Sun, 06 Nov 94 08:49:37 GMT",
        "Sun, 06 Nov 1994 08.49.37 GMT",
        "Sun, 06 Nov 1994 8:49:37 GMT",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
    ],
)
def test_anything_else_is_no_date(text):
    """RFC 9111 §5.3: a cache must take invalid date formats as a time in the past."""
    assert parse_date(text, NOON) is None


def test_a_two_digit_year_more_than_50_years_ahead_is_in_the_past():
    """RFC 9110 §5.6.7."""
    assert parse_date("Sunday, 06-Nov-73 08:49:37 GMT", NOON) == parse_date(
        "Tue, 06 Nov 2073 08:49:37 GMT", NOON
    )
    assert parse_date("Sunday, 06-Nov-74 08:49:37 GMT", NOON) == parse_date(
        "Tue, 06 Nov 1974 08:49:37 GMT", NOON
    )


def test_a_leap_second_is_a_time():
    """RFC 9110 §5.6.7 takes over RFC 5322's second, 60 included."""
    assert parse_date("Sat, 31 Dec 2016 23:59:60 GMT", NOON) is not None


@given(st.integers(0, 4102444800))
def test_what_is_formatted_reads_back(seconds):
    """format_date and parse_date are each other's inverse."""
    assert parse_date(format_date(seconds), NOON) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("003600", 3600),
        ("2147483648", 2**31),
        ("99999999999", 2**31),
        ("9" * 5000, 2**31),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("٣", None),
        ("1 ", None),
    ],
)
def test_delta_seconds_are_digits_alone_and_capped(text, seconds):
    """RFC 9111 §1.2.2."""
    assert delta_seconds(text) == seconds


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        (["max-age=60"], 60),
        (["MaX-aGe=60"], 60),
        (['max-age="60"'], 60),
        (["max-age=60, max-age=1"], 60),
        (["max-age=60", "max-age=1"], 60),
        (['extension="max-age=3600", max-age=1'], 1),
        (['max-age=1, extension="max-age=3600"'], 1),
        (['extension="a\\", max-age=3600", max-age=1'], 1),
        (["max-age='60'"], 0),
        (["max-age=60a"], 0),
        (["max-age=-60"], 0),
        (["max-age=60.0"], 0),
        (["max-age= 60"], 0),
        (["max-age"], 0),
        (["max-age =60"], None),
        (["foobar"], None),
        ([""], None),
        ([",, ,"], None),
    ],
)
def test_an_invalid_directive_makes_stale_and_of_two_the_first_counts(lines, seconds):
    """RFC 9111 §4.2.1, §5.2."""
    assert Directives.parse(lines).seconds("max-age") == seconds


def test_fields_named_by_several_directives_come_together():
    """RFC 9111 §5.2.2.4."""
    named = Directives.parse(['no-cache="A, b"', 'no-cache="c"'])
    assert named.named_fields("no-cache") == ("a", "b", "c")
    assert not named.unqualified("no-cache")


@pytest.mark.parametrize("lines", [['private="a"', "private"], ["private", 'private="a"']])
def test_a_directive_without_fields_outweighs_one_with(lines):
    """RFC 9111 §4.2.1: of conflicting directives the most restrictive is honoured."""
    assert Directives.parse(lines).unqualified("private")


@given(st.lists(st.text(max_size=30)))
def test_no_text_breaks_the_parser(lines):
    """Whatever a field holds, parsing answers."""
    directives = Directives.parse(lines)
    assert all(directives.seconds(name) is not None for name in directives.arguments)


@given(st.text())
def test_a_list_is_split_in_one_pass(text):
    """Splitting keeps every character but commas and blanks outside of quotes."""
    kept = "".join(split_list(text)).replace(" ", "").replace("\t", "").replace(",", "")
    assert kept == text.replace(" ", "").replace("\t", "").replace(",", "")


@pytest.mark.parametrize(
    ("lines", "age"),
    [
        (["30"], 30),
        (["7200,0"], 7200),
        (["0, 7200"], 0),
        (["7200", "0"], 7200),
        (["abc"], 0),
        (["-7200"], 0),
        (["7200.0"], 0),
        ([""], 0),
        ([], 0),
        (["99999999999"], 2**31),
    ],
)
def test_of_an_ages_members_the_first_counts_and_an_invalid_one_is_ignored(lines, age):
    """RFC 9111 §5.1."""
    assert age_value(Headers((b"Age", line.encode()) for line in lines)) == age


def test_entity_tags_are_told_from_what_is_none():
    """RFC 9110 §8.8.3."""
    assert entity_tags('"a", W/"b" , "c,d"') == ['"a"', 'W/"b"', '"c,d"']
    assert entity_tags('"a", b,,') == ['"a"', "b"]
    assert entity_tags('"a" "b"') is None
    assert entity_tags('"a') is None
    assert entity_tags("") is None
    assert is_strong('"a"')
    assert not is_strong('W/"a"')
    assert not is_strong("a")
