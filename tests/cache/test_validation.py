"""RFC 9111 §4.3: stored responses validated with the application, and freshened by its answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.messages import Headers, HTTPRequest, ResponseHead

MODIFIED = "Tue, 14 Nov 2023 20:00:00 GMT"
LATER = "Tue, 14 Nov 2023 21:00:00 GMT"


@pytest.fixture
def site() -> Site:
    """A site under the profile that does all that the RFC allows."""
    return Site(options={"profile": "conforming"})


def become_stale(site: Site, asked: HTTPRequest | None = None, **fields: Any) -> None:
    """Store a page that is fresh for two seconds, and let three pass."""
    fields = {"cache_control": "max-age=2"} | fields
    site.app = lambda _: reply(b"stored", **fields)
    site.visit(asked)
    site.clock.advance(3)


def sent(site: Site, name: str) -> list[str]:
    """Return the lines of a field as the application saw it."""
    assert site.forwarded is not None
    return site.forwarded.headers.lines(name)


def test_a_stale_response_is_validated_by_both_of_its_validators(site):
    """RFC 9111 §4.3.1."""
    become_stale(site, etag='"a"', last_modified=MODIFIED)
    site.visit()
    assert sent(site, "if-none-match") == ['"a"']
    assert sent(site, "if-modified-since") == [MODIFIED]


@pytest.mark.parametrize("etag", ['"a"', 'W/"a"'])
def test_a_304_confirms_the_stored_response_which_is_sent_and_stored_anew(site, etag):
    """RFC 9111 §4.3.3, §4.3.4."""
    become_stale(site, etag=etag, x="old", y="kept")
    site.app = lambda _: reply(b"", 304, etag=etag, cache_control="max-age=60", x="new")
    answer = site.visit()
    assert (answer.status, answer.body) == (200, b"stored")
    assert answer.headers.get("x") == "new"
    assert answer.headers.get("y") == "kept"
    assert answer.headers.get("age") == "0"
    assert answer.cache_status == "upstash-middleware; fwd=stale; fwd-status=304; ttl=60; stored"
    site.clock.advance(50)
    again = site.visit()
    assert (again.hit, again.body, again.headers.get("x")) == (True, b"stored", "new")


def test_a_304_replaces_every_line_of_the_fields_that_it_carries(site):
    """RFC 9111 §3.2; and leaves those of the connection out."""
    lines = [(b"etag", b'"a"'), (b"cache-control", b"max-age=2"), (b"x", b"1"), (b"X", b"2")]
    site.app = lambda _: (ResponseHead(200, Headers(lines)), b"stored")
    site.visit()
    site.clock.advance(3)
    site.app = lambda _: reply(b"", 304, etag='"a"', x="3", connection="y", y="1")
    answer = site.visit()
    assert answer.headers.lines("x") == ["3"]
    site.clock.advance(1)
    assert "y" not in site.visit().headers


@pytest.mark.parametrize("name", ["content_length", "content_encoding", "content_range"])
def test_a_304_does_not_change_how_the_stored_bytes_are_read(site, name):
    """RFC 9111 §3.2: never Content-Length, nor what would make the bytes mean something else."""
    stored = {"content_length": "6"}.get(name, "old")
    fields: dict[str, Any] = {name: stored}
    become_stale(site, etag='"a"', **fields)
    site.app = lambda _: reply(b"", 304, etag='"a"', **dict.fromkeys(fields, "0"))
    assert site.visit().headers.lines(name.replace("_", "-")) == [stored]


@pytest.mark.parametrize(
    ("profile", "kind"), [("safe", "application/json"), ("conforming", "text/html")]
)
def test_a_304_updates_the_content_type_in_profile_conforming_alone(profile, kind):
    """RFC 9111 §3.2; but frameworks put their default on each 304."""
    site = Site(options={"profile": profile})
    become_stale(site, etag='"a"', content_type="application/json")
    site.app = lambda _: reply(b"", 304, etag='"a"', content_type="text/html")
    assert site.visit().headers.lines("content-type") == [kind]


def test_a_304_without_a_date_was_made_when_it_was_received(site):
    """RFC 9110 §6.6.1: the stored Date would make it stale at once."""
    become_stale(site, etag='"a"', date="Tue, 14 Nov 2023 22:13:20 GMT")
    site.clock.advance(100)
    site.app = lambda _: reply(b"", 304, etag='"a"', cache_control="max-age=60")
    assert site.visit().headers.get("date") == "Tue, 14 Nov 2023 22:15:03 GMT"
    assert site.visit().hit


def test_a_304_that_forbids_storing_is_answered_and_not_stored(site):
    """RFC 9111 §3."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"", 304, etag='"a"', cache_control="no-store")
    answer = site.visit()
    assert (answer.status, answer.body) == (200, b"stored")
    assert not site.visit().hit


def test_a_304_with_another_strong_validator_updates_nothing(site):
    """RFC 9111 §4.3.4: it identifies no stored response."""
    become_stale(site, etag='"a"', x="old")
    site.app = lambda _: reply(b"", 304, etag='"b"', cache_control="max-age=60", x="new")
    answer = site.visit()
    assert (answer.status, answer.body, answer.headers.get("x")) == (200, b"stored", "old")
    assert not site.visit().hit


def test_a_304_without_validators_answers_the_only_condition_there_was(site):
    """RFC 9111 §4.3.4."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"", 304, cache_control="max-age=60")
    assert site.visit().body == b"stored"
    assert site.visit().hit


def test_a_new_response_replaces_the_stored_one(site):
    """RFC 9111 §4.3.3: one that is not a 304 is used in its place."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"new", etag='"b"', cache_control="max-age=60", content_length="3")
    answer = site.visit()
    assert answer.body == b"new"
    assert answer.cache_status == "upstash-middleware; fwd=stale; stored"
    assert site.visit().body == b"new"


def test_an_error_is_sent_as_it_is_and_leaves_the_stored_response_for_another_time(site):
    """RFC 9111 §4.3.3."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"broken", 503)
    assert site.visit().body == b"broken"
    site.app = lambda _: reply(b"", 304, etag='"a"')
    assert site.visit().body == b"stored"


@pytest.mark.parametrize(
    ("own", "status", "body"), [('"a"', 304, b""), ('"b"', 200, b"stored"), ("*", 304, b"")]
)
def test_a_clients_own_condition_is_weighed_once_the_stored_response_is_confirmed(
    site, own, status, body
):
    """RFC 9111 §4.3.2, §4.3.3."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"", 304, etag='"a"')
    answer = site.visit(request(if_none_match=own))
    assert (answer.status, answer.body) == (status, body)
    assert sent(site, "if-none-match") == ["*" if own == "*" else f'{own}, "a"']


def test_a_304_to_the_clients_own_condition_is_passed_on(site):
    """RFC 9111 §4.3.3: it knows a representation that the cache does not."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"", 304, etag='"b"')
    answer = site.visit(request(if_none_match='"b"'))
    assert (answer.status, answer.headers.get("etag")) == (304, '"b"')


@pytest.mark.parametrize(("since", "status"), [(MODIFIED, 304), (LATER, 304), ("x", 200)])
def test_a_clients_date_is_replaced_by_the_stored_one(site, since, status):
    """RFC 9111 §4.3.1."""
    become_stale(site, last_modified=MODIFIED)
    site.app = lambda _: reply(b"", 304, last_modified=MODIFIED)
    assert site.visit(request(if_modified_since=since)).status == status
    assert sent(site, "if-modified-since") == [MODIFIED]


def test_conditions_are_forwarded_where_nothing_is_stored(site):
    """RFC 9111 §4.3.2: its answer passes, and is no page to store."""
    site.app = lambda _: reply(b"", 304, etag='"a"', cache_control="max-age=60")
    assert site.visit(request(if_none_match='"a"')).status == 304
    assert sent(site, "if-none-match") == ['"a"']
    assert not site.visit().hit


def test_only_the_variant_that_is_asked_for_is_validated(site):
    """RFC 9111 §4.3.1: with the selecting fields of the request itself."""
    site.app = lambda asked: reply(
        (asked.headers.get("foo") or "").encode(),
        cache_control="max-age=2",
        vary="Foo",
        etag=f'"{asked.headers.get("foo")}"',
    )
    site.visit(request(foo="1"))
    site.visit(request(foo="2"))
    site.clock.advance(3)
    site.app = lambda _: reply(b"", 304, etag='"2"', cache_control="max-age=60")
    assert site.visit(request(foo="2")).body == b"2"
    assert sent(site, "foo") == ["2"]
    assert sent(site, "if-none-match") == ['"2"']
    assert site.visit(request(foo="2")).hit


@pytest.mark.parametrize("control", ["no-cache", "max-age=60, No-Cache", "max-age=0"])
def test_what_is_never_fresh_is_stored_to_be_validated(site, control):
    """RFC 9111 §5.2.2.4, in profile conforming."""
    site.app = lambda _: reply(cache_control=control, etag='"a"')
    site.visit()
    site.app = lambda _: reply(b"", 304, etag='"a"')
    answer = site.visit()
    assert (answer.hit, answer.body) == (False, b"page")
    assert sent(site, "if-none-match") == ['"a"']


def test_profile_safe_stores_nothing_for_its_validator_alone():
    """It would cost a command for every response."""
    site = Site()
    site.app = lambda _: reply(cache_control="no-cache", etag='"a"')
    assert site.visit().round_trips == 1


def test_a_softly_purged_response_is_validated(site):
    """And lives again when it is confirmed."""
    site.app = lambda _: reply(cache_control="max-age=60", etag='"a"')
    site.visit()
    site.purge("/page", soft=True)
    site.app = lambda _: reply(b"", 304, etag='"a"')
    assert "fwd=stale" in site.visit().cache_status
    assert site.visit().hit


@pytest.mark.parametrize("length", [None, "6"])
def test_the_200_to_a_head_request_updates_the_stored_get(site, length):
    """RFC 9111 §4.3.5."""
    become_stale(site, etag='"a"', x="old", y="kept")
    more = {"content_length": length} if length else {}
    site.app = lambda _: reply(b"", etag='"a"', cache_control="max-age=60", x="new", **more)
    assert not site.visit(request(method="HEAD")).hit
    answer = site.visit()
    assert (answer.hit, answer.body) == (True, b"stored")
    assert (answer.headers.get("x"), answer.headers.get("y")) == ("new", "kept")


@pytest.mark.parametrize(
    "fields", [{"etag": '"b"'}, {"content_length": "7"}, {"last_modified": LATER}, {"status": 410}]
)
def test_a_head_response_that_describes_something_else_updates_nothing(site, fields):
    """RFC 9111 §4.3.5."""
    become_stale(site, etag='"a"', last_modified=MODIFIED, x="old")
    site.app = lambda _: reply(b"", **{"cache_control": "max-age=60", "x": "new"} | fields)
    site.visit(request(method="HEAD"))
    assert not site.visit().hit


def test_a_head_request_is_confirmed_by_a_304_too(site):
    """RFC 9111 §4.3.3: and answered without a body."""
    become_stale(site, etag='"a"')
    site.app = lambda _: reply(b"", 304, etag='"a"', cache_control="max-age=60")
    answer = site.visit(request(method="HEAD"))
    assert (answer.status, answer.body) == (200, b"")
    assert site.visit().body == b"stored"


def test_a_damaged_stored_response_is_not_validated(site):
    """A 304 could not be followed by its body."""

    become_stale(site, etag='"a"')
    for key, (value, until) in site.store.values.items():
        site.store.values[key] = (value[:-1], until)
    site.visit()
    assert sent(site, "if-none-match") == []


def test_the_epochs_of_the_lookup_are_recorded_with_what_was_confirmed(site):
    """A purge while the application confirms is not outlived."""
    become_stale(site, etag='"a"')
    exchange = site.begin(request())
    exchange.head(reply(b"", 304, etag='"a"', cache_control="max-age=60")[0])
    site.purge("/page")
    site.finish(exchange)
    assert not site.visit().hit


@pytest.mark.parametrize(
    "told",
    [reply(b"", etag='"b"'), reply(b"", content_length="7"), reply(b"", 404), reply(b"", 410)],
)
def test_a_head_that_contradicts_a_fresh_get_makes_that_stale(told):
    """RFC 9111 §4.3.5."""
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(b"stored", cache_control="max-age=60", etag='"a"')
    site.visit()
    site.app = lambda _: told
    site.visit(request(method="HEAD", cache_control="no-cache"))
    site.app = lambda _: reply(b"new", cache_control="max-age=60")
    assert site.visit().body == b"new"
    assert site.forwarded is not None
    assert site.forwarded.headers.get("if-none-match") == '"a"', "it is stale, not gone"


@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_head_that_fails_leaves_a_fresh_get(status):
    site = Site(options={"profile": "conforming"})
    site.app = lambda _: reply(b"stored", cache_control="max-age=60", etag='"a"')
    site.visit()
    site.app = lambda _: reply(b"", status)
    site.visit(request(method="HEAD", cache_control="no-cache"))
    assert site.visit().hit
