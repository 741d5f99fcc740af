"""One request's passage through the cache, one class for each way that stores nothing.

They implement ``core.exchange.Exchange``. Rules of HTTP stand in their own modules, the protocol
with Redis in ``store``, storing in ``recording``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote

from upstash_middleware.core.cache.directives import FROM_HANDLERS
from upstash_middleware.core.cache.invalidation import invalidated_urls
from upstash_middleware.core.cache.keys import urls_to_purge
from upstash_middleware.core.cache.purging import Purge, purge
from upstash_middleware.core.cache.status import CacheStatus
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import UpstashAnswered, UpstashFailed
from upstash_middleware.messages import ResponseHead
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.cache.changing import Changing
    from upstash_middleware.core.cache.collapsing import Flights
    from upstash_middleware.core.cache.lookup import Lookup
    from upstash_middleware.core.cache.recording import Recording
    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.cache.store import Store
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request, Response


@dataclass(frozen=True, slots=True)
class Context:
    """What every passage through one cache shares."""

    rules: tuple[CacheRule, ...]
    store: Store
    observe: Observer
    max_body: int
    """Bytes of the largest body that is stored."""
    grace: float
    """Seconds for which a response is kept to be validated after it has become stale."""
    targets: tuple[str, ...]
    """The targeted fields that are meant for this cache, the most specific first."""
    can_refresh: bool
    """Whether what is used stale is refreshed in the background."""
    flights: Flights
    changing: Changing
    collapse: float
    """Seconds for which a request waits for another one like it; 0 for not at all."""
    tells_keys: bool
    """Whether Cache-Status says where a response stands."""

    def told_key(self, lookup: Lookup) -> str:
        """Return what Cache-Status says of where the response to a request stands."""
        return lookup.key if self.tells_keys else ""


@dataclass(frozen=True, slots=True)
class Refresh:
    """A request to be made in the background, for a stored response that was used stale."""

    request: Request
    """As the application shall see it: nobody's in particular, with the stored validators."""
    exchange: Recording
    """To be shown the response, and to be finished, as any other."""


class Passing:
    """A request that the cache has nothing to do with, and base of those that it has."""

    __slots__ = ()
    decision: ClassVar[None] = None
    holds: ClassVar[bool] = False
    watches: ClassVar[bool] = False
    response: Response | None = None
    """The response to give at once."""
    refresh: Refresh | None = None
    """What is to be fetched anew once this request has its response."""

    def request_to_forward(self, request: Request) -> Request:
        """Return the request as the application shall see it."""
        return request

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """See the response's head; return it as it shall be sent."""
        return head

    def failed(self) -> Response | None:
        """Return what stands in for a response where the application gave none, if anything."""
        return None

    def chunk(self, data: bytes) -> None:
        """See a piece of the body."""

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Return what is left to do, or None."""
        del complete
        return None


class Bypassing(Passing):
    """A request under a cache rule that is forwarded without being looked up."""

    __slots__ = ("_status",)

    def __init__(self, status: CacheStatus) -> None:
        self._status = status

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Say in Cache-Status why."""
        return told(head, self._status)


class Answering(Passing):
    """A request that a stored response answers."""

    __slots__ = ("refresh", "response")

    def __init__(self, response: Response, refresh: Refresh | None = None) -> None:
        self.response: Response = response
        self.refresh: Refresh | None = refresh


class Invalidating(Passing):
    """A request that may have changed what is stored (RFC 9111 §4.4)."""

    __slots__ = ("_changing", "_context", "_request", "_urls")

    def __init__(self, context: Context, request: Request) -> None:
        self._changing: list[str] = []
        self._context = context
        self._request = request
        self._urls: tuple[str, ...] = ()

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """See whether the request was successful."""
        urls = dict.fromkeys(invalidated_urls(self._request, head))
        self._urls = tuple(url for url in urls if self._covered(unquote(url.partition("?")[0])))
        rules = self._context.rules
        self._changing = [name for url in self._urls for name in urls_to_purge(url, rules)]
        self._context.changing.begin(self._changing)
        covered = self._covered(self._request.path)
        return told(head, CacheStatus(fwd="method")) if covered else head

    def _covered(self, path: str) -> bool:
        return any(rule.covers(path) for rule in self._context.rules)

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Invalidate; what the application did is done, even where the client did not wait."""
        del complete
        return self.changed(self.invalidate()) if self._urls else None

    async def changed(self, flow: Flow[None]) -> None:
        """Carry out what tells of the change; until then nothing stored is used here."""
        try:
            await flow
        finally:
            self._context.changing.end(self._changing)

    async def invalidate(self) -> None:
        """Make unusable what the request has changed."""
        observe, context = self._context.observe, self._context
        try:
            await purge(context.store, Purge(self._urls), context.rules)
        except UpstashError as error:
            observe(UpstashFailed("invalidation", error))
        else:
            observe(UpstashAnswered("invalidation"))


def for_downstream(head: ResponseHead, rule: CacheRule) -> ResponseHead:
    """Return the head of what is stored here as its rule wants others to see it."""
    if rule.downstream is None:
        return head
    headers = head.headers.without("expires").setting("cache-control", rule.downstream)
    return ResponseHead(head.status, headers)


def told(head: ResponseHead, status: CacheStatus) -> ResponseHead:
    """Return a response's head with what the cache did with it."""
    headers = head.headers
    if FROM_HANDLERS in headers:
        headers = headers.without(FROM_HANDLERS)
    return ResponseHead(head.status, headers.adding(status.field()))
