"""Purging over HTTP: off by default, for whoever knows the token, alike in every framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply
from upstash_middleware import RateLimitRule
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Served
    from upstash_middleware.local import LocalUpstash

TOKEN = "a token that is long enough"
RULES = [{"path": "/p/{id}", "ttl": 60, "tags": ["product:{id}"]}]
CACHE: dict[str, Any] = {
    "cache": RULES,
    "purge_directories": True,
    "purge_path": "/purge",
    "purge_token": TOKEN,
}


def served_pages(serve: Serve, **arguments: Any) -> Served:
    """Serve an application whose two pages are stored."""
    served = serve(lambda _: Reply(b"page"), ("CacheMiddleware", {**CACHE, **arguments}))
    for path in ("/p/1", "/p/2"):
        served.request("GET", path)
        assert is_hit(served, path)
    return served


def is_hit(served: Served, path: str) -> bool:
    return "; hit" in (served.request("GET", path).header("cache-status") or "")


def purge(served: Served, query: str, token: str = TOKEN, method: str = "POST") -> Answer:
    target = f"/purge?{query}"
    return served.request(method, target, headers=(("authorization", f"Bearer {token}"),))


@pytest.mark.parametrize("query", ["url=/p/1", "tag=product:1", "url=%2Fp%2F1&tag=absent"])
def test_a_url_or_a_tag_is_purged_and_nothing_else(serve: Serve, query: str):
    served = served_pages(serve)
    answer = purge(served, query)
    assert (answer.status, answer.header("cache-control")) == (200, "no-store")
    assert not is_hit(served, "/p/1")
    assert is_hit(served, "/p/2")


@pytest.mark.parametrize(
    "query", ["everything=1", "everything=yes", "directory=/p/", "rule=/p/{id}"]
)
def test_everything_and_all_of_a_directory_or_rule_is_purged(serve: Serve, query: str):
    served = served_pages(serve)
    assert purge(served, query).status == 200
    assert not is_hit(served, "/p/1")
    assert not is_hit(served, "/p/2")


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_the_token_nothing_is_purged(serve: Serve, token: str, upstash: LocalUpstash):
    served = served_pages(serve)
    upstash.reset_bill()
    answer = purge(served, "everything=1", token)
    assert (answer.status, answer.header("www-authenticate")) == (401, "Bearer")
    assert upstash.bill().requests == 0
    assert is_hit(served, "/p/1")


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("", b"Nothing to purge"),
        ("tags=a", b"Unknown parameter 'tags'"),
        ("url=", b"is empty"),
        ("everything=ja&url=/p/1", b"The parameter 'everything' is 'ja'; it should be 1 or 0."),
        ("soft=2&url=/p/1", b"The parameter 'soft' is '2'; it should be 1 or 0."),
        ("everything=no", b"Nothing to purge"),
        ("directory=/p", b"write '/p/'"),
        ("rule=/q", b"no rule of the cache has this path"),
    ],
)
def test_what_is_wrong_with_a_purge_is_said(serve: Serve, query: str, detail: bytes):
    answer = purge(serve(lambda _: Reply(b""), ("CacheMiddleware", CACHE)), query)
    assert answer.status == 400
    assert detail in answer.body


def test_only_post_purges(serve: Serve):
    served = served_pages(serve)
    answer = purge(served, "everything=1", method="GET")
    assert (answer.status, answer.header("allow")) == (405, "POST")
    assert is_hit(served, "/p/1")


def test_behind_a_limit_that_joins_the_cache_it_works_and_is_counted(serve: Serve):
    limit = {"default_limit": "1/hour"}
    served = serve(
        lambda _: Reply(b"page"), ("RateLimitMiddleware", limit), ("CacheMiddleware", CACHE)
    )
    assert [purge(served, "everything=1").status for _ in range(2)] == [200, 429]


def test_the_limits_of_both_in_one_count_guesses_at_the_token(serve: Serve):
    given = {**CACHE, "rate_limits": [RateLimitRule("/purge", "3/hour")]}
    given["default_limit"] = None
    served = serve(lambda _: Reply(b"page"), ("UpstashMiddleware", given))
    served.request("GET", "/page")
    statuses = [
        purge(served, "everything=1", token).status for token in ("a" * 32, TOKEN, TOKEN, TOKEN)
    ]
    assert statuses == [401, 200, 200, 429]


def test_it_is_off_by_default(serve: Serve):
    served = serve(lambda _: Reply(b"the application's"), ("CacheMiddleware", {"cache": RULES}))
    assert purge(served, "everything=1").body == b"the application's"


def test_when_upstash_cannot_be_told_that_is_said(serve: Serve, upstash_faults: Any):
    served = served_pages(serve, cache_deadline=0.3)
    upstash_faults(fault="bad-gateway")
    assert purge(served, "everything=1").status == 503


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"purge_path": "/purge"}, "purge_token"),
        ({"purge_token": TOKEN}, "purge_path"),
        ({"purge_path": "purge", "purge_token": TOKEN}, "'purge' should be a path"),
        ({"purge_path": "/purge", "purge_token": "short"}, "16 characters"),
    ],
)
def test_a_wrong_setting_is_named_and_no_token_repeated(arguments: Any, problem: str):
    with pytest.raises(ConfigurationError, match=problem) as caught:
        settings_from(arguments, {})
    assert TOKEN not in str(caught.value)
    assert "short" not in str(caught.value)
