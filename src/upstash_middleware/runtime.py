"""``Runtime``: the engine and the clients, created from the settings; all adapters use it.

A Runtime begins and finishes exchanges, for threads (``begin``, ``finish``, ``perform``, ``purge``,
``close``) and for event loops (the same names with the prefix ``a``). The first call that needs a
client creates the clients and reads the credentials.
"""

from __future__ import annotations

import _thread
import atexit
import hashlib
import os
import sys
import threading
import time
import weakref
from contextlib import suppress
from enum import Flag, auto
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from upstash_middleware.clock import SystemClock, remembering
from upstash_middleware.core.engine import Begun, Engine, Exchange, Part
from upstash_middleware.core.flow import call, together
from upstash_middleware.core.identify import (
    PLATFORMS,
    application_address,
    needs_user,
)
from upstash_middleware.core.ratelimit.memory import Denials
from upstash_middleware.drivers import arun, run
from upstash_middleware.errors import ConfigurationError, PurgeNotPassedOn, named_part
from upstash_middleware.events import SettingDoubted, UpstashAnswered, UpstashCalled
from upstash_middleware.logs import LogObserver, logger
from upstash_middleware.settings import Settings, check_kept_cookies, settings_from
from upstash_middleware.upstash import (
    AsyncClient,
    Breaker,
    Client,
    Credentials,
    OnePerProcess,
    SyncToken,
    own_client,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from upstash_middleware.core.cache import Cache, Purge
    from upstash_middleware.core.cache.purge_endpoint import PurgeEndpoint
    from upstash_middleware.core.data import DataStore
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.core.ratelimit import RateLimiter, RateLimitRule
    from upstash_middleware.core.ratelimit.charges import AddressWatch
    from upstash_middleware.core.ratelimit.leases import Leases
    from upstash_middleware.core.sessions import Sessions, SessionSettings
    from upstash_middleware.core.values import Codec
    from upstash_middleware.events import Event, Observer
    from upstash_middleware.messages import HTTPRequest
    from upstash_middleware.redis import AsyncRedis, Redis
    from upstash_middleware.upstash import Called

BACKGROUND_REQUEST = "upstash_middleware.refresh"
"""The key in the scope or environ of a request that no visitor sent: a background revalidation, or
a request that fills the cache. No limit counts such a request, and its session has no client."""

T = TypeVar("T")
C = TypeVar("C")
_hinted: list[str] = []
"""Hints that were logged; each is logged once per process, even with several middleware."""


class Features(Flag):
    """The parts of the engine that a middleware class enables."""

    RATE_LIMIT = auto()
    CACHE = auto()
    SESSIONS = auto()
    BOTH = RATE_LIMIT | CACHE


class Runtime:
    """The engine and its clients, created from settings."""

    def __init__(  # noqa: PLR0913, PLR0915 - it creates all parts of a runtime
        self,
        settings: Settings,
        features: Features = Features.BOTH,
        *,
        exempts: Callable[[HTTPRequest], bool] | None = None,
        refreshes: bool = False,
        selects: Callable[[HTTPRequest], str | None] | None = None,
        keeps_sessions: bool = True,
        kept_cookies: Mapping[str, str] | None = None,
    ) -> None:
        """Create the engine; this opens no connection.

        ``exempts`` returns whether a request is exempt from all limits. ``selects`` returns the
        framework's part of the cache key, such as a language. ``refreshes`` means that the adapter
        performs background revalidations, ``keeps_sessions`` that the engine keeps the sessions of
        the settings, if any. ``kept_cookies`` are cookies that no cache rule may ignore, each with
        the setting that defines its name.
        """
        self.settings = settings
        self.features = features
        self.enabled: bool = settings.enabled
        self.selects = selects
        self.kept_cookies: dict[str, str] = dict(kept_cookies or {})
        self.observe: Observer = _Observers(LogObserver(), settings.observers)
        self.late: set[Any] = set()
        """Tasks that settle charges made after the exchange was finished."""
        self.handler_limiters: dict[tuple[object, object], tuple[str, RateLimiter]] = {}
        """The limiters of decorated handlers, with their names, by limit and handler."""
        self.limiters: weakref.WeakValueDictionary[str, RateLimiter] = weakref.WeakValueDictionary()
        """The limiters of ``Limiter`` objects, by name."""
        self.before_serving: list[Callable[[], None]] = []
        """Functions to call at the first request, before any decision."""
        self._refreshes = refreshes
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._hash_key: bytes | None = None
        self._clients: tuple[Client, AsyncClient] | None = None
        self._breakers = OnePerProcess(self._breaker), OnePerProcess(self._breaker)
        self._redis: tuple[tuple[Client, AsyncClient], tuple[Redis, AsyncRedis]] | None = None
        self._redis_breaker = OnePerProcess(self._breaker_of_commands)
        self._denials = Denials(settings.remember_denials)
        self._leases = OnePerProcess(self._make_leases)
        self._has_leases = False
        self._watch: AddressWatch | None = None
        self._serves = False
        self._limiters: list[weakref.ref[RateLimiter]] = []
        self._cache: Cache | None = None
        self._data: dict[str, OnePerProcess[DataStore]] = {}
        self.purge_endpoint: PurgeEndpoint | None = self._create_purge_endpoint()
        if exempts is not None and self.purge_endpoint is not None:
            exempts = _exempt_all_but_purges(self.purge_endpoint, exempts)
        limits: list[Part] = []
        self.reads_body: bool = False
        """Whether a limit identifies clients by the request's body, which the adapter provides."""
        if Features.RATE_LIMIT in features and self.has_limits:
            rules, default = settings.rate_limits, settings.default_limit
            limiter = self.limiter(rules, default, exempts=exempts)
            limits, self.reads_body = [limiter], limiter.reads_body
        self.caches: bool = Features.CACHE in features and bool(settings.cache)
        """Whether the runtime may store responses."""
        cache: list[Part] = [self.cache] if self.caches else []
        self.engine: Engine = Engine([*limits, *cache], observe=self.observe)
        self.uncached: Engine = Engine(limits, observe=self.observe)
        """The engine without the cache, for requests that are not cached: WebSocket handshakes."""
        self.unlimited: Engine = Engine(cache, observe=self.observe)
        """The engine without the limits, for requests that no visitor sent."""
        self.sessions: Sessions | None = None
        """The part that keeps the handlers' sessions; None without sessions."""
        keeps = features is Features.BOTH or Features.SESSIONS in features
        if keeps and keeps_sessions and settings.sessions is not None:
            self.keep_sessions(self.create_sessions(settings.sessions))
        endpoint = [] if self.purge_endpoint is None else [self.purge_endpoint]
        self._purge_engine: Engine = Engine([*limits, *endpoint], observe=self.observe)
        self.finishes_first: bool = _stores_first(settings)
        """Whether an exchange is finished just before the response's last byte is sent."""
        if self.enabled:
            remembering.add(self)

    @classmethod
    def of(  # noqa: PLR0913
        cls,
        arguments: Mapping[str, Any],
        features: Features,
        environ: Mapping[str, str] = os.environ,
        *,
        source: str = "",
        exempts: Callable[[HTTPRequest], bool] | None = None,
        refreshes: bool = False,
        selects: Callable[[HTTPRequest], str | None] | None = None,
        has_users: bool = True,
        own: Literal["Client", "AsyncClient"] | None = None,
        keeps_sessions: bool = True,
        kept_cookies: Mapping[str, str] | None = None,
    ) -> Runtime:
        """Create a runtime from a middleware's arguments, or from a framework's settings.

        ``source`` is the name of the mapping in error messages. ``has_users`` means that
        ``by="user"`` works in the framework. ``own`` is the kind of httpx client that the framework
        can use, if only one. ``kept_cookies`` are cookies that no cache rule may ignore, each with
        the setting that defines its name. Raises ConfigurationError for a wrong argument, and for a
        middleware that would do nothing.
        """
        settings = settings_from(arguments, environ, source=source)
        kept = dict(kept_cookies or {})
        if settings.sessions is not None:
            kept[settings.sessions.cookie_name] = settings.sessions.setting or "sessions"
        check_kept_cookies(settings, kept, source)
        if own is not None:
            own_client(settings.transport, own)
        if own == "Client" and settings.sessions is not None:
            raise ConfigurationError(
                f"{settings.sessions.setting}: this setting is for ASGI applications; in Flask, "
                "use upstash_middleware.flask.Sessions(app)"
            )
        if not has_users:
            for rule in (*settings.rate_limits, settings.default_limit):
                if rule is not None and needs_user(rule.extractor):
                    raise ConfigurationError(
                        f"{named_part(rule.setting, 'by')} = 'user': this package knows no user in "
                        "Flask and other WSGI applications; give a function of the request"
                    )
        # With enabled=False, as in tests, no rules are required. An explicit default_limit=None is
        # deliberate, for instance because only decorators limit.
        is_deliberate = features is not Features.CACHE and "default_limit" in arguments
        if settings.enabled and not is_deliberate:
            _check_not_idle(settings, features, source, has_sessions=own == "AsyncClient")
        return cls(
            settings,
            features,
            exempts=exempts,
            refreshes=refreshes,
            selects=selects,
            keeps_sessions=keeps_sessions,
            kept_cookies=kept,
        )

    def begin(
        self, request: HTTPRequest, inner: Runtime | None = None, *, engine: Engine | None = None
    ) -> Exchange:
        """Decide about a request, in one round trip together with the runtime directly inside.

        ``engine`` replaces the runtime's own engine. Raises ConfigurationError, but no errors of
        Upstash or the network.
        """
        begun = self.prepare(request, inner, engine)
        if isinstance(begun, Exchange):
            return begun
        client = (self._clients or self._create_clients())[0]
        if not isinstance(begun, Begun):
            return run(begun, client)
        try:
            replies = client.execute(begun.pipeline)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - each part handles it
            received = begun.receive(error)
        except BaseException:
            begun.interrupted()
            raise
        else:
            received = begun.receive(replies)
        return received if isinstance(received, Exchange) else run(received, client)

    async def abegin(
        self, request: HTTPRequest, inner: Runtime | None = None, *, engine: Engine | None = None
    ) -> Exchange:
        """Do the same as ``begin`` on an event loop."""
        begun = self.prepare(request, inner, engine)
        return begun if isinstance(begun, Exchange) else await self.abegun(begun)

    async def abegun(self, begun: Begun | Flow[Exchange]) -> Exchange:
        """Complete the result of ``prepare`` if it is not an exchange, and return the exchange."""
        client = (self._clients or self._create_clients())[1]
        if not isinstance(begun, Begun):
            return await arun(begun, client)
        try:
            replies = await client.execute(begun.pipeline)
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001 - each part handles it
            received = begun.receive(error)
        except BaseException:
            begun.interrupted()
            raise
        else:
            received = begun.receive(replies)
        return received if isinstance(received, Exchange) else await arun(received, client)

    def prepare(
        self, request: HTTPRequest, inner: Runtime | None = None, engine: Engine | None = None
    ) -> Begun | Exchange | Flow[Exchange]:
        """Begin a request as ``begin`` does; return its exchange if no call is needed."""
        if self._clients is None:
            self._create_clients()
        if not self._serves:
            self._begin_serving()
        if engine is not None:
            return engine.prepare(request)
        if request.peer is None and _has_no_visitor(request.native):
            return self.unlimited.prepare(request)
        endpoint = self.purge_endpoint
        if endpoint is not None and endpoint.covers(request):
            return self._purge_engine.begin_in_turn(request)
        if inner is None or not inner.enabled or not self.settings.same_database(inner.settings):
            return self.engine.prepare(request)
        endpoint = inner.purge_endpoint
        if endpoint is not None and endpoint.covers(request):
            return self.engine.prepare(request)
        return self.engine.prepare(request, inner.engine)

    def _begin_serving(self) -> None:
        """Prepare for the first request, and log problems of the settings."""
        self._serves = True
        for function in self.before_serving:
            function()
        settings = self.settings
        if settings.platform is not None and PLATFORMS[settings.platform].automatic:
            platform = PLATFORMS[settings.platform]
            logger.info(
                "client_ip: this runs on %s, so client addresses are read as with client_ip=%r",
                platform.title,
                settings.platform,
                extra={"upstash_event": "PlatformDetected", "upstash_where": "client_ip"},
            )
        if self.caches and settings.cdn is not None and settings.on_purge is None:
            self.observe(
                SettingDoubted(
                    "cdn",
                    f"it is {settings.cdn!r}, but on_purge is not set: a purge does not reach the "
                    "CDN, which may serve old responses until they expire there; set on_purge to "
                    "a function that purges the CDN by purge.cdn_tags, or, if this is intended, "
                    "to a function that does nothing",
                )
            )
        is_shared = self._credentials is not None and not self._credentials.local
        if "prefix" in settings.unset and is_shared and not _hinted:
            _hinted.append("prefix")
            self.observe(
                SettingDoubted(
                    "prefix",
                    "it is not set: applications that use this database with the same prefix share "
                    "limits, stored responses and purges; set it to the name of this application, "
                    f"or to {settings.prefix!r} if no other application uses the database",
                )
            )

    def finish(self, exchange: Exchange, *, complete: bool) -> None:
        """Settle and store after the last byte; see Exchange.finish."""
        self.perform(exchange.finish(complete=complete))

    async def afinish(self, exchange: Exchange, *, complete: bool) -> None:
        """Do the same as ``finish`` on an event loop, even if the task is cancelled meanwhile."""
        if (flow := exchange.finish(complete=complete)) is not None:
            await _run_to_end(arun(flow, self._async_client()))

    @overload
    def perform(self, flow: Flow[T]) -> T: ...
    @overload
    def perform(self, flow: Flow[T] | None) -> T | None: ...
    def perform(self, flow: Flow[T] | None) -> T | None:
        """Run a flow of the core in this thread and return its result; None for None."""
        return None if flow is None else run(flow, self._client_for(flow, self._client))

    async def aperform(self, flow: Flow[T]) -> T:
        """Run a flow of the core on the event loop and return its result."""
        return await arun(flow, self._client_for(flow, self._async_client))

    def _client_for(self, flow: Flow[Any], client: Callable[[], C]) -> C:
        """Return the client for a flow; close the flow if there are no credentials."""
        try:
            return client()
        except BaseException:
            flow.close()
            raise

    async def aperform_to_end(self, flow: Flow[None] | None) -> None:
        """Run a flow on the event loop to its end, even if the task is cancelled."""
        if flow is not None:
            await _run_to_end(arun(flow, self._async_client()))

    def _settle_late(self, flow: Flow[None]) -> None:
        """Run a flow whose result no one awaits: in a task of the event loop, or in this thread.

        Raises RuntimeError under trio, where this code cannot start a task.
        """
        if (trio := sys.modules.get("trio")) is not None and trio.lowlevel.in_trio_run():
            flow.close()
            raise RuntimeError(
                "charge: the response has been sent, and its cost is settled; under trio, charge "
                "before the last byte is sent, or from a thread"
            )
        asyncio: Any = sys.modules.get("asyncio")
        loop = None if asyncio is None else asyncio._get_running_loop()  # noqa: SLF001 - documented for frameworks
        if loop is None:
            self.perform(flow)
            return
        task = loop.create_task(arun(flow, self._async_client()))
        self.late.add(task)
        task.add_done_callback(self.late.discard)

    async def late_settled(self) -> None:
        """Wait for the tasks of this event loop that settle late charges."""
        import asyncio  # noqa: PLC0415 - only needed on an event loop

        loop = asyncio._get_running_loop()  # noqa: SLF001 - None under trio
        if waiting := [task for task in self.late if task.get_loop() is loop]:
            await asyncio.wait(waiting)

    @property
    def has_limits(self) -> bool:
        """Whether the settings limit any request."""
        return bool(self.settings.rate_limits or self.settings.default_limit)

    def limiter(
        self,
        rules: tuple[RateLimitRule, ...],
        default: RateLimitRule | None = None,
        *,
        at_handler: bool = False,
        exempts: Callable[[HTTPRequest], bool] | None = None,
    ) -> RateLimiter:
        """Return a rate limiter that uses this runtime's client.

        ``at_handler`` means that the rules are decorators of a handler and not the middleware's;
        ``exempts`` selects requests that are not counted. Raises ConfigurationError if two rules
        have the same name.
        """
        from upstash_middleware.core.ratelimit import RateLimiter  # noqa: PLC0415
        from upstash_middleware.core.ratelimit.charges import AddressWatch  # noqa: PLC0415

        settings = self.settings
        address, watched = application_address(settings.client_ip, settings.platform)
        if self._watch is None:
            self._watch = AddressWatch(self.observe, settings.platform, done=not watched)
        limiter = RateLimiter(
            rules,
            default,
            prefix=settings.prefix,
            secret=self._secret,
            clock=SystemClock,
            observe=self.observe,
            deadline=settings.deadline,
            match=settings.match,
            denials=self._denials,
            lease=settings.lease,
            leases=self._leases.get,
            address=address,
            watch=self._watch,
            perform=self._settle_late,
            deny_list=settings.deny_list,
            analytics=settings.analytics,
            at_handler=at_handler,
            on_denied=settings.on_denied,
            exempts=exempts,
        )
        self._limiters.append(weakref.ref(limiter))
        self._has_leases = self._has_leases or limiter.has_leases
        if settings.analytics is not None or limiter.has_leases:
            _flushing_at_exit.add(self)
        return limiter

    def _make_leases(self) -> Leases:
        from upstash_middleware.core.ratelimit.leases import Leases  # noqa: PLC0415 - only if used

        return Leases(self.observe)

    @property
    def cache(self) -> Cache:
        """The cache, for inspecting and purging; requests use the engine."""
        if self._cache is None:
            from upstash_middleware.core.cache import Cache  # noqa: PLC0415 - if anything is cached
            from upstash_middleware.core.cache.http.directives import FROM_HANDLERS  # noqa: PLC0415

            settings = self.settings
            self._cache = Cache(
                settings.cache,
                prefix=settings.prefix,
                secret=self._secret,
                clock=SystemClock,
                observe=self.observe,
                deadline=settings.cache_deadline,
                profile=settings.cache_profile,
                max_body=settings.cache_max_body,
                grace=settings.cache_grace,
                max_keep=settings.cache_max_keep,
                targets=(FROM_HANDLERS, *settings.cache_targets),
                selects=self.selects,
                background_refresh=self._refreshes and settings.cache_refresh,
                collapse=settings.cache_collapse,
                lock=settings.cache_lock,
                max_variants=settings.cache_max_variants,
                l1_bytes=settings.cache_l1_bytes,
                l1_seconds=settings.cache_l1_seconds,
                version=settings.cache_version or "",
                previous_version=settings.cache_previous_version or "",
                shows_keys=settings.cache_status_key,
                keys=settings.cache_keys,
                encrypt=settings.cache_encrypt,
                credential_fields=settings.credential_fields,
                reflected_fields=settings.reflected_fields,
                groups=settings.cache_groups,
                cdn=settings.cdn,
                ignore_cookies=settings.cache_ignore_cookies,
                debug=settings.cache_debug,
                directories=settings.purge_directories,
                kept_cookies=self.kept_cookies,
            )
        return self._cache

    def create_sessions(
        self,
        settings: SessionSettings,
        *,
        idle: float | None = None,
        absolute: float | None = None,
        key_setting: str = "",
        **hooks: Any,
    ) -> Sessions:
        """Return the part of the engine that keeps sessions.

        Args:
            settings: The settings of the sessions.
            idle: The idle timeout in seconds, if the framework defines it; otherwise the settings
                define it.
            absolute: The absolute timeout in seconds, if the framework defines it.
            key_setting: The framework's name of the secret key.
            **hooks: The framework's differences: the ``ids`` of a SessionStore, and arguments of
                Sessions.
        """
        from upstash_middleware.core.sessions import (  # noqa: PLC0415 - if there are sessions
            CookieIds,
            Sessions,
            SessionStore,
            read_scripts,
        )

        read_scripts()
        own, sealing = self.settings, None
        if own.cache_keys:
            from upstash_middleware.core.cache.entries import Sealing  # noqa: PLC0415

            sealing = Sealing(own.cache_keys, encrypt=own.cache_encrypt, randomness=os.urandom)
        store = SessionStore(
            own.prefix,
            cache(partial(self._session_secrets, settings, key_setting)),
            SystemClock,
            os.urandom,
            own.deadline,
            float(settings.idle_timeout or 0) if idle is None else idle,  # type: ignore[arg-type] # seconds
            float(settings.absolute_timeout) if absolute is None else absolute,  # type: ignore[arg-type]
            sealing,
            hooks.pop("ids", None) or CookieIds(),
            settings.read_from == "primary",
        )
        return Sessions(settings, store, observe=self.observe, **hooks)

    def keep_sessions(self, sessions: Sessions) -> None:
        """Load and save these sessions with each request, inside the limits and the cache."""
        self.sessions = sessions
        configured, name = sessions.settings.session_cookie, sessions.settings.cookie_name
        for index, rule in enumerate(self.settings.cache if name != configured else ()):
            if any((each.kind, each.name) == ("cookie", configured) for each in rule.bypassed_by):
                self.observe(
                    SettingDoubted(
                        f"cache[{index}].bypass",
                        f"no request has the cookie {configured!r}: the session cookie is named "
                        f"{name!r}, since it is only sent over HTTPS; write 'cookie:{name}'",
                    )
                )
        for engine in (self.engine, self.uncached, self.unlimited):
            engine.parts = (*engine.parts, sessions)

    def _session_secrets(self, settings: SessionSettings, setting: str) -> tuple[bytes, ...]:
        if not (keys := settings.secret_key):
            if self.settings.secret is None:
                self.observe(
                    SettingDoubted(
                        setting or named_part(settings.setting, "secret_key"),
                        "neither it nor secret is set, so the key of sessions is derived from the "
                        "token: a new token ends all sessions; set it to a long random text",
                    )
                )
            keys = (self._secret().hex(),)
        begin = b"upstash-middleware sessions\n"
        return tuple([hashlib.sha256(begin + key.encode()).digest() for key in keys])

    def _create_purge_endpoint(self) -> PurgeEndpoint | None:
        path, token = self.settings.purge_path, self.settings.purge_token
        if Features.CACHE not in self.features or path is None or token is None:
            return None
        from upstash_middleware.core.cache.purge_endpoint import PurgeEndpoint  # noqa: PLC0415

        return PurgeEndpoint(path, token, self.invalidate, self.observe)

    def purge(
        self,
        *urls: str,
        tags: Sequence[str] = (),
        directories: Sequence[str] = (),
        rules: Sequence[str] = (),
        everything: bool = False,
        soft: bool = False,
    ) -> None:
        """Invalidate stored responses: of URLs, tags, directories, rules, or everything.

        ``urls`` are paths with their query (``/products/7``), for all host names under which they
        are stored, or whole URLs. A tag includes all tags below it: ``product`` also purges
        ``product:7``. A directory, ``/products/``, includes all URLs that begin with it; ``rules``
        are the paths of cache rules, and all responses that they cover are purged. With ``soft``
        these responses may still be served stale if their rule allows it. Does nothing if the
        middleware is disabled, so that handlers that purge need no credentials. Raises UpstashError
        if Upstash is unreachable, ValueError for an invalid URL or directory or an unknown rule.
        """
        if self.enabled:
            client = self._client()
            flow = self._purge(
                urls,
                tags=tags,
                directories=directories,
                rules=rules,
                everything=everything,
                soft=soft,
            )
            run(flow, client)

    async def apurge(
        self,
        *urls: str,
        tags: Sequence[str] = (),
        directories: Sequence[str] = (),
        rules: Sequence[str] = (),
        everything: bool = False,
        soft: bool = False,
    ) -> None:
        """Do the same as ``purge`` on an event loop."""
        if self.enabled:
            client = self._async_client()
            flow = self._purge(
                urls,
                tags=tags,
                directories=directories,
                rules=rules,
                everything=everything,
                soft=soft,
            )
            await arun(flow, client)

    def _purge(self, urls: tuple[str, ...], /, **given: Any) -> Flow[None]:
        from upstash_middleware.core.cache import Purge  # noqa: PLC0415 - if anything is cached

        for name in ("tags", "directories", "rules"):
            if isinstance(value := given[name], str):
                raise TypeError(f"purge: {name}={value!r} should be a sequence such as [{value!r}]")
            given[name] = tuple(value)
        return self.invalidate(Purge(urls, **given))

    async def invalidate(self, what: Purge) -> None:
        """Carry out a purge of stored responses and of values with the same tags. A flow.

        Then call the function in the setting ``on_purge``. Raises UpstashError, PurgeNotPassedOn,
        and ValueError for an invalid URL or directory or an unknown rule.
        """
        try:
            await self.cache.purge(what)
        finally:
            if what.tags:
                for data in list(self._data.values()):
                    data.get().drop_purged(what.tags)
        if (on_purge := self.settings.on_purge) is not None:
            try:
                await call(on_purge, self.cache.for_cdn(what))
            except Exception as error:
                raise PurgeNotPassedOn(
                    "on_purge: the purge was carried out on Redis, but the function in on_purge "
                    f"raised {type(error).__name__}: {error}"
                ) from error

    def data(self, kind: str = "data", codec: Codec | None = None) -> DataStore:
        """Return the store for the application's values of one kind; its methods are flows.

        Each kind has separate keys and is cleared separately. The first call for a kind sets its
        ``codec``; a kind with a codec, which is a framework's cache, keeps nothing in this
        process's memory. Raises ConfigurationError if ``kind`` is not a valid name.
        """
        found = self._data.get(kind)
        if found is None:
            made = OnePerProcess(lambda: self._make_data(kind, codec))
            made.get()  # raises if ``kind`` is not a valid name
            found = self._data.setdefault(kind, made)
        return found.get()

    def _make_data(self, kind: str, codec: Codec | None) -> DataStore:
        from upstash_middleware.core.cache.entries import Sealing  # noqa: PLC0415 - only if used
        from upstash_middleware.core.data import DataStore  # noqa: PLC0415 - as above

        settings, sealing = self.settings, None
        if settings.cache_keys:
            encrypt = settings.cache_encrypt
            sealing = Sealing(settings.cache_keys, encrypt=encrypt, randomness=os.urandom)
        return DataStore(
            kind,
            prefix=settings.prefix,
            clock=SystemClock,
            emit=self.observe,
            sealing=sealing,
            codec=codec,
            read_deadline=settings.cache_deadline,
            write_deadline=settings.deadline,
            tagged_keep=settings.cache_max_keep,
            l1_bytes=settings.data_l1_bytes if codec is None else 0,
            l1_seconds=settings.data_l1_seconds,
        )

    @property
    def server_url(self) -> str | None:
        """The URL of the database; None until the clients have been created."""
        clients = self._clients
        return None if clients is None or self._credentials is None else self._credentials.url

    def check_credentials(self) -> None:
        """Raise MissingCredentials if there are none, so that a server can refuse to start."""
        self._known_credentials()

    def close(self) -> None:
        """Send pending counts, return unused leases, and close all connections.

        A later call opens new ones.
        """
        if (clients := self._forget_clients()) is not None:
            run(self._flush(), clients[0])
            clients[0].close()

    async def aclose(self) -> None:
        """Do the same as ``close`` on an event loop, for the connections of threads as well."""
        if self.late:
            await self.late_settled()
        if (clients := self._forget_clients()) is not None:
            await arun(self._flush(), clients[1])
            clients[0].close()
            await clients[1].aclose()

    def flush(self) -> None:
        """Send collected analytics and return unused leases, if there is a client."""
        if (clients := self._clients) is not None:
            run(self._flush(), clients[0])

    def forget(self) -> None:
        """Forget denials, leases, local counts, stored responses and failures."""
        for limiter in self._live_limiters():
            limiter.forget()
        self._denials.clear()
        if self._has_leases:
            self._leases.get().clear()
        if self._cache is not None:
            self._cache.forget()
        for data in self._data.values():
            data.get().forget()
        for breaker in self._breakers:
            breaker.get().reset()

    async def _flush(self) -> None:
        await together(*(limiter.flush() for limiter in self._live_limiters()))

    def _live_limiters(self) -> list[RateLimiter]:
        return [limiter for ref in self._limiters if (limiter := ref()) is not None]

    def _secret(self) -> bytes:
        if self._hash_key is None:
            material = self.settings.secret or self._known_credentials().token
            text = b"upstash-middleware identifiers\n" + material.encode()
            self._hash_key = hashlib.sha256(text).digest()
        return self._hash_key

    def _known_credentials(self) -> Credentials:
        if self._credentials is None:
            settings = self.settings
            self._credentials = Credentials.find(
                url=settings.url, token=settings.token, redis=settings.redis, environ=os.environ
            )
        return self._credentials

    def _client(self) -> Client:
        return (self._clients or self._create_clients())[0]

    def _async_client(self) -> AsyncClient:
        return (self._clients or self._create_clients())[1]

    def _create_clients(self) -> tuple[Client, AsyncClient]:
        with self._lock:
            if self._clients is None:
                credentials = self._known_credentials()
                shared: dict[str, Any] = {
                    "deadline": self.settings.deadline,
                    "transport": self.settings.transport,
                    "sync_token": SyncToken(),
                }
                if self.settings.breaker:
                    shared["breaker"], shared["quick_breaker"] = self._breakers
                if self.settings.observers:  # the log ignores successful calls

                    def watch(called: Called) -> None:
                        names = tuple(str(command.args[0]) for command in called.commands)
                        server = credentials.host, credentials.port
                        self.observe(UpstashCalled(*server, names, called.seconds, called.error))

                    shared["watch"] = watch
                self._clients = Client(credentials, **shared), AsyncClient(credentials, **shared)
            return self._clients

    def redis(self) -> Redis:
        """Return a sync Redis client for the application, over the middleware's connections."""
        return self._redis_clients()[0]

    def async_redis(self) -> AsyncRedis:
        """Return an async Redis client for the application."""
        return self._redis_clients()[1]

    def _redis_clients(self) -> tuple[Redis, AsyncRedis]:
        clients = self._clients or self._create_clients()
        if self._redis is None or self._redis[0] is not clients:
            from upstash_middleware.redis import AsyncRedis, Redis  # noqa: PLC0415 - loads the SDK

            breaker = self._redis_breaker if self.settings.breaker else None
            own = Redis.with_client(clients[0].separate(breaker))
            self._redis = clients, (own, AsyncRedis.with_client(clients[1].separate(breaker)))
        return self._redis[1]

    def _forget_clients(self) -> tuple[Client, AsyncClient] | None:
        with self._lock:
            clients, self._clients = self._clients, None
            return clients

    def _breaker(self) -> Breaker:
        slow = self.settings.breaker_slow or self.settings.deadline / 2
        return Breaker(slow=slow, clock=time.monotonic, emit=self.observe)

    def _breaker_of_commands(self) -> Breaker:
        return Breaker(slow=None, clock=time.monotonic, emit=self.observe)


def _has_no_visitor(native: Any) -> bool:
    """Whether a framework's request is a background request, which no visitor sent."""
    held = native if isinstance(native, dict) else getattr(native, "META", ())
    return BACKGROUND_REQUEST in held or BACKGROUND_REQUEST in getattr(native, "scope", ())


def _exempt_all_but_purges(
    endpoint: PurgeEndpoint, exempts: Callable[[HTTPRequest], bool]
) -> Callable[[HTTPRequest], bool]:
    """Return ``exempts`` with the purge endpoint's requests excluded from exemption."""
    return lambda request: not endpoint.covers(request) and exempts(request)


class LazyProxy:
    """Forwards attributes to an object that is looked up, and loaded, on first use."""

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy asks for some before _find is set
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._find(), name)


class _Observers:
    """Passes each event to several observers; an observer's exception affects nothing else."""

    __slots__ = ("_observers", "ignores")

    def __init__(self, log: LogObserver, others: Sequence[Observer]) -> None:
        self._observers: tuple[Observer, ...] = (log, *others)
        self.ignores: AbstractSet[type[Event]] = log.ignores
        """The events that all observers ignore; see ``events.ignored_by``."""
        if others:  # the log's list changes at run time, so other observers get this event
            ignored = [frozenset(getattr(observer, "ignores", ())) for observer in others]
            self.ignores = (log.ignores - {UpstashAnswered}).intersection(*ignored)

    def __call__(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # noqa: BLE001 - a failing observer must not fail a response
                logger.exception("an observer raised on %s", type(event).__name__)


def run_soon(*work: Callable[[], object]) -> threading.Event:
    """Run functions in a separate thread, for ``__del__``; the event is set afterwards.

    An object may be garbage-collected at any moment, even while the thread runs an event loop or
    holds a lock that this code needs. Starting a ``threading.Thread`` would need a lock.
    """
    done = threading.Event()

    def run_all() -> None:
        try:
            for each in work:
                each()
        finally:
            done.set()

    try:
        _thread.start_new_thread(run_all, ())
    except RuntimeError:  # the interpreter is shutting down
        done.set()
    return done


# ASGI servers announce their shutdown; WSGI servers and Django do not. At exit, no connections are
# closed, because the process ends.
_flushing_at_exit: weakref.WeakSet[Runtime] = weakref.WeakSet()


@atexit.register
def _flush_at_exit() -> None:
    for runtime in list(_flushing_at_exit):
        with suppress(Exception):  # a traceback at exit would help no one
            runtime.flush()


async def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Complete a coroutine even if anyio or asyncio cancels the task."""
    import asyncio  # noqa: PLC0415 - only needed on an event loop

    import anyio  # noqa: PLC0415

    with anyio.CancelScope(shield=True):
        try:
            task = asyncio.get_running_loop().create_task(work)
        except RuntimeError:  # trio, which only cancels through cancel scopes
            await work
            return
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise


def _stores_first(settings: Settings) -> bool:
    if settings.cache_store_first is not None or not settings.cache:
        return bool(settings.cache_store_first)
    from upstash_middleware.core.cache.rules import profile_named  # noqa: PLC0415

    return profile_named(settings.cache_profile).stores_first


def _check_not_idle(
    settings: Settings, features: Features, source: str, *, has_sessions: bool
) -> None:
    """Raise ConfigurationError for a middleware that would do nothing."""
    limits = bool(settings.rate_limits or settings.default_limit)
    if source:  # a mapping: Django's setting, Flask's config
        limit, cache = "'default_limit': '100/minute'", "'cache': [{'path': '/p/{id}', 'ttl': 60}]"
        missing, where = "'rate_limits' and 'default_limit' are missing", f" in {source}"
    else:
        limit, cache = "default_limit='100/minute'", "cache=[CacheRule('/p/{id}', ttl=60)]"
        missing, where = "rate_limits and default_limit are missing", ""
    if features is Features.RATE_LIMIT and not limits:
        raise ConfigurationError(
            f"RateLimitMiddleware has no limit{where}: {missing}; give for instance {limit}"
        )
    if features is Features.CACHE and not settings.cache:
        raise ConfigurationError(f"CacheMiddleware has no rule{where}: give for instance {cache}")
    sessions, or_keep = (" nor sessions", ", or sessions=True") if has_sessions else ("", "")
    if features is Features.BOTH and not (limits or settings.cache or settings.sessions):
        raise ConfigurationError(
            f"UpstashMiddleware has neither a limit nor a cache rule{sessions}{where}: give for "
            f"instance {limit} or {cache}{or_keep}"
        )
