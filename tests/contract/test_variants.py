"""RFC 9111 §4.1: a resource has so many variants at most, those that were used last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from tests.contract.neutral import Reply, Seen
from tests.patience import ONE_AUTHORITY
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served
    from upstash_middleware.local import LocalUpstash

RULES = [CacheRule("/{page}", ttl=60)]


class ByLanguage:
    """A handler whose page is in the language that is asked for."""

    def __init__(self) -> None:
        self.renders: list[str] = []

    def __call__(self, seen: Seen) -> Reply:
        language = seen.header("accept-language") or ""
        self.renders.append(language)
        fields = (("content-type", "text/plain"), ("vary", "Accept-Language"))
        return Reply(language.encode(), headers=fields)


def layer(count: int) -> tuple[str, dict[str, object]]:
    return "CacheMiddleware", {"cache": RULES, "cache_max_variants": count}


def ask(site: Served, language: str) -> str:
    """Ask in a language; return what Cache-Status says."""
    answer = site.request("GET", "/tea", (("accept-language", language),))
    assert answer.body == language.encode()
    return (answer.header("cache-status") or "").partition("; ")[2].partition("; ttl")[0]


def test_the_least_recently_used_variant_makes_room_for_another(serve: Serve):
    page = ByLanguage()
    site = serve(page, layer(2))
    assert [ask(site, language) for language in ("de", "en", "de")] == [
        "fwd=uri-miss; stored",
        "fwd=vary-miss; stored",
        "hit",
    ]
    assert ask(site, "fr") == "fwd=vary-miss; stored"
    assert [ask(site, language) for language in ("fr", "de")] == ["hit", "hit"]
    assert ask(site, "en") == "fwd=vary-miss; stored"
    assert [ask(site, language) for language in ("en", "de")] == ["hit", "hit"]
    assert ask(site, "fr") == "fwd=vary-miss; stored"
    assert page.renders == ["de", "en", "fr", "en", "fr"]


def test_what_is_said_to_be_stored_is_there_and_costs_what_any_variant_costs(
    serve: Serve, upstash: LocalUpstash
):
    """The budget: look up, and two commands to store."""
    site = serve(ByLanguage(), layer(3))
    for number in range(40):
        upstash.reset_bill()
        assert ask(site, f"x-{number}").endswith("; stored")
        bill = upstash.bill()
        assert bill.requests == 2
        assert bill.commands <= 3
        upstash.reset_bill()
        assert ask(site, f"x-{number}") == "hit"
        assert upstash.bill().commands == 1


def test_random_fields_cannot_fill_the_database(serve: Serve, upstash: LocalUpstash):
    """In each of two processes, which do not know of each other."""
    one, other = serve(ByLanguage(), layer(5)), serve(ByLanguage(), layer(5))
    for number in range(60):
        ask(one, f"x-{number}")
        ask(other, f"y-{number}")
    assert count_of_keys(upstash) <= 2 * 5 + 1 + 3


def count_of_keys(upstash: LocalUpstash) -> int:
    headers = {"authorization": f"Bearer {upstash.token}"}
    answer = httpx.post(
        upstash.url, json=["DBSIZE"], headers=headers, trust_env=False, verify=ONE_AUTHORITY
    )
    return int(answer.json()["result"])


def test_a_lower_maximum_is_reached_at_once(serve: Serve, upstash: LocalUpstash):
    """By one command."""
    before = serve(ByLanguage(), layer(30))
    for number in range(30):
        ask(before, f"x-{number}")
    after = serve(ByLanguage(), layer(3))
    assert ask(after, "de") == "fwd=vary-miss; stored"
    assert count_of_keys(upstash) <= 3 + 1
    assert ask(after, "de") == "hit"
