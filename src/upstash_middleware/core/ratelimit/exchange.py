"""One request's passage through the rate limit: decision, fields, slots, and the settling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from upstash_middleware.core.ratelimit.decision import Ledger
from upstash_middleware.core.ratelimit.fields import limit_fields, with_fields
from upstash_middleware.core.ratelimit.settling import slot_life
from upstash_middleware.core.ratelimit.shared import may_be_shared
from upstash_middleware.messages import Request, Response, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.effects import Flow
    from upstash_middleware.core.ratelimit.decision import Decision
    from upstash_middleware.core.ratelimit.settling import Settling, Taken


class RateLimitExchange:
    """Implements ``core.exchange.Exchange``."""

    watches: ClassVar[bool] = False

    __slots__ = (
        "_head",
        "_renew_at",
        "_request",
        "_settles",
        "_settling",
        "_slot_life",
        "decision",
        "holds",
        "response",
        "taken",
    )

    def __init__(
        self,
        request: Request,
        settling: Settling,
        decision: Decision | None = None,
        taken: Sequence[Taken] = (),
        response: Response | None = None,
    ) -> None:
        self.decision: Decision | None = decision
        """None for a request that is exempt or that no rule covers."""
        self.response: Response | None = response
        self._request = request
        self._settling = settling
        self.taken: Sequence[Taken] = taken
        """What was taken under each rule, and from where.

        For a denial nothing, unless something overruled these rules: then it is given back.
        """
        self._head: ResponseHead | None = None
        self._settles = False
        """Whether there may be something to settle whatever the application charges."""
        self._slot_life: float | None = None
        for one in taken:
            if one.ask.rule.settles:
                self._settles = True
                self._slot_life = self._slot_life or slot_life(taken)
        self._renew_at = 0.0
        """When the slots are to be renewed, by the monotonic clock."""
        self.holds: bool = self._slot_life is not None
        """Whether the request has slots, which expire unless they are renewed."""
        if self._slot_life is not None:
            self._renew_at = settling.time.monotonic() + self._slot_life / 2

    def request_to_forward(self, request: Request) -> Request:
        """Return the request as it is."""
        return request

    def head(self, head: ResponseHead) -> ResponseHead:
        """Return the head with the limits' fields, unless a shared cache might keep them."""
        self._head = head
        if self.decision is None or may_be_shared(self._request, head):
            return head
        fields = limit_fields(self.decision, self._settling.time.now())
        return ResponseHead(head.status, with_fields(head.headers, fields)) if fields else head

    def chunk(self, data: bytes) -> None:
        """Let a piece of the body pass."""

    def renewal(self) -> Flow[None] | None:
        """Return what renews the request's slots, None before half of their life has passed."""
        now, life = self._settling.time.monotonic(), self._slot_life
        if life is None or now < self._renew_at:
            return None
        self._renew_at = now + life / 8  # if it fails, there are some tries left
        return self._renewed(now + life / 2)

    async def _renewed(self, renew_at: float) -> None:
        if await self._settling.renew(self.taken):
            self._renew_at = renew_at

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002 - the protocol's name
        """Return the settling of what the request has cost in the end, None if it is settled."""
        taken, ledger = self.taken, self.decision.ledger if self.decision else Ledger()
        if self.response is not None:
            return self._settling.give_back(taken) if taken else None
        if not (self._settles or (ledger and ledger.total())):
            return None
        return self._settling.settle(self._request, self._head, taken, ledger)
