"""The passage of a request for which there is a stored response that may not be used as it is.

The application is asked with the stored validators. What it answers confirms the stored
response, replaces it, or is an error that the stored response may stand in for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.answers import answer, current_age, head_of
from upstash_middleware.core.cache.collapsing import Outcome, Shared
from upstash_middleware.core.cache.entries import opened
from upstash_middleware.core.cache.exchanges import for_downstream, told
from upstash_middleware.core.cache.freshness import initial_age
from upstash_middleware.core.cache.planning import Plan
from upstash_middleware.core.cache.purging import Purge, purge
from upstash_middleware.core.cache.recording import Forwarded, Recording
from upstash_middleware.core.cache.reuse import usable_for_error
from upstash_middleware.core.cache.validation import (
    conditional,
    confirms,
    confirms_head,
    updated,
)
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import UpstashFailed
from upstash_middleware.messages import ResponseHead
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.exchanges import Context
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.messages import Headers, Request, Response

# RFC 5861 §4: the statuses that stale-if-error is about.
_ERRORS = frozenset({500, 502, 503, 504})
# The answers to a HEAD that tell what a GET would get now.
_CONTRADICTING = frozenset({200, 404, 410})
_CLIENTS_CONDITIONS = ("if-none-match", "if-modified-since")


class Refreshing(Recording):
    """A request that goes forward with a stored response in hand."""

    __slots__ = ("_confirmed", "_contradicted", "_entry")

    def __init__(self, context: Context, forwarded: Forwarded, stored: StoredResponse) -> None:
        """Raises Damaged: what is to be confirmed must be there to be used."""
        super().__init__(context, forwarded)
        self._entry = opened(stored)
        self._confirmed: Plan | None = None
        self._contradicted = False

    def request_to_forward(self, request: Request) -> Request:
        """Ask for nothing but news (§4.3.1); of another version's response all is news."""
        if self._forwarded.lookup.outdated:
            return request
        return replace(request, headers=conditional(request.headers, self._entry.headers))

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """See what became of the stored response."""
        outdated = self._forwarded.lookup.outdated
        if head.status == 304 and not outdated:
            return self._not_modified(head)
        if head.status in _ERRORS and (stale := self._instead_of_error(head.status)):
            return stale
        if head.status == 206 and self._entry.status != 206:
            return self._part(head)
        if self._forwarded.request.method == "HEAD" and not outdated:
            self._described(head)
        return super().head(head)

    def failed(self) -> Response | None:
        """Return what stands in for a response where the application gave none, if anything."""
        return self._instead_of_error(None)

    def whole(self, *, complete: bool) -> Plan | None:
        """Return what was confirmed, or what was recorded in its place."""
        return self._confirmed or super().whole(complete=complete)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Store the response, and have what a HEAD contradicts count as stale."""
        flow = super().finish(complete=complete)
        return self._then_soften(flow) if self._contradicted else flow

    def _not_modified(self, head: ResponseHead) -> ResponseHead | Response:
        """Use a 304 (§4.3.3, §4.3.4)."""
        if confirms(self._entry.headers, head.headers):
            return self._answer(self._freshened(head.headers), head.status)
        if any(name in self._forwarded.request.headers for name in _CLIENTS_CONDITIONS):
            return super().head(head)  # the client's own condition was met, not ours
        return self._answer(self._entry, head.status)

    def _freshened(self, received: Headers) -> StoredResponse:
        """Return the stored response as a newer response's header fields make it, to be kept."""
        now = self._context.store.clock.wall()
        profile = self._context.store.profile
        headers = updated(self._entry.headers, received, now, profile)
        merged = ResponseHead(self._entry.status, headers)
        planned = self.planned(replace(self._forwarded.request, method="GET"), merged)
        if not isinstance(planned, Plan):
            age = initial_age(merged.headers, self._forwarded.lookup.wall, now)
            return replace(self._entry, headers=merged.headers, stored_at=now, initial_age=age)
        self._confirmed = planned.with_body(self._entry.packed)
        self.land(Shared(self._confirmed, self._forwarded))
        return self._confirmed.stored

    def _part(self, head: ResponseHead) -> ResponseHead:
        """Send a part, and leave the stored whole in its place."""
        self.land(Outcome.UNSHARED)
        return told(head, self._status(detail="partial content"))

    def _described(self, head: ResponseHead) -> None:
        """Update the stored response to GET by the response to a HEAD (§4.3.5).

        One that tells of something else makes it stale.
        """
        if head.status == 200 and confirms_head(self._entry, head.headers):
            self._freshened(head.headers)
        elif head.status in _CONTRADICTING:
            self._contradicted = self._forwarded.fwd == "request"  # else it is stale already

    async def _then_soften(self, flow: Flow[None] | None) -> None:
        if flow is not None:
            await flow
        context, url = self._context, self._forwarded.target.url
        try:
            await purge(context.store, Purge((url,), soft=True), context.rules)
        except UpstashError as error:
            context.observe(UpstashFailed("invalidation", error))

    def _instead_of_error(self, status: int | None) -> Response | None:
        """Return the stored response in place of an error, if it may stand in (RFC 5861 §4)."""
        if not usable_for_error(self._entry, self._context.store.clock.wall()):
            return None
        return self._answer(self._entry, status, "stale-if-error")

    def _answer(self, stored: StoredResponse, fwd_status: int | None, detail: str = "") -> Response:
        if self._confirmed is None:
            self.land(Outcome.UNSHARED)
        age = current_age(stored, self._context.store.clock.wall())
        status = replace(
            self._status(stored=self._confirmed is not None, detail=detail),
            fwd_status=fwd_status,
            ttl=stored.lifetime - age,
        )
        head = head_of(stored, age, self._context.store.profile, status)
        head = for_downstream(head, self._forwarded.rule)
        return answer(self._forwarded.request, stored, head)
