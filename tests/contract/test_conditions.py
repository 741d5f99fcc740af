"""A conditional request that misses fills the cache; its conditions are evaluated by the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from typing import Any

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Fields

PIECES = [b"first ", b"second"]
BODY = b"".join(PIECES)
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"


class Page:
    """An application that answers conditional requests itself, and remembers the requests."""

    def __init__(self, *fields: tuple[str, str], streams: bool = False) -> None:
        self.fields: Fields = (
            ("content-type", "text/plain"),
            ("etag", '"v1"'),
            ("last-modified", MODIFIED),
            *fields,
        )
        self.streams = streams
        self.conditions: list[str | None] = []

    def __call__(self, seen: Seen) -> Reply:
        self.conditions.append(seen.header("if-none-match") or seen.header("if-modified-since"))
        if seen.header("if-none-match") == '"v1"' or seen.header("if-modified-since") == LATER:
            return Reply(b"", 304, self.fields)
        return Reply(iter(PIECES) if self.streams else BODY, headers=self.fields)


def caching(**settings: Any) -> tuple[str, dict[str, Any]]:
    return "UpstashMiddleware", {"cache": [CacheRule("/page", ttl=60)], **settings}


def status(answer: Answer) -> str:
    return answer.header("cache-status") or ""


def was_hit(answer: Answer) -> bool:
    return "; hit" in status(answer)


@pytest.mark.parametrize("first", [True, False], ids=["stored first", "stored after"])
@pytest.mark.parametrize("streams", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "condition",
    [
        ("if-none-match", '"v1"'),
        ("if-none-match", 'W/"v1", "v0"'),
        ("if-none-match", "*"),
        ("if-modified-since", MODIFIED),
        ("if-modified-since", LATER),
    ],
)
def test_a_client_that_has_the_page_gets_a_304_and_the_page_is_stored(
    serve: Serve, condition: tuple[str, str], *, streams: bool, first: bool
):
    """RFC 9111 §4.3.2, and RFC 9211 §2.3: the application was asked for all of it."""
    length = [("content-length", str(len(BODY)))] if streams else []  # else frameworks add it
    page = Page(*length, streams=streams)
    served = serve(page, caching(cache_store_first=first))
    answer = served.request("GET", "/page", (condition,))
    assert (answer.status, answer.body) == (304, b"")
    assert "fwd=uri-miss; fwd-status=200" in status(answer)
    assert answer.header("etag") == '"v1"'
    assert answer.header("content-type") is None
    assert answer.header("content-length") is None
    assert page.conditions == [None]
    hit = served.request("GET", "/page")
    assert (was_hit(hit), hit.body) == (True, BODY)
    again = served.request("GET", "/page", (condition,))
    assert (was_hit(again), again.status, again.body) == (True, 304, b"")


def test_a_page_that_streams_is_sent_to_a_client_that_has_it_and_is_stored(serve: Serve):
    """It may have no end, and a 304 would come after it."""
    served = serve(Page(streams=True), caching())
    condition = (("if-none-match", '"v1"'),)
    answer = served.request("GET", "/page", condition)
    assert (answer.status, answer.body) == (200, BODY)
    assert served.request("GET", "/page", condition).status == 304


@pytest.mark.parametrize("condition", [("if-none-match", '"v0"'), ("if-modified-since", EARLIER)])
def test_a_client_that_has_another_page_gets_this_one(serve: Serve, condition: tuple[str, str]):
    served = serve(Page(), caching())
    answer = served.request("GET", "/page", (condition,))
    assert (answer.status, answer.body) == (200, BODY)
    assert was_hit(served.request("GET", "/page"))


def test_what_may_not_be_stored_has_its_condition_evaluated_all_the_same(serve: Serve):
    """The application could not do so."""
    served = serve(Page(("cache-control", "no-store")), caching())
    answer = served.request("GET", "/page", (("if-none-match", '"v1"'),))
    assert (answer.status, answer.body) == (304, b"")
    assert 'detail="no-store"' in status(answer)
    assert not was_hit(served.request("GET", "/page"))


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ((("authorization", "Bearer ada"),), {}),
        ((("cookie", "session=ada"),), {}),
        ((("cache-control", "no-store"),), {}),
        ((), {"cache_profile": "conforming"}),
        ((), {"cache": [CacheRule("/page")]}),
    ],
    ids=["authorization", "cookie", "no-store", "conforming", "no ttl"],
)
def test_where_no_response_is_to_be_stored_the_application_evaluates_conditions(
    serve: Serve, fields: Fields, settings: dict[str, Any]
):
    """RFC 9111 §4.3.2."""
    page = Page()
    served = serve(page, caching(**settings))
    answer = served.request("GET", "/page", (*fields, ("if-none-match", '"v1"')))
    assert (answer.status, answer.body) == (304, b"")
    assert page.conditions == ['"v1"']


def test_a_304_that_states_its_freshness_has_the_next_request_ask_for_the_page(serve: Serve):
    """Without a ttl nothing else tells that the page may be stored."""
    page = Page(("cache-control", "max-age=60"))
    served = serve(page, caching(cache=[CacheRule("/page")]))
    condition = (("if-none-match", '"v1"'),)
    answers = [served.request("GET", "/page", condition) for _ in range(3)]
    assert [answer.status for answer in answers] == [304, 304, 304]
    assert page.conditions == ['"v1"', None]
    assert was_hit(answers[2])


def test_head_keeps_its_conditions(serve: Serve):
    """Its response is not stored."""
    page = Page()
    served = serve(page, caching())
    assert served.request("HEAD", "/page", (("if-none-match", '"v1"'),)).status == 304
    assert page.conditions == ['"v1"']


def test_an_application_that_answers_304_nevertheless_is_believed(serve: Serve):
    served = serve(lambda _: Reply(b"", 304, (("etag", '"v1"'),)), caching())
    answer = served.request("GET", "/page", (("if-none-match", '"v1"'),))
    assert (answer.status, answer.body) == (304, b"")


def test_a_304_without_validators_confirms_nothing_where_the_client_had_a_condition(
    serve: Serve, upstash: Any
):
    """RFC 9111 §4.3.4: it may have been the client's condition that was met."""
    bodies = iter([b"old", b"new"])

    def page(seen: Seen) -> Reply:
        if "*" in (seen.header("if-none-match") or ""):
            return Reply(b"", 304)
        return Reply(next(bodies), headers=(("etag", '"v1"'),))

    served = serve(page, caching())
    served.request("GET", "/page")
    upstash.advance(61)
    assert served.request("GET", "/page", (("if-none-match", "*"),)).status == 304
    assert served.request("GET", "/page").body == b"new"
