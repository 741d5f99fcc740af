"""Whatever a field holds: an answer within its bounds, and what was written is what is read."""

from __future__ import annotations

import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.cache.test_entries import PLAIN
from tests.cache.world import NOON
from upstash_middleware.core.cache.http.directives import (
    MAX_DELTA,
    Directives,
    age_value,
    delta_seconds,
    entity_tags,
    is_strong,
    parse_date,
)
from upstash_middleware.core.cache.http.reuse import not_modified, parse_part, wanted_range
from upstash_middleware.core.cache.http.vary import selected_values, vary_fields
from upstash_middleware.core.cache.rules import profile_named
from upstash_middleware.messages import Headers

TEXT = st.text(st.characters(max_codepoint=255), max_size=40)
TOKENS = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True)


def like(alphabet: str, size: int = 24) -> st.SearchStrategy[str]:
    """Return texts that are nearly right, beside any text at all."""
    return TEXT | st.text(st.sampled_from(alphabet), max_size=size)


def fields(**lines: list[str]) -> Headers:
    return Headers(
        (name.replace("_", "-").encode(), line.encode("latin-1"))
        for name, each in lines.items()
        for line in each
    )


@given(
    st.dictionaries(
        TOKENS.map(str.lower).filter(lambda name: name not in {"no-cache", "private"}),
        st.none() | st.integers(0, 2**40),
        max_size=6,
    ),
    st.randoms(),
)
def test_directives_read_back_however_they_are_cased_quoted_and_parted(written, chance):
    """RFC 9111 §5.2: names without case, arguments as tokens or quoted, in one line or several."""
    lines: list[str] = [""]
    for name, seconds in written.items():
        argument = "" if seconds is None else chance.choice(["={}", '="{}"']).format(seconds)
        member = chance.choice([name, name.upper()]) + argument
        if chance.random() < 0.3:
            lines.append(member)
        else:
            lines[-1] += chance.choice([",", " , ", ",,"]) + member
    read = Directives.parse(lines)
    assert set(read.arguments) == set(written)
    for name, seconds in written.items():
        assert read.seconds(name) == min(seconds or 0, MAX_DELTA)


@given(like("0123456789 ,.-+e_"))
def test_delta_seconds_are_none_or_within_their_bounds(text):
    seconds = delta_seconds(text)
    assert seconds is None or 0 <= seconds <= MAX_DELTA
    assert (seconds is not None) == bool(re.fullmatch("[0-9]+", text))


@given(st.lists(like('0123456789 ,"-'), max_size=3))
def test_an_age_is_within_its_bounds_whatever_it_says(lines):
    assert 0 <= age_value(fields(age=lines)) <= 2**31


@given(like("SunMonTueWed, 0123456789:-JanFebMarGMT ", 32), st.floats(0, 4e9))
def test_any_text_is_a_date_or_none(text, now):
    seconds = parse_date(text, now)
    assert seconds is None or math.isfinite(seconds)


@given(st.lists(TOKENS, max_size=6), st.randoms())
def test_the_fields_of_a_vary_are_read_in_any_case_and_over_any_lines(names, chance):
    lines = [", ".join(names[:2]), ",".join(name.upper() for name in names[2:])]
    chance.shuffle(lines)
    read = vary_fields(fields(vary=lines))
    assert set(read) == {name.lower() for name in names}
    assert len(read) == len(set(read))


@given(st.lists(like('accept-*,"\\ ;='), max_size=3), st.lists(like('ab,"\\;q=0. '), max_size=3))
def test_no_vary_and_no_selected_value_breaks_the_key_of_a_variant(vary, values):
    """And the same request selects the same, whatever other fields it carries."""
    names = vary_fields(fields(vary=vary))
    request = fields(accept=values, x_a=values)
    for profile in map(profile_named, ("safe", "conforming")):
        text = selected_values(names, request, profile)
        assert text == selected_values(names, request.adding((b"x-other", b"1")), profile)


BODY = bytes(range(60))
STORED = replace(PLAIN, packed=BODY, length=len(BODY), headers=Headers.of(etag='"a"'))


@given(st.integers(0, 80), st.none() | st.integers(0, 80))
def test_a_range_is_what_python_slices(first, last):
    """RFC 9110 §14.1.2: places from 0, the last one included, up to the end at most."""
    asked = wanted_range(fields(range=[f"bytes={first}-{'' if last is None else last}"]), STORED)
    if last is not None and last < first:
        assert asked is None
        return
    assert asked is not None
    assert BODY[asked.start : asked.stop] == BODY[first : len(BODY) if last is None else last + 1]


@given(st.integers(0, 80))
def test_a_suffix_range_is_the_last_bytes(size):
    asked = wanted_range(fields(range=[f"bytes=-{size}"]), STORED)
    assert asked is not None
    assert BODY[asked.start : asked.stop] == (BODY[-size:] if size else b"")


@settings(max_examples=300)
@given(
    st.lists(like("bytes=0123456789-, \t", 20), max_size=2), st.lists(like('W/"ab', 5), max_size=1)
)
def test_no_text_asks_for_more_than_is_stored(ranges, if_range):
    asked = wanted_range(fields(range=ranges, if_range=if_range), STORED)
    assert asked is None or 0 <= asked.start <= asked.stop <= len(BODY)


@settings(max_examples=300)
@given(like("bytes 0123456789-/*", 24))
def test_no_text_makes_a_part_that_is_none(text):
    part = parse_part(fields(content_range=[text]))
    if part is not None:
        assert 0 <= part.first <= part.last
        assert part.total is None or part.last < part.total


TAGS = st.tuples(st.booleans(), st.text(st.characters(min_codepoint=0x23, max_codepoint=0x7E))).map(
    lambda tag: f'{"W/" if tag[0] else ""}"{tag[1]}"'
)


@given(st.lists(TAGS, min_size=1, max_size=5), st.sampled_from([",", ", ", " ,,\t"]))
def test_entity_tags_read_back_and_each_of_them_matches(tags, comma):
    """RFC 9110 §8.8.3, §13.1.2: weakly, so that W/ is no difference."""
    written = comma.join(tags)
    assert entity_tags(written) == tags
    for tag in tags:
        assert is_strong(tag) == (not tag.startswith("W/"))
        stored = replace(STORED, status=200, headers=Headers.of(etag=tag.removeprefix("W/")))
        assert not_modified(fields(if_none_match=[written]), stored)


@given(st.lists(like('W/"abc*, \\', 16), max_size=2), like("0123456789 ,:GMTSunNov", 30))
def test_no_condition_breaks_and_only_what_names_the_tag_matches(conditions, since):
    request = fields(if_none_match=conditions, if_modified_since=[since])
    stored = replace(STORED, stored_at=NOON)
    matched = not_modified(request, stored)
    if conditions and matched:
        combined = ", ".join(conditions)
        assert combined.strip() == "*" or "a" in combined
