"""RFC 9110 §14: ranges answered from a stored whole."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.world import Site, reply, request

BODY = b"0123456789"
MODIFIED = "Tue, 14 Nov 2023 20:00:00 GMT"


@pytest.fixture
def site() -> Site:
    """A site whose page of ten bytes is stored."""
    site = Site()
    site.app = lambda _: reply(
        BODY, cache_control="max-age=60", etag='"a"', last_modified=MODIFIED, x="kept"
    )
    site.visit()
    return site


@pytest.mark.parametrize(
    ("asked", "body", "span"),
    [
        ("bytes=0-1", b"01", "0-1"),
        ("bytes=1-", b"123456789", "1-9"),
        ("bytes=-1", b"9", "9-9"),
        ("bytes=-99", BODY, "0-9"),
        ("bytes=5-99", b"56789", "5-9"),
        ("bytes=9-9", b"9", "9-9"),
        ("BYTES=0-0", b"0", "0-0"),
    ],
)
def test_one_range_is_answered_with_206(site, asked, body, span):
    """RFC 9110 §14.1.2, §15.3.7."""
    answer = site.visit(request(range=asked))
    assert (answer.hit, answer.status, answer.body) == (True, 206, body)
    assert answer.headers.lines("content-range") == [f"bytes {span}/10"]
    assert answer.headers.lines("content-length") == [str(len(body))]
    assert answer.headers.get("x") == "kept"
    assert "age" in answer.headers


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_a_range_beyond_the_end_is_answered_with_416(site, asked):
    """RFC 9110 §15.5.17."""
    answer = site.visit(request(range=asked))
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers.get("content-range") == "bytes */10"


@pytest.mark.parametrize(
    "asked",
    ["bytes=2-1", "bytes=0-1,3-4", "items=0-1", "bytes", "bytes=", "bytes=a-b", "bytes=-", ""],
)
def test_any_other_range_is_answered_whole(site, asked):
    """RFC 9110 §14.2: a server may ignore Range, and must where it is invalid."""
    answer = site.visit(request(range=asked))
    assert (answer.status, answer.body) == (200, BODY)


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ('"a"', 206),
        ('"b"', 200),
        ('W/"a"', 200),
        (MODIFIED, 206),
        ("Tue, 14 Nov 2023 21:00:00 GMT", 200),
        ("x", 200),
    ],
)
def test_if_range_must_name_what_is_stored(site, condition, status):
    """RFC 9110 §13.1.5."""
    assert site.visit(request(range="bytes=0-1", if_range=condition)).status == status


@pytest.mark.parametrize(("date", "status"), [("22:13:19", 206), ("22:13:20", 200)])
def test_a_date_is_a_strong_validator_only_if_older_than_its_response(date, status):
    """RFC 9110 §8.8.2.2."""
    site = Site()
    modified = f"Tue, 14 Nov 2023 {date} GMT"
    site.app = lambda _: reply(BODY, cache_control="max-age=60", last_modified=modified)
    site.visit()
    assert site.visit(request(range="bytes=0-1", if_range=modified)).status == status


def test_a_weak_etag_is_no_condition_for_a_part():
    """RFC 9110 §13.1.5."""
    site = Site()
    site.app = lambda _: reply(BODY, cache_control="max-age=60", etag='W/"a"')
    site.visit()
    assert site.visit(request(range="bytes=0-1", if_range='W/"a"')).status == 200


def test_conditions_come_before_ranges(site):
    """RFC 9110 §13.2.2."""
    assert site.visit(request(range="bytes=0-1", if_none_match='"a"')).status == 304


def test_ranges_are_for_get_and_for_success(site):
    """RFC 9110 §14.2."""
    assert site.visit(request(method="HEAD", range="bytes=0-1")).status == 200
    site.app = lambda _: reply(BODY, 404, cache_control="max-age=60")
    site.visit(request("/none"))
    assert site.visit(request("/none", range="bytes=0-1")).status == 404


def test_a_range_of_a_stale_response_is_answered_once_it_is_confirmed(site):
    """RFC 9111 §4.3.3."""
    site.clock.advance(61)
    site.app = lambda _: reply(b"", 304, etag='"a"')
    answer = site.visit(request(range="bytes=0-1"))
    assert (answer.status, answer.body) == (206, b"01")


def storing_part(content_range: str, body: bytes = b"56789", **fields: str) -> Site:
    """A site that has answered a range with a part."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(
        body, 206, cache_control="max-age=60", content_range=content_range, **fields
    )
    site.visit(request(range="bytes=5-"))
    return site


@pytest.mark.parametrize(
    ("asked", "body", "span"),
    [
        ("bytes=5-", b"56789", "5-9"),
        ("bytes=-5", b"56789", "5-9"),
        ("bytes=6-8", b"678", "6-8"),
        ("bytes=6-", b"6789", "6-9"),
        ("bytes=-1", b"9", "9-9"),
    ],
)
def test_a_stored_part_answers_ranges_within_it(asked, body, span):
    """RFC 9111 §3.3, in profile conforming."""
    answer = storing_part("bytes 5-9/10").visit(request(range=asked))
    assert (answer.hit, answer.status, answer.body) == (True, 206, body)
    assert answer.headers.lines("content-range") == [f"bytes {span}/10"]


@pytest.mark.parametrize(
    "asked", [{}, {"range": "bytes=4-6"}, {"range": "bytes=-6"}, {"range": "bytes=6-10"}]
)
def test_a_stored_part_answers_nothing_else(asked):
    """RFC 9111 §3.3: never taken for the whole; a whole takes its place."""
    site = storing_part("bytes 5-9/10")
    site.app = lambda _: reply(BODY, cache_control="max-age=60")
    answer = site.visit(request(**asked))
    assert (answer.hit, answer.body) == (False, BODY)
    assert "fwd=partial" in answer.cache_status
    assert site.visit().body == BODY


def test_a_head_request_is_not_answered_from_a_part():
    """RFC 9111 §3.3."""
    assert not storing_part("bytes 5-9/10").visit(request(method="HEAD", range="bytes=5-")).hit


@pytest.mark.parametrize("span", ["bytes 5-9/*", "bytes 0-4/10"])
def test_without_the_wholes_end_nothing_is_counted_from_it(span):
    """RFC 9110 §14.4."""
    site = storing_part(span)
    assert not site.visit(request(range="bytes=-1")).hit
    assert not site.visit(request(range="bytes=5-")).hit


@pytest.mark.parametrize(
    "span", ["bytes 9-5/10", "bytes 5-9/9", "items 5-9/10", "bytes */10", "5-9/10", ""]
)
def test_a_part_that_does_not_say_which_is_not_stored(span):
    """RFC 9110 §14.4; nor one of several parts."""
    assert not storing_part(span).visit(request(range="bytes=5-")).hit


def test_a_part_does_not_take_the_place_of_a_stored_whole():
    """Though that is stale."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(BODY, cache_control="max-age=2", etag='"a"')
    site.visit()
    site.clock.advance(3)
    part = {"cache_control": "max-age=60", "content_range": "bytes 5-9/10", "etag": '"b"'}
    site.app = lambda _: reply(b"56789", 206, **part)
    assert site.visit(request(range="bytes=5-")).status == 206
    site.app = lambda _: reply(b"", 304, etag='"a"')
    assert site.visit().body == BODY


def test_profile_safe_stores_no_parts(site):
    """They would serve those alone who ask for the same range."""
    site.purge("/page")
    site.app = lambda _: reply(b"5", 206, cache_control="max-age=60", content_range="bytes 5-5/9")
    assert "partial content" in site.visit(request(range="bytes=5-5")).cache_status


def part(first: int, last: int, total: str = "10", etag: str = '"a"', **fields: str) -> Any:
    """Make a part of the page of ten bytes."""
    span = f"bytes {first}-{last}/{total}"
    fields = {"cache_control": "max-age=60", "etag": etag, "content_range": span, **fields}
    return reply(BODY[first : last + 1], 206, **fields)


def _answering(told: Any) -> Any:
    return lambda _: told


def visited(*parts: Any, **options: Any) -> Site:
    """Return a site that has been asked for these parts in turn."""
    site = Site(options={"profile": "conforming", **options})
    for each in parts:
        site.app = _answering(each)
        span = (each[0].headers.get("content-range") or "").split("/")[0].removeprefix("bytes ")
        site.visit(request(range=f"bytes={span}", cache_control="no-cache"))
    site.app = lambda _: reply(b"asked", cache_control="no-store")
    return site


@pytest.mark.parametrize(
    "parts",
    [
        [part(0, 4), part(5, 9)],
        [part(5, 9), part(0, 4)],
        [part(0, 6), part(3, 9)],
        [part(2, 5), part(0, 9)],
        [part(0, 4, "*"), part(5, 9)],
        [part(0, 2), part(6, 9), part(0, 7), part(6, 9)],
        [part(0, 4, content_length="5", x="old"), part(5, 9, content_length="5", x="new")],
    ],
)
def test_parts_with_one_strong_etag_make_the_whole(parts):
    """RFC 9111 §3.4."""
    answer = visited(*parts).visit()
    assert (answer.hit, answer.status, answer.body) == (True, 200, BODY)
    assert answer.headers.lines("content-length") == ["10"]
    assert "content-range" not in answer.headers
    assert answer.headers.get("x") in {None, "new"}


def test_parts_that_lack_some_bytes_make_a_greater_part():
    """RFC 9111 §3.4."""
    site = visited(part(2, 4), part(4, 7))
    answer = site.visit(request(range="bytes=3-6"))
    assert (answer.hit, answer.status, answer.body) == (True, 206, b"3456")
    assert answer.headers.get("content-range") == "bytes 3-6/10"
    assert not site.visit(request(range="bytes=3-8")).hit


@pytest.mark.parametrize(
    "parts",
    [
        [part(0, 4), part(5, 9, etag='"b"')],
        [part(0, 4, etag='W/"a"'), part(5, 9, etag='W/"a"')],
        [part(0, 3), part(5, 9)],
        [part(0, 4), part(5, 9, "11")],
    ],
)
def test_parts_that_do_not_belong_together_stay_apart(parts):
    """RFC 9111 §3.4: the newer one takes the place of the older."""
    site = visited(*parts)
    assert not site.visit().hit
    assert site.visit(request(range="bytes=6-8")).body == b"678"


def test_parts_together_are_no_larger_than_what_may_be_stored():
    site = visited(part(0, 4), part(5, 9), max_body=9)
    assert not site.visit().hit
    assert site.visit(request(range="bytes=5-9")).hit
