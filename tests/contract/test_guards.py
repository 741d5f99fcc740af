"""What stands in front of a handler counts whatever reaches the handler, in every framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_redis import Redis

from tests.contract.neutral import Reply, Seen

if TYPE_CHECKING:
    from tests.contract.conftest import Guarded
    from upstash_middleware.local import LocalUpstash

SDK = "@upstash/ratelimit"
PREFLIGHT = (
    ("origin", "https://elsewhere.example"),
    ("access-control-request-method", "POST"),
)


def plain(_: Seen) -> Reply:
    return Reply(b"page")


def test_a_forged_preflight_that_reaches_the_handler_is_counted(guarded: Guarded):
    """Any client can add the two fields by which a browser's preflight is known."""
    served = guarded(plain, "2/hour")
    answers = [served.request("OPTIONS", "/page", PREFLIGHT) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]


def test_a_preflight_that_the_handler_answers_uses_the_same_quota_as_other_requests(
    guarded: Guarded,
):
    served = guarded(lambda seen: Reply(str(seen.rate_limit.remaining).encode()), "2/hour")
    served.request("OPTIONS", "/page", PREFLIGHT)
    assert served.request("GET", "/page").body == b"0"
    assert served.request("GET", "/page").status == 429


def test_the_middleware_outside_lets_preflights_pass_uncounted(guarded: Guarded):
    served = guarded(plain, "5/hour", ("RateLimitMiddleware", {"default_limit": "1/hour"}))
    answers = [served.request("OPTIONS", "/page", PREFLIGHT) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert served.request("GET", "/page").status == 200
    assert served.request("GET", "/page").status == 429


def test_a_slot_taken_for_a_client_on_the_deny_list_is_free_again(
    guarded: Guarded, upstash: LocalUpstash
):
    """The list is asked in the same call that takes the slot, and overrules what that took."""
    listed = f"{SDK}:denyList:all"
    layer = {"default_limit": None, "deny_list": SDK, "remember_denials": 0}
    served = guarded(plain, "1 at once", ("RateLimitMiddleware", layer), name="slots")
    with Redis(upstash.url, upstash.token) as redis:
        redis.sadd(listed, "203.0.113.9")
        assert served.request("GET", "/page").status == 403
        slots = redis.keys("*:slots")
        assert not any(redis.get(key) for key in slots)
