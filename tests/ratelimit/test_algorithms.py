"""Each algorithm against its definition, on a real Valkey, with times exact to the millisecond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from tests.ratelimit import reference
from tests.ratelimit.store import FLAGS, NOW, ValkeyStore
from upstash_middleware.core.identify import Identifier, escape, key_text
from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Limit,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.core.ratelimit.charges import (
    Charge,
    Verdict,
    charge_command,
    limit_script,
    read_verdicts,
)
from upstash_middleware.errors import CommandError, UnexpectedAnswer

if TYPE_CHECKING:
    from upstash_middleware.core.flow import Reply

START = int(NOW * 1000)


def take(store: ValkeyStore, now: int, *charges: Charge) -> tuple[Verdict, ...]:
    """Charge at a time in ms."""
    reply = store.reply(charge_command(charges, now))
    if isinstance(reply, CommandError):
        raise reply
    return read_verdicts(reply, len(charges))


def take_one(store: ValkeyStore, now: int, limit: Limit, cost: int = 1, who: str = "a") -> Verdict:
    (verdict,) = take(store, now, Charge(f"t:r:{who}", limit, cost))
    return verdict


@dataclass(frozen=True)
class Step:
    """After so many ms, a request of this cost."""

    wait: int
    cost: int


def limits() -> st.SearchStrategy[Limit]:
    small, window = st.integers(1, 12), st.integers(1, 4000).map(lambda ms: ms / 1000)
    return st.one_of(
        st.builds(FixedWindow, small, window),
        st.builds(SlidingWindow, small, window),
        st.builds(SlidingLog, small, window),
        st.builds(TokenBucket, small, small, window),
        st.builds(GCRA, small, window, small),
    )


def steps() -> st.SearchStrategy[list[Step]]:
    return st.lists(
        st.builds(
            Step,
            st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 5000)),
            st.one_of(st.just(1), st.integers(1, 14)),
        ),
        max_size=25,
    )


MODEL = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@MODEL
@given(limit=limits(), steps=steps())
@example(SlidingWindow(10, 60), [Step(59_000 - START % 60_000 + 60_000, 10), Step(500, 1)])
@example(SlidingWindow(10, 60), [Step(59_000 - START % 60_000 + 60_000, 10), Step(2000, 1)])
def test_every_algorithm_admits_what_its_definition_admits(
    store: ValkeyStore, limit: Limit, steps: list[Step]
) -> None:
    """Verdict, remaining, reset and retry-after are those of the plain definition."""
    store.client.flushall()
    model, now = reference.model_of(limit), START
    for step in steps:
        now += step.wait
        expected = model.take(now, step.cost)
        found = take_one(store, now, limit, step.cost)
        assert found.allowed == expected
        assert found.remaining == model.remaining(now)
        assert found.reset_ms == model.whole_again(now) - now
        if not expected and step.cost <= limit.quota:
            assert found.retry_ms == model.first_pass(now, step.cost) - now


@MODEL
@given(limit=limits(), steps=steps(), cost=st.integers(1, 12))
def test_retry_after_is_the_first_millisecond_that_passes(
    store: ValkeyStore, limit: Limit, steps: list[Step], cost: int
) -> None:
    """One millisecond earlier the same request is denied, at it, it passes."""
    store.client.flushall()
    now = START
    for step in steps:
        now += step.wait
        take_one(store, now, limit, step.cost)
    denied = take_one(store, now, limit, cost)
    if denied.allowed:
        assert denied.retry_ms == 0
    elif cost > limit.quota:
        assert denied.retry_ms is None
        assert not take_one(store, now + 10**9, limit, cost).allowed
    else:
        assert denied.retry_ms
        assert not take_one(store, now + denied.retry_ms - 1, limit, cost).allowed
        assert take_one(store, now + denied.retry_ms, limit, cost).allowed


@pytest.mark.parametrize(
    "limit",
    [
        FixedWindow(10**15 - 1, 86_400 * 30),
        SlidingWindow(10**15 - 1, 86_400 * 30),
        SlidingWindow(999_999_999_999_989, 86_400 * 30),
        TokenBucket(10**15 - 1, 10**15 - 1, 86_400 * 30),
        TokenBucket(10**15 - 1, 10**14, 86_400 * 30),
        GCRA(1_700_000, 86_400 * 30),
    ],
    ids=str,
)
def test_the_largest_numbers_stay_exact(store: ValkeyStore, limit: Limit) -> None:
    """Quotas up to 10^15 and windows of a month lose no unit and no millisecond."""
    model, now = reference.model_of(limit), START
    for wait, cost in ((0, limit.quota - 3), (1, 2), (7, 1), (86_400_000, 1), (2_591_999_000, 5)):
        now += wait
        expected = model.take(now, cost)
        found = take_one(store, now, limit, cost)
        assert (found.allowed, found.remaining) == (expected, model.remaining(now))
        if found.retry_ms:
            assert not model.would_take(now + found.retry_ms - 1, cost)
            assert model.would_take(now + found.retry_ms, cost)


@MODEL
@given(
    several=st.lists(limits(), min_size=2, max_size=4),
    steps=steps(),
)
def test_several_limits_take_all_or_nothing(
    store: ValkeyStore, several: list[Limit], steps: list[Step]
) -> None:
    """A request that one limit denies uses up nothing of the others."""
    store.client.flushall()
    models, now = [reference.model_of(limit) for limit in several], START
    for step in steps:
        now += step.wait
        admit = [model.would_take(now, step.cost) for model in models]
        if all(admit):
            for model in models:
                model.take(now, step.cost)
        charges = [Charge(f"t:{i}:a", limit, step.cost) for i, limit in enumerate(several)]
        found = take(store, now, *charges)
        assert [verdict.allowed for verdict in found] == admit
        assert [verdict.remaining for verdict in found] == [
            model.remaining(now) for model in models
        ]


def test_a_faster_clock_that_began_the_next_window_is_followed(store: ValkeyStore) -> None:
    """What a leading process has counted in the next window counts for a lagging one."""
    boundary = START - START % 60_000 + 60_000
    for limit in (FixedWindow(10, 60), SlidingWindow(10, 60)):
        store.client.flushall()
        assert take_one(store, boundary + 5, limit, cost=8).allowed
        lagging = take_one(store, boundary - 3000, limit, cost=1)
        assert (lagging.allowed, lagging.remaining) == (True, 1)
        assert not take_one(store, boundary - 3000, limit, cost=2).allowed
        leading = take_one(store, boundary + 5, limit, cost=2)
        assert (leading.allowed, leading.remaining) == (False, 1)


@pytest.mark.parametrize("limit", [TokenBucket(10, 1, 1), GCRA(1, 1, 10)], ids=str)
def test_a_lagging_clock_earns_no_tokens_twice(store: ValkeyStore, limit: Limit) -> None:
    """Stored times never go back: a process behind does not rewind the bucket."""
    assert take_one(store, START + 5000, limit, cost=10).allowed
    assert not take_one(store, START, limit).allowed
    assert take_one(store, START + 6000, limit).allowed
    assert not take_one(store, START + 2000, limit).allowed
    assert not take_one(store, START + 6999, limit).allowed
    assert take_one(store, START + 7000, limit).allowed


def test_every_key_has_a_lifetime_that_outlasts_its_use_by_an_eighth(store: ValkeyStore) -> None:
    """A key is gone soon after it stops to count, but not before a lagging clock is done."""
    start = START - START % 80_000
    for limit, span in (
        (FixedWindow(5, 80), 80_000),
        (SlidingWindow(5, 80), 160_000),
        (TokenBucket(5, 1, 16), 16_000),
        (GCRA(5, 80), 16_000),
        (SlidingLog(5, 80), 80_000),
    ):
        store.client.flushall()
        take_one(store, start, limit)
        (key,) = store.client.keys("*")
        lifetime = store.client.pttl(key)
        assert span + 10_900 < lifetime <= span + 11_000


def test_a_denied_request_writes_nothing(store: ValkeyStore) -> None:
    """The fixed window of upstash-ratelimit counts denied calls: 13 stored against 10."""
    for limit in (FixedWindow(10, 60), SlidingWindow(10, 60)):
        store.client.flushall()
        for _ in range(13):
            take_one(store, START, limit)
        (key,) = store.client.keys("*")
        assert store.client.get(key) == b"10"


def test_a_cost_is_checked_before_it_is_added(store: ValkeyStore) -> None:
    """upstash-ratelimit stores 12 of limit 10 after two calls of cost 6, and 11 after one of 11."""
    limit = SlidingWindow(10, 60)
    assert take_one(store, START, limit, cost=6).allowed
    assert not take_one(store, START, limit, cost=6).allowed
    assert take_one(store, START, limit, cost=4).allowed
    assert take_one(store, START, limit, cost=11, who="b") == Verdict(
        False, 10, 0, None, START // 60_000, 10
    )


def test_what_others_have_overdrawn_leaves_no_negative_remaining(store: ValkeyStore) -> None:
    """A counter above the limit, or below zero after refunds of another kind, stays in bounds."""
    number = START // 60_000
    for stored, remaining in ((b"13", 0), (b"-4", 10)):
        store.client.set(f"t:r:a:{number}", stored)
        found = take_one(store, START, FixedWindow(10, 60), cost=11)
        assert found.remaining == remaining


WRONG_VALUES = [
    b",",
    b"x",
    b"1.5",
    b"1e3",
    b"9" * 16,
    b"\xff\x00",
    b"5:5:5:5",
    b"-",
    b" 1",
    b"1:1,,",
]


@pytest.mark.parametrize("value", WRONG_VALUES)
@pytest.mark.parametrize(
    "limit", [FixedWindow(9, 60), TokenBucket(9, 1, 60), GCRA(9, 60), SlidingLog(9, 60)], ids=str
)
def test_a_value_that_is_not_ours_is_refused_and_kept(
    store: ValkeyStore, limit: Limit, value: bytes
) -> None:
    """Whatever stands at the key, it is an error that names the key, and stays as it was."""
    take_one(store, START, limit)
    (key,) = store.client.keys("*")
    store.client.set(key, value)
    with pytest.raises(CommandError, match=r"WRONGVALUE .* the value at t:r:a:"):
        take_one(store, START, limit)
    assert store.client.get(key) == value


@pytest.mark.parametrize("limit", [FixedWindow(9, 60), TokenBucket(9, 1, 60), GCRA(9, 60)], ids=str)
def test_an_empty_value_is_only_an_empty_log(store: ValkeyStore, limit: Limit) -> None:
    """All others write at least a number."""
    take_one(store, START, limit)
    (key,) = store.client.keys("*")
    store.client.set(key, b"")
    with pytest.raises(CommandError, match="WRONGVALUE"):
        take_one(store, START, limit)


def test_a_key_of_another_type_is_refused_and_kept(store: ValkeyStore) -> None:
    """A hash at the name of a counter is not replaced, and the other limits take nothing."""
    charges = [Charge(f"t:{i}:a", SlidingWindow(10, 60), 1) for i in range(3)]
    take(store, START, charges[0])
    before = store.client.get(f"t:0:a:{START // 60_000}")
    lifetime = store.client.pttl(f"t:0:a:{START // 60_000}")
    store.client.hset(f"t:2:a:{START // 60_000}", mapping={"tokens": "3"})
    with pytest.raises(CommandError, match="WRONGTYPE"):
        take(store, START, *charges)
    assert store.client.hgetall(f"t:2:a:{START // 60_000}") == {b"tokens": b"3"}
    assert store.client.get(f"t:0:a:{START // 60_000}") == before
    assert lifetime - 5000 < store.client.pttl(f"t:0:a:{START // 60_000}") <= lifetime + 100
    assert not store.client.exists(f"t:1:a:{START // 60_000}")


@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_bill_is_two_and_one_for_each_limit_taken(store: ValkeyStore, count: int) -> None:
    """Allowed, N limits: EVAL, MGET and N SETs. Denied: EVAL and MGET."""
    kinds = (
        FixedWindow(1, 60),
        SlidingWindow(1, 60),
        TokenBucket(1, 1, 60),
        GCRA(1, 60),
        SlidingLog(1, 60),
    )
    charges = [Charge(f"t:{i}:a", kinds[i % len(kinds)], 1) for i in range(count)]
    store.billed_calls()
    assert all(verdict.allowed for verdict in take(store, START, *charges))
    assert store.billed_calls() == 2 + count
    assert not any(verdict.allowed for verdict in take(store, START, *charges))
    assert store.billed_calls() == 2


def test_the_script_reads_and_writes_declared_keys_only() -> None:
    """Upstash refuses any other key of a script that does not lock the whole database."""
    command = charge_command([Charge("t:r:a", SlidingWindow(10, 60), 1)], START)
    assert command.script is not None
    assert command.script.text.startswith("#!lua flags=allow-key-locking\n")
    number = START // 60_000
    assert command.args[2:6] == ("3", *(f"t:r:a:{number + shift}" for shift in (-1, 0, 1)))


@MODEL
@given(a=st.integers(0, 2**50 - 1), b=st.integers(0, 2**50 - 1), c=st.integers(1, 2**50 - 1))
@example(a=10**15 - 1, b=2_592_000_000 - 7, c=2_592_000_000)
@example(a=2**50 - 1, b=2**50 - 1, c=2**50 - 1)
def test_products_beyond_a_double_are_divided_exactly(
    store: ValkeyStore, a: int, b: int, c: int
) -> None:
    """The script multiplies and divides as whole numbers do, where the quotient fits."""
    assume(a * b // c < 2**53)
    numbers = limit_script().text.removeprefix(FLAGS).partition("-- Fixed window")[0]
    found = store.client.eval(
        f"{numbers}\nlocal q, r = multiply_divide(tonumber(ARGV[1]), tonumber(ARGV[2]), "
        "tonumber(ARGV[3]))\nreturn {text_of(q), text_of(r)}",
        0,
        a,
        b,
        c,
    )
    assert [int(part) for part in found] == list(divmod(a * b, c))


def test_a_log_never_writes_before_what_it_has_written(store: ValkeyStore) -> None:
    """A process behind appends at the time of the last entry, so the log stays in order."""
    limit = SlidingLog(3, 10)
    assert take_one(store, START + 5000, limit, cost=2).allowed
    assert take_one(store, START, limit).allowed
    assert store.client.get("t:r:a:log.10000") == f"{START + 5000}:2,{START + 5000}:1".encode()
    assert take_one(store, START, limit).retry_ms == 15_000


def test_a_log_holds_a_thousand_entries(store: ValkeyStore) -> None:
    """As many as its limit may be, and no more are kept."""
    limit = SlidingLog(1000, 60)
    assert all(take_one(store, START + index, limit).allowed for index in range(1000))
    assert take_one(store, START + 1000, limit) == Verdict(
        False, 0, 59_999, 59_000, START + 1000, 1000
    )


def test_groups_are_taken_apart(store: ValkeyStore) -> None:
    """A limit that only watches neither holds up the others nor is held up by them."""
    charges = [Charge("t:0:a", FixedWindow(1, 60), 1, 0), Charge("t:1:a", FixedWindow(2, 60), 1, 1)]
    found = [[verdict.remaining for verdict in take(store, START, *charges)] for _ in range(3)]
    assert found == [[0, 1], [0, 0], [0, 0]]


def test_a_bucket_that_is_denied_a_cost_says_when_that_cost_is_there(store: ValkeyStore) -> None:
    """upstash-ratelimit says 60 s where 300 s is the truth."""
    limit = TokenBucket(5, 1, 60)
    take_one(store, START, limit, cost=5)
    assert take_one(store, START, limit, cost=5).retry_ms == 300_000


@pytest.mark.parametrize(
    "reply", [None, b"OK", 5, [], [1, 2, 3], [1, 9, 0, 0, 0, b"9"], [1, 9, 0, 0, 0, None]]
)
def test_an_answer_that_is_none_of_the_scripts_is_refused(reply: Reply) -> None:
    """It is settled by policy like any other failure."""
    with pytest.raises(UnexpectedAnswer, match="the rate limit script returned"):
        read_verdicts(reply, 1)


names = st.text(st.sampled_from("ab:%3A {}/=#."), min_size=1, max_size=5)


@MODEL
@given(st.lists(st.tuples(names, names, limits()), min_size=2, max_size=2, unique=True))
def test_keys_of_different_rules_or_identities_are_different(
    pairs: list[tuple[str, str, Limit]],
) -> None:
    """Nothing collides by concatenation, at any time, whatever is in the parts."""
    keys = []
    for name, value, limit in pairs:
        identifier = key_text(Identifier("id", value), lambda: b"key")
        base = f"p:{escape(name)}:{identifier}"
        keys.append({key for now in (START, START + 86_400_000) for key in limit.keys(base, now)})
    if pairs[0][:2] != pairs[1][:2]:
        assert not keys[0] & keys[1]
