"""A rate limit that leaves chosen requests alone; who chooses them is a framework's affair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.events import UserCodeFailed
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.effects import Flow
    from upstash_middleware.core.exchange import Exchange, Half
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request


@dataclass(frozen=True, slots=True)
class Exempting:
    """A half that is not asked about the requests that ``exempts`` names; implements ``Half``.

    Where that fails, as in a framework that cannot look its routes up, a request is counted.
    """

    half: Half
    exempts: Callable[[Request], bool]
    observe: Observer

    def begin(self, request: Request) -> Flow[Exchange | None]:
        """Decide about a request, unless it is exempt. A flow."""
        try:
            is_exempt = self.exempts(request)
        except Exception as error:  # noqa: BLE001 - a fault in routing must lift no limit
            self.observe(UserCodeFailed("looking for an exempt handler", error))
            is_exempt = False
        return _nothing() if is_exempt else self.half.begin(request)


async def _nothing() -> None:
    """Begin nothing."""
