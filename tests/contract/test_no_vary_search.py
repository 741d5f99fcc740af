"""No-Vary-Search: a stored response answers every URL that its field says is equivalent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Handler, Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Served
    from upstash_middleware.local import LocalUpstash

CACHE = ("CacheMiddleware", {"cache": [CacheRule("/shop/{page}", ttl=60)]})


def shop(
    field: str | None = 'key-order, params=("utm")', purged: str = "/shop/tea?utm=1&a=1"
) -> Handler:
    def handler(request: Seen) -> Reply:
        if request.path == "/edit":
            assert request.purge is not None
            request.purge(purged)
            return Reply(b"", 204, ())
        fields = () if field is None else (("no-vary-search", field),)
        return Reply(request.query.encode(), headers=fields)

    return handler


def body(served: Served, query: str) -> str:
    return served.request("GET", f"/shop/tea?{query}").body.decode()


@pytest.mark.parametrize(
    ("field", "equal"),
    [('key-order, params=("utm")', True), ('params, except=("a" "b")', False), (None, False)],
)
def test_equivalent_urls_share_a_response(serve: Serve, field: str | None, *, equal: bool):
    served = serve(shop(field), CACHE)
    assert body(served, "utm=1&b=2&a=1") == "utm=1&b=2&a=1"
    other = body(served, "a=1&b=2&utm=2")
    assert (other == "utm=1&b=2&a=1") is equal
    assert body(served, "a=2&b=2") == "a=2&b=2"


def test_a_hit_by_another_url_takes_one_round_trip_and_one_command(
    serve: Serve, upstash: LocalUpstash
):
    served = serve(shop(), CACHE)
    body(served, "a=1&utm=1")
    for query in ("a=1&utm=2", "utm=3&a=1", "a=1"):
        upstash.reset_bill()
        assert body(served, query) == "a=1&utm=1"
        bill = upstash.bill()
        assert (bill.requests, bill.commands) == (1, 1)


def test_without_the_field_a_query_costs_what_it_cost(serve: Serve, upstash: LocalUpstash):
    served = serve(shop(None), CACHE)
    for _ in range(2):
        body(served, "a=1")
    upstash.reset_bill()
    body(served, "a=2")
    served.request("POST", "/shop/tea?a=1")
    served.request("POST", "/edit")
    bill = upstash.bill()
    assert (bill.requests, bill.commands) == (4, 4), "look up, store, invalidate, purge"


@pytest.mark.parametrize("purged", ["/shop/tea?utm=1&a=1", "/shop/tea?a=1"])
def test_a_purge_covers_the_canonical_form(serve: Serve, purged: str):
    served = serve(shop(purged=purged), CACHE)
    for query in ("a=1&utm=1", "a=1&utm=2", "a=1"):
        assert body(served, query) == "a=1&utm=1"
    served.request("POST", "/edit")
    assert body(served, "a=1") == "a=1"
    assert body(served, "a=1&utm=2") == "a=1"


def test_an_unsafe_request_invalidates_the_canonical_form(serve: Serve):
    served = serve(shop(), CACHE)
    body(served, "a=1&utm=1")
    served.request("POST", "/shop/tea?utm=7&a=1")
    assert body(served, "a=1&utm=2") == "a=1&utm=2"
