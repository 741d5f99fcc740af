"""Rules, identifiers, decisions and errors."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from upstash_ratelimit import FixedWindow as SdkFixedWindow

from upstash_middleware import (
    CacheRule,
    CommandError,
    Decision,
    HTTPRequest,
    Lease,
    PolicyState,
    RateLimitRule,
    Refused,
    SlidingWindow,
    client_ip,
    combine,
    form,
    header,
    json_field,
)
from upstash_middleware.core.ratelimit.algorithms import Limit
from upstash_middleware.errors import Refusal


async def tenant(request: HTTPRequest) -> str | None:
    return request.headers.get("x-tenant")


def cost(request: HTTPRequest) -> int:
    return 2 if request.query else 1


async def limits_of(request: HTTPRequest) -> list[str | Limit]:
    return ["10/s", SlidingWindow(100, 60)]


by_text = RateLimitRule("/a", "10/min", by=header("x-api-key"), cost=cost, on_error="closed")
by_object = RateLimitRule(limits=[SlidingWindow(5, 60)], by=client_ip(trusted_hops=1), shadow=True)
by_own = RateLimitRule("/b", "10/min", by=tenant, settle=lambda request, response: response.status)
by_name = RateLimitRule("/c", "10/min", by="header:X-API-Key")
by_body = RateLimitRule("/d", "10/min", by=combine(form("name"), json_field("a.b", normalise=None)))
by_several = RateLimitRule("/f", ("10/s", SlidingWindow(100, 60)))
by_sdk = RateLimitRule("/g", SdkFixedWindow(10, 60))
by_function = RateLimitRule("/h", lambda request: "10/s" if request.query else SlidingWindow(5, 1))
by_async_function = RateLimitRule("/i", limits_of)
RateLimitRule("/a", 7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RateLimitRule("/a", [7])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
RateLimitRule("/a", lambda request: 7)  # type: ignore[arg-type,return-value]  # pyright: ignore[reportArgumentType]
by_lease = RateLimitRule("/e", "9000/min", lease=Lease(timedelta(seconds=1), from_rate=50))
RateLimitRule("/e", "9000/min lease 1s", lease=False)
RateLimitRule("/e", "9000/min", lease={"seconds": "500ms", "share": 0.2})
RateLimitRule("/e", "9000/min", lease=[1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Lease(secs=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
form("name", max_body=1024, normalise=str.lower)
form("name", normalise="lower")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RateLimitRule("/a", "1/min", by=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RateLimitRule("/a", "1/min", on_error="opne")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RateLimitRule("/a", "1/min", cots=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

page = CacheRule("/p/{id}", ttl=60, tags=("product:{id}",), user=lambda request: request.peer)
in_text = CacheRule("/p", ttl="5 minutes", grace=timedelta(hours=1), tags=["p"], keep_query=["q"])
CacheRule("/p", ttl=[60])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def read(decision: Decision) -> None:
    assert_type(decision.allowed, bool)
    assert_type(decision.rule, str)
    assert_type(decision.identifier, str)
    assert_type(decision.remaining, int | None)
    assert_type(decision.retry_after, float | None)
    assert_type(decision.policies, tuple[PolicyState, ...])
    assert_type(decision.policies[0].limit, int)
    decision.charge(3)
    decision.charge("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    decision.allowed = False  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def failed(command: CommandError, call: Refused) -> None:
    assert_type(command.code, str)
    assert_type(call.kind, Refusal)
