"""Leases in random order: several processes over one Valkey, and everything that can go wrong.

The model knows what each request was admitted with, and reads the counters on Redis. What is
admitted from a window is never more than its counter, and no call raises a counter above the limit;
the other algorithms admit in any time what they allow in that time and a lease's seconds.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import Struct

from tests.ratelimit.store import NOW, FakeClock, ValkeyStore
from upstash_middleware.core.flow import Pipeline, Wait
from upstash_middleware.core.ratelimit import (
    GCRA,
    FixedWindow,
    Lease,
    Limit,
    RateLimiter,
    RateLimitExchange,
    RateLimitRule,
    SlidingLog,
    SlidingWindow,
    TokenBucket,
)
from upstash_middleware.drivers import run
from upstash_middleware.errors import CommandError, ConnectionLost
from upstash_middleware.events import Event, QuotaLeased, RateLimitDecided
from upstash_middleware.messages import Headers, HTTPRequest, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.flow import Command, Flow, Reply

DEADLINE = 1.0
MOST_PROCESSES = 4
LONGEST_SKEW = 1.0
"""Seconds: a tenth of the windows."""
TAKEN = {"upstash", "lease"}
"""By what a decision is settled if units were taken."""
_prefixes = count()


def final_cost(_request: HTTPRequest, response: ResponseHead) -> int:
    return int(response.headers.combined("x-final") or 0)


def tiers(request: HTTPRequest) -> Limit:
    return FixedWindow(60 if request.peer == "203.0.113.1" else 100, 10)


class Case(Struct, frozen=True):
    """Rules to test, with the lease that they get."""

    rules: Sequence[dict[str, Any]]
    match: str = "first"


CASES = {
    "fixed": Case([{"limits": FixedWindow(60, 10)}]),
    "sliding": Case([{"limits": SlidingWindow(60, 10)}]),
    "settled": Case([{"limits": SlidingWindow(60, 10), "settle": final_cost, "cost": 3}]),
    "dynamic": Case([{"limits": FixedWindow(60, 10), "dynamic": True}]),
    "tiers": Case([{"limits": tiers, "settle": final_cost}]),
    "several limits": Case([{"limits": "fixed 60/10s; 150/min", "settle": final_cost}]),
    "window and bucket": Case([{"limits": [FixedWindow(60, 10), GCRA(300, 60, 80)]}]),
    "all, one leased": Case(
        [
            {"limits": FixedWindow(60, 10)},
            {"limits": SlidingWindow(50, 10), "lease": False},
        ],
        "all",
    ),
    "all, both leased": Case(
        [
            {"limits": FixedWindow(60, 10), "settle": final_cost},
            {"limits": SlidingWindow(50, 10)},
        ],
        "all",
    ),
    "shadow": Case(
        [{"limits": FixedWindow(40, 10), "shadow": True}, {"limits": FixedWindow(60, 10)}], "all"
    ),
    "gcra": Case([{"limits": GCRA(60, 10, 40), "settle": final_cost}]),
    "bucket": Case([{"limits": TokenBucket(60, 5, 1), "settle": final_cost}]),
    "log": Case([{"limits": SlidingLog(60, 10), "settle": final_cost}]),
}
LEASES = st.builds(
    Lease,
    seconds=st.sampled_from([0.5, 1, 3, 15]),
    share=st.sampled_from([0.1, 0.4, 1]),
    from_rate=st.sampled_from([0.1, 4]),
)


class Call(Struct, eq=False):
    """A request whose decision waits for a reply, or for nothing any more."""

    flow: Flow[RateLimitExchange]
    identifier: str
    pipeline: Pipeline
    began: float
    until: float
    """When it will have failed."""
    asks: set[str]
    """The keys' beginnings for which it asks for a slice."""
    replies: list[Reply] | None = None


class Waiting(Struct, eq=False):
    """A request that waits for the slice of another's call."""

    flow: Flow[RateLimitExchange]
    identifier: str
    wait: Wait


class Taken(Struct):
    """A slice that a process has taken."""

    where: tuple[int, ...] | None
    """None if it is a shadow rule's, and another rule has denied the request."""
    began: float
    now_ms: int


class Process:
    """A process: its clocks, its limiter, and what it has begun."""

    def __init__(self, clock: FakeClock, machine: LeaseMachine) -> None:
        self.clock = clock
        self.machine = machine
        self.calls: list[Call] = []
        self.waiting: list[Waiting] = []
        self.open: list[RateLimitExchange] = []
        self.start()

    def start(self) -> None:
        self.events: list[Event] = []
        self.slices: dict[tuple[str, str], list[Taken]] = defaultdict(list)
        self.paused: dict[str, float] = {}
        self.own: Counter[str] = Counter()
        """Units that it has admitted, by the key that they were taken from."""
        self.knows: dict[str, bool] = {}
        """Whether the last reply about an identifier was as new as could be."""
        self.limiter = self.machine.limiter(self.clock, self.events, leased=True)

    def forget(self) -> None:
        """Expect nothing of what it knew of its calls and of lost replies."""
        self.paused.clear()
        for call in self.calls:
            call.asks = set()

    def crash(self) -> None:
        for call in self.calls:
            call.flow.close()
        self.calls.clear()
        for each in self.waiting:
            each.flow.close()
        self.waiting.clear()
        self.open.clear()
        self.start()


class LossyStore:
    """Performs pipelines, or loses them."""

    def __init__(self, machine: LeaseMachine, chance: random.Random) -> None:
        self.machine = machine
        self.chance = chance
        self.used = False

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        self.used = True
        fate = self.chance.random()
        if fate < 0.1:
            raise ConnectionLost("the request")
        replies = self.machine.perform(pipeline)
        if fate < 0.2:
            raise ConnectionLost("the reply")
        return replies


class LeaseMachine(RuleBasedStateMachine):
    """The processes, the time, and what was admitted."""

    store: ValkeyStore
    case: Case

    @initialize(lease=LEASES, skews=st.lists(st.floats(-1, 1), min_size=2, max_size=3))
    def begin(self, lease: Lease, skews: list[float]) -> None:
        self.store.client.flushall()
        self.clock = self.store.clock = FakeClock()
        self.store.pipelines.clear()
        self.prefix = f"m{next(_prefixes)}"
        self.lease = lease
        self.limited = [
            RateLimitRule("/a", name=f"r{index}", **{"lease": lease, **fields})
            for index, fields in enumerate(self.case.rules)
        ]
        limits = self.case.rules[0]["limits"]
        self.limit: Limit | None = None
        """The one that is no window, if the rule has no other."""
        if isinstance(limits, GCRA | TokenBucket | SlidingLog):
            self.limit = limits
        self.admitted: Counter[str] = Counter()
        self.erased: Counter[str] = Counter()
        """By keys of windows: units in counters that were reset."""
        self.times: dict[str, list[tuple[float, list[int]]]] = defaultdict(list)
        """When which units were admitted, by identifier."""
        self.costs: dict[RateLimitExchange, list[int]] = {}
        self.is_ahead = False
        """Whether a process may have counted in a window that the others do not see yet."""
        self.processes: list[Process] = []
        skew = 0.3 if self.limit else LONGEST_SKEW
        for number, each in enumerate(skews):
            time = round(NOW + skew * each, 3)
            self.processes.append(Process(FakeClock(time, 1000.0 * number), self))

    def limiter(self, clock: FakeClock, events: list[Event], *, leased: bool) -> RateLimiter:
        rules = self.limited
        if not leased:
            rules = [
                RateLimitRule("/a", name=each.name, **{**fields, "lease": False})
                for each, fields in zip(rules, self.case.rules, strict=True)
            ]
        given: dict[str, Any] = {"match": self.case.match}
        return RateLimiter(
            rules,
            None,
            prefix=self.prefix,
            secret=lambda: b"key",
            clock=clock,
            observe=events.append,
            deadline=DEADLINE,
            perform=lambda flow: run(flow, self.lossy),
            **given,
        )

    # ---------------------------------------------------------------------------------------------
    # The wire: what a call does to counters.

    def perform(self, pipeline: Pipeline) -> list[Reply]:
        """Perform a pipeline, and check what it does to the counters of windows."""
        script = pipeline.commands[0]
        if script.script is None:
            return self.store.execute(pipeline)
        keys = [str(each) for each in script.args[3 : 3 + int(script.args[2])]]
        before = self.counters(keys)
        replies = self.store.execute(pipeline)
        assert not isinstance(replies[0], CommandError)
        with self.store.client.pipeline(transaction=False) as kept:
            for key in keys:  # they expire by Valkey's own clock, which may pass faster
                kept.persist(key)
            kept.execute()
        after = self.counters(keys)
        if isinstance(replies[0], list):
            self.check_charge(script, replies[0], before, after)
        return replies

    def counters(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the counters of windows among these keys."""
        windows = [key for key in keys if key.rpartition(":")[2].isdigit()]
        values = self.store.client.mget(windows) if windows else []
        return {key: int(value or 0) for key, value in zip(windows, values, strict=True)}

    def check_charge(
        self, script: Command, reply: list[Any], before: dict[str, int], after: dict[str, int]
    ) -> None:
        asked = list(asks_of(script))
        size = 7 if asked else 6
        quotas = [reply[index + 5] for index in range(0, len(reply), size)]
        given = Counter[str]()
        for ask in asked:
            given[f"{ask.base}:{ask.where}"] += ask.given
        for key, units in after.items():
            assert units >= max(0, before[key] - given[key]), "given back elsewhere"
            if units > before[key]:
                assert units <= max(quotas), "above the limit"
        for number, ask in enumerate(asked):
            _, remaining, _, _, _, _, leased = reply[7 * number : 7 * number + 7]
            room = remaining + leased
            assert leased <= min(ask.wanted, math.ceil(room * self.lease.share))

    # ---------------------------------------------------------------------------------------------
    # Requests.

    def start_call(self, process: Process, identifier: str) -> Call | None:
        """Begin a request; return the call that it waits for, None if it needs none."""
        flow = process.limiter.begin(HTTPRequest("GET", "/a", peer=identifier))
        return self.go_on(process, identifier, flow, None)

    def go_on(
        self, process: Process, identifier: str, flow: Flow[RateLimitExchange], value: Any
    ) -> Call | None:
        """Resume a request; return the call that it waits for, None if it waits for none."""
        process.events.clear()
        try:
            pipeline = flow.send(value)
        except StopIteration as end:
            self.decided(process, identifier, end.value, None)
            return None
        if isinstance(pipeline, Wait):
            assert any(each.identifier == identifier for each in process.calls), "in vain"
            process.waiting.append(Waiting(flow, identifier, pipeline))
            return None
        assert isinstance(pipeline, Pipeline)
        now = process.clock.monotonic()
        asks = {ask.base for ask in asks_of(pipeline.commands[0]) if ask.wanted}
        for base in asks:
            others = [each for each in process.calls if base in each.asks]
            assert all(now >= each.until for each in others), "two ask at once"
            assert now >= process.paused.get(base, now), "asks after a lost reply"
        call = Call(flow, identifier, pipeline, now, now + (pipeline.deadline or DEADLINE), asks)
        process.calls.append(call)
        return call

    def end_call(self, process: Process, call: Call, *, lost: bool, fresh: bool = False) -> None:
        """Have a call's reply arrive, or fail."""
        process.calls.remove(call)
        process.events.clear()
        if not lost and call.replies is None:
            call.replies = self.perform(call.pipeline)
        try:
            if lost:
                now = process.clock.monotonic()
                for base in call.asks:
                    process.paused[base] = now + self.lease.milliseconds / 1000
                call.flow.throw(ConnectionLost("lost"))
            else:
                call.flow.send(call.replies)
        except StopIteration as end:
            self.decided(process, call.identifier, end.value, call, fresh=fresh and not lost)
        else:
            raise AssertionError("a decision takes one call")

    def decided(
        self,
        process: Process,
        identifier: str,
        exchange: RateLimitExchange,
        call: Call | None,
        *,
        fresh: bool = False,
    ) -> None:
        decisions = {
            each.rule: each for each in process.events if isinstance(each, RateLimitDecided)
        }
        charges = {charge.rule.rule.name: charge for charge in exchange.taken}
        self.note_slices(process, call, exchange)
        for name, decision in decisions.items():
            assert decision.remaining >= 0
            if exchange.response is None and decision.allowed and decision.settled_by in TAKEN:
                assert name in charges, "admitted, and taken from nothing"
            # What a shadow rule counts for a request that another rule denies is not to be settled.
            if decision.settled_by == "lease" and name in charges:
                self.check_alive(process, name, charges[name], call)
        if exchange.response is not None:
            # A slice that another rule has used is given back by the next call, if it is needed.
            by_slices = any(each.settled_by == "lease" for each in decisions.values())
            if fresh and call is not None and not by_slices:
                self.check_retry_after(exchange, call)
            self.settle(process, exchange, 0)
            return
        self.admit(process, identifier, exchange)
        if call is not None:
            process.knows[identifier] = fresh
        if process.knows.get(identifier):
            self.check_remaining(process, exchange, fresh=fresh)
        # Units of a bucket that come back by themselves are refunded nevertheless, but for slices.
        by_call = any(each.settled_by == "upstash" for each in decisions.values())
        if self.limit is not None and by_call:
            self.settle(process, exchange, self.chance.choice((0, 1, 1, 1)) if fresh else 1)
        else:
            process.open.append(exchange)

    def note_slices(self, process: Process, call: Call | None, exchange: RateLimitExchange) -> None:
        """Note which slices a call has brought."""
        for event in process.events:
            if isinstance(event, QuotaLeased) and event.change == "leased":
                assert call is not None
                charges = [each for each in exchange.taken if each.rule.rule.name == event.rule]
                where = charges[0].state_parts if charges else None
                process.slices[event.rule, event.identifier].append(
                    Taken(where, call.began, now_of(call.pipeline.commands[0]))
                )

    def check_alive(self, process: Process, rule: str, charge: Any, call: Call | None) -> None:
        """A request is served only from a slice that has not ended.

        Beside another rule's call it was served when that began.
        """
        times = [(process.clock.monotonic(), process.limiter._time.now_ms())]
        if call is not None:
            times.append((call.began, now_of(call.pipeline.commands[0])))
        longest = self.lease.milliseconds
        ends = [
            (where + 1) * policy.limit.milliseconds
            for where, policy in zip(charge.state_parts, charge.rule.policies, strict=True)
            if isinstance(policy.limit, FixedWindow | SlidingWindow)
        ]
        assert any(
            taken.where in {charge.state_parts, None}
            and now < taken.began + longest / 1000
            and taken.now_ms <= now_ms < min(taken.now_ms + longest, *ends, math.inf)
            for taken in process.slices[rule, charge.identifier]
            for now, now_ms in times
        ), "no such slice of this process, or no more"

    def admit(self, process: Process, identifier: str, exchange: RateLimitExchange) -> None:
        for charge in exchange.taken:
            for key in window_keys(charge):
                self.admitted[key] += charge.cost
                process.own[key] += charge.cost
        if self.limit is not None and exchange.taken:
            admitted = self.times[identifier]
            cost = self.costs[exchange] = [exchange.taken[0].cost]
            admitted.append((self.clock.time, cost))
            total = 0
            for since, units in reversed(admitted):
                total += units[0]
                assert total <= allowed_in(self.limit, self.clock.time - since, self.lease)

    def check_remaining(
        self, process: Process, exchange: RateLimitExchange, *, fresh: bool
    ) -> None:
        """A process reports no more than it can know to be left."""
        decision = exchange.decision
        if decision is None or len(self.limited) > 1 or self.limited[0].dynamic or self.limit:
            return
        for charge in exchange.taken:
            policies = zip(charge.rule.policies, decision.policies, strict=True)
            keys = iter(window_keys(charge))
            for policy, state in policies:
                if not isinstance(policy.limit, FixedWindow | SlidingWindow):
                    continue
                key = next(keys)
                if self.erased[key]:
                    continue
                before, _, window = key.rpartition(":")
                if self.store.client.exists(f"{before}:{int(window) + 1}"):
                    continue  # another process has begun the next window, and this is about that
                used = self.admitted[key] if fresh else process.own[key]
                assert state.remaining <= max(0, state.limit - used), "remaining"

    def check_retry_after(self, exchange: RateLimitExchange, call: Call) -> None:
        """By the counters, the request passes at the time that its denial says."""
        decision = exchange.decision
        if (
            self.is_ahead
            or decision is None
            or decision.settled_by != "upstash"
            or decision.retry_after is None
        ):
            return
        now = now_of(call.pipeline.commands[0]) / 1000
        if abs(now - self.clock.time) > LONGEST_SKEW:
            return  # a clock that was set does not see what others have begun
        passes_at = now + decision.retry_after
        observer = self.limiter(FakeClock(round(passes_at, 3), 0.0), [], leased=False)
        request = HTTPRequest("GET", "/a", peer=call.identifier)
        seen = run(observer.peek(request), self.store)
        assert seen is not None
        assert seen.allowed, "Retry-After is too early"

    def settle(
        self, process: Process, exchange: RateLimitExchange, final: int, late: int = 0
    ) -> None:
        """End a request with its final cost, and charge for it once more."""
        exchange.head(ResponseHead(200, Headers.of(x_final=str(final))))
        admitted = exchange.taken if exchange.response is None else ()
        changes = [final - each.cost if each.rule.rule.settle else 0 for each in admitted]
        self.perform_settlement(process, exchange, changes, lambda: exchange.finish(complete=True))
        if admitted and late and exchange.decision is not None:
            charge = exchange.decision.charge
            self.perform_settlement(process, exchange, [late] * len(changes), lambda: charge(late))

    def perform_settlement(
        self,
        process: Process,
        exchange: RateLimitExchange,
        changes: list[int],
        do: Callable[[], Flow[None] | None],
    ) -> None:
        """Change what a request's charges were admitted with; a call that does so may be lost."""
        lossy = self.lossy = LossyStore(self, self.chance)
        units = [
            (key, change)
            for charge, change in zip(exchange.taken, changes, strict=bool(changes))
            for key in window_keys(charge)
        ]
        for key, change in units:
            self.admitted[key] += min(0, change)
            process.own[key] += min(0, change)
        if changes and exchange in self.costs:
            self.costs[exchange][0] += min(0, changes[0])
        if (flow := do()) is not None:
            run(flow, lossy)
        if not lossy.used:  # by slices: a call would take them from the window of its own time
            for key, change in units:
                self.admitted[key] += max(0, change)
                process.own[key] += max(0, change)

    # ---------------------------------------------------------------------------------------------
    # What happens.

    @property
    def chance(self) -> random.Random:
        return self._chance

    _chance = random.Random(0)
    lossy: LossyStore

    def process(self, number: int) -> Process:
        return self.processes[number % len(self.processes)]

    @rule(
        number=st.integers(0, 3),
        identifier=st.sampled_from(["203.0.113.1", "203.0.113.1", "203.0.113.2"]),
        times=st.integers(1, 40),
        step=st.sampled_from([0, 0, 0.001, 0.02]),
        losing=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def requests(
        self, number: int, identifier: str, times: int, step: float, losing: bool, seed: int
    ) -> None:
        """Make requests one after the other."""
        self._chance = random.Random(seed)
        process = self.process(number)
        for _ in range(times):
            call = self.start_call(process, identifier)
            if call is not None:
                lost = losing and self.chance.random() < 0.2
                if lost and self.chance.random() < 0.5:
                    self.perform(call.pipeline)
                self.end_call(process, call, lost=lost, fresh=True)
            self.move(step)

    @rule(
        number=st.integers(0, 3),
        identifier=st.sampled_from(["203.0.113.1", "203.0.113.1", "203.0.113.2"]),
        times=st.integers(1, 16),
        seed=st.integers(0, 2**16),
    )
    def concurrent_requests(self, number: int, identifier: str, times: int, seed: int) -> None:
        """Begin requests whose replies do not arrive yet."""
        self._chance = random.Random(seed)
        for _ in range(times):
            self.start_call(self.process(number), identifier)

    @rule(number=st.integers(0, 3), seed=st.integers(0, 2**16), most=st.integers(1, 20))
    def replies(self, number: int, seed: int, most: int) -> None:
        """Have some calls be performed, some replies arrive, and some be lost, in any order."""
        self._chance = chance = random.Random(seed)
        process = self.process(number)
        for call in chance.sample(process.calls, min(most, len(process.calls))):
            fate = chance.random()
            if fate < 0.3:
                call.replies = call.replies or self.perform(call.pipeline)
            else:
                self.end_call(process, call, lost=fate < 0.45)

    @rule(number=st.integers(0, 3), seed=st.integers(0, 2**16), most=st.integers(1, 20))
    def wakes(self, number: int, seed: int, most: int) -> None:
        """Have requests that wait for a slice go on, or give up, in any order."""
        self._chance = chance = random.Random(seed)
        process = self.process(number)
        for each in chance.sample(process.waiting, min(most, len(process.waiting))):
            process.waiting.remove(each)
            self.go_on(process, each.identifier, each.flow, each.wait.latch.opened)

    @rule(number=st.integers(0, 3), seed=st.integers(0, 2**16), most=st.integers(1, 20))
    def ends(self, number: int, seed: int, most: int) -> None:
        """End requests, with other costs than were taken, and charges after the response."""
        self._chance = chance = random.Random(seed)
        process = self.process(number)
        chance.shuffle(process.open)
        for _ in range(min(most, len(process.open))):
            late = chance.choice((0, 0, 1, 2)) if self.limit is None else 0
            self.settle(process, process.open.pop(), chance.choice((0, 0, 1, 2)), late)

    def move(self, seconds: float) -> None:
        self.clock.move(seconds)
        for process in self.processes:
            process.clock.move(seconds)

    @rule(seconds=st.sampled_from([0.005, 0.1, 0.3, 0.9, 1, 1, 2.5, 7, 14]))
    def time_passes(self, seconds: float) -> None:
        self.move(seconds)

    @rule(number=st.integers(0, 3), seconds=st.sampled_from([0.4, 1.5, 8]))
    def machine_sleeps(self, number: int, seconds: float) -> None:
        """The monotonic clock of a process stands while its machine sleeps."""
        process = self.process(number)
        stood = process.clock.since_boot
        self.move(seconds)
        process.clock.since_boot = stood

    @rule(number=st.integers(0, 3), change=st.floats(-1, 1))
    def clock_is_set(self, number: int, change: float) -> None:
        process = self.process(number)
        most = 0.3 if self.limit else 30
        process.clock.time = round(self.clock.time + most * change, 3)
        self.is_ahead = self.is_ahead or process.clock.time > self.clock.time + LONGEST_SKEW

    @rule(number=st.integers(0, 3), seed=st.integers(0, 2**16))
    def process_crashes(self, number: int, seed: int) -> None:
        """It is started again; some of its calls are performed after its end."""
        self._chance = random.Random(seed)
        process = self.process(number)
        for call in process.calls:
            if call.replies is None and self.chance.random() < 0.5:
                self.perform(call.pipeline)
        process.crash()

    @precondition(lambda self: len(self.processes) < MOST_PROCESSES)
    @rule(number=st.integers(0, 3))
    def process_is_added(self, number: int) -> None:
        clock = self.process(number).clock
        self.processes.append(Process(FakeClock(clock.time, clock.since_boot), self))

    @rule(number=st.integers(0, 3))
    def process_is_closed(self, number: int) -> None:
        """It gives back what it has, and may go on."""
        process = self.process(number)
        self.lossy = LossyStore(self, random.Random(number))
        run(process.limiter.flush(), self.lossy)
        process.forget()

    @precondition(lambda self: self.case.rules[0]["limits"] is not tiers)
    @rule(number=st.integers(0, 3))
    def quota_is_reset(self, number: int) -> None:
        keys = [key.decode() for key in self.store.client.keys(f"{self.prefix}:*ip=203.0.113.1:*")]
        before = self.counters(keys)
        run(self.process(number).limiter.reset("r0", "ip=203.0.113.1"), self.store)
        self.process(number).forget()
        after = self.counters(keys)
        for key, units in before.items():
            self.erased[key] += units - after[key]
        if self.limit is not None:
            self.times["203.0.113.1"].clear()
            for process in self.processes:
                process.crash()

    @precondition(lambda self: self.limited[0].dynamic)
    @rule(limit=st.sampled_from([10, 30, 60, 200, None]))
    def limit_is_changed(self, limit: int | None) -> None:
        run(self.processes[0].limiter.set_limit("r0", limit), self.store)

    @rule(number=st.integers(0, 3))
    def process_peeks(self, number: int) -> None:
        request = HTTPRequest("GET", "/a", peer="203.0.113.1")
        seen = run(self.process(number).limiter.peek(request), self.store)
        assert seen is not None
        assert seen.remaining is not None
        assert seen.remaining >= 0

    @invariant()
    def no_unit_is_created(self) -> None:
        """What is admitted from a window was taken from its counter."""
        if not hasattr(self, "admitted"):
            return
        keys = list(self.admitted)
        counters = self.counters(keys)
        for key in keys:
            assert self.admitted[key] <= counters[key] + self.erased[key], key


class Ask(Struct):
    """What a call does for a lease at one limit."""

    base: str
    wanted: int
    given: int
    where: int


def asks_of(script: Command) -> list[Ask]:
    """Return what a call of the script does for leases, limit by limit; nothing if no call does."""
    size = int(script.args[2])
    keys, words = script.args[3 : 3 + size], script.args[3 + size :]
    if len(words) < 2 or words[1] != "lease":
        return []
    asks, begin = [], 0
    per_algorithm = {"fixed": 2, "sliding": 3}
    for first in range(2, len(words), 13):
        limit = words[first : first + 13]
        base = str(keys[begin]).rpartition(":")[0]
        begin += per_algorithm.get(str(limit[1]), 1) + int(limit[7])
        asks.append(Ask(base, int(limit[9]), int(limit[11]), int(limit[12])))
    return asks


def now_of(script: Command) -> int:
    return int(script.args[3 + int(script.args[2])])


def window_keys(charge: Any) -> list[str]:
    """Return the keys of the windows that a charge was taken from."""
    return [
        policy.limit.refund_keys(charge.base, where, 0)[0]
        for policy, where in zip(charge.rule.policies, charge.state_parts, strict=True)
        if isinstance(policy.limit, FixedWindow | SlidingWindow)
    ]


def allowed_in(limit: Limit, seconds: float, lease: Lease) -> int:
    """Return the most units within a time, by clocks that differ, with slices."""
    most = round((seconds + 1.2) * 1000) + lease.milliseconds
    match limit:
        case GCRA():
            return limit.quota + most * limit.limit // limit.milliseconds
        case TokenBucket():
            return limit.quota + (most // limit.milliseconds + 1) * limit.refill
        case _:
            most = min(most, round((seconds + 1.2) * 1000) + limit.milliseconds)
            return limit.quota * (most // limit.milliseconds + 1)


def search(store: ValkeyStore, case: str, examples: int, **given: Any) -> None:
    LeaseMachine.store = store
    LeaseMachine.case = CASES[case]
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            **given,
        ),
    )


@pytest.mark.parametrize("case", CASES)
def test_no_more_is_admitted_than_was_taken(store: ValkeyStore, case: str) -> None:
    search(store, case, 20)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_no_more_is_admitted_than_was_taken_in_many_orders(store: ValkeyStore, case: str) -> None:
    search(store, case, 100)
