"""Settings made into one engine and one client: the only room that an adapter enters.

A Gateway begins and finishes exchanges, for threads (``begin``, ``finish``, ``purge``,
``close``) and for event loops (``abegin``, ``afinish``, ``apurge``, ``aclose``). The client is
made at the first call that needs it; credentials are looked for no earlier.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from enum import Flag, auto
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, assert_never

from upstash_middleware import building
from upstash_middleware.at_exit import send_at_exit
from upstash_middleware.core.effects import together
from upstash_middleware.core.engine import Engine, Exchange
from upstash_middleware.core.ratelimit.exempting import Exempting
from upstash_middleware.drivers import arun, run
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import CircuitClosed, CircuitOpened, UpstashCalled
from upstash_middleware.logs import LogObserver, logger
from upstash_middleware.settings import Settings, settings_from
from upstash_middleware.upstash import (
    AsyncClient,
    Breaker,
    Client,
    Closed,
    Credentials,
    OnePerProcess,
    Opened,
    SyncToken,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from upstash_middleware.core.cache import Cache
    from upstash_middleware.core.cache.endpoint import PurgeEndpoint
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.core.exchange import Half
    from upstash_middleware.core.ratelimit import RateLimiter, RateLimitRule
    from upstash_middleware.core.ratelimit.answering import Answering
    from upstash_middleware.events import Event, Observer
    from upstash_middleware.messages import Request
    from upstash_middleware.upstash import Called, Change, Watch

T = TypeVar("T")


class Halves(Flag):
    """Which halves of the engine a middleware class switches on."""

    RATE_LIMIT = auto()
    CACHE = auto()
    BOTH = RATE_LIMIT | CACHE


class _Shared(TypedDict, total=False):
    """What the two clients of a gateway share."""

    deadline: float
    sync_token: SyncToken
    breaker: OnePerProcess[Breaker]
    watch: Watch


class Gateway:
    """One engine and one client, made from settings."""

    def __init__(
        self,
        settings: Settings,
        halves: Halves = Halves.BOTH,
        *,
        exempts: Callable[[Request], bool] | None = None,
        refreshes: bool = False,
    ) -> None:
        """Make a gateway; ``refreshes`` says that its adapter takes an exchange's refresh.

        ``exempts`` tells which requests no limit counts.
        """
        self.settings = settings
        self.enabled: bool = settings.enabled
        """Whether requests are to come here at all."""
        self.halves = halves
        self._exempts = exempts
        self.observe: Observer = _Telling((LogObserver(), *settings.observers))
        """Tells the log and the application's observers of an event."""
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._clients: tuple[Client, AsyncClient] | None = None
        self._counting: list[weakref.ref[RateLimiter]] = []
        self._refreshes = refreshes
        self._made_cache: Cache | None = None
        limits, cache = self._limits(), self._caches()
        self.engine: Engine = Engine([*limits, *cache], observe=self.observe)
        self.limits: Engine = Engine(limits, observe=self.observe)
        """The limits alone, for what no cache answers."""
        self.purge_endpoint: PurgeEndpoint | None = self._endpoint()
        self.finishes_first: bool = building.stores_first(settings)
        """Whether an exchange is finished just before its response's last byte."""

    @classmethod
    def of(  # noqa: PLR0913 - each keyword is something that an adapter knows
        cls,
        arguments: Mapping[str, Any],
        halves: Halves,
        environ: Mapping[str, str] = os.environ,
        *,
        source: str = "",
        exempts: Callable[[Request], bool] | None = None,
        refreshes: bool = False,
    ) -> Gateway:
        """Make a gateway from a middleware's arguments, or from a framework's settings.

        Raises ConfigurationError, for arguments as well as for a middleware that would do
        nothing.
        """
        settings = settings_from(arguments, environ, source=source)
        # A test's {"enabled": False} needs no rules beside it; and who says default_limit=None
        # means it, for instance because decorators limit.
        meant = halves is not Halves.CACHE and "default_limit" in arguments
        if settings.enabled and not meant:
            _refuse_idle(settings, halves, source)
        return cls(settings, halves, exempts=exempts, refreshes=refreshes)

    def begin(self, request: Request, inner: Gateway | None = None) -> Exchange:
        """Decide about a request, in one round trip with the gateway directly inside, if any.

        Raises MissingCredentials, and nothing that Upstash or the network can do.
        """
        client = self._client()
        return run(self._begun(request, inner), client)

    def abegin(
        self, request: Request, inner: Gateway | None = None
    ) -> Coroutine[Any, Any, Exchange]:
        """Do the same as ``begin`` on an event loop."""
        client = self._async_client()
        return arun(self._begun(request, inner), client)

    def finish(self, exchange: Exchange, *, complete: bool) -> None:
        """Settle and store after the last byte; see Exchange.finish."""
        flow = exchange.finish(complete=complete)
        if flow is not None:
            run(flow, self._client())

    async def afinish(self, exchange: Exchange, *, complete: bool) -> None:
        """Do the same as ``finish`` on an event loop, to the end even if the task is cancelled."""
        flow = exchange.finish(complete=complete)
        if flow is not None:
            await _to_its_end(arun(flow, self._async_client()))

    def renew(self, exchange: Exchange) -> None:
        """Renew what a request holds while its response passes, if it is time; it never raises."""
        flow = exchange.renewal()
        if flow is not None:
            run(flow, self._client())

    async def arenew(self, exchange: Exchange) -> None:
        """Do the same as ``renew`` on an event loop; begun, it comes to an end before ``afinish``.

        Else what is renewed late would not be given back.
        """
        flow = exchange.renewal()
        if flow is not None:
            await _to_its_end(arun(flow, self._async_client()))

    def begin_by(self, engine: Engine, request: Request) -> Exchange:
        """Decide about a request by another engine, with this gateway's client."""
        client = self._client()
        return run(engine.begin(request), client)

    async def abegin_by(self, engine: Engine, request: Request) -> Exchange:
        """Do the same as ``begin_by`` on an event loop."""
        client = self._async_client()
        return await arun(engine.begin(request), client)

    def limiter(
        self, rules: tuple[RateLimitRule, ...], default: RateLimitRule | None = None
    ) -> RateLimiter:
        """Return a rate limit by these rules over this gateway's client.

        Raises ConfigurationError for two rules of one name.
        """
        limiter = building.limiter_of(self.settings, rules, default, self._secret, self.observe)
        if self.settings.analytics is not None:
            self._counting.append(weakref.ref(limiter))
            send_at_exit(self)
        return limiter

    def answering(self, limiter: RateLimiter) -> RateLimiter | Answering:
        """Return a rate limit whose denials the setting ``on_denied`` puts into words."""
        words = self.settings.on_denied
        if words is None:
            return limiter
        from upstash_middleware.core.ratelimit.answering import Answering  # noqa: PLC0415

        return Answering(limiter, words, self.observe)

    @property
    def cache(self) -> Cache:
        """The cache, for whoever looks at what it holds; requests go through the engine."""
        if self._made_cache is None:
            self._made_cache = building.cache_of(
                self.settings, self._secret, self.observe, refreshes=self._refreshes
            )
        return self._made_cache

    def perform(self, flow: Flow[T]) -> T:
        """Drive a flow of the core's to its end, in this thread, with this gateway's client."""
        return run(flow, self._client())

    def purge(
        self, *urls: str, tags: tuple[str, ...] = (), everything: bool = False, soft: bool = False
    ) -> None:
        """Make stored responses unusable: of URLs with all variants, of tags, or everything.

        ``urls`` are paths with their query (``/products/7``), under whatever host name they
        were stored, or whole URLs. A tag takes its colon-descendants along: ``product`` purges
        ``product:7``. ``soft`` leaves them to be served stale where their rule allows it.
        Raises UpstashError if Upstash could not be told; does nothing where it is switched off,
        so that handlers which purge work without credentials then.
        """
        if self.enabled:
            client = self._client()
            run(self._purging(urls, tags, everything=everything, soft=soft), client)

    async def apurge(
        self, *urls: str, tags: tuple[str, ...] = (), everything: bool = False, soft: bool = False
    ) -> None:
        """Do the same as ``purge`` on an event loop."""
        if self.enabled:
            client = self._async_client()
            await arun(self._purging(urls, tags, everything=everything, soft=soft), client)

    def _purging(
        self, urls: tuple[str, ...], tags: tuple[str, ...], *, everything: bool, soft: bool
    ) -> Flow[None]:
        from upstash_middleware.core.cache import Purge  # noqa: PLC0415 - where nothing is cached

        return self.cache.purge(Purge(urls, tuple(tags), everything, soft))

    def check_credentials(self) -> None:
        """Raise MissingCredentials if there are none, for servers that can refuse to start."""
        self._known_credentials()

    def close(self) -> None:
        """Send what is left to send and close what was opened; a later call opens it anew."""
        clients = self._forget_clients()
        if clients is not None:
            run(self._counts(), clients[0])
            clients[0].close()

    async def aclose(self) -> None:
        """Send what is left and close what was opened, on both sides; a later call opens anew."""
        clients = self._forget_clients()
        if clients is not None:
            await arun(self._counts(), clients[1])
            clients[0].close()
            await clients[1].aclose()

    def send_counts(self) -> None:
        """Send what analytics have been collected, within the deadline; what was opened stays."""
        clients = self._clients
        if clients is not None:
            run(self._counts(), clients[0])

    async def _counts(self) -> None:
        limiters = [limiter for known in self._counting if (limiter := known()) is not None]
        await together(*(limiter.flush() for limiter in limiters))

    def _limits(self) -> list[Half]:
        settings = self.settings
        rules, default = settings.rate_limits, settings.default_limit
        if Halves.RATE_LIMIT not in self.halves or not (rules or default):
            return []
        limiter = self.answering(self.limiter(rules, default))
        return [Exempting(limiter, self._exempts, self.observe) if self._exempts else limiter]

    def _caches(self) -> list[Half]:
        return [self.cache] if Halves.CACHE in self.halves and self.settings.cache else []

    def _endpoint(self) -> PurgeEndpoint | None:
        path, token = self.settings.purge_path, self.settings.purge_token
        if Halves.CACHE not in self.halves or path is None or token is None:
            return None
        from upstash_middleware.core.cache.endpoint import PurgeEndpoint  # noqa: PLC0415

        return PurgeEndpoint(path, token, self.cache.purge, self.observe)

    def _begun(self, request: Request, inner: Gateway | None) -> Flow[Exchange]:
        endpoint = self.purge_endpoint
        if endpoint is not None and endpoint.covers(request):
            return Engine([endpoint], observe=self.observe).begin(request)
        joinable = None if inner is None else self._joinable(inner, request)
        return self.engine.begin(request, joinable)

    def _joinable(self, inner: Gateway, request: Request) -> Engine | None:
        if not inner.enabled:
            return None
        endpoint = inner.purge_endpoint
        if endpoint is not None and endpoint.covers(request):
            return None
        return inner.engine if self.settings.same_database(inner.settings) else None

    def _secret(self) -> bytes:
        material = self.settings.secret or self._known_credentials().token
        return hashlib.sha256(b"upstash-middleware identifiers\n" + material.encode()).digest()

    def _known_credentials(self) -> Credentials:
        if self._credentials is None:
            settings = self.settings
            self._credentials = Credentials.find(
                url=settings.url, token=settings.token, redis=settings.redis, environ=os.environ
            )
        return self._credentials

    def _both_clients(self) -> tuple[Client, AsyncClient]:
        with self._lock:
            if self._clients is None:
                credentials = self._known_credentials()
                shared: _Shared = {"deadline": self.settings.deadline, "sync_token": SyncToken()}
                if self.settings.breaker:
                    shared["breaker"] = OnePerProcess(self._breaker)
                if self.settings.observers:  # the log says nothing of calls that are made
                    shared["watch"] = self._watch(credentials)
                self._clients = Client(credentials, **shared), AsyncClient(credentials, **shared)
            return self._clients

    def _watch(self, credentials: Credentials) -> Watch:
        server, port = credentials.host, credentials.port

        def tell(called: Called) -> None:
            names = tuple(str(command.args[0]) for command in called.commands)
            self.observe(UpstashCalled(server, port, names, called.seconds, called.error))

        return tell

    def _breaker(self) -> Breaker:
        slow = self.settings.breaker_slow or self.settings.deadline / 2
        return Breaker(slow=slow, clock=time.monotonic, tell=self._tell)

    def _tell(self, change: Change) -> None:
        match change:
            case Opened(bad, of, last):
                self.observe(CircuitOpened(bad, of, last))
            case Closed(after):
                self.observe(CircuitClosed(after))
            case _:
                assert_never(change)

    def _client(self) -> Client:
        return (self._clients or self._both_clients())[0]

    def _async_client(self) -> AsyncClient:
        return (self._clients or self._both_clients())[1]

    def _forget_clients(self) -> tuple[Client, AsyncClient] | None:
        with self._lock:
            clients, self._clients = self._clients, None
            return clients


class _Telling:
    """Tells several observers of an event, of whom none costs a response by failing."""

    __slots__ = ("_observers", "ignores")

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        ignored = [frozenset(getattr(observer, "ignores", ())) for observer in observers]
        self.ignores: frozenset[type[Event]] = frozenset.intersection(*ignored)
        """What all of them ignore; see ``events.hears``."""

    def __call__(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - a metric that fails must not cost a response
                logger.exception("an observer raised on %s", type(event).__name__)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do work that a cancelled task still has to do, be it cancelled by anyio or by asyncio."""
    import asyncio  # noqa: PLC0415 - where there is no event loop, nobody shall wait for it

    import anyio  # noqa: PLC0415

    with anyio.CancelScope(shield=True):
        try:
            task = asyncio.get_running_loop().create_task(work)
        except RuntimeError:  # trio, where scopes are all there is
            await work
            return
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise


def _refuse_idle(settings: Settings, halves: Halves, source: str) -> None:
    """Refuse a middleware that has nothing to do: it was added for something."""
    where = f" in {source}" if source else ""
    limits = bool(settings.rate_limits or settings.default_limit)
    if halves is Halves.RATE_LIMIT and not limits:
        raise ConfigurationError(
            f"RateLimitMiddleware has no limit{where}: give default_limit='100/minute', or "
            "rate_limits=[RateLimitRule(...)]"
        )
    if halves is Halves.CACHE and not settings.cache:
        raise ConfigurationError(
            f"CacheMiddleware has no rule{where}: give cache=[CacheRule('/path/{{id}}', ttl=60)]"
        )
    if halves is Halves.BOTH and not (limits or settings.cache):
        raise ConfigurationError(
            f"UpstashMiddleware has neither a limit nor a cache rule{where}: give default_limit, "
            "rate_limits or cache"
        )
