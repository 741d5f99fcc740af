"""Leases in every framework: what busy identifiers cost, and what their clients see."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from upstash_redis import Redis

from tests.contract.neutral import Reply, Seen
from upstash_middleware import RateLimitRule, TokenBucket

if TYPE_CHECKING:
    from tests.clocks import MovableClock
    from tests.contract.conftest import Guarded, Serve
    from tests.contract.neutral import Answer, Served
    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash

SDK = "@upstash/ratelimit"


def page(request: Seen) -> Reply:
    return Reply(request.rate_limit.settled_by.encode())


def limit(limits: Any, **more: Any) -> tuple[str, Any]:
    return "RateLimitMiddleware", {"default_limit": limits, **more}


def rule(limits: Any = "1000/hour", **more: Any) -> RateLimitRule:
    return RateLimitRule(limits=limits, **{"name": "r", "lease": "1s", **more})


def busy(served: Served) -> Answer:
    """Send requests until one is decided by a lease."""
    while (answer := served.request("GET", "/")).body != b"lease":
        assert answer.status == 200
    return answer


class Meter:
    """Tells what requests cost: round trips, and billed commands."""

    def __init__(self, served: Served, upstash: LocalUpstash) -> None:
        self._served = served
        self._upstash = upstash

    def cost(self, count: int = 1, status: int = 200) -> tuple[int, int]:
        """Send requests and return what they took."""
        self._upstash.reset_bill()
        for _ in range(count):
            assert self._served.request("GET", "/").status == status
        bill = self._upstash.bill()
        return bill.requests, bill.commands

    def next_call(self) -> tuple[int, int]:
        """Send requests until one needs a call, and return what that took."""
        while (taken := self.cost()) == (0, 0):
            pass
        return taken


# ------------------------------------------------------------------------------------------------
# Costs


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("clients", [1, 16])
def test_a_busy_identifier_with_a_limit_of_10_000_costs_a_fiftieth_of_a_round_trip_at_most(
    serve: Serve, upstash: LocalUpstash, clients: int
):
    def handler(request: Seen) -> Reply:
        time.sleep(0.001)  # else all clients wait for Upstash most of the time
        return page(request)

    served = serve(handler, limit("10000/hour lease 1s"))
    with ThreadPoolExecutor(clients) as pool:

        def send(count: int) -> set[int]:
            return set(pool.map(lambda _: served.request("GET", "/").status, range(count)))

        send(400)
        upstash.reset_bill()
        assert send(1500) == {200}
    bill = upstash.bill()
    assert bill.requests <= 0.02 * 1500
    assert bill.commands <= 0.1 * 1500


@pytest.mark.usefixtures("clock")
def test_the_whole_quota_of_1000_takes_6_round_trips_for_100_requests_at_most(
    serve: Serve, upstash: LocalUpstash
):
    meter = Meter(serve(page, limit("1000/hour lease 1s")), upstash)
    requests, commands = meter.cost(1000)
    assert requests <= 60
    assert commands <= 180
    assert meter.cost(status=429) == (1, 2)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("limits", ["fixed 999/hour", "sliding 999/hour", "gcra 999/hour"])
def test_a_request_served_from_a_slice_costs_nothing_and_one_that_takes_a_slice_three(
    serve: Serve, upstash: LocalUpstash, limits: str
):
    served = serve(page, limit(f"{limits} lease 1s"))
    busy(served)
    meter = Meter(served, upstash)
    assert meter.cost() == (0, 0)
    assert meter.next_call() == (1, 3)


def test_identifiers_with_few_requests_cost_what_they_do_without_a_lease(
    serve: Serve, upstash: LocalUpstash, clock: MovableClock
):
    served = serve(page, limit("999/hour lease 1s"))
    meter = Meter(served, upstash)
    meter.cost()
    for _ in range(20):
        clock.advance(0.2)
        assert meter.cost() == (1, 3)


@pytest.mark.usefixtures("clock")
def test_a_denial_that_gives_back_a_slice_costs_three(serve: Serve, upstash: LocalUpstash):
    def cost(request: Any) -> int:
        return int(request.headers.get("x-cost", "1"))

    served = serve(page, limit(rule(cost=cost)))
    busy(served)
    upstash.reset_bill()
    assert served.request("GET", "/", (("x-cost", "995"),)).status == 429
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 3)


@pytest.mark.usefixtures("clock")
def test_beside_a_rule_without_a_lease_the_call_is_made_and_commands_are_saved(
    serve: Serve, upstash: LocalUpstash
):
    rules = [rule(), RateLimitRule(limits="500/hour", name="plain", lease=False)]
    served = serve(page, limit(None, rate_limits=rules, match="all"))
    meter = Meter(served, upstash)
    meter.cost()
    assert meter.cost() == (1, 4)
    meter.cost(20)
    assert meter.cost() == (1, 3)


# ------------------------------------------------------------------------------------------------
# What clients see


@pytest.mark.usefixtures("clock")
def test_fields_are_those_of_a_rule_without_a_lease(serve: Serve):
    def fields(lease: Any, name: str) -> tuple[str, list[int]]:
        served = serve(page, limit(rule("fixed 1000/hour", name=name, lease=lease)))
        sent = repr([served.request("GET", "/").headers[-5:] for _ in range(60)])
        waits = [int(seconds) for seconds in re.findall(r";t=(\d+)", sent)]
        return re.sub(r";t=\d+", ";t", sent).replace(f'"{name}"', '"r"'), waits

    (leased, leased_waits), (plain, plain_waits) = fields("1s", "a"), fields(False, "b")
    assert leased == plain
    # Each has learned the database's time at its first request.
    assert len(leased_waits) == len(plain_waits) == 60
    assert all(0 <= a - b <= 60 for a, b in zip(leased_waits, plain_waits, strict=True))


@pytest.mark.parametrize("limits", ["fixed 100/hour", "sliding 100/hour", TokenBucket(100, 1, 36)])
def test_after_a_denial_a_request_passes_when_retry_after_says(
    serve: Serve, clock: MovableClock, limits: Any
):
    served = serve(page, limit(rule(limits)))
    while (answer := served.request("GET", "/")).status == 200:
        pass
    wait = int(answer.header("retry-after") or 0)
    assert answer.header("x-ratelimit-remaining") == "0"
    clock.advance(wait - 1)
    assert served.request("GET", "/").status == 429
    clock.advance(1)
    assert served.request("GET", "/").status == 200


def test_one_process_uses_the_whole_quota_and_no_more(serve: Serve, clock: MovableClock):
    served = serve(page, limit(rule("300/hour")))
    statuses = []
    for _ in range(400):
        statuses.append(served.request("GET", "/").status)
        clock.advance(0.01)
    assert statuses == [200] * 300 + [429] * 100


@pytest.mark.usefixtures("clock")
def test_a_denial_by_another_rule_puts_back_what_a_slice_has_given(serve: Serve):
    def remaining(request: Seen) -> Reply:
        decision = request.rate_limit
        return Reply(str(min(each.remaining for each in decision.policies)).encode())

    rules = [
        RateLimitRule("/", "1000/hour", name="leased", lease="1s"),
        RateLimitRule("/", "50/hour", name="plain", lease=False, methods=["GET"]),
    ]
    served = serve(remaining, limit(None, rate_limits=rules, match="all", remember_denials=0))
    statuses = [served.request("GET", "/").status for _ in range(80)]
    assert statuses == [200] * 50 + [429] * 30
    assert served.request("POST", "/").body == b"949"


# ------------------------------------------------------------------------------------------------
# With other features


@pytest.mark.usefixtures("clock")
def test_what_stands_in_front_of_a_handler_has_leases(guarded: Guarded, upstash: LocalUpstash):
    served = guarded(page, "1000/hour", lease="1s")
    busy(served)
    meter = Meter(served, upstash)
    assert meter.cost() == (0, 0)
    assert meter.next_call() == (1, 3)


@pytest.mark.usefixtures("clock")
def test_the_setting_reaches_what_stands_in_front_of_a_handler(
    guarded: Guarded, upstash: LocalUpstash
):
    layer = ("RateLimitMiddleware", {"default_limit": None, "lease": "1s"})
    served = guarded(page, "1000/hour", layer)
    busy(served)
    assert Meter(served, upstash).cost() == (0, 0)


@pytest.mark.usefixtures("clock")
def test_charges_and_refunds_of_requests_served_from_a_slice_need_no_call(
    serve: Serve, upstash: LocalUpstash
):
    def handler(request: Seen) -> Reply:
        request.rate_limit.charge(int(request.query or 0))
        return page(request)

    def settle(request: Any, response: Any) -> int:
        return 0 if response.status == 200 else 1

    served = serve(handler, limit(rule("10000/hour", settle=settle)))
    for _ in range(300):
        served.request("GET", "/?1")
    busy(served)
    upstash.reset_bill()
    before = _remaining(served.request("GET", "/"))
    for target in ("/?5", "/", "/?-1", "/?1"):
        served.request("GET", target)
    assert _remaining(served.request("GET", "/")) == before - 5
    assert upstash.bill().requests == 0


@pytest.mark.usefixtures("clock")
def test_each_tier_has_slices_of_its_own(serve: Serve, upstash: LocalUpstash):
    def by_plan(request: Any) -> str:
        return f"{request.headers.get('x-plan')}/hour"

    served = serve(page, limit(rule(by_plan)))

    def send(plan: str, peer: str) -> list[Answer]:
        return [served.request("GET", "/", (("x-plan", plan),), peer=peer) for _ in range(250)]

    paid, free = send("1000", "203.0.113.8"), send("200", "203.0.113.9")
    assert {answer.body for answer in paid} == {b"upstash", b"lease"}
    assert {answer.header("x-ratelimit-limit") for answer in paid} == {"1000"}
    assert [answer.status for answer in free] == [200] * 200 + [429] * 50
    assert {answer.body for answer in free[:200]} == {b"upstash", b"lease"}


@pytest.mark.usefixtures("clock")
def test_a_shadow_rule_has_leases_and_stops_nothing(serve: Serve, upstash: LocalUpstash):
    events: list[Event] = []
    served = serve(
        lambda _: Reply(b"page"),
        limit(rule("100/hour", shadow=True), observers=[events.append]),
    )
    upstash.reset_bill()
    for _ in range(130):
        assert served.request("GET", "/").status == 200
    decided = [event for event in events if type(event).__name__ == "RateLimitDecided"]
    assert [event.allowed for event in decided] == [True] * 100 + [False] * 30  # type: ignore[union-attr]
    assert upstash.bill().requests < 60


def test_analytics_count_every_request(serve: Serve, upstash: LocalUpstash, clock: MovableClock):
    served = serve(page, limit(rule("100/hour"), analytics="shop", remember_denials=0))
    for _ in range(120):
        served.request("GET", "/")
        clock.advance(0.05)
    clock.advance(10)
    served.request("GET", "/")
    with Redis(upstash.url, upstash.token) as redis:
        (key,) = redis.keys("shop:events:*")
        counts = [
            redis.zscore(key, f'{{"identifier":"203.0.113.9","success":{passed}}}')
            for passed in ("true", "false")
        ]
    assert counts == [100, 20]  # the last denial is sent later


@pytest.mark.usefixtures("clock")
def test_the_deny_list_is_looked_up_by_calls_alone(serve: Serve, upstash: LocalUpstash):
    served = serve(page, limit(rule(), deny_list=SDK))
    busy(served)
    with Redis(upstash.url, upstash.token) as redis:
        redis.sadd(f"{SDK}:denyList:all", "203.0.113.9")
    statuses = []
    while 403 not in statuses:
        statuses.append(served.request("GET", "/").status)
    assert set(statuses[:-1]) == {200}
    assert served.request("GET", "/").status == 403


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("limits", ["1000/hour", "1000/hour; 900/10m"])
@pytest.mark.parametrize(("policy", "then"), [("open", 200), ("closed", 503), ("local", 200)])
def test_in_an_outage_slices_are_used_up_before_the_policy_decides(
    serve: Serve, upstash: LocalUpstash, policy: Any, then: int, limits: str
):
    served = serve(page, limit(rule(limits, on_error=policy)))
    busy(served)
    while (answer := served.request("GET", "/")).body == b"lease":
        pass
    left = _remaining(answer)
    with upstash.faults(fault="refuse"):
        answers = [served.request("GET", "/") for _ in range(200)]
    bodies = [answer.body for answer in answers]
    by_slices = bodies.count(b"lease")
    assert by_slices > 10
    assert bodies[:by_slices] == [b"lease"] * by_slices
    assert {answer.status for answer in answers[by_slices:]} == {then}
    assert _remaining(answers[by_slices - 1]) == left - by_slices


def test_an_open_circuit_breaker_leaves_slices_in_use(
    serve: Serve, upstash: LocalUpstash, clock: MovableClock
):
    """It opens by the calls of clients that have no slice."""
    served = serve(page, limit(rule(on_error="closed")))
    busy(served)
    with upstash.faults(fault="refuse"):
        for number in range(20):
            served.request("GET", "/", peer=f"198.51.100.{number}")
        assert served.request("GET", "/").body == b"lease"


def _remaining(answer: Answer) -> int:
    return int(answer.header("x-ratelimit-remaining") or -1)
