"""Leases: units that this process reserves for busy identifiers, and charges without a call.

For a rule with a lease, this process counts the units that each identifier uses. If the rate is
high enough, the next script call for the identifier also reserves a *slice* of the remaining quota.
Further requests are charged to the slice until it is used up or ends. Upstash counts reserved units
as used, so all processes together never admit more than the quota.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from msgspec import Struct, field

from upstash_middleware.core.ratelimit.charges import LeaseCall, Slice
from upstash_middleware.core.ratelimit.decision import Decision, PolicyState, decided
from upstash_middleware.events import QuotaLeased, hears

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.flow import Latch
    from upstash_middleware.core.ratelimit.charges import RuleCharge, Verdict
    from upstash_middleware.core.ratelimit.memory import ServerClock
    from upstash_middleware.core.ratelimit.rules import CompiledRule, Lease
    from upstash_middleware.events import Observer

MOST_IDENTIFIERS = 10_000


class _Holder(Struct, eq=False):
    """The state of one identifier under one rule in this process."""

    counting_since: float
    counted: int = 0
    """The units used since then."""
    counted_before: int = 0
    """The units used in the interval before that."""
    slices: list[Slice] = field(default_factory=list)
    """The slices, oldest first."""
    ended: Slice | None = None
    """A slice that has ended with units left; the next call returns these."""
    refill_at: int = 0
    """The number of units left at which the next slice is requested."""
    used_since_asking: int = 0
    """The units used since the last request for a slice."""
    policies: tuple[PolicyState, ...] = ()
    """The states of the limits after the last call."""
    asking: LeaseCall | None = None
    """The last call that requests a slice."""
    asking_until: float = 0.0
    """The time by which the call that requests a slice will have ended; past if there is none."""
    paused_until: float = 0.0
    """The time until which no slice is requested."""

    @property
    def expected(self) -> int:
        """The estimated number of units used during a slice."""
        return max(self.counted, self.counted_before)

    @property
    def left(self) -> int:
        """The units in all slices."""
        units = 0
        for each in self.slices:  # usually one
            units += each.units
        return units

    def end(self, now: float, now_ms: int) -> int:
        """Remove the slices that have ended; return the number of units that cannot be returned."""
        for each in self.slices:
            if now >= each.ends_monotonic or not each.taken_ms <= now_ms < each.ends_ms:
                break
        else:
            return 0
        wasted = 0
        for each in self.slices[:]:
            if not _is_alive(each, now, now_ms):
                self.slices.remove(each)
                each.is_closed = True
                earlier = self.ended
                if each.units == 0:
                    continue
                self.ended = each
                if earlier is not None and earlier.state_parts == each.state_parts:
                    _add(each, earlier)
                elif earlier is not None:
                    wasted += earlier.units
        return wasted

    def drop_earlier_windows(self, rule: CompiledRule, verdicts: Sequence[Verdict]) -> int:
        """Drop the slices of windows that have ended on the database; return their units.

        Another process, whose clock is ahead, may have begun the next window. The verdicts are then
        for that window, so units of earlier windows must not be added to its remaining units.
        """
        dropped = 0
        for each in self.slices[:]:
            parts = zip(rule.policies, each.state_parts, verdicts, strict=True)
            if any(p.limit.windows and part < verdict.state_part for p, part, verdict in parts):
                self.slices.remove(each)
                each.is_closed = True
                dropped += each.units
        return dropped

    def wanted(self, lease: Lease, now: float) -> int:
        """Return the number of units that a call may reserve now; 0 if it may not reserve any."""
        expected = self.expected
        if expected < lease.threshold or now < self.asking_until or now < self.paused_until:
            return 0
        return max(0, expected - self.left)


class Leases:
    """The slices of this process. Thread-safe; a forked child must create its own.

    Args:
        observe: Receives the events.
        most: The maximum number of identifiers. Beyond it, the slices of the identifier that was
            not used for the longest time are dropped.
    """

    def __init__(self, observe: Observer, most: int = MOST_IDENTIFIERS) -> None:
        self._holders: OrderedDict[tuple[str, str, object], _Holder] = OrderedDict()
        self._lock = threading.Lock()
        self._most = most
        self._observe = observe
        self._emits = hears(observe, QuotaLeased)

    def serve(self, charge: RuleCharge, time: ServerClock) -> bool:
        """Count a request, and charge it to a slice if possible; False if a call is needed."""
        rule, cost = charge.rule, charge.cost
        lease: Any = rule.lease
        now, now_ms = time.both()
        with self._lock:
            holder, wasted = self._holder(charge, now, now_ms)
            passed = now - holder.counting_since
            if passed >= lease.seconds:
                holder.counted_before = holder.counted if passed < 2 * lease.seconds else 0
                holder.counted, holder.counting_since = 0, now
            holder.counted += cost
            holder.used_since_asking += cost
            served = False
            if holder.slices:
                left = -cost
                for each in holder.slices:  # usually one or two
                    left += each.units
                is_enough = left >= holder.refill_at or not holder.wanted(lease, now)
                served = is_enough and _use(holder, charge, left)
        if wasted:
            self._emit(charge, wasted=wasted)
        return served

    def ask(self, charge: RuleCharge, time: ServerClock, deadline: float) -> None:
        """Set what a script call does for the lease; ``deadline`` is the call's, in seconds."""
        lease = cast("Lease", charge.rule.lease)
        now, now_ms = time.monotonic(), time.now_ms()
        with self._lock:
            holder, wasted = self._holder(charge, now, now_ms)
            if wanted := holder.wanted(lease, now):
                holder.asking_until = now + deadline
                holder.used_since_asking = 0
            unused, holder.ended = holder.ended, None
            if unused is None and holder.slices and holder.left < charge.cost:
                unused = holder.slices.pop()
                unused.is_closed = True
                for each in holder.slices[:]:
                    if each.state_parts == unused.state_parts:
                        holder.slices.remove(each)
                        each.is_closed = True
                        _add(unused, each)
            if wanted or unused is not None:
                charge.lease = LeaseCall(wanted, lease.share, now)
            if unused is not None:
                given = unused.returnable(unused.units, time)
                charge.lease = LeaseCall(
                    wanted, lease.share, now, unused.units, given, unused.state_parts
                )
            if wanted and charge.lease is not None:
                holder.asking = charge.lease
                left = [each.remaining for each in holder.policies]
                most = min(left or [each.quota for each in charge.rule.policies])
                charge.lease.promised = min(wanted, ceil(most * lease.share))
        self._emit(charge, wasted=wasted)

    def arrival(self, charge: RuleCharge, time: ServerClock) -> Latch | None:
        """Return the latch that opens at the end of the call that requests a slice.

        None if there is no such call, or if requests that already wait will use up the slice.
        """
        with self._lock:
            holder = self._known(charge)
            asked = None if holder is None else holder.asking
            if holder is None or asked is None or time.monotonic() >= holder.asking_until:
                return None
            if asked.promised < charge.cost:
                return None
            asked.promised -= charge.cost
            return asked.arrival

    def receive(
        self, charge: RuleCharge, verdicts: Sequence[Verdict], sent_ms: int, time: ServerClock
    ) -> None:
        """Receive the slice of a call, and include slices in the decision.

        A request that the script denied may still use a slice, unless the call also had charges of
        other rules, which were then not taken.
        """
        asked, charge.lease = charge.lease, None
        decision = cast("Decision", charge.decision)
        leased = verdicts[0].leased if asked else 0
        returned = wasted = 0
        if asked and asked.unused:
            fits = [
                policy.limit.gives_back(part, verdict.state_part)
                for policy, part, verdict in zip(
                    charge.rule.policies, asked.state_parts, verdicts, strict=True
                )
            ]
            returned = min(asked.given_back) if all(fits) else 0
            wasted = asked.unused - returned
        now, now_ms = time.monotonic(), time.now_ms()
        with self._lock:
            holder, dropped = self._holder(charge, now, now_ms)
            if asked is not None and asked is holder.asking:
                holder.asking_until = now
            holder.policies = decision.policies
            dropped += holder.drop_earlier_windows(charge.rule, verdicts)
            if asked and leased:
                taken = self._create_slice(charge, leased, verdicts, sent_ms, asked.began)
                for each in holder.slices:
                    each.is_closed = not each.units
                holder.slices = [each for each in holder.slices if each.units]
                holder.slices.append(taken)
                # The next slice should arrive before concurrent requests need calls of their own.
                holder.refill_at = max(leased // 4, 2 * holder.used_since_asking)
                charge.slice = taken
                dropped += holder.end(now, now_ms)  # the reply may have been late
            elif not decision.allowed:
                holder.paused_until = max(holder.paused_until, now + (decision.retry_after or 0))
            left = holder.left
            if left and decision.allowed:
                charge.decision = _decision_with_leased(decision, left)
        if asked is not None:
            asked.arrival.open()
        self._emit(charge, leased, returned, wasted + dropped)

    def serve_without_call(self, charge: RuleCharge, time: ServerClock) -> bool:
        """Charge a request that was already counted to a slice; False if there is none."""
        with self._lock:
            holder = self._known(charge)
            if holder is None or not holder.slices:
                return False
            wasted = holder.end(time.monotonic(), time.now_ms())
            served = _use(holder, charge, holder.left - charge.cost)
        self._emit(charge, wasted=wasted)
        return served

    def lose(self, charge: RuleCharge, time: ServerClock) -> None:
        """Note that a call has failed, so that its reserved and returned units are unknown."""
        asked, charge.lease = charge.lease, None
        if asked is None:
            return
        lease = cast("Lease", charge.rule.lease)
        now, now_ms = time.monotonic(), time.now_ms()
        with self._lock:
            holder, wasted = self._holder(charge, now, now_ms)
            if asked.wanted:
                if asked is holder.asking:
                    holder.asking_until = now
                holder.paused_until = now + lease.milliseconds / 1000
        asked.arrival.open()
        self._emit(charge, wasted=wasted + asked.unused)

    def settle(self, charge: RuleCharge, units: int, time: ServerClock) -> int:
        """Settle units from the slice of a request; return those that a call has to settle."""
        taken = charge.slice
        if taken is None or not units:
            return units
        with self._lock:
            is_alive = _is_alive(taken, time.monotonic(), time.now_ms())
            if not (is_alive and -taken.used <= units <= taken.units):
                return units
            taken.units -= units
            taken.used += units
        return 0

    def include(self, charge: RuleCharge, time: ServerClock) -> None:
        """Include this process's slices in a decision for which nothing was charged."""
        decision = cast("Decision", charge.decision)
        now = time.monotonic(), time.now_ms()
        with self._lock:
            holder = self._known(charge)
            slices = (
                [] if holder is None else [each for each in holder.slices if _is_alive(each, *now)]
            )
            left = sum(each.units for each in slices)
            if left and (decision.allowed or left >= charge.cost):
                charge.decision = _decision_with_leased(decision, left)

    def forget(self, base: str) -> None:
        """Drop the slices under keys that begin with ``base``, because the quota was reset."""
        with self._lock:
            for key in [known for known in self._holders if known[0] == base]:
                _close(self._holders.pop(key))

    def clear(self) -> list[Slice]:
        """Drop all slices; return those whose units should be returned."""
        with self._lock:
            holders = [*self._holders.values()]
            self._holders.clear()
            return [each for holder in holders for each in _close(holder)]

    def _known(self, charge: RuleCharge) -> _Holder | None:
        return self._holders.get((charge.base, charge.rule.rule.name, charge.rule.tier))

    def _holder(self, charge: RuleCharge, now: float, now_ms: int) -> tuple[_Holder, int]:
        """Return the state of an identifier, and the number of units dropped to make room."""
        key = (charge.base, charge.rule.rule.name, charge.rule.tier)
        holder = self._holders.get(key)
        if holder is not None:
            self._holders.move_to_end(key)
            return holder, holder.end(now, now_ms) if holder.slices else 0
        holder = self._holders[key] = _Holder(now)
        if len(self._holders) <= self._most:
            return holder, 0
        _, oldest = self._holders.popitem(last=False)
        return holder, sum(each.units for each in _close(oldest))

    @staticmethod
    def _create_slice(
        charge: RuleCharge,
        units: int,
        verdicts: Sequence[Verdict],
        sent_ms: int,
        began: float,
    ) -> Slice:
        parts = tuple(verdict.state_part for verdict in verdicts)
        lease = cast("Lease", charge.rule.lease)
        ends = [
            policy.limit.taken_until(verdict.state_part, sent_ms + verdict.reset_ms)
            for policy, verdict in zip(charge.rule.policies, verdicts, strict=True)
        ]
        ends_ms = min(sent_ms + lease.milliseconds, *ends)
        return Slice(
            units,
            charge.rule,
            charge.base,
            parts,
            sent_ms,
            ends_ms,
            began,
            began + (ends_ms - sent_ms) / 1000,
            charge.cost,
        )

    def _emit(
        self, charge: RuleCharge, leased: int = 0, returned: int = 0, wasted: int = 0
    ) -> None:
        if not self._emits:
            return
        rule = charge.rule.rule.name
        for change, units in (("leased", leased), ("returned", returned), ("wasted", wasted)):
            if units:
                self._observe(QuotaLeased(rule, charge.identifier, change, units))


def _is_alive(taken: Slice, now: float, now_ms: int) -> bool:
    """Whether a slice may be used now, by the monotonic clock and the database's."""
    return (
        not taken.is_closed
        and now < taken.ends_monotonic
        and taken.taken_ms <= now_ms < taken.ends_ms
    )


def _add(unused: Slice, other: Slice) -> None:
    """Add the units of a slice to one that is to be returned, with the earlier of their times."""
    unused.units += other.units
    unused.taken_ms = min(unused.taken_ms, other.taken_ms)
    unused.taken_monotonic = min(unused.taken_monotonic, other.taken_monotonic)


def _use(holder: _Holder, charge: RuleCharge, left: int) -> bool:
    """Charge to the slices, and decide by that; False if they have too few units.

    ``left`` is the number of units in all slices afterwards. A refund goes into the last slice that
    was used, up to the units that were taken from it.
    """
    if left < 0:
        return False
    cost = charge.cost
    for each in holder.slices:
        part = min(cost, each.units)
        each.units -= part
        each.used += part
        cost -= part
        if not cost:
            charge.slice, charge.state_parts = each, each.state_parts
            break
    rule = charge.rule.rule
    charge.decision = decided(
        rule.name,
        charge.identifier,
        _policies_with_leased(holder.policies, left),
        rule.shadow,
        "lease",
    )
    return True


def _policies_with_leased(policies: Sequence[PolicyState], left: int) -> tuple[PolicyState, ...]:
    return tuple(
        [
            PolicyState(each.name, each.limit, each.window, each.remaining + left, each.reset, True)
            for each in policies
        ]
    )


def _decision_with_leased(decision: Decision, left: int) -> Decision:
    """Return a decision that allows, with ``left`` units of slices added to the remaining ones."""
    return decided(
        decision.rule,
        decision.identifier,
        _policies_with_leased(decision.policies, left),
        decision.shadow,
    )


def _close(holder: _Holder) -> list[Slice]:
    """Close all slices of an identifier; return those with units left."""
    slices = [*holder.slices, *([] if holder.ended is None else [holder.ended])]
    for each in slices:
        each.is_closed = True
    return [each for each in slices if each.units]
