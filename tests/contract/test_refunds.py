"""What a request did not cost in the end is returned at once, and leaves nothing behind."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from upstash_redis import Redis

from tests.contract.neutral import Reply, Seen
from upstash_middleware import RateLimitRule, SlidingLog, TokenBucket

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from upstash_middleware.local import LocalUpstash


def limit(*rules: RateLimitRule, **more: Any) -> tuple[str, Any]:
    return "RateLimitMiddleware", {"rate_limits": rules, "default_limit": None, **more}


def free(_request: Any, _response: Any) -> int:
    """Return the final cost of a request that failed nobody."""
    return 0


class Login:
    """A handler that, while it handles ``/slow``, is asked again by the same client."""

    def __init__(self) -> None:
        self.served: Any = None
        self.meanwhile: list[int] = []
        self.charge = 0

    def __call__(self, request: Seen) -> Reply:
        if request.path == "/slow":
            self.meanwhile += [self.status("/quick"), self.status("/quick")]
            if self.charge:
                request.rate_limit.charge(self.charge)
        return Reply(b"ok")

    def status(self, path: str) -> int:
        """Send a request from a thread of its own, as that of another connection."""
        with ThreadPoolExecutor(1) as thread:
            status: int = thread.submit(self.served.request, "GET", path).result().status
        return status


LIMITS = ["1/10min", "fixed 1/10min", "log 1/10min", "gcra 1/10min"]


@pytest.mark.parametrize("limits", LIMITS)
def test_a_client_that_was_denied_meanwhile_passes_once_the_cost_is_settled(
    serve: Serve, limits: str
):
    """A double click on the login button."""
    login = Login()
    login.served = serve(login, limit(RateLimitRule("/{page}", limits, settle=free)))
    assert login.status("/slow") == 200
    assert login.meanwhile == [429, 429]
    assert login.status("/quick") == 200


def test_a_client_that_another_process_denied_passes_once_the_cost_is_settled(serve: Serve):
    login, rule = Login(), RateLimitRule("/{page}", "log 1/10min", settle=free)
    here = serve(login, limit(rule))
    login.served = serve(login, limit(rule))
    assert here.request("GET", "/slow").status == 200
    assert login.meanwhile == [429, 429]
    assert login.status("/quick") == 200


def test_a_handler_that_refunds_ends_the_denials_of_its_client(serve: Serve):
    """``charge`` with a number below 0; the denial was remembered."""
    login = Login()
    login.charge = -1
    login.served = serve(login, limit(RateLimitRule("/{page}", "log 1/10min")))
    assert login.status("/slow") == 200
    assert login.meanwhile == [429, 429]
    assert login.status("/quick") == 200


def test_a_refund_ends_the_denials_of_all_rules_of_its_bucket(serve: Serve):
    login = Login()
    login.served = serve(
        login,
        limit(
            RateLimitRule("/slow", "log 1/10min", settle=free, bucket="logins"),
            RateLimitRule("/quick", "log 1/10min", bucket="logins"),
        ),
    )
    assert login.status("/slow") == 200
    assert login.meanwhile == [429, 429]
    assert login.status("/quick") == 200


def test_denials_of_rules_without_refunds_are_remembered(serve: Serve, upstash: LocalUpstash):
    """Beside a rule that settles its costs."""
    settled = RateLimitRule("/login", "1/hour", settle=free)
    served = serve(lambda _: Reply(b"ok"), limit(settled, RateLimitRule("/other", "1/hour")))
    served.request("GET", "/other")
    served.request("GET", "/other")
    upstash.reset_bill()
    assert served.request("GET", "/other").status == 429
    assert upstash.bill().requests == 0


def test_a_cost_above_the_limit_is_denied_without_asking_again(serve: Serve, upstash: LocalUpstash):
    """No refund could let it pass."""
    rule = RateLimitRule("/a", "2/hour", cost=lambda _: 3, settle=free)
    served = serve(lambda _: Reply(b"ok"), limit(rule))
    served.request("GET", "/a")
    upstash.reset_bill()
    assert served.request("GET", "/a").status == 429
    assert upstash.bill().requests == 0


def test_a_log_does_not_keep_what_was_refunded(serve: Serve, upstash: LocalUpstash):
    rule = RateLimitRule("/a", SlidingLog(5, 3600), settle=free, name="a")
    served = serve(lambda _: Reply(b"ok"), limit(rule, prefix="shop"))
    for _ in range(20):
        assert served.request("GET", "/a").status == 200
    with Redis(upstash.url, upstash.token) as redis:
        (key,) = redis.keys("shop:a:*")
        assert redis.strlen(key) == 0
        assert redis.pttl(key) > 0


def test_a_request_that_rules_of_one_bucket_cover_is_refunded_once(serve: Serve):
    """By what the rule says that charges the most for it."""
    wide = RateLimitRule("/{page}", "log 4/hour", settle=free, bucket="all", name="wide")
    narrow = RateLimitRule("/a", "log 2/hour", settle=lambda *_: 1, bucket="all", name="narrow")
    served = serve(lambda _: Reply(b"ok"), limit(wide, narrow, match="all"))
    assert [served.request("GET", "/a").status for _ in range(3)] == [200, 200, 429]
    answers = [served.request("GET", "/b") for _ in range(3)]
    assert [answer.header("x-ratelimit-remaining") for answer in answers] == ["1", "1", "1"]


TIERS = {
    "sliding": ("2/hour", "5/hour"),
    "fixed": ("fixed 2/hour", "fixed 5/hour"),
    "log": ("log 2/hour", "log 5/hour"),
    "gcra": ("gcra 2/hour", "gcra 5/hour"),
    "gcra with a burst": ("gcra 2/hour", "gcra 1/hour burst 5"),
    "token bucket": (TokenBucket(2, 1, 3600), TokenBucket(5, 1, 3600)),
}


@pytest.mark.parametrize(("free_tier", "paid"), TIERS.values(), ids=TIERS)
def test_what_was_used_carries_over_to_another_tier(
    serve: Serve, upstash: LocalUpstash, free_tier: Any, paid: Any
):
    """In units, upwards and downwards; the wait is exact after the change too."""
    rule = RateLimitRule(
        "/a", lambda request: paid if request.headers.get("x-paid") else free_tier, name="a"
    )
    served = serve(lambda _: Reply(b"ok"), limit(rule))
    paying = (("x-paid", "1"),)
    assert [served.request("GET", "/a").status for _ in range(3)] == [200, 200, 429]
    answer = served.request("GET", "/a", paying)
    assert (answer.status, answer.header("x-ratelimit-remaining")) == (200, "2")
    denied = served.request("GET", "/a")
    assert (denied.status, denied.header("x-ratelimit-remaining")) == (429, "0")
    wait = int(denied.header("retry-after") or 0)
    assert 0 < wait <= 3 * 3600
    upstash.advance(wait - 2)
    assert served.request("GET", "/a").status == 429
    upstash.advance(2)
    assert served.request("GET", "/a").status == 200


def test_what_is_settled_counts_although_nothing_was_to_be_taken_before(serve: Serve):
    """Failed logins count, also where a function says that a request costs nothing at first."""
    rule = RateLimitRule(
        "/login", "3/hour", cost=lambda _: 0, settle=lambda _, response: int(response.status == 401)
    )
    served = serve(lambda asked: Reply(b"", 200 if asked.header("x-right") else 401), limit(rule))
    right = (("x-right", "yes"),)
    assert [served.request("POST", "/login", right).status for _ in range(5)] == [200] * 5
    assert [served.request("POST", "/login").status for _ in range(4)] == [401] * 3 + [429]
