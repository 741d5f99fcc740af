"""RFC 9875: a response to an unsafe request invalidates the groups that it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served
    from upstash_middleware.local import LocalUpstash

RULES = [CacheRule("/scripts/{name}", ttl=60)]
CACHE = ("CacheMiddleware", {"cache": RULES})


def scripts(request: Seen) -> Reply:
    """Answer with a page in a group of its name, and of all; a POST invalidates what it says."""
    if request.method == "POST":
        return Reply(b"", 204, (("cache-group-invalidation", request.body.decode()),))
    name = request.path.rpartition("/")[2]
    return Reply(b"page", headers=(("cache-groups", f'"{name}", "all"'),))


def hits(served: Served, *names: str) -> list[bool]:
    answers = [served.request("GET", f"/scripts/{name}") for name in names]
    return ["; hit" in (answer.header("cache-status") or "") for answer in answers]


@pytest.mark.parametrize(
    ("named", "left"),
    [
        (b'"a"', [False, True]),
        (b'"a", "b"', [False, False]),
        (b'"all"', [False, False]),
        (b'"c"', [True, True]),
        (b'"A"', [True, True]),
        (b"a", [True, True]),
    ],
)
def test_an_unsafe_request_invalidates_the_groups_that_its_response_names(
    serve: Serve, named: bytes, left: list[bool]
):
    served = serve(scripts, CACHE)
    hits(served, "a", "b")
    assert hits(served, "a", "b") == [True, True]
    served.request("POST", "/edit", body=named)
    assert hits(served, "a", "b") == left


def test_the_groups_of_another_host_stay(serve: Serve):
    served = serve(scripts, CACHE)
    hits(served, "a")
    served.request("POST", "/edit", body=b'"a"', host="other.example")
    assert hits(served, "a") == [True]


def test_an_invalidation_takes_one_round_trip_with_that_of_the_url(
    serve: Serve, upstash: LocalUpstash
):
    served = serve(scripts, CACHE)
    hits(served, "a", "b")
    upstash.reset_bill()
    served.request("POST", "/scripts/a", body=b'"b", "c"')
    bill = upstash.bill()
    assert (bill.requests, bill.commands) == (1, 4)
    assert hits(served, "a", "b") == [False, False]


def test_a_setting_ignores_both_fields(serve: Serve):
    served = serve(scripts, ("CacheMiddleware", {"cache": RULES, "cache_groups": False}))
    hits(served, "a")
    served.request("POST", "/edit", body=b'"a"')
    assert hits(served, "a") == [True]
