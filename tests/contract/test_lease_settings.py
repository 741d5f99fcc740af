"""A lease takes effect where it is set: for the application, for a rule, before a handler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.contract.neutral import Reply, Seen
from upstash_middleware import Lease, RateLimitRule

if TYPE_CHECKING:
    from tests.contract.conftest import Guarded, Serve
    from tests.contract.neutral import Served
    from upstash_middleware.local import LocalUpstash

SLOW = Lease(60, share=0.5, from_rate=0.05)
"""Three requests in a minute are busy, however slow the machine is."""


def plain(_: Seen) -> Reply:
    return Reply(b"ok")


def calls(served: Served, upstash: LocalUpstash, path: str) -> int:
    """Return how many calls 30 requests cost, all of which pass."""
    upstash.reset_bill()
    assert [served.request("GET", path).status for _ in range(30)] == [200] * 30
    return upstash.bill().requests


def test_the_applications_lease_spares_calls_except_under_rules_without_one(
    serve: Serve, upstash: LocalUpstash
):
    rules = [
        RateLimitRule("/without", "1000/hour", lease=False),
        RateLimitRule("/small", "99/hour"),
    ]
    settings = {"default_limit": "1000/hour", "rate_limits": rules, "lease": SLOW}
    served = serve(plain, ("RateLimitMiddleware", settings))
    assert calls(served, upstash, "/") < 15
    assert calls(served, upstash, "/without") == 30
    assert calls(served, upstash, "/small") == 30


@pytest.mark.parametrize("of_application", [False, True])
def test_a_limit_in_front_of_a_handler_has_its_own_lease_or_the_applications(
    guarded: Guarded, upstash: LocalUpstash, of_application: bool
):
    settings = {"default_limit": None, "lease": SLOW if of_application else None}
    own = {} if of_application else {"lease": SLOW}
    served = guarded(plain, "1000/hour", ("RateLimitMiddleware", settings), **own)
    assert calls(served, upstash, "/") < 15
