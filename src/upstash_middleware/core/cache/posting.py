"""The passage of a POST whose response may become its target's stored state; an Exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from upstash_middleware.core.cache.exchanges import Invalidating, told
from upstash_middleware.core.cache.invalidation import names_its_target
from upstash_middleware.core.cache.keeping import supersede
from upstash_middleware.core.cache.recording import Forwarded, Recording
from upstash_middleware.core.cache.status import CacheStatus
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import CacheStored, UpstashAnswered, UpstashFailed
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.exchanges import Context
    from upstash_middleware.core.cache.planning import Plan
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.messages import Response, ResponseHead


class Posting(Invalidating):
    """A POST: it invalidates, and with explicit freshness and a Content-Location of its own
    target its response answers later GET requests (RFC 9110 §9.3.3)."""

    __slots__ = ("_forwarded", "_recording")
    watches: ClassVar[bool] = True

    def __init__(self, context: Context, forwarded: Forwarded) -> None:
        super().__init__(context, forwarded.request)
        self._forwarded = replace(forwarded, request=replace(forwarded.request, method="GET"))
        self._recording: Recording | None = None

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide what the request has changed, and whether its response is the new state."""
        sent = super().head(head)
        if not self._urls or not names_its_target(self._request, head):
            return sent
        recording = Recording(self._context, self._forwarded)
        if not recording.states_freshness(head):
            return sent
        recording.head(head)
        self._recording = recording
        return told(head, CacheStatus(fwd="method", stored=True))

    def chunk(self, data: bytes) -> None:
        """Keep a copy, as long as it fits."""
        if self._recording is not None:
            self._recording.chunk(data)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Invalidate, and store the response in the place of what is gone."""
        whole = self._recording.whole(complete=complete) if self._recording is not None else None
        if whole is None:
            return super().finish(complete=complete)
        return self.changed(self._supersede(whole))

    async def _supersede(self, whole: Plan) -> None:
        observe, asked = self._context.observe, self._forwarded
        try:
            detail = await supersede(self._context.store, asked.target, asked.lookup, whole)
        except UpstashError as error:
            observe(UpstashFailed("invalidation", error))
            detail = "the store failed"
        else:
            observe(UpstashAnswered("invalidation"))
        observe(CacheStored(asked.target.url, stored=detail is None, detail=detail or ""))
        # What other names the request's URLs have, by rules and by Location, go as ever.
        self._urls = self._urls[1:]
        if self._urls:
            await self.invalidate()
