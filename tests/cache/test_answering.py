"""RFC 9111 §4 and RFC 9211: what is answered from the cache, and how it looks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.messages import Headers, HTTPRequest


def test_a_hit_costs_one_round_trip_and_one_command(site):
    """The budget: look up, and nothing else; a miss two round trips, one command each."""
    first, second = site.visit(), site.visit()
    assert (first.hit, first.round_trips, first.billed) == (False, 2, ["MGET", "SET"])
    assert (second.hit, second.round_trips, second.billed) == (True, 1, ["MGET"])
    assert second.body == b"page"
    assert site.rendered == 1


def test_a_hit_carries_its_age(site):
    """RFC 9111 §4, §5.1."""
    site.visit()
    site.clock.advance(12.9)
    assert site.visit().headers.lines("age") == ["12"]


def test_the_age_from_upstream_counts_in(site):
    """RFC 9111 §4.2.3."""
    site.app = lambda _: reply(cache_control="max-age=60", age="30")
    site.visit()
    site.clock.advance(10)
    assert site.visit().headers.lines("age") == ["40"]
    site.clock.advance(21)
    assert not site.visit().hit


def test_an_age_above_the_freshness_lifetime_is_stale(site):
    """RFC 9111 §4.2."""
    site.app = lambda _: reply(cache_control="max-age=10", age="15")
    site.visit()
    assert not site.visit().hit


def test_the_time_that_rendering_took_counts_as_age(site):
    """RFC 9111 §4.2.3: the response delay."""

    def slow(_):
        site.clock.advance(5)
        return reply(cache_control="max-age=60")

    site.app = slow
    site.visit()
    assert site.visit().headers.get("age") == "5"


def test_the_second_that_a_date_leaves_out_is_no_age(site):
    """RFC 9111 §4.2.3: what was made a moment ago is not nearly a second old."""
    site.clock.advance(0.9)
    site.app = lambda _: reply(cache_control="max-age=1", date="Tue, 14 Nov 2023 22:13:20 GMT")
    site.visit()
    site.clock.advance(0.5)
    assert site.visit().hit


def test_a_date_in_the_past_counts_as_age(site):
    """RFC 9111 §4.2.3: the apparent age."""
    site.app = lambda _: reply(cache_control="max-age=60", date="Tue, 14 Nov 2023 22:13:00 GMT")
    site.visit()
    assert site.visit().headers.get("age") == "20"


def test_a_clock_that_went_back_makes_nothing_younger(site):
    """Clocks of two machines may disagree."""
    site.app = lambda _: reply(cache_control="max-age=60", age="30")
    site.visit()
    site.clock.advance(-100)
    assert site.visit().headers.get("age") == "30"


def test_a_stale_response_is_not_used(site):
    """RFC 9111 §4.2; without a validator nor leave to be used stale it is not even kept."""
    for fields, fwd in (({}, "uri-miss"), ({"etag": '"a"'}, "stale")):
        site.app = lambda _, fields=fields: reply(cache_control="max-age=60", **fields)
        site.visit()
        site.clock.advance(60)
        assert f"fwd={fwd}" in site.visit().cache_status
        site.purge("/page")


def test_cache_status_says_what_happened(site):
    """RFC 9211 §2."""
    assert site.visit().cache_status == "upstash-middleware; fwd=uri-miss; stored"
    site.clock.advance(0.5)
    assert site.visit().cache_status == "upstash-middleware; hit; ttl=59"
    assert site.visit(request(method="POST")).cache_status == "upstash-middleware; fwd=method"


def test_cache_status_of_caches_behind_stands_before_ours(site):
    """RFC 9211 §2: the cache closest to the origin first."""
    site.app = lambda _: reply(
        cache_control="max-age=60", cache_status="inner; hit", content_length="4"
    )
    lines = site.visit().headers.lines("cache-status")
    assert lines == ["inner; hit", "upstash-middleware; fwd=uri-miss; stored"]


@pytest.mark.parametrize(
    "condition",
    ['"a"', 'W/"a"', '"x", "a"', '"x" , W/"a"', "*", '"x","a,b","a"'],
)
def test_if_none_match_that_matches_is_answered_with_304(site, condition):
    """RFC 9111 §4.3.2: weak comparison, lists and the asterisk."""
    site.app = lambda _: reply(
        cache_control="max-age=60", etag='"a"', content_type="text/plain", vary="Accept"
    )
    site.visit()
    answer = site.visit(request(if_none_match=condition))
    assert (answer.status, answer.body) == (304, b"")
    assert answer.headers.get("etag") == '"a"'
    assert answer.headers.get("vary") == "Accept"
    assert answer.headers.get("cache-control") == "max-age=60"
    assert "age" in answer.headers
    assert "content-type" not in answer.headers
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("condition", ['"b"', "b", "", '"a', 'w/"a"', '"a" "b"'])
def test_if_none_match_that_does_not_match_is_answered_whole(site, condition):
    """RFC 9110 §13.1.2: malformed ones match nothing."""
    site.app = lambda _: reply(cache_control="max-age=60", etag='"a"')
    site.visit()
    answer = site.visit(request(if_none_match=condition))
    assert (answer.hit, answer.status) == (True, 200)


@pytest.mark.parametrize(("etag", "condition"), [("a", "a"), ("a", '"a"'), ('"a"', "a, b")])
def test_an_entity_tag_without_quotes_counts_as_if_it_had_them(site, etag, condition):
    """RFC 9110 §8.8.3 wants them; applications forget them, and clients send back what came."""
    site.app = lambda _: reply(cache_control="max-age=60", etag=etag)
    site.visit()
    assert site.visit(request(if_none_match=condition)).status == 304


@pytest.mark.parametrize("condition", ['"\\", "b"', 'W/"\\"', '"x\\", "\\"'])
def test_a_backslash_in_an_entity_tag_is_itself(site, condition):
    """RFC 9110 §8.8.3: there is no escaping in it."""
    site.app = lambda _: reply(cache_control="max-age=60", etag='"\\"')
    site.visit()
    assert site.visit(request(if_none_match=condition)).status == 304


def test_if_none_match_wins_over_if_modified_since(site):
    """RFC 9111 §4.3.2."""
    fields: dict[str, Any] = {"etag": '"a"', "last_modified": "Tue, 14 Nov 2023 20:00:00 GMT"}
    site.app = lambda _: reply(cache_control="max-age=60", **fields)
    site.visit()
    since = "Tue, 14 Nov 2023 21:00:00 GMT"
    assert site.visit(request(if_modified_since=since)).status == 304
    both = request(if_none_match='"b"', if_modified_since=since)
    assert site.visit(both).status == 200


@pytest.mark.parametrize(
    ("fields", "since", "status"),
    [
        ("Tue, 14 Nov 2023 20:00:00 GMT", "Tue, 14 Nov 2023 20:00:00 GMT", 304),
        ("Tue, 14 Nov 2023 20:00:00 GMT", "Tuesday, 14-Nov-23 20:00:00 GMT", 304),
        ("Tue, 14 Nov 2023 20:00:00 GMT", "Tue, 14 Nov 2023 19:59:59 GMT", 200),
        ("Tue, 14 Nov 2023 20:00:00 GMT", "yesterday", 200),
        (None, "Tue, 14 Nov 2023 22:13:20 GMT", 304),
        (None, "Tue, 14 Nov 2023 22:13:19 GMT", 200),
    ],
)
def test_if_modified_since_is_compared_to_last_modified_or_else_to_the_date(
    site, fields, since, status
):
    """RFC 9111 §4.3.2."""
    modified: dict[str, Any] = {"last_modified": fields} if fields else {}
    site.app = lambda _: reply(cache_control="max-age=60", **modified)
    site.visit()
    assert site.visit(request(if_modified_since=since)).status == status


def test_conditions_count_only_against_a_successful_response(site):
    """RFC 9110 §13.2.1."""
    site.app = lambda _: reply(status=404, cache_control="max-age=60", etag='"a"')
    site.visit()
    assert site.visit(request(if_none_match='"a"')).status == 404


def test_conditions_for_the_origin_server_are_left_to_it(site):
    """RFC 9111 §4.3.2."""
    site.visit()
    assert not site.visit(request(if_match='"a"')).hit
    assert not site.visit(request(if_unmodified_since="x")).hit


def test_head_is_answered_from_a_stored_get(site):
    """RFC 9111 §4: with the fields of the GET, and no body."""
    site.visit()
    answer = site.visit(request(method="HEAD"))
    assert (answer.hit, answer.body) == (True, b"")
    assert answer.headers.get("content-length") == "4"


def test_a_response_to_head_is_not_taken_for_a_page(site):
    """RFC 9111 §4: it has no body to answer a GET with."""
    site.app = lambda _: reply(b"", cache_control="max-age=60")
    site.visit(request(method="HEAD"))
    assert not site.visit().hit


def test_the_servers_own_date_stands_in_profile_safe_and_the_stored_in_conforming():
    """RFC 9110 §6.6.1: one Date, never two."""
    stored = "Tue, 14 Nov 2023 22:13:00 GMT"
    for profile, expected in (("safe", []), ("conforming", [stored])):
        site = Site(options={"profile": profile})
        site.app = lambda _: reply(cache_control="max-age=60", date=stored)
        site.visit()
        assert site.visit().headers.lines("date") == expected


def test_a_stored_response_without_date_gets_the_time_it_was_received():
    """RFC 9110 §6.6.1."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(cache_control="max-age=60")
    site.visit()
    site.clock.advance(10)
    assert site.visit().headers.get("date") == "Tue, 14 Nov 2023 22:13:20 GMT"


def test_a_large_text_is_stored_compressed_and_leaves_as_it_was(site):
    """Compressed at rest when that pays."""
    body = b"the same words again " * 1000
    site.app = lambda _: reply(body, cache_control="max-age=60")
    site.visit()
    assert max(len(value) for value, _ in site.store.values.values()) < len(body) / 5
    assert site.visit().body == body


def test_a_stored_entry_that_was_damaged_is_a_miss(site):
    """Never an error."""
    site.visit()
    for key, (value, until) in site.store.values.items():
        site.store.values[key] = (value[:-1] + b"?", until)
    assert not site.visit().hit
    assert site.visit().hit


def keys(
    path: str = "/page",
    query: str = "",
    scheme: str = "http",
    host: str = "shop.test",
    raw_path: str = "",
) -> HTTPRequest:
    """Make a request of which only its target matters."""
    return HTTPRequest("GET", path, Headers(), query, scheme, host, sent_path=raw_path)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (keys(), keys(), True),
        (keys(), keys(query="a=1"), False),
        (keys(query="a=1&b=2"), keys(query="b=2&a=1"), False),
        (keys(query="a=%41"), keys(query="a=A"), False),
        (keys(), keys(scheme="https"), False),
        (keys(), keys(host="other.test"), False),
        (keys(), keys(host="shop.test:80"), False),
        (keys(), keys(host="shop.test:8080"), False),
        (keys("/a~b", raw_path="/a%7eb"), keys("/a~b", raw_path="/a~b"), True),
        (keys("/a/b", raw_path="/a%2Fb"), keys("/a/b", raw_path="/a/b"), False),
        (keys("/page", "x" * 3000), keys("/page", "x" * 2999 + "y"), False),
    ],
)
def test_a_resource_is_its_scheme_host_path_and_query(one, other, same):
    """RFC 9111 §2: the target URI; spellings of one path are one."""
    site = Site()
    site.visit(one)
    assert site.visit(other).hit is same


def test_a_vary_field_tells_variants_apart_any_number_of_them(site):
    """RFC 9111 §4.1."""
    site.app = lambda asked: reply(
        (asked.headers.get("foo") or "none").encode(), cache_control="max-age=60", vary="Foo"
    )
    for value in map(str, range(30)):
        site.visit(request(foo=value))
    answers = {value: site.visit(request(foo=value)) for value in map(str, range(30))}
    assert all(answer.hit for answer in answers.values())
    assert all(answer.body == value.encode() for value, answer in answers.items())
    assert all(answer.billed == ["MGET"] for answer in answers.values())


def test_storing_a_variant_costs_two_commands_in_one_round_trip(site):
    """The budget."""
    site.app = lambda _: reply(cache_control="max-age=60", vary="Foo")
    for foo in "12":
        stored = site.visit(request(foo=foo))
        assert (stored.round_trips, stored.billed) == (2, ["MGET", "SET", "SET"])


def test_the_variants_used_last_are_kept_and_others_make_room():
    """Whoever sends random fields cannot fill the database; at no more than two commands."""
    site = Site(options={"max_variants": 3})
    site.app = lambda _: reply(cache_control="max-age=60", vary="Foo")
    for foo in "123":
        site.visit(request(foo=foo))
    assert site.visit(request(foo="1")).hit
    assert site.visit(request(foo="4")).billed == ["MGET", "SET", "DEL"]
    assert [site.visit(request(foo=foo)).hit for foo in "134"] == [True, True, True]
    assert not site.visit(request(foo="2")).hit
    for number in range(100):
        assert len(site.visit(request(foo=f"x{number}")).billed) == 3
        assert site.visit(request(foo=f"x{number}")).hit
        assert len(site.store.values) <= 3 + 2


@pytest.mark.parametrize(
    ("stored", "asked", "same"),
    [
        ({"foo": "1"}, {"foo": "1"}, True),
        ({"foo": "1"}, {}, False),
        ({}, {"foo": ""}, False),
        ({}, {}, True),
        ({"foo": "1, 2"}, {"foo": "1,2"}, False),
        ({"foo": "1"}, {"foo": "1,"}, False),
        ({"foo": '"1, 2"'}, {"foo": '"1,2"'}, False),
        ({"foo": "a"}, {"foo": "A"}, False),
        ({"foo": "1", "bar": "2"}, {"foo": "1", "bar": "3"}, True),
        ({"foo": "1", "baz": "2"}, {"foo": "1", "baz": "3"}, False),
        ({"accept_language": "de, en"}, {"accept_language": "en, de"}, False),
        ({"accept_language": "de, en"}, {"accept_language": "de,, en"}, False),
        ({"accept_language": "de"}, {"accept_language": "DE"}, False),
        ({"cookie": "a=1,b"}, {"cookie": "a=1, b"}, False),
    ],
)
def test_selecting_fields_are_compared_as_their_definitions_allow(site, stored, asked, same):
    """RFC 9111 §4.1: absent differs from empty. Profile safe compares what applications see."""
    vary = "Foo, baz, Accept-Language, Cookie"
    site.app = lambda _: reply(cache_control="max-age=60", vary=vary)
    site.visit(request(**stored))
    assert site.visit(request(**asked)).hit is same


@pytest.mark.parametrize(("profile", "same"), [("safe", False), ("conforming", True)])
def test_lines_of_a_selecting_field_are_combined_in_profile_conforming(profile, same):
    """RFC 9111 §4.1. An application may read the first line alone."""
    site = Site(options={"profile": profile})
    site.app = lambda _: reply(cache_control="max-age=60", vary="Foo")
    site.visit(request(foo="1, 2"))
    lines = Headers([(b"Foo", b"1"), (b"foo", b"2")])
    assert site.visit(HTTPRequest("GET", "/page", lines, host="shop.test")).hit is same


@pytest.mark.parametrize(
    ("stored", "asked", "same"),
    [
        ({"accept_encoding": "gzip, br;q=1"}, {"accept_encoding": "BR; q=1,,GZIP"}, True),
        ({"accept": "text/html, a/b;v=A"}, {"accept": "a/b ;v=A,text/html"}, True),
        ({"accept": "a/b;v=A"}, {"accept": "a/b;v=a"}, False),
        ({"accept": 'a/b;v="a ; b"'}, {"accept": 'a/b;v="a;b"'}, False),
        ({"foo": "1, 2"}, {"foo": "1,2"}, False),
        ({"foo": "1"}, {"foo": "1,"}, False),
    ],
)
def test_profile_conforming_normalises_lists_and_no_other_fields(stored, asked, same):
    """RFC 9111 §4.1."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(cache_control="max-age=60", vary="Accept, Accept-Encoding, Foo")
    site.visit(request(**stored))
    assert site.visit(request(**asked)).hit is same


def test_the_order_of_languages_is_ignored_in_profile_conforming():
    """RFC 9111 §4.1; Django, for one, takes it for a preference."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(cache_control="max-age=60", vary="Accept-Language")
    site.visit(request(accept_language="de, en"))
    assert site.visit(request(accept_language="en, de")).hit


def test_a_response_without_vary_stands_beside_those_with(site):
    """RFC 9111 §4.1: neither replaces the other's."""
    site.app = lambda asked: (
        reply(b"plain", cache_control="max-age=60")
        if asked.headers.get("foo") == "0"
        else reply(b"foo", cache_control="max-age=60", vary="Foo")
    )
    site.visit(request(foo="1"))
    site.visit(request(foo="0"))
    assert site.visit(request(foo="0")).body == b"plain"
    assert site.visit(request(foo="0")).hit
    assert site.visit(request(foo="1")).body == b"foo"
    assert site.visit(request(foo="1")).hit


def test_another_process_finds_variants_with_one_more_read(site):
    """A wrong guess costs one read, once."""
    site.app = lambda _: reply(cache_control="max-age=60", vary="Foo", cache_tag="t")
    site.visit(request(foo="1"))
    other = site.another_process()
    assert other.visit(request(foo="1")).billed == ["MGET", "MGET"]
    assert other.visit(request(foo="1")).billed == ["MGET"]


def test_of_a_variant_and_a_later_response_without_vary_the_variant_is_chosen(site):
    """RFC 9111 §4.1: the latter may be a default that only forgot its Vary."""
    fields: dict[str, Any] = {"cache_control": "max-age=600"}
    site.app = lambda _: reply(b"varied", vary="Foo", **fields)
    site.visit(request(foo="1"))
    for key in [key for key in site.store.values if "#" not in key]:
        del site.store.values[key]  # its stub is gone, as after its own time
    site.clock.advance(1)
    other = site.another_process()
    other.app = lambda _: reply(b"default", **fields)
    other.visit(request(foo="2"))
    assert other.visit(request(foo="1")).body == b"default"
    assert site.visit(request(foo="1")).body == b"varied"
