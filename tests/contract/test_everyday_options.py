"""Options of cache rules for every day, the same in every framework."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Answer, Fields, Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.conftest import Serve
    from upstash_middleware.local import LocalUpstash


def counting(*fields: tuple[str, str], status: int = 200) -> Callable[[Seen], Reply]:
    """Return a handler whose body tells how often it was called."""
    numbers = itertools.count(1)
    return lambda _: Reply(b"%d" % next(numbers), status, (("content-type", "text/plain"), *fields))


def cache(**fields: Any) -> tuple[str, Any]:
    return "CacheMiddleware", {"cache": [{"path": "/{name}", **fields}]}


def status_of(answer: Answer) -> str:
    return answer.header("cache-status") or ""


def was_hit(answer: Answer) -> bool:
    return "; hit" in status_of(answer)


# --- bypass as text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bypass", "target", "fields"),
    [
        ("cookie:sessionid", "/page", (("cookie", "a=1; sessionid=2"),)),
        ("cookie:sessionid", "/page", (("cookie", "sessionid="),)),
        ("header:Authorization", "/page", (("authorization", "Bearer 1"),)),
        ("query:preview", "/page?a=1&preview=yes", ()),
        ("query:preview", "/page?previe%77", ()),
        (["query:preview", "cookie:sessionid"], "/page", (("cookie", "sessionid=2"),)),
    ],
)
def test_what_a_rule_names_bypasses_the_cache(
    serve: Serve, bypass: Any, target: str, fields: Fields
):
    served = serve(counting(), cache(ttl=60, bypass=bypass))
    served.request("GET", "/page")
    answer = served.request("GET", target, fields)
    assert answer.body == b"2"
    named = bypass if isinstance(bypass, str) else bypass[1]
    assert f'fwd=bypass; detail="bypass of the rule: {named.lower()}"' in status_of(answer)
    assert served.request("GET", target, fields).body == b"3"
    assert was_hit(served.request("GET", "/page"))


def test_what_a_rule_does_not_name_is_answered_from_the_cache(serve: Serve):
    served = serve(counting(), cache(ttl=60, bypass=["cookie:sessionid", "query:preview"]))
    for target, fields in (
        ("/page", (("cookie", "sessionid2=1"),)),
        ("/page", (("x-sessionid", "1"),)),
        ("/page?a=preview", ()),
    ):
        served.request("GET", target)
        assert was_hit(served.request("GET", target, fields))


# --- ttl by status, and how many errors are stored ------------------------------------------------


def test_a_ttl_by_status_is_for_those_statuses(serve: Serve, upstash: LocalUpstash):
    """The keys may be text, as in TOML."""

    def handler(request: Seen) -> Reply:
        return Reply(b"page", int(request.path[1:]))

    served = serve(handler, cache(ttl={200: 60, "404": 5}))
    for path in ("/200", "/404", "/301", "/410"):
        served.request("GET", path)
    hits = [was_hit(served.request("GET", path)) for path in ("/200", "/404", "/301", "/410")]
    assert hits == [True, True, False, False]
    upstash.advance(6)
    assert [was_hit(served.request("GET", path)) for path in ("/200", "/404")] == [True, False]


def test_random_paths_cause_few_writes(serve: Serve, upstash: LocalUpstash):
    """A bound for each rule, process and minute; pages that exist are stored beyond it."""

    def handler(request: Seen) -> Reply:
        return Reply(b"page", 200 if request.path == "/there" else 404)

    served = serve(handler, cache(ttl={200: 60, 404: 5}, errors_per_minute=3))
    answers = [served.request("GET", f"/{number}") for number in range(6)]
    assert ["stored" in status_of(answer) for answer in answers[:3]] == [True] * 3
    refused = 'fwd=uri-miss; detail="3 errors of its rule were stored this minute"'
    assert [refused in status_of(answer) for answer in answers] == [False] * 3 + [True] * 3
    upstash.reset_bill()
    served.request("GET", "/7")
    assert upstash.bill().commands == 1, "the lookup, and no write"
    served.request("GET", "/there")
    assert was_hit(served.request("GET", "/there"))
    upstash.advance(60)
    assert "stored" in status_of(served.request("GET", "/8"))


def test_sixty_errors_are_stored_in_a_minute_unless_the_rule_says_otherwise(serve: Serve):
    served = serve(lambda _: Reply(b"", 410), cache(ttl={410: 5}))
    answers = [served.request("GET", f"/{number}") for number in range(62)]
    assert ["detail" in status_of(answer) for answer in answers] == [False] * 60 + [True] * 2


# --- max_body -------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "streamed"])
def test_a_rule_may_store_larger_or_only_smaller_bodies_than_the_others(
    serve: Serve, announced: bool
):
    def handler(request: Seen) -> Reply:
        body = b"x" * 100
        return Reply(body if announced else iter([body[:50], body[50:]]))

    rules = [
        CacheRule("/small", ttl=60, max_body=99),
        CacheRule("/exact", ttl=60, max_body=100),
        CacheRule("/other", ttl=60),
    ]
    served = serve(handler, ("CacheMiddleware", {"cache": rules, "cache_max_body": 99}))
    for path, hit in (("/small", False), ("/exact", True), ("/other", False)):
        first, second = served.request("GET", path), served.request("GET", path)
        assert was_hit(second) is hit
        assert first.body == second.body == b"x" * 100
    if announced:
        assert 'detail="body above 99 bytes"' in status_of(served.request("GET", "/small"))
