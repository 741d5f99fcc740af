"""What a request costs at Upstash, counted on the wire once the process is warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.ratelimit import RateLimitRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Fields, Served
    from upstash_middleware.local import LocalUpstash

RULES = (CacheRule("/page/{id}", ttl=60, tags=("page:{id}",)),)
CACHE = ("CacheMiddleware", {"cache": RULES})


def limit(limits: str, **more: Any) -> tuple[str, Any]:
    return "RateLimitMiddleware", {"default_limit": limits, **more}


def page(request: Seen) -> Reply:
    if request.method == "POST":
        assert request.purge is not None
        urls, _, tags = request.body.decode().partition(" ")
        directories = [each for each in urls.split() if each.endswith("/")]
        rules = [each for each in urls.split() if each.endswith("}")]
        others = {*urls.split()} - {*directories, *rules}
        request.purge(*others, tags=tags.split(), directories=directories, rules=rules)
    if request.query == "vary":
        return Reply(b"page", headers=(("vary", "Accept-Language"),))
    return Reply(b"page")


class Meter:
    """Sends requests and tells what each cost: HTTP requests, and billed commands."""

    def __init__(self, served: Served, upstash: LocalUpstash) -> None:
        self._served = served
        self._upstash = upstash

    def cost(
        self, method: str, target: str, status: int = 200, headers: Fields = (), body: bytes = b""
    ) -> tuple[int, int]:
        self._upstash.reset_bill()
        answer: Answer = self._served.request(method, target, headers, body)
        assert answer.status == status
        bill = self._upstash.bill()
        return bill.requests, bill.commands


@pytest.mark.parametrize("count", [1, 3, 10])
def test_an_allowed_request_with_n_limits_takes_one_round_trip_and_2_and_n_commands(
    serve: Serve, upstash: LocalUpstash, count: int
):
    limits = "; ".join(f"1000/{10**number}s" for number in range(min(count, 6)))
    if count > 6:
        limits += "; " + "; ".join(f"1000/{3 * 10**number}s" for number in range(count - 6))
    meter = Meter(serve(page, limit(limits)), upstash)
    meter.cost("GET", "/other")
    for _ in range(2):
        requests, commands = meter.cost("GET", "/other")
        assert requests == 1
        assert commands <= 2 + count


@pytest.mark.parametrize("limits", ["fixed 9/hour", "sliding 9/hour", "gcra 9/hour"])
def test_an_allowed_request_with_one_limit_costs_three(
    serve: Serve, upstash: LocalUpstash, limits: str
):
    meter = Meter(serve(page, limit(limits)), upstash)
    meter.cost("GET", "/other")
    assert meter.cost("GET", "/other") == (1, 3)


def test_a_denied_request_costs_two_and_then_nothing_while_it_is_remembered(
    serve: Serve, upstash: LocalUpstash
):
    meter = Meter(serve(page, limit("2/hour")), upstash)
    for _ in range(2):
        meter.cost("GET", "/other")
    assert meter.cost("GET", "/other", 429) == (1, 2)
    assert meter.cost("GET", "/other", 429) == (0, 0)


def test_a_hit_takes_one_round_trip_and_one_command(serve: Serve, upstash: LocalUpstash):
    meter = Meter(serve(page, CACHE), upstash)
    meter.cost("GET", "/page/1")
    assert meter.cost("GET", "/page/1") == (1, 1)


def test_a_hit_of_a_variant_takes_one_round_trip_and_one_command(
    serve: Serve, upstash: LocalUpstash
):
    meter = Meter(serve(page, CACHE), upstash)
    for language in ("de", "en"):
        meter.cost("GET", "/page/1?vary", headers=(("accept-language", language),))
    for language in ("de", "en"):
        headers = (("accept-language", language),)
        assert meter.cost("GET", "/page/1?vary", headers=headers) == (1, 1)


def test_a_304_takes_one_round_trip_and_one_command(serve: Serve, upstash: LocalUpstash):
    served = serve(lambda _: Reply(b"page", headers=(("etag", '"1"'),)), CACHE)
    meter = Meter(served, upstash)
    meter.cost("GET", "/page/1")
    headers = (("if-none-match", '"1"'),)
    assert meter.cost("GET", "/page/1", 304, headers=headers) == (1, 1)


def test_a_miss_takes_two_round_trips_of_one_command_each(serve: Serve, upstash: LocalUpstash):
    meter = Meter(serve(page, CACHE), upstash)
    meter.cost("GET", "/page/1")
    assert meter.cost("GET", "/page/2") == (2, 2)


def test_a_miss_with_variants_stores_with_two(serve: Serve, upstash: LocalUpstash):
    meter = Meter(serve(page, CACHE), upstash)
    meter.cost("GET", "/page/1?vary", headers=(("accept-language", "de"),))
    requests, commands = meter.cost("GET", "/page/1?vary", headers=(("accept-language", "en"),))
    assert requests == 2
    assert commands <= 3


def test_what_is_not_stored_costs_the_lookup_alone(serve: Serve, upstash: LocalUpstash):
    served = serve(lambda _: Reply(b"", headers=(("cache-control", "no-store"),)), CACHE)
    meter = Meter(served, upstash)
    meter.cost("GET", "/page/1")
    assert meter.cost("GET", "/page/1") == (1, 1)


def test_a_request_that_nothing_covers_costs_nothing(serve: Serve, upstash: LocalUpstash):
    rules = [RateLimitRule("/limited", "9/hour")]
    layer = ("UpstashMiddleware", {"rate_limits": rules, "default_limit": None, "cache": RULES})
    meter = Meter(serve(page, layer), upstash)
    assert meter.cost("GET", "/other") == (0, 0)


JOINED = {
    "in one class": (("UpstashMiddleware", {"default_limit": "3/hour", "cache": RULES}),),
    "directly outside": (limit("3/hour"), CACHE),
}


@pytest.mark.parametrize("layers", JOINED.values(), ids=JOINED)
def test_a_limit_and_a_cache_take_one_round_trip_together(
    serve: Serve, upstash: LocalUpstash, layers: tuple[tuple[str, Any], ...]
):
    meter = Meter(serve(page, *layers), upstash)
    meter.cost("GET", "/page/1")
    assert meter.cost("GET", "/page/1") == (1, 4), "a hit: three for the limit and one"
    assert meter.cost("GET", "/page/2") == (2, 5), "a miss: one more to store"
    assert meter.cost("GET", "/page/1", 429) == (1, 3), "a denial: two, and the lookup"
    assert meter.cost("GET", "/page/1", 429) == (0, 0), "remembered: nobody is asked anything"


def test_a_cache_outside_a_limit_is_not_joined_and_its_hits_are_not_charged(
    serve: Serve, upstash: LocalUpstash
):
    meter = Meter(serve(page, CACHE, limit("2/hour")), upstash)
    meter.cost("GET", "/page/1")
    for _ in range(3):
        assert meter.cost("GET", "/page/1") == (1, 1)
    assert meter.cost("GET", "/page/2") == (3, 5), "look up, count, store"
    assert meter.cost("GET", "/page/3", 429) == (2, 3), "look up, deny"


@pytest.mark.parametrize(
    ("what", "commands"),
    [(b"/page/1", 1), (b" page:1", 2), (b"/page/", 1), (b"/page/{id}", 1)],
    ids=["a URL", "a tag", "a directory", "a rule"],
)
def test_a_purge_takes_one_round_trip(
    serve: Serve, upstash: LocalUpstash, what: bytes, commands: int
):
    cache = ("CacheMiddleware", {"cache": RULES, "purge_directories": True})
    meter = Meter(serve(page, cache), upstash)
    meter.cost("GET", "/page/1")
    assert meter.cost("GET", "/page/1") == (1, 1)
    assert meter.cost("POST", "/other", body=what) == (1, commands)


def test_a_hit_from_this_process_costs_nothing_and_a_limit_with_it_what_it_costs_alone(
    serve: Serve, upstash: LocalUpstash
):
    """``cache_l1_bytes``."""
    near = ("CacheMiddleware", {"cache": RULES, "cache_l1_bytes": 1_000_000})
    meter = Meter(serve(page, near), upstash)
    meter.cost("GET", "/page/7")
    assert meter.cost("GET", "/page/7") == (1, 1)
    assert meter.cost("GET", "/page/7") == (0, 0)
    meter = Meter(serve(page, limit("1000/hour"), near), upstash)
    meter.cost("GET", "/page/7")
    assert meter.cost("GET", "/page/7") == (1, 3)
