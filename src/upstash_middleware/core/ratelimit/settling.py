"""What a request has cost in the end: settled after its last byte, on every way out.

Units were taken before the application was called. Here the difference to what the rule's
``settle`` and the handler's ``charge`` say is taken, or given back where it was taken from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.effects import Pipeline, call
from upstash_middleware.core.ratelimit.asking import Ask, checked_cost, longest_deadline
from upstash_middleware.core.ratelimit.limits import Concurrency, window_ms
from upstash_middleware.core.ratelimit.script import Settlement, settle_command
from upstash_middleware.errors import CommandError, UpstashError
from upstash_middleware.events import UpstashAnswered, UpstashFailed, UserCodeFailed
from upstash_middleware.messages import NO_HEADERS, ResponseHead
from upstash_middleware.values import dataclass, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.ratelimit.decision import Ledger
    from upstash_middleware.core.ratelimit.server_clock import ServerClock
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request

_DURING = "rate limit settling"
_RAISED = ResponseHead(500, NO_HEADERS)


@value(frozen=True, slots=True)
class Taken:
    """What was taken for a request under one rule, and from where, limit by limit."""

    ask: Ask
    where: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settling:
    """Settles requests; ``deadline`` is in seconds."""

    time: ServerClock
    observe: Observer
    deadline: float

    async def settle(
        self, request: Request, head: ResponseHead | None, taken: Sequence[Taken], ledger: Ledger
    ) -> None:
        """Take or give back the difference. A flow; it never raises an UpstashError.

        ``head`` is None where the application raised before it had a response.
        """
        settlements: list[Settlement] = []
        for one in taken:
            units = await self._final_cost(one.ask, request, head or _RAISED)
            units += ledger.total() - one.ask.cost
            settlements += _settlements(one, units)
        await self._carry_out(settlements, [one.ask for one in taken])

    async def give_back(self, taken: Sequence[Taken]) -> None:
        """Give back all that was taken for a request that was denied all the same. A flow."""
        settlements = [part for one in taken for part in _settlements(one, -one.ask.cost)]
        await self._carry_out(settlements, [one.ask for one in taken])

    async def give_back_slots(self, asks: Sequence[Ask]) -> None:
        """Give back what requests in flight hold, whether they got it or not. A flow.

        For a request that ends before it is known what it was given. It never raises an
        UpstashError.
        """
        await self._carry_out(_slots(asks, -1), asks)

    async def renew(self, taken: Sequence[Taken]) -> bool:
        """Have the slots of a request in flight expire as late as if it had just begun. A flow.

        Answers whether that was done; it never raises an UpstashError. A slot that has expired
        is taken again, whoever else has come in meanwhile: the request is in flight.
        """
        asks = [one.ask for one in taken]
        return await self._carry_out(_slots(asks, 1), asks)

    async def _carry_out(self, settlements: Sequence[Settlement], asks: Sequence[Ask]) -> bool:
        if not settlements:
            return True
        command = settle_command(settlements, self.time.now_ms())
        try:
            (reply,) = await Pipeline((command,), longest_deadline(asks, self.deadline))
            if isinstance(reply, CommandError):
                raise reply
        except UpstashError as error:
            self.observe(UpstashFailed(_DURING, error))
            return False
        self.observe(UpstashAnswered(_DURING))
        return True

    async def _final_cost(self, ask: Ask, request: Request, head: ResponseHead) -> int:
        settle = ask.rule.rule.settle
        if settle is None:
            return ask.cost
        try:
            return checked_cost(await call(settle, request, head))
        except Exception as error:  # noqa: BLE001 - whatever the application's function raises
            self.observe(UserCodeFailed(f"{ask.rule.setting}.settle", error))
            return ask.cost


def slot_life(taken: Sequence[Taken]) -> float | None:
    """Return the seconds after which the first of a request's slots expires; None without any."""
    slots = _slots([one.ask for one in taken], 1)
    return min([window_ms(slot.limit) for slot in slots]) / 1000 if slots else None


def _slots(asks: Sequence[Ask], units: int) -> list[Settlement]:
    return [
        Settlement(ask.base, policy.limit, units, ask.token)
        for ask in asks
        for policy in ask.rule.policies
        if isinstance(policy.limit, Concurrency)
    ]


def _settlements(taken: Taken, units: int) -> list[Settlement]:
    """Return what is left to take or give, and the slots to give back."""
    settlements = []
    for policy, where in zip(taken.ask.rule.policies, taken.where, strict=True):
        own = -1 if isinstance(policy.limit, Concurrency) else units
        if own:
            settlements.append(Settlement(taken.ask.base, policy.limit, own, where))
    return settlements
