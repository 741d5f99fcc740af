"""A request leaves nothing behind that only the cyclic garbage collector could free."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from tests.contract.neutral import Reply
from upstash_middleware.core.engine import Exchange
from upstash_middleware.core.ratelimit.charges import RuleCharge
from upstash_middleware.messages import HTTPRequest

if TYPE_CHECKING:
    from tests.contract.conftest import Serve

OF_A_REQUEST = {Exchange, HTTPRequest, RuleCharge}
"""What each request creates; the applications of earlier tests may be collected meanwhile."""

LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "limit": ("RateLimitMiddleware", {"default_limit": "100/hour"}),
    "denial": ("RateLimitMiddleware", {"default_limit": "1/hour"}),
    "cache": ("CacheMiddleware", {"cache": [{"path": "/", "ttl": 60}]}),
    "both": (
        "UpstashMiddleware",
        {"default_limit": "100/hour", "cache": [{"path": "/", "ttl": 60}]},
    ),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_requests_leave_no_cycles_of_this_package(serve: Serve, layer: Any):
    served = serve(lambda _: Reply(body=b"page"), layer)
    for _ in range(3):  # what is created once
        served.request("GET", "/")
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            served.request("GET", "/")
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(each) for each in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert [kind for kind in left if kind in OF_A_REQUEST] == []
