"""What happens to a request after its limits have let it pass: header fields, slots, settling."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from upstash_middleware.core.engine import PartExchange
from upstash_middleware.core.flow import Pipeline, call
from upstash_middleware.core.ratelimit.algorithms import Concurrency
from upstash_middleware.core.ratelimit.charging import checked_cost, longest_deadline
from upstash_middleware.core.ratelimit.decision import LIMIT_FIELDS, limit_fields, may_be_shared
from upstash_middleware.core.ratelimit.script import Settlement, settle_command
from upstash_middleware.errors import CommandError, UpstashError
from upstash_middleware.events import UpstashAnswered, UpstashFailed, UserCodeFailed
from upstash_middleware.messages import NO_HEADERS, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from upstash_middleware.core.flow import Flow
    from upstash_middleware.core.ratelimit.charging import RuleCharge
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.memory import Denials, ServerClock
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest, Response

_DURING = "rate limit settling"


class RateLimitExchange(PartExchange):
    """One request and its response."""

    __slots__ = (
        "_head",
        "_renew_at",
        "_request",
        "_settler",
        "_settles",
        "_slot_life",
        "decision",
        "holds",
        "response",
        "taken",
    )

    def __init__(
        self,
        request: HTTPRequest,
        settler: Settler,
        decision: Decision | None = None,
        taken: Sequence[RuleCharge] = (),
        response: Response | None = None,
    ) -> None:
        self.decision: Decision | None = decision
        """None for a request that is exempt or that no rule covers."""
        self.response: Response | None = response
        self.taken: Sequence[RuleCharge] = taken
        """The charges that were taken.

        For a denial there are none, unless something else overruled these rules: then they are
        refunded.
        """
        self._request = request
        self._settler = settler
        self._head: ResponseHead | None = None
        self._settles = False
        """Whether there may be something to settle if the application charges nothing."""
        self.holds: bool = False
        """Whether the request has slots, which expire unless they are renewed."""
        for charge in taken:
            if charge.rule.settles:
                self._settles = True
                self.holds = self.holds or charge.rule.has_slots
        if self.holds:
            slots = _slots(taken, 1)
            self._slot_life = min([slot.limit.milliseconds for slot in slots]) / 1000
            self._renew_at = settler.time.monotonic() + self._slot_life / 2

    def head(self, head: ResponseHead) -> ResponseHead:
        """Return the head with the limits' fields.

        Without them if it has such fields already, or a shared cache might store them.
        """
        self._head = head
        if self.decision is None or not LIMIT_FIELDS.isdisjoint(head.headers.names()):
            return head
        if may_be_shared(self._request, head):
            return head
        fields = limit_fields(self.decision, self._settler.time.now())
        return ResponseHead(head.status, head.headers.adding(*fields)) if fields else head

    def failed(self) -> None:
        """Note that the application raised before it had a response: it is settled as a 500."""
        self._head = self._head or ResponseHead(500, NO_HEADERS)

    def renewal(self) -> Flow[None] | None:
        """Return what renews the request's slots, None before half of their lifetime has passed."""
        if not self.holds or (now := self._settler.time.monotonic()) < self._renew_at:
            return None
        self._renew_at = now + self._slot_life / 8  # if it fails, there are some tries left
        return self._renew(now + self._slot_life / 2)

    async def _renew(self, renew_at: float) -> None:
        # A slot that has expired is taken again, whatever is in flight by now: so is this request.
        if await self._settler.carry_out(_slots(self.taken, 1), self.taken):
            self._renew_at = renew_at

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002 - the protocol's name
        """Return the flow that settles the final cost, None if that cost was already taken."""
        taken, settler = self.taken, self._settler
        if not taken:
            return None
        if self.response is not None:
            due = _settlements((charge, -charge.cost) for charge in taken)
            return settler.settle(due, taken)
        charged = 0
        if self.decision is not None:
            charged = self.decision.ledger.close(partial(settler.charge_late, taken))
        if not (self._settles or charged):
            return None
        return settler.settle_request(self._request, self._head, taken, charged)


class Settler:
    """Settles the final costs of requests, in separate calls; ``deadline`` is in seconds."""

    def __init__(
        self,
        time: ServerClock,
        observe: Observer,
        deadline: float,
        denials: Denials,
        perform: Callable[[Flow[None]], object],
    ) -> None:
        self.time = time
        self._observe = observe
        self._deadline = deadline
        self._denials = denials
        self._perform = perform

    async def settle_request(
        self,
        request: HTTPRequest,
        head: ResponseHead | None,
        taken: Sequence[RuleCharge],
        charged: int,
    ) -> None:
        """Charge or refund the difference to the final cost. A flow; never raises UpstashError.

        ``charged`` is what the application charges in addition. ``head`` is None where the client
        left before there was a response: the cost remains, else leaving early would cost nothing.
        """
        due = []
        for charge in taken:
            cost, settle = charge.cost, charge.rule.rule.settle
            if settle is not None and head is not None:
                try:
                    cost = checked_cost(await call(settle, request, head))
                except Exception as error:  # noqa: BLE001 - whatever the application's function raises
                    self._observe(UserCodeFailed(charge.rule.named("settle"), error))
            due.append((charge, cost + charged - charge.cost))
        self._mark_uncertain(due)
        await self.carry_out(_settlements(due), taken)

    def charge_late(self, taken: Sequence[RuleCharge], units: int) -> None:
        """Charge for a request that is settled already, in a separate call."""
        if units:
            due = [(charge, units) for charge in taken]
            self._mark_uncertain(due)
            late = [each for each in _settlements(due) if not isinstance(each.limit, Concurrency)]
            self._perform(self.settle(late, taken))

    def release_slots(self, charges: Sequence[RuleCharge]) -> Flow[None]:
        """Return what releases the slots of a request that ends before its verdict is known."""
        return self.settle(_slots(charges, -1), charges)

    async def settle(
        self, settlements: Sequence[Settlement], charges: Sequence[RuleCharge]
    ) -> None:
        """Settle. A flow; never raises UpstashError."""
        await self.carry_out(settlements, charges)

    async def carry_out(
        self, settlements: Sequence[Settlement], charges: Sequence[RuleCharge]
    ) -> bool:
        """Return whether the settlements were carried out. A flow; never raises UpstashError."""
        if not settlements:
            return True
        command = settle_command(settlements, self.time.now_ms())
        try:
            (reply,) = await Pipeline((command,), longest_deadline(charges, self._deadline))
            if isinstance(reply, CommandError):
                raise reply
        except UpstashError as error:
            self._observe(UpstashFailed(_DURING, error))
            return False
        self._observe(UpstashAnswered(_DURING))
        for settlement in settlements:
            if settlement.units < 0:
                self._denials.forget(settlement.base)
        return True

    def _mark_uncertain(self, due: Iterable[tuple[RuleCharge, int]]) -> None:
        for charge, units in due:
            if units < 0:
                self._denials.mark_uncertain(charge.rule.base)


def _slots(charges: Sequence[RuleCharge], units: int) -> list[Settlement]:
    return [
        Settlement(charge.base, policy.limit, units, charge.token)
        for charge in charges
        for policy in charge.rule.policies
        if isinstance(policy.limit, Concurrency)
    ]


def _settlements(due: Iterable[tuple[RuleCharge, int]]) -> list[Settlement]:
    """Return the charges and refunds that remain, and the slots to release.

    What rules of one bucket took together is settled once, by the highest of their units.
    """
    settlements: dict[tuple[str, int], Settlement] = {}
    for charge, units in due:
        for policy, where in zip(charge.rule.policies, charge.where or (), strict=True):
            own = -1 if isinstance(policy.limit, Concurrency) else units
            state = policy.limit.state(charge.base)
            if state not in settlements or own > settlements[state].units:
                settlements[state] = Settlement(charge.base, policy.limit, own, where)
    return [settlement for settlement in settlements.values() if settlement.units]
