"""What a limiter allows, denies and tells: one body for threads and event loops, alone or not."""

from __future__ import annotations

import gc
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from upstash_middleware import (
    Concurrency,
    ConfigurationError,
    Decision,
    HTTPRequest,
    Identifier,
    Limiter,
    RateLimited,
    SlidingWindow,
    SyncLimiter,
    UpstashError,
)
from upstash_middleware.events import Event, InternalError, RateLimitDecided, UpstashFailed

if TYPE_CHECKING:
    from tests.limiter.conftest import Make
    from upstash_middleware.local import LocalUpstash


def test_calls_pass_until_the_quota_is_used_up_and_a_denial_says_until_when(make: Make, upstash):
    """And after that time the same call passes."""
    limiter = make("log 2/60s")
    first = limiter.hit("alice")
    assert (first.allowed, first.rule, first.identifier) == (True, "calls", "id=alice")
    assert (first.limit, first.remaining) == (2, 1)
    assert limiter.try_hit("alice").remaining == 0
    with pytest.raises(
        RateLimited, match=r"'calls' denies 'id=alice': it would pass in "
    ) as raised:
        limiter.hit("alice")
    wait = raised.value.retry_after or 0
    assert wait == raised.value.decision.retry_after
    assert 0 < wait <= 60
    denied = limiter.try_hit("alice")
    assert (denied.allowed, denied.remaining) == (False, 0)
    assert limiter.hit("bob").allowed
    upstash.advance(wait)
    assert limiter.hit("alice").allowed


def test_a_cost_is_taken_whole_or_not_at_all(make: Make):
    limiter = make("log 10/h; log 12/day")
    assert limiter.hit("alice", 7).remaining == 3
    assert not limiter.try_hit("alice", cost=4).allowed
    assert limiter.hit("alice", cost=3).allowed
    with pytest.raises(RateLimited, match="costs more than the limit"):
        limiter.hit("bob", 11)


@pytest.mark.parametrize("cost", [0, -1, 1.5, True, 10**15])
def test_a_cost_is_a_whole_number_from_1(make: Make, cost: Any):
    with pytest.raises(ValueError, match="a cost should be a whole number"):
        make("log 2/h").hit("alice", cost)


@pytest.mark.parametrize("where", ["rule", "settings"])
def test_a_lease_spares_calls(make: Make, upstash: LocalUpstash, where: str):
    lease = {"seconds": 60, "share": 0.5, "from_rate": 0.05}
    given = {"lease": lease} if where == "rule" else {"settings": {"lease": lease}}
    limiter = make("1000/h", **given)
    assert all(limiter.hit("alice").allowed for _ in range(30))
    assert upstash.bill().requests < 15


def test_limiters_of_one_name_agree_on_their_lease(make: Make):
    first = make("log 9/h", lease=1)
    assert first.hit("alice").remaining == 8
    assert make("log 9/h lease 1s").hit("alice").remaining == 7
    with pytest.raises(ConfigurationError, match=r"with lease=Lease.* has this name already"):
        make("log 9/h", lease="2s").hit("alice")


def test_a_peek_takes_nothing(make: Make):
    limiter = make("log 2/h")
    limiter.hit("alice")
    for _ in range(3):
        assert (limiter.peek("alice").allowed, limiter.peek("alice").remaining) == (True, 1)
    assert not limiter.peek("alice", cost=2).allowed
    limiter.hit("alice")
    denied = limiter.peek("alice")
    assert not denied.allowed
    assert 0 < denied.retry_after <= 3600


def test_a_reset_gives_the_whole_quota_at_once(make: Make):
    limiter = make("log 1/h")
    for who in ("alice", "bob"):
        limiter.hit(who)
        assert not limiter.try_hit(who).allowed
    limiter.reset("alice")
    assert limiter.hit("alice").allowed
    assert not limiter.try_hit("bob").allowed


def test_a_charge_is_taken_whatever_is_left(make: Make, upstash: LocalUpstash):
    """And paid off by waiting."""
    limiter = make("gcra 10/10s")
    limiter.hit("alice")
    limiter.charge("alice", 12)
    denied = limiter.try_hit("alice")
    assert (denied.allowed, denied.remaining) == (False, 0)
    assert 0 < denied.retry_after <= 4.1
    upstash.advance(denied.retry_after)
    assert limiter.hit("alice").allowed


def test_a_decision_gives_back_what_was_not_used(make: Make):
    """To where it was taken; in a block at its end, together with what else is charged."""
    limiter = make("log 10/h")
    with limiter("alice", cost=8) as decision:
        decision.charge(-5)
        decision.charge(-2)
        assert limiter.peek("alice").remaining == 2
    assert limiter.peek("alice").remaining == 9


def test_a_limit_is_raised_and_lowered_at_run_time(make: Make):
    """At once, also for whom this process remembers to be denied, and back again."""
    limiter = make("2/h", dynamic=True)
    assert [limiter.try_hit("alice").allowed for _ in range(3)] == [True, True, False]
    limiter.set_limit(3)
    raised = limiter.hit("alice")
    assert (raised.limit, raised.remaining) == (3, 0)
    limiter.set_limit(0)
    with pytest.raises(RateLimited):
        limiter.hit("bob")
    limiter.set_limit(None)
    assert limiter.hit("bob").limit == 2


def test_a_limit_that_is_not_dynamic_is_not_changed(make: Make):
    with pytest.raises(ValueError, match="create it with dynamic=True"):
        make("2/h").set_limit(3)


@pytest.mark.parametrize("cost", [1, 2])
def test_wait_takes_as_soon_as_it_passes(make: Make, sleeping: list[float], cost: int):
    """After the exact time, and a part of it at random."""
    limiter = make("gcra 2/20s")
    for _ in range(2):
        limiter.hit("alice")
    decision = limiter.wait("alice", timeout="1 minute", cost=cost)
    assert decision.allowed
    assert 10 * cost - 5 <= sum(sleeping) <= 10 * cost + 1, "less what the calls themselves took"


def test_wait_raises_at_once_where_the_bound_would_be_passed(make: Make, sleeping: list[float]):
    limiter = make("gcra 1/20s")
    limiter.hit("alice")
    for timeout in (0, 15):
        with pytest.raises(RateLimited):
            limiter.wait("alice", timeout=timeout)
    with pytest.raises(RateLimited, match="costs more"):
        limiter.wait("alice", timeout=3600, cost=2)
    assert sleeping == []


@pytest.mark.parametrize("timeout", [-1, "soon", None])
def test_a_bound_is_seconds_or_text(make: Make, timeout: Any):
    with pytest.raises(ValueError, match="timeout="):
        make("1/h").wait("alice", timeout=timeout)


def test_a_block_takes_before_it_begins(make: Make):
    """It gets the decision; and one that is denied does not begin."""
    limiter, entered = make("log 1/h"), []
    for _ in range(2):
        try:
            with limiter("alice") as decision:
                entered.append(decision.remaining)
        except RateLimited:
            entered.append(None)
    assert entered == [0, None]


def test_a_slot_is_held_to_the_end_of_its_block_however_it_ends(make: Make):
    limiter = make(Concurrency(1))

    def raises() -> None:
        with limiter("alice"):
            raise KeyError("it")

    with limiter("alice"), limiter("bob"):
        held = limiter("alice")
        with pytest.raises(RateLimited, match="too many at once"):
            held.__enter__()
    with pytest.raises(KeyError):
        raises()
    with limiter("alice") as decision:
        assert decision.allowed


def test_a_block_waits_for_a_slot(make: Make, sleeping: list[float]):
    """Which is free again, here, when its holder has been silent for too long."""
    limiter = make(Concurrency(1, longest=5))
    with limiter("alice"), limiter("alice", timeout=10) as decision:
        assert decision.allowed
    assert 2 <= sum(sleeping) <= 10, "less what the calls themselves took"


@pytest.mark.parametrize("method", ["hit", "try_hit", "wait"])
def test_a_slot_is_not_taken_by_a_call_that_has_no_end(make: Make, method: str, upstash):
    limiter = make(Concurrency(1))
    with pytest.raises(ConfigurationError, match="it has to know when each ends"):
        getattr(limiter, method)("alice", **({"timeout": 1} if method == "wait" else {}))


def test_a_function_is_limited_by_its_own_arguments(make: Make):
    """By those that `by` and `cost` name, however they are given."""
    limiter = make("log 10/h")

    @limiter(by=lambda user: user["id"], cost=lambda words, style: len(words) + len(style) - 4)  # type: ignore[untyped-decorator]
    def generate(words: str, user: dict[str, str], *, style: str = "kind") -> str:
        return f"{words} {style}"

    assert generate("abcd", {"id": "alice"}) == "abcd kind"
    assert generate(user={"id": "alice"}, words="ab", style="bold") == "ab bold"
    assert limiter.peek("alice").remaining == 4
    with pytest.raises(RateLimited):
        generate("abcde", {"id": "alice"})
    assert generate("abcde", {"id": "bob"}) == "abcde kind"


def test_a_function_may_have_one_quota_for_all_its_calls(make: Make):
    limiter = make("log 1/h")

    @limiter(by="api.example.com")  # type: ignore[untyped-decorator]
    def fetch() -> str:
        return "fetched"

    assert fetch() == "fetched"
    with pytest.raises(RateLimited):
        fetch()
    assert limiter.peek("api.example.com").remaining == 0


def test_a_by_that_names_no_argument_is_refused_where_it_is_written(make: Make):
    def fetch(url: str) -> None: ...

    with pytest.raises(ConfigurationError, match="has the parameter 'user', which"):
        make("1/h")(by=lambda user: user)(fetch)


def test_a_by_may_take_its_arguments_by_place(make: Make):
    limiter = make("log 2/h")

    @limiter(by=lambda user, host="a", /: f"{user}@{host}")
    def fetch(url, user):
        return url

    assert fetch("x", "ada") == "x"
    assert limiter.peek("ada@a").remaining == 1
    with pytest.raises(ConfigurationError, match="has the parameter 'name', which"):
        limiter(by=lambda name, /: name)(fetch)


def test_a_function_that_runs_after_its_call_is_refused():
    """Its slot would be free before it begins."""

    def numbers():
        yield 1

    async def async_numbers():
        yield 1

    async def later(): ...

    class Later:
        async def __call__(self): ...

    for kind in (SyncLimiter, Limiter):
        limiter: Any = kind("1 at once", name="numbers")
        for function, advice in (
            (numbers, "limit a block inside it, with a SyncLimiter"),
            (async_numbers, "limit a block inside it, async with a Limiter"),
        ):
            with pytest.raises(ConfigurationError, match=advice):
                limiter(by="all")(function)
    asynchronous: Any = Limiter("1/h", name="a")
    with pytest.raises(ConfigurationError, match="is not an async function; use a SyncLimiter"):
        asynchronous(by="all")(print)
    for function in (later, Later()):
        with pytest.raises(ConfigurationError, match="is async; use a Limiter"):
            SyncLimiter("1/h", name="a")(by="all")(function)
        asynchronous(by="all")(function)


def test_limits_are_the_same_however_they_are_written(make: Make):
    first = make("5/minute")
    first.hit("alice")
    assert make(SlidingWindow(5, 60)).hit("alice").remaining == 3


def test_a_name_is_free_again_when_nothing_uses_it(make: Make):
    """Without waiting for the garbage collector."""
    gc.disable()
    try:
        first: Any = make("log 2/h")
        first.hit("alice")
        first = None
        assert make("log 3/h").hit("bob").limit == 3
    finally:
        gc.enable()


def test_limiters_of_one_name_share_a_quota(make: Make):
    assert make("log 2/h").hit("alice").remaining == 1
    assert make("log 2/h").hit("alice").remaining == 0
    assert make("log 2/h", "others").hit("alice").remaining == 1


def test_one_name_cannot_mean_two_limits(make: Make):
    first = make("log 2/h")
    first.hit("alice")
    with pytest.raises(
        ConfigurationError, match=r"Limiter\('log 2/h', name='calls'\) has this name"
    ):
        make("log 3/h").hit("alice")
    with pytest.raises(ConfigurationError, match="with on_error='open' has this name already"):
        make("log 2/h", on_error="closed").hit("alice")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("alice@example.com", "id=alice@example.com"),
        ("user=7", "id=user=7"),
        (7, "id=7"),
        (Identifier("user", "7"), "user=7"),
        (HTTPRequest("GET", "/", peer="203.0.113.7"), "ip=203.0.113.7"),
        (Decision(True, "other", "user=7"), "user=7"),
    ],
)
def test_an_identifier_is_a_value_of_its_own_kind(make: Make, given: Any, shown: str):
    """So that no text of a client names another's quota."""
    assert make("9/h").hit(given).identifier == shown


@pytest.mark.parametrize("given", [None, True, 1.5, b"alice", object()])
def test_nobody_is_no_identifier(make: Make, given: Any):
    """All who are not known would share one quota."""
    with pytest.raises(TypeError, match="an identifier should be text"):
        make("9/h").hit(given)


def test_secrets_are_hashed(make: Make, upstash: LocalUpstash):
    decision = make("9/h").hit(Identifier("key", "sesame", secret=True))
    assert decision.identifier.startswith("key=#")


def test_listed_identifiers_are_denied_or_pass_uncounted(make: Make):
    limiter = make("log 1/h", deny=["mallory"], allow=["root"])
    with pytest.raises(RateLimited, match="by its deny list"):
        limiter.hit("mallory")
    for _ in range(2):
        assert limiter.hit("root").settled_by == "unchecked"


@pytest.mark.parametrize(
    ("on_error", "allowed"),
    [("open", [True, True]), ("closed", [False, False]), ("local", [True, False])],
)
def test_an_error_of_this_package_is_settled_by_policy(make: Make, on_error, allowed):
    """It does not lift the limit; here a list is asked about what is no text."""
    seen: list[Event] = []
    limiter = make(
        "1/h", deny=["user=root"], on_error=on_error, settings={"observers": [seen.append]}
    )
    broken: Any = 7
    decisions = [limiter.try_hit(Identifier("user", broken)) for _ in range(2)]
    assert [each.allowed for each in decisions] == allowed
    assert {each.settled_by for each in decisions} == {on_error}
    assert [event.where for event in seen if isinstance(event, InternalError)] == ["begin"] * 2


@pytest.mark.parametrize(
    ("kind", "value", "listed"),
    [
        ("id", "mallory", "mallory"),
        ("user", "a:b=c", "user=a:b=c"),
        ("ip", "192.0.2.7", "192.0.2.0/24"),
        ("ip", "2001:db8::/64", "2001:db8::/32"),
        ("header.x-api-key", "sesame", "header.x-api-key=sesame"),
        ("id", "x" * 200, "x" * 200),
    ],
)
def test_lists_name_the_identifiers_of_decisions_too(make: Make, kind, value, listed):
    """Which are texts, and hashes of secrets and of long values."""
    who = Identifier(kind, value, secret=kind.startswith("header"))
    decision = make("9/h", "others").hit(who)
    assert make("9/h", "denied", deny=[listed]).try_hit(decision).settled_by == "deny list"
    assert make("9/h", "allowed", allow=[listed]).try_hit(decision).settled_by == "unchecked"
    assert make("9/h", "other lists", deny=["bob", "10.0.0.0/8"]).try_hit(decision).allowed


@pytest.mark.parametrize(
    "given", ["", Identifier("user", ""), Decision(True, "", "", settled_by="unchecked")]
)
def test_an_empty_identifier_is_nobody_s(make: Make, given: Any):
    """All of whom nothing is known would share one quota."""
    with pytest.raises(ValueError, match=r"should not be empty.*Identifier"):
        make("9/h").hit(given)


def test_what_is_no_identifier_is_not_written_into_the_error(make: Make):
    with pytest.raises(TypeError, match=r"or a request, not a dict$"):
        make("9/h").hit({"authorization": "Bearer sesame"})


def test_a_shadow_limit_stops_nothing(make: Make):
    limiter = make("log 1/h", shadow=True)
    assert [limiter.hit("alice").allowed for _ in range(2)] == [True, False]
    with limiter("alice") as decision:
        assert decision.shadow


def test_what_is_switched_off_allows_everything_and_sends_nothing(make: Make, upstash):
    limiter = make("1/h", settings={"enabled": False})
    upstash.reset_bill()
    for _ in range(2):
        for decision in (limiter.hit("alice"), limiter.peek("alice"), limiter.try_hit("alice")):
            assert (decision.allowed, decision.limit, decision.settled_by) == (
                True,
                None,
                "unchecked",
            )
        with limiter("alice") as decision:
            assert decision.allowed
    limiter.reset("alice")
    limiter.charge("alice", 3)
    assert upstash.bill().requests == 0


def test_a_denial_travels_through_a_queue_of_tasks(make: Make):
    """Pickled: the exception with its decision."""
    limiter = make("log 1/h")
    limiter.hit("alice")
    with pytest.raises(RateLimited) as raised:
        limiter.hit("alice")
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.decision) == (str(raised.value), raised.value.decision)


def test_events_are_those_of_the_middleware_without_a_request(make: Make):
    seen: list[Event] = []
    limiter = make("log 1/h", settings={"observers": [seen.append]})
    limiter.hit("alice")
    limiter.try_hit("alice")
    decided = [event for event in seen if isinstance(event, RateLimitDecided)]
    assert [(event.rule, event.allowed, event.request) for event in decided] == [
        ("calls", True, None),
        ("calls", False, None),
    ]


# ------------------------------------------------------------------------------------------------
# When Upstash is down


@pytest.mark.parametrize(
    ("on_error", "allowed"),
    [("open", [True] * 3), ("closed", [False] * 3), ("local", [True, True, False])],
)
def test_in_an_outage_the_policy_decides(make: Make, upstash: LocalUpstash, on_error, allowed):
    """About calls, peeks and blocks; and a charge is lost, without an exception."""
    limiter = make("log 2/h", on_error=on_error)
    upstash.set_faults(fault="server-error")
    assert limiter.peek("alice").allowed == allowed[0]
    assert [limiter.try_hit("alice").allowed for _ in range(3)] == allowed
    assert limiter.peek("alice").allowed == allowed[2]
    decision = limiter.peek("alice")
    assert decision.settled_by == on_error
    assert (decision.limit is None) == (on_error != "local")
    limiter.charge("alice", 5)
    if allowed[0]:
        with limiter("bob") as decision:
            assert decision.settled_by == on_error
    else:
        with pytest.raises(RateLimited, match="Upstash is unreachable"):
            limiter.hit("bob")


def test_who_changes_something_hears_that_upstash_failed(make: Make, upstash: LocalUpstash):
    limiter = make("2/h", dynamic=True)
    upstash.set_faults(fault="server-error")
    with pytest.raises(UpstashError):
        limiter.reset("alice")
    with pytest.raises(UpstashError):
        limiter.set_limit(3)


def test_wait_goes_on_when_upstash_is_back(make: Make, upstash: LocalUpstash, sleeping):
    """Where the policy is to deny meanwhile."""
    seen: list[Event] = []
    settings = {"observers": [seen.append], "breaker": False}
    limiter = make("2/h", on_error="closed", settings=settings)
    limiter.peek("alice")
    upstash.set_faults(fault="server-error", times=4)
    assert limiter.wait("alice", timeout=60).settled_by == "upstash"
    assert sleeping
    assert any(isinstance(event, UpstashFailed) for event in seen)


# ------------------------------------------------------------------------------------------------
# What it costs


def test_a_hit_is_one_round_trip_and_three_commands(make: Make, upstash: LocalUpstash):
    """As for a rule of the middleware; a denial that is remembered costs nothing."""
    limiter = make("log 2/h")
    limiter.hit("alice")
    costs = []
    for _ in range(3):
        upstash.reset_bill()
        limiter.try_hit("alice")
        costs.append((upstash.bill().requests, upstash.bill().commands))
    assert costs == [(1, 3), (1, 2), (0, 0)]
    upstash.reset_bill()
    limiter.peek("bob")
    assert (upstash.bill().requests, upstash.bill().commands) == (1, 2)
