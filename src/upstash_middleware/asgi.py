"""The middleware classes for any ASGI 3 application; no other name here is public."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import AsyncExitStack
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast
from urllib.parse import quote, unquote

from msgspec import Struct

from upstash_middleware.arguments import passing_to
from upstash_middleware.core.engine import Exchange
from upstash_middleware.core.ratelimit.decision import UNCHECKED
from upstash_middleware.decorators import Attached, HandlerCall, exempt_types
from upstash_middleware.errors import ConfigurationError, unknown_name
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import (
    NO_HEADERS,
    PATH_SAFE,
    UNANNOUNCED_BODY,
    WITHOUT_BODY,
    Headers,
    HTTPRequest,
    RequestBody,
    Response,
    ResponseHead,
    announces_no_body,
    content_length,
)
from upstash_middleware.runtime import BACKGROUND_REQUEST, Features, LazyProxy, Runtime
from upstash_middleware.settings import (
    DEFAULTS,
    WITHOUT_EFFECT_ON_SESSIONS,
    WithSettings,
    check_kept_cookies,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from typing import Literal, Unpack

    import anyio

    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.core.sessions import SessionSettings
    from upstash_middleware.data import Data
    from upstash_middleware.events import Observer
    from upstash_middleware.settings import Arguments

__all__ = [
    "CacheHandle",
    "CacheMiddleware",
    "RateLimitMiddleware",
    "SessionMiddleware",
    "UpstashMiddleware",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_CLIENT_SCOPES = frozenset({"http", "websocket"})
"""The scope types of requests and of WebSocket connections."""
RUNTIME = "upstash_middleware.runtime"
"""The scope's key for the runtime that decorators use: the runtime of the innermost middleware
that has its own limits, or else of the outermost middleware."""
DATA = "upstash_middleware.data"
"""The scope's key for a function that returns the Data, preferably of a middleware with a cache."""
STREAM = "upstash_middleware.stream"
"""The scope's key for the ResponseStream."""
_SESSION = "upstash_middleware.session"
"""The scope's key through which inner caches learn whether the session is used."""
_REFRESHED = "upstash_middleware.refreshed"
"""The scope's key for the exchange of a background revalidation."""
_INNER = "upstash_middleware.handed"
"""The scope's key in which a rate limit passes its exchange to the cache directly inside it."""

DENIAL_EXTENSION = "websocket.http.response"
TRY_AGAIN_LATER = 1013
_FILES = frozenset({"http.response.pathsend", "http.response.zerocopysend"})
"""Messages that tell the server to send a file; the ASGI extensions have the same names."""
HTTP_1 = frozenset({"1.0", "1.1"})
_SENDING_SECONDS: Final = 1.0
"""If one ``send`` takes longer than this, check whether the client is still connected."""


class CacheHandle:
    """The cache for the application's handlers: ``request.state.cache``."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    async def purge(
        self,
        *urls: str,
        tags: Sequence[str] = (),
        directories: Sequence[str] = (),
        rules: Sequence[str] = (),
        everything: bool = False,
        soft: bool = False,
    ) -> None:
        """Invalidate stored responses: ``await request.state.cache.purge("/tea?size=2")``.

        It does nothing if the middleware is disabled.

        Args:
            *urls: Paths with their query, or whole URLs; each is purged with all its variants.
            tags: Tags. A tag includes all tags below it: ``product`` also purges ``product:7``.
            directories: Paths that end in a slash: ``/products/`` includes all URLs that begin with
                it. Requires the setting ``purge_directories``.
            rules: Paths of cache rules. All responses that these rules cover are purged. Requires
                the setting ``purge_directories``.
            everything: Whether all stored responses are purged.
            soft: Whether these responses may still be served stale if their rule allows it.

        Raises:
            UpstashError: The purge failed, for instance because Upstash is unreachable. A part of
                it may have been done; repeat it.
            PurgeNotPassedOn: The purge was done, but the function in ``on_purge`` raised.
            ValueError: A URL is invalid, a directory does not end in a slash, or no cache rule has
                one of the paths in ``rules``.
            TypeError: An argument is a string and not a sequence, such as ``tags="product:7"``.
            ConfigurationError: ``directories`` or ``rules`` needs the setting
                ``purge_directories``, or credentials are missing.
        """
        await self.runtime.apurge(
            *urls,
            tags=tags,
            directories=directories,
            rules=rules,
            everything=everything,
            soft=soft,
        )

    def purge_sync(
        self,
        *urls: str,
        tags: Sequence[str] = (),
        directories: Sequence[str] = (),
        rules: Sequence[str] = (),
        everything: bool = False,
        soft: bool = False,
    ) -> None:
        """Do the same as ``purge``, for a handler that runs in a thread (a plain ``def``).

        Args:
            *urls: Paths with their query, or whole URLs; each is purged with all its variants.
            tags: Tags. A tag includes all tags below it: ``product`` also purges ``product:7``.
            directories: Paths that end in a slash: ``/products/`` includes all URLs that begin with
                it. Requires the setting ``purge_directories``.
            rules: Paths of cache rules. All responses that these rules cover are purged. Requires
                the setting ``purge_directories``.
            everything: Whether all stored responses are purged.
            soft: Whether these responses may still be served stale if their rule allows it.

        Raises:
            UpstashError: The purge failed. The other exceptions are those of ``purge``.
        """
        self.runtime.purge(
            *urls,
            tags=tags,
            directories=directories,
            rules=rules,
            everything=everything,
            soft=soft,
        )


class Middleware:
    """A runtime around an ASGI application; the public subclasses differ only in their runtime."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self.runtime: Runtime = runtime
        self._limits = Features.RATE_LIMIT in runtime.features
        self._leads = self._limits and runtime.has_limits
        self._caches = Features.CACHE in runtime.features
        # No other pair is joined: after a denial or a hit, inner middleware must charge nothing.
        joins = runtime.features is Features.RATE_LIMIT and isinstance(app, Middleware)
        inner = cast("Middleware", app).runtime if joins else None
        self._inner = inner if inner is not None and inner.features is Features.CACHE else None
        self._root_path = _root_path_of(app)
        self._cache_handle = CacheHandle(runtime)
        self._redis = LazyProxy(runtime.async_redis)
        self._data: Data | None = None
        self._data_proxy = LazyProxy(self._find_data)
        self._for_scope: Mapping[str, Any] = {DATA: self._find_data, RUNTIME: runtime}
        """The keys that the outermost middleware adds to a scope."""
        self._for_state: dict[str, Any] = {
            "upstash": self._redis,
            "data": self._data_proxy,
            "rate_limit": UNCHECKED,
        }
        """The keys that the outermost middleware adds to the scope's state."""
        if self._caches:
            self._for_state["cache"] = self._cache_handle
        self._serving: Mapping[str, ASGIApp] = {}
        self._serves_http = self._http_with_body if runtime.reads_body else self._http
        if runtime.enabled:
            self._serving = {
                "http": self._first_http if runtime.caches else self._serves_http,
                "websocket": self._websocket,
                "lifespan": self._lifespan,
            }
        self._lifespan_state: Mapping[str, Any] = {}

    async def _first_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_cookies(scope)  # some servers do not send lifespan events
        self._serving = {**self._serving, "http": self._serves_http}
        await self._serves_http(scope, receive, send)

    def _refuse(self, app: ASGIApp, error: ConfigurationError) -> None:
        """Report a configuration error; inside Starlette, when the application starts.

        Starlette creates its middleware during the first call of the application, which is for the
        lifespan. If this call raises, a server assumes that the application has no lifespan, and
        starts anyway. Therefore this middleware reports a failed startup, which ends the server.
        """
        if not _is_inside_starlette(app):
            raise error

        async def fail(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise error.with_traceback(None)  # otherwise each raise would extend the traceback

        Middleware.__init__(self, app, Runtime.of({"enabled": False}, Features(0), {}))
        self._serving = {"http": fail, "websocket": fail, "lifespan": fail}

    def _check_cookies(self, scope: Scope) -> None:
        """Reject rules that would share pages made with a session that is loaded outside the cache.

        The session middleware adds ``Vary: Cookie`` outside the cache, so the cache cannot see it.
        """
        if not self.runtime.caches:
            return
        outside = _cookies_outside(scope.get("app"), type(self))
        check_kept_cookies(self.runtime.settings, outside, "")
        self.runtime.kept_cookies.update(outside)
        for index, rule in enumerate(self.runtime.settings.cache):
            bypassing = {sent.name for sent in rule.bypassed_by if sent.kind == "cookie"}
            for name, reader in outside.items():
                if rule.vary_cookies is not None and name not in {*rule.vary_cookies, *bypassing}:
                    raise ConfigurationError(
                        f"cache[{index}].vary_cookies = {rule.vary_cookies!r}: {reader} is outside "
                        f"the cache, so pages made with the session of {name!r} would be given to "
                        f"other users; add {reader} before this middleware, so that it is inside, "
                        f"or name {name!r} too"
                    )

    def check_route(self, scope: Scope, looked_up: tuple[Any, Any]) -> None:
        """Compare a request's route with the one that was looked up; subclasses override it."""

    async def answer(
        self,
        _scope: Scope,
        _receive: Receive,
        response: Response,
        _decision: Decision | None,
        /,
    ) -> Response:
        """Return the framework's form of a response of this package; subclasses override it."""
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope; see the ASGI specification, version 3."""
        kind = scope["type"]
        if kind in _CLIENT_SCOPES:
            self._add_to_state(scope)
        looked_up = (scope.get("path"), scope.get("method")) if exempt_types else None
        await self._serving.get(kind, self.app)(scope, receive, send)
        if looked_up is not None and self._limits:
            self.check_route(scope, looked_up)
        if self.runtime.late:  # charges from background tasks, which the next request must see
            await self.runtime.late_settled()

    def _add_to_state(self, scope: Scope) -> None:
        """Add the decision and the cache to the state, even if no rule applies."""
        state = scope.setdefault("state", {})
        if not state and RUNTIME not in scope:
            scope.update(self._for_scope)
            state.update(self._for_state)
            return
        state["upstash"] = self._redis
        if self._caches or DATA not in scope:
            scope[DATA] = self._find_data
            # The lifespan state of the application may have an object named "data".
            if isinstance(state.get("data", self._data_proxy), LazyProxy):
                state["data"] = self._data_proxy
        if self._leads or RUNTIME not in scope:
            scope[RUNTIME] = self.runtime
        state.setdefault("rate_limit", UNCHECKED)
        if self._caches:
            state["cache"] = self._cache_handle

    def _find_data(self) -> Data:
        if self._data is None:
            from upstash_middleware.data import Data  # noqa: PLC0415 - only if used

            self._data = Data.over(lambda: self.runtime)
        return self._data

    async def _http_with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = ReceivedBody(receive)
        await self._http(scope, body.receive, send, body)

    async def _http(  # noqa: PLR0912
        self, scope: Scope, receive: Receive, send: Send, body: RequestBody | None = None
    ) -> None:
        begun: Any = scope.get(_INNER)
        if begun is not None and begun[1].engine is self.runtime.engine:
            request, begun = begun
            del scope[_INNER]
        else:
            request = request_of(scope, self._root_path, body)
            begun = self.runtime.prepare(request, self._inner)
        exchange = begun if isinstance(begun, Exchange) else await self.runtime.abegun(begun)
        if exchange.decision is not None:
            scope["state"]["rate_limit"] = exchange.decision
        if (outer := scope.get(STREAM)) is not None:
            exchange.caches = (outer.exchange, *outer.exchange.caches)
        elif _REFRESHED in scope:
            exchange.caches = (scope[_REFRESHED],)
        if exchange.saving is not None:
            self._show_session(scope, exchange)
        elif _SESSION in scope:
            exchange.session = scope[_SESSION]
        sends_may_hang = scope.get("http_version", "1.1") not in HTTP_1
        stream = ResponseStream(self.runtime, exchange, receive, send, sends_may_hang)
        held_up = sends_may_hang or self.runtime.finishes_first
        stream.only_adds = exchange.only_adds and not held_up
        scope[STREAM] = stream
        try:
            if exchange.response is not None:
                await self._respond(scope, receive, exchange.response, stream)
                return
            if exchange.watching and not _FILES.isdisjoint(scope.get("extensions") or ()):
                exchange.unseen(certainly=False)
            if exchange.inner is not None:
                scope[_INNER] = (request, exchange.take_inner())
            if exchange.request is request:
                await self.app(scope, stream.receive, stream.send)
            else:
                await self._forward(scope, exchange.request, stream)
        except Exception as error:
            if not await stream.send_fallback(error):
                raise
        finally:
            # The stream refers to the scope: without this, the cycle would outlive the request.
            scope.pop(STREAM, None)
            if not stream.finished:
                await stream.finish(complete=False)

    def _show_session(self, scope: Scope, exchange: Exchange) -> None:
        """Add the session to the scope, and tell inner caches whether it is used."""
        saving: Any = exchange.saving
        if BACKGROUND_REQUEST in scope:  # an outer cache revalidates: there is no client
            saving.detach()
        saving.session.performer = self.runtime
        scope["session"], scope[_SESSION] = saving.session, saving

    async def _forward(self, scope: Scope, request: HTTPRequest, stream: ResponseStream) -> None:
        """Call the application with other header fields, in the same scope object.

        Code outside finds the application's additions and the client's fields in this object.
        """
        clients = scope.get("headers", [])
        shown = list(request.headers.raw)

        async def send(message: Message) -> None:
            scope["headers"] = clients
            try:
                await stream.send(message)
            finally:
                scope["headers"] = shown

        scope["headers"] = shown
        try:
            await self.app(scope, stream.receive, send)
        finally:
            scope["headers"] = shown = clients

    async def _respond(
        self, scope: Scope, receive: Receive, response: Response, stream: ResponseStream
    ) -> None:
        """Send a response of this package, and revalidate it in the background if it was stale.

        Both run concurrently, because the client may read its response slowly or never.
        """
        exchange = stream.exchange
        answer = await self.answer(scope, receive, response, exchange.decision)
        if (refresh := exchange.take_refresh()) is None:
            await stream.send_whole(answer, scope["method"])
            return
        import anyio  # noqa: PLC0415 - only needed on an event loop

        begun, error = False, None

        async def revalidate() -> None:
            nonlocal begun
            begun = True
            await self._revalidate(scope, refresh)

        try:
            async with anyio.create_task_group() as tasks:
                # In a new context, because context variables may contain the visitor's data.
                Context().run(tasks.start_soon, revalidate)
                try:
                    await stream.send_whole(answer, scope["method"])
                except Exception as raised:  # noqa: BLE001 - raised below, outside the group
                    error = raised
        finally:
            if not begun:
                refresh.drop()
                await self.runtime.afinish(refresh, complete=False)
        if error is not None:
            raise error

    async def _revalidate(self, visitors: Scope, refresh: Exchange) -> None:
        """Revalidate a stored response with a request that contains no data of the visitor."""
        client = _RevalidationClient(visitors, lambda: refresh.kept)
        stream = ResponseStream(self.runtime, refresh, client.receive, client.send)
        try:
            scope = refresh_scope(visitors, refresh.request, self._lifespan_state)
            if "rate_limit" in visitors["state"]:
                scope["state"]["rate_limit"] = UNCHECKED  # outer limits do not count a revalidation
            self._add_to_state(scope)
            scope[_REFRESHED] = refresh
            if refresh.saving is not None:
                self._show_session(scope, refresh)
            await self.app(scope, stream.receive, stream.send)
        except Exception as error:  # noqa: BLE001 - the client already has its response
            if not client.gave_up:
                self.runtime.observe(UserCodeFailed("background refresh", error))
        finally:
            await stream.finish(complete=False)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count a handshake as a request; messages on an open connection are not counted."""
        request = request_of(scope, self._root_path)
        exchange = await self.runtime.abegin(request, engine=self.runtime.uncached)
        if exchange.decision is not None:
            scope["state"]["rate_limit"] = exchange.decision
        if exchange.saving is not None:
            self._show_session(scope, exchange)
        try:
            if exchange.response is not None:
                await _deny_handshake(scope, receive, send, exchange.response)
                return
            handshake = Handshake(self.runtime, exchange, receive, send)
            try:
                await self.app(scope, handshake.receive, handshake.send)
            except Exception:
                handshake.failed()
                raise
        finally:
            await self.runtime.afinish(exchange, complete=True)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.runtime.check_credentials()
            self._check_cookies(scope)
        except ConfigurationError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        self._lifespan_state = scope.get("state", {})

        async def send_after_closing(message: Message) -> None:
            # A server may end its event loop as soon as it receives this message.
            if message["type"].startswith("lifespan.shutdown."):
                await self.runtime.aclose()
            await send(message)

        await self.app(scope, receive, send_after_closing)


class ConfiguredMiddleware(WithSettings["ASGIApp"], Middleware):
    """A middleware that creates its runtime from the settings."""

    features: ClassVar[Features]
    _exempts: Callable[[HTTPRequest], bool] | None = None
    """Which requests no limit counts; for a framework's class."""

    def _configure(self, app: ASGIApp, **arguments: Unpack[Arguments]) -> None:
        try:
            runtime = Runtime.of(
                arguments,
                self.features,
                exempts=self._exempts,
                refreshes=True,
                own="AsyncClient",
                kept_cookies=_cookies_inside(app),
            )
        except ConfigurationError as error:
            self._refuse(app, error)
            return
        Middleware.__init__(self, app, runtime)


def _cookies_inside(app: object) -> dict[str, str]:
    """Return the cookies that middleware inside reads, each with the name of the class.

    This covers middleware of this package, of Starlette, and any that names its cookie likewise.
    """
    found = {}
    while app is not None:
        name: Any = getattr(app, "session_cookie", None) or getattr(app, "cookie_name", None)
        if isinstance(app, Middleware) and app.runtime.settings.sessions is not None:
            name = app.runtime.settings.sessions.cookie_name
        if isinstance(name, str):
            found[name] = type(app).__name__
        app = getattr(app, "app", None)
    return found


def _cookies_outside(app: object, cache: type) -> dict[str, str]:
    """Return the cookies that middleware outside a cache reads, each with the name of the class.

    A page made with a session that is loaded outside depends on this session, although neither the
    cache nor the layers inside it see its cookie.
    """
    import inspect  # noqa: PLC0415 - slow to import, and only needed at startup

    found = {}
    for each in getattr(app, "user_middleware", ()):  # outermost first
        if each.cls is cache:
            break
        if isinstance(each.cls, type) and issubclass(each.cls, Middleware):
            continue  # the cache knows when a session of this package is used
        try:
            given = inspect.signature(each.cls).bind_partial(app, *each.args, **each.kwargs)
        except (TypeError, ValueError):
            continue
        given.apply_defaults()
        name = given.arguments.get("session_cookie")
        if isinstance(name, str):
            found[name] = getattr(each.cls, "__name__", "middleware")
    return found


class UpstashMiddleware(ConfiguredMiddleware):
    """Rate limits and response cache in one middleware; cache hits count against the limits."""

    features = Features.BOTH


class RateLimitMiddleware(ConfiguredMiddleware):
    """Rate limits only. Directly outside a CacheMiddleware, both need one round trip in total."""

    features = Features.RATE_LIMIT


class CacheMiddleware(ConfiguredMiddleware):
    """Response cache only. Outside a RateLimitMiddleware, its hits count against no limit."""

    features = Features.CACHE


class SessionMiddleware(Middleware):
    """Sessions on Upstash, with the arguments of Starlette's SessionMiddleware.

    Handlers use ``request.session``. The setting ``sessions`` of ``UpstashMiddleware`` does the
    same, in one round trip together with limits and cache.
    """

    features: ClassVar[Features] = Features.SESSIONS

    @passing_to("_configure")
    def __init__(  # noqa: PLR0913, PLR0917 - Starlette's, and this package's settings
        self,
        app: ASGIApp,
        secret_key: str | Sequence[str] = (),
        session_cookie: str = "session",
        max_age: Duration | None = 14 * 24 * 3600,
        path: str = "/",
        same_site: str = "lax",
        https_only: bool = False,
        domain: str | None = None,
        *,
        partitioned: bool = False,
        idle_timeout: Duration | None = None,
        absolute_timeout: Duration = 90 * 24 * 3600,
        paths: Sequence[str] = (),
        max_size: int = 256 * 1024,
        on_error: Literal["open", "closed"] = "open",
        read_from: Literal["nearest", "primary"] = "nearest",
        config: str | PathLike[str] | None = None,
        enabled: bool = True,
        url: str | None = None,
        token: str | None = None,
        redis: Any = None,
        transport: Any = None,
        prefix: str = "upstash-middleware",
        secret: str | None = None,
        deadline: Duration = 1.0,
        breaker: bool = True,
        breaker_slow: Duration | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            secret_key: One key, or several keys, of which the first one signs; see SessionSettings.
            session_cookie: The name of the session cookie.
            max_age: Lifetime of the cookie in seconds; None until the browser is closed.
            path: The cookie's Path attribute.
            same_site: ``"lax"``, ``"strict"`` or ``"none"``.
            https_only: Whether browsers send the cookie over HTTPS only.
            domain: The cookie's Domain attribute; its subdomains get the cookie too.
            partitioned: Whether each site that embeds this one has a separate cookie.
            idle_timeout: Seconds after which an unused session ends.
            absolute_timeout: Seconds after which a session ends in any case.
            paths: Patterns of the paths that use sessions; empty for all paths.
            max_size: The largest size of a session, in bytes.
            on_error: What happens if a session cannot be saved, as in SessionSettings.
            read_from: The replica that sessions are read from.
            config: The path of a rule file: these settings in TOML.
            enabled: False turns the sessions off, as does UPSTASH_MIDDLEWARE_ENABLED=0.
            url: The database's REST URL; default UPSTASH_REDIS_REST_URL, then KV_REST_API_URL.
            token: The REST token; default UPSTASH_REDIS_REST_TOKEN, then KV_REST_API_TOKEN.
            redis: A client of this package or of upstash_redis, or a LocalUpstash, instead of both.
            transport: The HTTP client: ``"sockets"``, ``"httpx"``, or an httpx client object.
            prefix: The prefix of every key on Redis; use a different one for each application.
            secret: The key that hashes identifiers; default: derived from the token.
            deadline: Seconds that a call to Upstash may take in total; default 1.
            breaker: Whether a circuit breaker stops calls if half of the recent ones fail.
            breaker_slow: Seconds after which the circuit breaker counts a call as failed; default
                half of ``deadline``.
            observers: Functions that are called with every event, in addition to the log.

        Raises:
            ConfigurationError: An argument is wrong.
        """

    def _configure(self, app: ASGIApp, *args: Any, **arguments: Any) -> None:
        try:
            runtime = self._runtime_of(*args, **arguments)
        except ConfigurationError as error:
            self._refuse(app, error)
            return
        Middleware.__init__(self, app, runtime)

    def _runtime_of(  # noqa: PLR0913, PLR0917 - Starlette's, and this package's settings
        self,
        secret_key: str | Sequence[str] = (),
        session_cookie: str = "session",
        max_age: Duration | None = 14 * 24 * 3600,
        path: str = "/",
        same_site: str = "lax",
        https_only: bool = False,
        domain: str | None = None,
        *,
        partitioned: bool = False,
        idle_timeout: Duration | None = None,
        absolute_timeout: Duration = 90 * 24 * 3600,
        paths: Sequence[str] = (),
        max_size: int = 256 * 1024,
        on_error: Literal["open", "closed"] = "open",
        read_from: Literal["nearest", "primary"] = "nearest",
        **arguments: Unpack[Arguments],
    ) -> Runtime:
        from upstash_middleware.core.sessions import SessionSettings  # noqa: PLC0415 - only if used

        if "sessions" in arguments:
            raise ConfigurationError(
                "sessions: SessionMiddleware takes the session settings as arguments, such as "
                "https_only=True; sessions= is an argument of UpstashMiddleware"
            )
        _check_arguments(arguments, SessionSettings)
        if type(secret_key).__name__ == "Secret":  # Starlette's
            secret_key = str(secret_key)
        settings = SessionSettings(
            secret_key=secret_key,
            session_cookie=session_cookie,
            max_age=max_age,
            path=path,
            same_site=same_site,
            https_only=https_only,
            domain=domain,
            partitioned=partitioned,
            idle_timeout=idle_timeout,
            absolute_timeout=absolute_timeout,
            paths=paths,
            max_size=max_size,
            on_error=on_error,
            read_from=read_from,
            setting="SessionMiddleware",
        )
        return Runtime.of({**arguments, "sessions": settings}, self.features, own="AsyncClient")


def _check_arguments(arguments: Mapping[str, Any], fields: type[SessionSettings]) -> None:
    """Raise ConfigurationError for arguments that have no effect on sessions."""
    for name in arguments:
        if name in WITHOUT_EFFECT_ON_SESSIONS:
            raise ConfigurationError(
                f"{name}: this setting has no effect in SessionMiddleware; use "
                f"UpstashMiddleware({name}=…, sessions={{…}}), which includes sessions"
            )
        if name not in DEFAULTS:
            own = [field for field in fields.__struct_fields__ if field != "setting"]
            raise unknown_name("SessionMiddleware", name, [*own, "url", "token", "redis", "prefix"])


def _is_inside_starlette(app: Any) -> bool:
    """Return whether an application is one of Starlette's middleware, or is inside one.

    In this case Starlette creates our middleware, and no code can catch its exceptions.
    """
    while app is not None:
        if type(app).__module__ == "starlette.middleware.exceptions":
            return True
        app = getattr(app, "app", None)
    return False


def _root_path_of(app: Any) -> str:
    """Return the ``root_path`` that a FastAPI application inside adds to each scope itself."""
    while app is not None:
        if any(base.__module__ == "fastapi.applications" for base in type(app).__mro__):
            return str(app.root_path)
        app = getattr(app, "app", None)
    return ""


# ------------------------------------------------------------------------------------------------
# Responses


class ResponseStream(Struct, eq=False):
    """Passes one response from the application to the server, and finishes its exchange."""

    _runtime: Runtime
    exchange: Exchange
    _receive: Receive
    _send: Send
    _sends_may_hang: bool = False
    """Whether ``send`` may hang: Hypercorn's never returns if the client left an HTTP/2 stream."""
    finished: bool = False
    """Whether the exchange has been finished."""
    only_adds: bool = False
    """Whether the head only gets additional field lines."""
    _attached: list[Attached] = []
    _started: bool = False
    _announced: int | None = None
    """Remaining body bytes according to Content-Length; None without Content-Length."""
    _trailers: bool = False  # whether trailers follow the body
    _head_of_304: Message | None = None
    """The head of a 304 that is sent once the application's whole body has been seen."""
    _replaced: bool = False
    """Whether a Response of this package has been sent in place of the application's."""
    _passes: bool = False
    """Whether only the end of the body matters after the head has been sent."""
    _seen_whole: bool = True
    """Whether this object has seen every byte of the body, so that the response can be stored."""
    _client_left: bool = False
    _sending: bool = False
    _receiving: bool = False  # whether the application waits for a message
    _watching: anyio.Event | None = None
    """Set when no watcher receives messages any more while a message is being sent."""
    _last_piece_passed: bool = False  # whether the last piece was passed to the server
    _received_ahead: list[Message] = []
    """Messages for the application that were received while a message was being sent."""

    @property
    def path(self) -> str:
        """The path that the middleware's rules were matched against."""
        return self.exchange.request.path

    def attach(self, attached: Attached) -> None:
        """Add a decorator's limit or cache, which gets the response's head and end."""
        self._attached.append(attached)
        self._passes = self.only_adds = False

    async def receive(self) -> Message:
        """Pass on the server's message, and note if the client has left.

        An application that learns this may shorten its response and still end it properly, so
        such a response is not stored.
        """
        if self._watching is not None and not self._received_ahead:
            await self._watching.wait()
        if self._received_ahead:
            is_end = self._received_ahead[0]["type"] == "http.disconnect"
            return self._received_ahead[0] if is_end else self._received_ahead.pop(0)
        self._receiving = True
        try:
            message = self._noted(await self._receive())
        finally:
            self._receiving = False
        if self._client_left and self._sending:
            await self.finish(complete=False)
        return message

    def _noted(self, message: Message) -> Message:
        if message["type"] == "http.disconnect":
            self._client_left = True
            if not (self.finished or self._last_piece_passed):
                self.exchange.forbid_storing(
                    "the client left before the response", client_left=True
                )
        elif message.get("body") and announces_no_body(self.exchange.request):
            self.exchange.forbid_storing(UNANNOUNCED_BODY)
        return message

    async def send(self, message: Message) -> None:  # noqa: PLR0912
        """Pass on the application's message, and finish the exchange right after the last byte."""
        if self._replaced:
            return
        kind = message["type"]
        if kind == "http.response.start":
            if not self.only_adds:
                await self._send_head(message)
                return
            self._started = self._passes = True
            self._trailers = message.get("trailers", False)
            lines = message.get("headers", ())
            if not isinstance(lines, (list, tuple)):  # an iterator can be read only once
                lines = list(lines)
            added = self.exchange.added_lines(message["status"], lines)
            await self._send({**message, "headers": [*lines, *added]})
            return
        # Everything is read before the message is sent: outer middleware may modify the message,
        # the application may reuse its buffer, and clients disconnect after the last byte.
        if kind == "http.response.body":
            is_last = not (self._trailers or message.get("more_body", False))
        else:
            is_last = _ends(message, self._trailers)
        if self._passes and not self._runtime.finishes_first:
            await self._send(message)
            if is_last and not self.finished:
                self.finished = True
                if (flow := self.exchange.finish(complete=True)) is not None:
                    await self._runtime.aperform_to_end(flow)
            return
        piece = bytes(message.get("body", b""))
        if not is_last and piece and self._announced is not None:
            self._announced -= len(piece)
            is_last = self._announced == 0
        if not self._passes:
            await self._show_and_send(message, piece, is_last=is_last)
            return
        if is_last and self._runtime.finishes_first:
            await self.finish(complete=True)
        await self._send(message)
        if is_last and not self.finished:
            await self.finish(complete=True)

    async def _show_and_send(self, message: Message, piece: bytes, *, is_last: bool) -> None:
        """Pass a message after the head to the exchange, and then to the server."""
        is_file = message["type"] in _FILES
        if is_file:
            self._seen_whole = False
            self.exchange.unseen()
        if self.exchange.session is not None:
            self.exchange.forbid_sharing()
        complete = self._seen_whole and not self._client_left
        if piece and self.exchange.watching and not self.finished:
            self.exchange.chunk(piece)
        if self._head_of_304 is not None:
            if is_last:
                await self._send_304(self._head_of_304, complete=complete)
        elif is_last and self._runtime.finishes_first:
            await self.finish(complete=complete)
            await self._send(message)
        else:
            if self.exchange.locking is not None:
                await self._release()
            await self._send_on(message, is_last=is_last, complete=complete)
            if is_last:
                await self.finish(complete=complete)
            elif piece or is_file:
                await self._renew()

    async def _send_head(self, message: Message) -> None:
        exchange, method = self.exchange, self.exchange.request.method
        if self._started:  # the application ignored that the server rejects a second head
            exchange.forbid_storing("the response was begun twice")
        self._started = True
        if exchange.saving is not None and (flow := exchange.save()) is not None:
            await self._runtime.aperform(flow)
        fields = message.get("headers", ())
        head = own = ResponseHead(message["status"], headers_of(fields))
        if self._attached:
            for attached in reversed(self._attached):
                head = attached.head(head)
        answer = exchange.head(head)
        if answer is not own or not isinstance(fields, (list, tuple)):  # an iterator reads once
            if isinstance(answer, Response):
                await self.send_whole(answer, method)
                return
            lines = answer.headers.lowered()
            message = {**message, "status": answer.status, "headers": lines}
        finishes_first = self._runtime.finishes_first
        passes = exchange.passes_body and not (self._attached or self._sends_may_hang)
        if message.get("trailers", False):
            self._trailers = True
        elif method != "HEAD" and (finishes_first or not passes):
            self._announced = content_length(head.headers)
        if answer is not head and head.status not in WITHOUT_BODY and answer.status in WITHOUT_BODY:
            self._head_of_304 = {**message, "trailers": False}
            return
        if (
            finishes_first
            and not self._trailers
            # The response is complete with its head, even if the application sends a body.
            and (method == "HEAD" or answer.status in WITHOUT_BODY or self._announced == 0)
        ):
            await self.finish(complete=not self._client_left)
        if passes:
            self._passes = True
            await self._send(message)
            return
        if exchange.locking is not None:
            await self._release()
        await self._send_on(message)

    async def _send_304(self, start: Message, *, complete: bool) -> None:
        """Send the head of a 304 in place of a response whose whole body has been seen."""
        self._replaced = True
        if self._runtime.finishes_first:
            await self.finish(complete=complete)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        await self.finish(complete=complete)

    async def send_whole(self, response: Response, method: str) -> None:
        """Send a response of this package instead of the application's; for HEAD, only its head."""
        self._started = self._replaced = True
        body = b"" if method == "HEAD" else response.body
        if self._runtime.finishes_first and not body:
            await self.finish(complete=True)
        await self._send(_start_message(response.head))
        if self._runtime.finishes_first:
            await self.finish(complete=True)
        end = {"type": "http.response.body", "body": body, "more_body": False}
        await self._send_on(end, is_last=True, complete=True)
        await self.finish(complete=True)

    async def send_fallback(self, error: Exception) -> bool:
        """Send a stored response if the application failed; return whether one was sent."""
        if self._started or self._client_left:
            return False
        for attached in self._attached:
            attached.failed()
        response = self.exchange.failed()
        if response is None:
            return False
        self._runtime.observe(UserCodeFailed("the application", error))
        await self.send_whole(response, self.exchange.request.method)
        return True

    async def finish(self, *, complete: bool) -> None:
        """Finish the exchange, unless it is already finished."""
        if self.finished:
            return
        self.finished = True
        if self._attached:
            async with AsyncExitStack() as ends:  # calls all of them, even if the task is cancelled
                ends.push_async_callback(self._runtime.afinish, self.exchange, complete=complete)
                for attached in reversed(self._attached):
                    ends.push_async_callback(attached.afinish, complete=complete)
        elif (flow := self.exchange.finish(complete=complete)) is not None:
            await self._runtime.aperform_to_end(flow)

    async def _renew(self) -> None:
        """Renew slots and locks on Redis while the response is being sent, if this is due."""
        if self.exchange.holding:
            await self._runtime.aperform_to_end(self.exchange.renewal())
        for attached in self._attached:
            if attached.holding:
                await attached.arenew()

    async def _release(self) -> None:
        """Release the lock for other processes before a slow client can delay this."""
        if not self.finished:
            await self._runtime.aperform_to_end(self.exchange.release())

    async def _send_on(
        self, message: Message, *, is_last: bool = False, complete: bool = False
    ) -> None:
        """Send a message, and finish the exchange even if ``send`` never returns."""
        self._last_piece_passed = is_last
        try:
            if self._sends_may_hang and not self.finished:
                await self._send_watched(message, is_last=is_last, complete=complete)
            else:
                await self._send(message)
        except BaseException:
            self._seen_whole = False  # even if the application continues
            raise

    async def _send_watched(self, message: Message, *, is_last: bool, complete: bool) -> None:
        import anyio  # noqa: PLC0415 - only needed on an event loop

        self._sending, error = True, None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(self._watch, is_last=is_last, complete=complete))
            try:
                await self._send(message)
            except Exception as raised:  # noqa: BLE001 - raised below, outside the exception group
                error = raised
            tasks.cancel_scope.cancel()
        self._sending = False
        if error is not None:
            raise error

    async def _watch(self, *, is_last: bool, complete: bool) -> None:
        """Finish the exchange if the client leaves while a message is being sent."""
        import anyio  # noqa: PLC0415

        await anyio.sleep(_SENDING_SECONDS)
        if is_last:
            await self.finish(complete=complete)
            return
        if self._receiving:  # then the application gets the disconnect message
            return
        self._watching = anyio.Event()
        try:
            while not self._client_left:
                message = self._noted(await self._receive())
                self._received_ahead.append(message)
                self._watching.set()  # the application may be waiting for this message
                self._watching = anyio.Event()
                if message.get("more_body"):  # an upload, which the application reads at its pace
                    return
        finally:
            self._watching.set()
            self._watching = None
        await self.finish(complete=False)


def _ends(message: Message, trailers: bool) -> bool:
    """Return whether a message other than a body piece is the last one of a response."""
    match message["type"]:
        case "http.response.zerocopysend":
            return not (message.get("more_body", False) or trailers)
        case "http.response.pathsend":
            return not trailers
        case "http.response.trailers":
            return not message.get("more_trailers", False)
        case _:
            return False


class Handshake(Struct, eq=False):
    """One WebSocket handshake and its connection, for which a limit may hold a slot."""

    _runtime: Runtime
    _exchange: Exchange
    _receive: Receive
    _send: Send
    _answered: bool = False
    _refused: bool = False
    """Whether the handshake was refused although the application accepted it."""
    _client_left: bool = False

    async def send(self, message: Message) -> None:
        """Pass on the application's message; the first message gets the limits' fields."""
        if not self._answered:
            self._answered = True
            if (flow := self._exchange.save()) is not None:
                await self._runtime.aperform(flow)
            message = self._answer(message)
            if (saving := cast("Any", self._exchange.saving)) is not None:
                saving.leave_to_handler()
        elif self._refused:
            return
        await self._send(message)
        await self._renew()

    async def receive(self) -> Message:
        """Pass on the server's message."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._client_left = True
        await self._renew()
        return message

    def failed(self) -> None:
        """Note that the application raised; a server then answers an open handshake with 500."""
        if not (self._answered or self._client_left):
            self._exchange.failed()

    async def _renew(self) -> None:
        if self._exchange.holding:
            await self._runtime.aperform_to_end(self._exchange.renewal())

    def _answer(self, message: Message) -> Message:
        match message["type"]:
            case "websocket.accept":
                status = 101
            case "websocket.http.response.start":
                status = message["status"]
            case _:  # closed before it was accepted: the server sends 403 (ASGI, WebSocket)
                self._exchange.head(ResponseHead(403, NO_HEADERS))
                return message
        head = ResponseHead(status, headers_of(message.get("headers", ())))
        sent = self._exchange.head(head)
        if isinstance(sent, Response):  # the application's change of the session failed
            self._refused = True
            return {"type": "websocket.close", "code": TRY_AGAIN_LATER}
        return {**message, "headers": sent.headers.lowered()}


async def _deny_handshake(scope: Scope, receive: Receive, send: Send, denial: Response) -> None:
    """Refuse a handshake with a response if the server supports this, otherwise by closing."""
    await receive()  # websocket.connect
    if DENIAL_EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER})
        return
    await send({**_start_message(denial.head), "type": "websocket.http.response.start"})
    await send({"type": "websocket.http.response.body", "body": denial.body, "more_body": False})


def headers_of(pairs: Iterable[Iterable[bytes]]) -> Headers:
    """Return pairs as header fields; some servers send each pair as a list."""
    return Headers(map(tuple, pairs))  # type: ignore[arg-type] # each has two items


def _start_message(head: ResponseHead) -> Message:
    """Return the message that starts a response."""
    return {
        "type": "http.response.start",
        "status": head.status,
        "headers": head.headers.lowered(),  # the specification requires lower case
    }


# ------------------------------------------------------------------------------------------------
# Calls of handlers


class ScopeCall(HandlerCall):
    """One call of a handler, with the scope of the request."""

    __slots__ = ("scope", "stream")

    scope: Scope
    stream: ResponseStream | None
    """The stream through which the middleware outside sends the response; None without one."""

    def read_scope(self, scope: Scope) -> None:
        """Read the request of the call."""
        self.scope = scope
        self.stream = scope.get(STREAM)
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"] if self.stream is None else self.stream.path
        self.path_params: Mapping[str, Any] = scope.get("path_params", {})

    def own_runtime(self) -> Runtime:
        """Return the runtime of an application without this package's middleware."""
        raise NotImplementedError

    def runtime(self) -> Runtime:
        return self.scope.get(RUNTIME) or self.own_runtime()

    def cache_runtime(self) -> Runtime | None:
        handle: CacheHandle | None = self.scope.get("state", {}).get("cache")
        return self.scope.get(RUNTIME) if handle is None else handle.runtime

    def request(self) -> HTTPRequest:
        return request_of(self.scope)

    def decision(self) -> Decision:
        found: Decision = self.scope.setdefault("state", {}).setdefault("rate_limit", UNCHECKED)
        return found

    def show(self, decision: Decision) -> None:
        self.scope["state"]["rate_limit"] = decision

    def is_uncounted(self) -> bool:
        return BACKGROUND_REQUEST in self.scope or bool(exempt_types and self.is_exempt())

    def is_exempt(self) -> bool:
        """Whether the handler is exempt."""
        raise NotImplementedError

    def enter(self, attached: Attached) -> None:
        if self.stream is not None:
            self.stream.attach(attached)
            attached.finished_elsewhere = True


# ------------------------------------------------------------------------------------------------
# Requests


def data_of(scope: Scope) -> Data:
    """Return the cache for the application's own values. Raises ConfigurationError."""
    if DATA not in scope:
        raise ConfigurationError(
            "data: this application has no middleware of this package, whose connections it would "
            "use; add UpstashMiddleware, or create upstash_middleware.Data()"
        )
    found: Data = scope[DATA]()
    return found


def request_of(scope: Scope, root_path: str = "", body: RequestBody | None = None) -> HTTPRequest:
    """Return the request of an HTTP scope, or the handshake request of a WebSocket scope.

    A non-empty ``root_path`` replaces the one in the scope.
    """
    headers = headers_of(scope.get("headers", ()))
    path: str = scope["path"]
    root_path = root_path or scope.get("root_path") or ""
    sent = (scope.get("raw_path") or b"").decode("latin-1")
    if root_path:
        path, sent = _below(root_path, path, sent)
        root_path = root_path.rstrip("/")
    elif sent != path and unquote(sent) != path:
        # Outer middleware may have rewritten only the decoded path. The raw path then names
        # another resource, and two resources must never share a stored response.
        sent = ""
    for name, value in headers.raw:
        if name == b"host":
            host = value.decode("latin-1")
            break
    else:  # some test clients do not write names in lower case
        host = headers.get("host", "")
    client = scope.get("client")
    return HTTPRequest(
        scope.get("method", "GET"),  # a handshake is a GET (RFC 6455 §4.1)
        path,
        headers,
        scope.get("query_string", b"").decode("latin-1"),
        scope.get("scheme", "http"),
        host.lower(),
        (client[0] or None) if client else None,
        sent,
        root_path,
        scope,
        body,
    )


def _below(root_path: str, path: str, sent: str) -> tuple[str, str]:
    """Return the path below ``root_path``, which Starlette routes on, and the URL path as sent.

    In the ASGI specification ``path`` includes ``root_path``; uvicorn and Starlette's mounts follow
    it. Hypercorn, granian and gunicorn keep ``path`` as the proxy sent it, perhaps without the
    prefix.
    """
    whole, below = root_path.rstrip("/") + path, path
    if path.startswith(root_path) and path[len(root_path) :][:1] in {"", "/"}:
        whole, below = path, path[len(root_path) :]
    for url in (sent, quote(root_path.rstrip("/"), safe=PATH_SAFE) + sent):
        if unquote(url) == whole:
            return below, url
    return below, quote(whole, safe=PATH_SAFE)  # rewritten by outer middleware: see request_of


class ReceivedBody(RequestBody):
    """A request's body, read from a server's ``receive`` and passed on to the application."""

    __slots__ = ("_data", "_is_whole", "_other", "_receive", "_replays")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._data = bytearray()
        """One growing buffer, because a client may send each byte in a separate message."""
        self._is_whole = False
        self._other: Message | None = None  # the disconnect message
        self._replays = False

    async def read(self, limit: int) -> bytes | None:
        """Read the body at the client's pace, as an application would; see RequestBody."""
        while not (self._is_whole or self._other) and len(self._data) <= limit:
            message = await self._receive()
            if message["type"] != "http.request":
                self._other = message
                break
            self._data += message.get("body", b"")
            self._is_whole = not message.get("more_body", False)
            self._replays = True
        return bytes(self._data) if self._is_whole and len(self._data) <= limit else None

    async def receive(self) -> Message:
        """Return what has been read, in one message, and then the server's further messages."""
        if self._replays:
            self._replays = False
            body, more = bytes(self._data), not self._is_whole
            return {"type": "http.request", "body": body, "more_body": more}
        return self._other or await self._receive()


_TO_ROUTE = (
    "type",
    "asgi",
    "http_version",
    "scheme",
    "path",
    "raw_path",
    "root_path",
    "server",
    # Starlette's keys: the application, and the keys that a mount outside the middleware adds.
    "app",
    "app_root_path",
    "path_params",
    "router",
)


def refresh_scope(scope: Scope, request: HTTPRequest, lifespan_state: Mapping[str, Any]) -> Scope:
    """Return the scope of a background revalidation, made from the scope of a visitor's request.

    It contains only what routing needs, and no data of the visitor: no address, no state, no
    extensions, and no keys that outer middleware has added.
    """
    kept = {name: scope[name] for name in _TO_ROUTE if name in scope}
    return {
        **kept,
        "method": request.method,
        "query_string": request.query.encode("latin-1"),
        "headers": list(request.headers.raw),
        "client": None,
        "state": {**lifespan_state},
        BACKGROUND_REQUEST: True,
    }


class _RevalidationClient:
    """The client of a background revalidation.

    It sends a request without a body. It disconnects after the whole response, or as soon as
    ``wanted()`` is false: a response that is not stored may never end.
    """

    __slots__ = ("_left", "_raises", "_requested", "_wanted", "gave_up")

    def __init__(self, scope: Scope, wanted: Callable[[], bool]) -> None:
        import anyio  # noqa: PLC0415 - only needed on an event loop

        self._requested = False
        self._left = anyio.Event()
        self._raises = scope.get("asgi", {}).get("spec_version", "2.0") >= "2.4"
        self._wanted = wanted
        self.gave_up: bool = False
        """Whether this client disconnected before the response was complete."""

    async def receive(self) -> Message:
        """Return the request, and then block until this client disconnects."""
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Receive a message of the response."""
        import anyio.lowlevel  # noqa: PLC0415

        await anyio.lowlevel.checkpoint()  # otherwise other tasks would never run
        more = message.get("more_body", False)
        self.gave_up = self.gave_up or (more and not self._wanted())
        if self.gave_up or (message["type"] == "http.response.body" and not more):
            self._left.set()
        if self.gave_up and self._raises:
            raise OSError("the rest of this response is not needed")
