"""The passage of a request whose response is stored if it may be; implements an Exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from upstash_middleware.core.cache.collapsing import Flight, Outcome, Shared
from upstash_middleware.core.cache.directives import control_of
from upstash_middleware.core.cache.exchanges import Passing, for_downstream, told
from upstash_middleware.core.cache.freshness import explicit_lifetime
from upstash_middleware.core.cache.keeping import keep
from upstash_middleware.core.cache.locks import mark, release
from upstash_middleware.core.cache.parts import combined
from upstash_middleware.core.cache.planning import Plan, plan
from upstash_middleware.core.cache.status import CacheStatus
from upstash_middleware.core.cache.storing import Candidate, reflection, vary_fields
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import CacheStored, UpstashAnswered, UpstashFailed
from upstash_middleware.messages import content_length
from upstash_middleware.values import replace, value

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.exchanges import Context
    from upstash_middleware.core.cache.lookup import Lookup
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.cache.store import Target
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.messages import Request, Response, ResponseHead


@value(frozen=True, slots=True)
class Forwarded:
    """A request that goes to the application, with what the cache found out before."""

    request: Request
    rule: CacheRule
    target: Target
    lookup: Lookup
    fwd: str
    """Why it goes forward, in RFC 9211's words."""
    part: StoredResponse | None = None
    """What is stored and does not hold what is asked for, to be put together with what comes."""


class Recording(Passing):
    """A request that goes forward, and whose response is stored if it may be."""

    __slots__ = (
        "_body",
        "_candidate",
        "_context",
        "_flight",
        "_forwarded",
        "_length",
        "_lock",
        "_plan",
        "_unshared",
    )
    watches: ClassVar[bool] = True

    def __init__(self, context: Context, forwarded: Forwarded) -> None:
        self._context = context
        self._forwarded = forwarded
        self._candidate: Candidate | None = None
        self._plan: Plan | None = None
        self._body: list[bytes] = []
        self._length = 0
        self._flight: Flight | None = None
        self._lock: tuple[str, str] | None = None
        self._unshared = False

    def lead(self, flight: Flight) -> None:
        """Have others wait for what becomes of this request."""
        self._flight = flight

    @property
    def leads(self) -> bool:
        """Whether others of this process wait for it."""
        return self._flight is not None

    def hold(self, lock: str, token: str) -> None:
        """Have other processes wait for it as well, by a lock that is held with this token."""
        self._lock = lock, token

    def take_over(self, other: Recording) -> None:
        """Go forward in the place of another passage of the same request."""
        self._flight = other._flight

    def land(self, landed: Shared | Outcome) -> None:
        """Tell those who wait what became of it."""
        self._unshared = self._unshared or landed is Outcome.UNSHARED
        if self._flight is not None:
            self._context.flights.land(self._flight, landed)

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Decide whether the response is to be stored; say so in Cache-Status."""
        planned = self.planned(self._forwarded.request, head)
        if isinstance(planned, Plan) and self._too_large(content_length(head.headers) or 0):
            planned = self._why_too_large()
        if isinstance(planned, str):
            self.land(Outcome.UNSHARED)
            return told(head, self._status(detail=planned))
        self._plan = planned
        return told(for_downstream(head, self._forwarded.rule), self._status(stored=True))

    def _status(self, *, stored: bool = False, detail: str = "") -> CacheStatus:
        key = self._context.told_key(self._forwarded.lookup)
        return CacheStatus(fwd=self._forwarded.fwd, stored=stored, key=key, detail=detail)

    def states_freshness(self, head: ResponseHead) -> bool:
        """Whether a response states explicitly that it is fresh, and may be stored (§4.2.1)."""
        planned = self.planned(self._forwarded.request, head)
        control = control_of(head.headers, self._context.targets)
        stated = explicit_lifetime(head, control, self._context.store.clock.wall())
        return isinstance(planned, Plan) and stated is not None

    def planned(self, request: Request, head: ResponseHead) -> Plan | str:
        """Return what to store of a response with this head, or in words why nothing."""
        context, forwarded = self._context, self._forwarded
        self._candidate = Candidate(
            request,
            forwarded.rule,
            context.store.profile,
            head,
            control_of(head.headers, context.targets),
            vary_fields(head.headers),
            context.store.clock.wall(),
            forwarded.target.private,
        )
        return plan(self._candidate, forwarded.lookup.wall, context.grace)

    def chunk(self, data: bytes) -> None:
        """Keep a copy, as long as it fits."""
        if self._plan is None:
            return
        self._length += len(data)
        if self._too_large(self._length):
            self._drop(self._why_too_large())
            return
        self._body.append(data)
        # Who waits shall not have to wait for this client to read the last byte as well.
        if self._flight is not None and self._length == self._announced(self._plan):
            self._whole(self._plan)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Store the response, or give back the lock under which there is none to store."""
        if (whole := self.whole(complete=complete)) is not None:
            return self._keep(whole)
        self.land(Outcome.INTERRUPTED)
        return self._unlock() if self._lock is not None else None

    def whole(self, *, complete: bool) -> Plan | None:
        """Return what is to be stored, if it came whole (RFC 9111 §3.3)."""
        if self._plan is None:
            return None
        if not complete or self._announced(self._plan) not in {None, self._length}:
            self.land(Outcome.INTERRUPTED)
            self._drop("the response was cut short")
            return None
        return self._whole(self._plan)

    def _announced(self, planned: Plan) -> int | None:
        return content_length(planned.stored.headers)

    def _whole(self, planned: Plan) -> Plan | None:
        """Return the response with its body, None if it may not be stored after all.

        Answers those who wait.
        """
        body = b"".join(self._body)
        if (reason := self._reflection(body)) is not None:
            self._drop(reason)
            return None
        whole = planned.with_body(body)
        if (held := self._forwarded.part) is not None and whole.stored.status == 206:
            whole = replace(
                whole, stored=combined(held, whole.stored, self._context.max_body) or whole.stored
            )
        if self._forwarded.rule.etag:
            whole = whole.with_etag()
        self.land(Shared(whole, self._forwarded))
        return whole

    def _reflection(self, body: bytes) -> str | None:
        if self._candidate is None or self._context.store.profile.stores_reflections:
            return None
        return reflection(self._candidate, body)

    def _too_large(self, length: int) -> bool:
        return length > self._context.max_body

    def _why_too_large(self) -> str:
        return f"body above {self._context.max_body} bytes"

    def _drop(self, detail: str) -> None:
        self._plan, self._body = None, []
        self.land(Outcome.UNSHARED)
        self._context.observe(CacheStored(self._forwarded.target.url, stored=False, detail=detail))

    async def _keep(self, planned: Plan) -> None:
        observe, asked = self._context.observe, self._forwarded
        if self._lock is not None:
            planned = replace(planned, stored=replace(planned.stored, token=self._lock[1]))
        try:
            detail = await keep(self._context.store, asked.target, asked.lookup, planned)
        except UpstashError as error:
            observe(UpstashFailed("cache store", error))
            detail = "the store failed"
        else:
            observe(UpstashAnswered("cache store"))
        observe(CacheStored(asked.target.url, stored=detail is None, detail=detail or ""))
        if self._flight is not None:
            self._context.flights.depart(self._flight)
        if detail is not None and self._lock is not None:
            await self._unlock()

    async def _unlock(self) -> None:
        if self._lock is None:
            return
        done = mark if self._unshared else release
        try:
            await done(self._context.store, *self._lock)
        except UpstashError as error:  # then it expires
            self._context.observe(UpstashFailed("cache store", error))
