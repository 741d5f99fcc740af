"""RFC 9111 §4: who asks for the same page at the same time shares one render."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from upstash_middleware.local import LocalUpstash

RULES = [CacheRule("/{page}", ttl=60)]


class Slow:
    """A handler that takes a while, and counts."""

    def __init__(self) -> None:
        self.renders = 0

    def __call__(self, seen: Seen) -> Reply:
        del seen
        self.renders += 1
        time.sleep(0.2)
        return Reply(b"page")


@pytest.mark.parametrize("lock", [False, True])
def test_requests_at_the_same_time_share_one_render(serve: Serve, lock: bool):
    """However their threads and tasks meet."""
    page = Slow()
    site = serve(
        page, ("CacheMiddleware", {"cache": RULES, "cache_lock": lock, "cache_collapse": 50})
    )
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: site.request("GET", "/tea"), range(8)))
    assert [answer.body for answer in answers] == [b"page"] * 8
    assert page.renders == 1


def test_a_miss_under_a_lock_costs_one_round_trip_and_one_command_more(
    serve: Serve, upstash: LocalUpstash
):
    """The budget: look up, lock, store; a hit costs what it costs without."""
    site = serve(
        lambda _: Reply(b"page"), ("CacheMiddleware", {"cache": RULES, "cache_lock": True})
    )
    site.request("GET", "/coffee")
    for expected in ((3, 3), (1, 1)):
        upstash.reset_bill()
        site.request("GET", "/tea")
        bill = upstash.bill()
        assert (bill.requests, bill.commands) == expected
