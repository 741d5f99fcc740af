"""Collapsing requests (RFC 9111 §4): one render in this process for all who ask at once.

The first of them leads and goes forward; the others wait, and are answered by what its response
stores. Who waits has already looked up, so a purge that was complete by then is known: a response
to a request that went forward before such a purge is not used for them.
"""

from __future__ import annotations

import threading
from enum import Enum, auto
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.answers import FOR_LESS, answer, current_age, head_of
from upstash_middleware.core.cache.epochs import Epoch, Life, life, with_ancestors
from upstash_middleware.core.cache.exchanges import Answering, Passing, for_downstream
from upstash_middleware.core.cache.fields import cache_control
from upstash_middleware.core.cache.keys import selected_values
from upstash_middleware.core.cache.status import CacheStatus
from upstash_middleware.core.effects import Latch, Wait
from upstash_middleware.values import dataclass, field, replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.exchanges import Context
    from upstash_middleware.core.cache.planning import Plan
    from upstash_middleware.core.cache.recording import Forwarded, Recording
    from upstash_middleware.core.clock import Clock

# For so many seconds nobody waits for a response of a kind that could not be shared.
_REMEMBER_UNSHARED = 60.0
_ROOM = 10_000
# A flight that takes longer was dropped by whoever should have finished it.
_LONGEST = 60.0
# No epoch is this, so a tag that was not read counts as purged where some tag was.
_NOT_READ = Epoch("not read", "")


class Outcome(Enum):
    """What became of a request that others waited for, where nothing can be shared."""

    UNSHARED = auto()
    """Its response may not be stored: waiting for the like of it would be in vain."""
    INTERRUPTED = auto()
    """It has no response to speak of: another one has to go forward."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A response that may be stored, for those who waited."""

    plan: Plan
    asked: Forwarded
    """The request that it answers."""


@dataclass(slots=True)
class Flight:
    """A request on its way to the application, for which others may wait."""

    key: str
    begun: float
    """When, by the monotonic clock."""
    latch: Latch = field(default_factory=Latch)
    landed: Shared | Outcome | None = None


class Flights:
    """The requests of this process that are on their way. Safe under threads."""

    __slots__ = ("_clock", "_flying", "_lock", "_unshared")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._flying: dict[str, Flight] = {}
        self._unshared: dict[str, float] = {}
        self._lock = threading.Lock()

    def board(self, key: str, *, may_lead: bool = True) -> tuple[Flight | None, bool]:
        """Return the flight for a key, and whether the caller is to lead it.

        None where there is none and the caller may not lead one, and where lately no response
        could be shared.
        """
        with self._lock:
            if self._unshared.get(key, 0.0) > self._clock.monotonic():
                return None, False
            flight, now = self._flying.get(key), self._clock.monotonic()
            if flight is not None and now < flight.begun + _LONGEST:
                return flight, False
            if not may_lead:
                return None, False
            self._flying[key] = flight = Flight(key, now)
            if len(self._flying) > _ROOM:
                del self._flying[next(iter(self._flying))]
            return flight, True

    def depart(self, flight: Flight) -> None:
        """Have nobody else wait for a flight: its response is stored, or was too long in coming.

        Until then also those are answered by it who ask after it has landed, and before what it
        brought can be found.
        """
        with self._lock:
            if self._flying.get(flight.key) is flight:
                del self._flying[flight.key]

    def land(self, flight: Flight, landed: Shared | Outcome) -> None:
        """Let those who wait for a flight know what became of it; only the first time counts."""
        with self._lock:
            if flight.landed is not None:
                return
            flight.landed = landed
            if not isinstance(landed, Shared) and self._flying.get(flight.key) is flight:
                del self._flying[flight.key]
            self._unshared.pop(flight.key, None)
            if landed is Outcome.UNSHARED:
                self._unshared[flight.key] = self._clock.monotonic() + _REMEMBER_UNSHARED
                if len(self._unshared) > _ROOM:
                    del self._unshared[next(iter(self._unshared))]
        flight.latch.open()


async def collapse(context: Context, exchange: Recording, asked: Forwarded) -> Passing:
    """Have a request lead those that come after it, or be answered by one that leads.

    It waits for ``context.collapse`` seconds at most, and then goes forward by itself.
    """
    clock = context.store.clock
    until = clock.monotonic() + context.collapse
    key = asked.lookup.key
    # With these a request may be answered by less than what the others want.
    may_lead = asked.request.headers.names().isdisjoint(FOR_LESS)
    while (left := until - clock.monotonic()) > 0:
        flight, leads = context.flights.board(key, may_lead=may_lead)
        if flight is None:
            break
        if leads:
            exchange.lead(flight)
            break
        if not await Wait(flight.latch, left):
            context.flights.depart(flight)
            break
        if not isinstance(flight.landed, Shared):
            if flight.landed is Outcome.UNSHARED:
                break
            continue
        if (answering := _answering(context, flight.landed, asked)) is not None:
            return answering
        # Now that Vary is known, those who ask for another variant elect by that.
        key = context.store.variant(asked.target, flight.landed.plan.vary)
        if key == flight.key:
            context.flights.depart(flight)
    return exchange


def may_be_shared(context: Context, asked: Forwarded) -> bool:
    """Whether the response to a request could be stored, as far as the request goes.

    Where it could not, nobody is to wait for it.
    """
    request, stub = asked.request, asked.lookup.stub
    if context.collapse <= 0 or request.method != "GET":
        return False
    if "no-store" in cache_control(request.headers):
        return False
    varying = stub.vary if stub is not None else ()
    cookies = asked.rule.vary_cookies is None and not context.store.profile.stores_for_cookies
    barring = ("authorization", "cookie") if cookies else ("authorization",)
    barred = any(name in request.headers and name not in varying for name in barring)
    return asked.target.private or not barred


def _same_variant(context: Context, shared: Shared, asked: Forwarded) -> bool:
    fields, profile = shared.plan.vary, context.store.profile
    theirs = selected_values(fields, shared.asked.request.headers, profile)
    return theirs == selected_values(fields, asked.request.headers, profile)


def _answering(context: Context, shared: Shared, asked: Forwarded) -> Answering | None:
    """Return the answer to who waited, None if it must be asked for anew."""
    stored, now = shared.plan.stored, context.store.clock.wall()
    age = current_age(stored, now)
    left = stored.lifetime - age
    if left <= 0 or not _same_variant(context, shared, asked):
        return None
    if not _outlives_purges(shared, asked):
        return None
    status = CacheStatus(
        fwd=asked.fwd, ttl=left, collapsed=True, key=context.told_key(asked.lookup)
    )
    head = for_downstream(head_of(stored, age, context.store.profile, status), asked.rule)
    return Answering(answer(asked.request, stored, head))


def _outlives_purges(shared: Shared, asked: Forwarded) -> bool:
    """Whether no purge that bears on it was complete when the other request looked up."""
    before, after = shared.asked.lookup.epochs, asked.lookup.epochs
    tags = with_ancestors((*asked.target.tags, *shared.plan.stored.tags))
    recorded = {tag: before.tags.get(tag, _NOT_READ) for tag in tags}
    return life(replace(before, tags=recorded), after) is Life.ALIVE
