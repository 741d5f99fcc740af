"""Flask: the middleware classes as extensions, sessions, ``purge``, ``@limit`` and ``@cached``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, ClassVar, cast, overload
from weakref import ref

from blinker import NamedSignal, Namespace
from flask import (
    Flask,
    after_this_request,
    current_app,
    g,
    request,
    request_started,
    request_tearing_down,
)
from flask import session as current_session
from flask.globals import request_ctx
from flask.sessions import NullSession, SecureCookieSession
from werkzeug.exceptions import Forbidden, HTTPException, ServiceUnavailable, TooManyRequests
from werkzeug.middleware.proxy_fix import ProxyFix

from upstash_middleware.arguments import passing_to
from upstash_middleware.core.identify import needs_user
from upstash_middleware.core.ratelimit.decision import UNCHECKED
from upstash_middleware.core.ratelimit.rules import is_preflight
from upstash_middleware.decorators import (
    Attached,
    CachedDecorator,
    HandlerCall,
    HandlerLimit,
    LimitFactory,
    NeverCached,
    PendingExchange,
    completed,
    exempt,
    exempt_types,
    is_exempt,
    is_exempt_class,
    owner_of,
)
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import SettingDoubted, UserCodeFailed
from upstash_middleware.messages import Response
from upstash_middleware.runtime import BACKGROUND_REQUEST, Features, LazyProxy, Runtime
from upstash_middleware.settings import WithSettings, settings_from
from upstash_middleware.wsgi import (
    RATE_LIMIT_KEY,
    STREAMS,
    ClosingBody,
    EnvironBody,
    Middleware,
    fields_of,
    head_of,
    request_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from os import PathLike
    from typing import Literal, Unpack
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from flask.wrappers import Request
    from flask.wrappers import Response as FlaskResponse

    from upstash_middleware.core.cache import CacheRule, Purge
    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit import Decision, RateLimitRule
    from upstash_middleware.core.ratelimit.charges import Match
    from upstash_middleware.core.ratelimit.decision import OnDenied
    from upstash_middleware.core.ratelimit.rules import AnyLease, AnyLimits
    from upstash_middleware.core.sessions import SessionSettings
    from upstash_middleware.data import SyncData
    from upstash_middleware.decorators import F
    from upstash_middleware.events import Observer
    from upstash_middleware.flask_sessions import FlaskSession
    from upstash_middleware.messages import HTTPRequest, RequestBody
    from upstash_middleware.settings import Arguments
    from upstash_middleware.wsgi import ResponseStream

__all__ = [
    "CONFIG",
    "EXTENSION",
    "CacheMiddleware",
    "RateLimitExceeded",
    "RateLimitMiddleware",
    "Sessions",
    "UpstashMiddleware",
    "cached",
    "caching_backend",
    "data",
    "exempt",
    "limit",
    "never_cached",
    "purge",
    "rate_limited",
    "redis",
    "session",
]

if TYPE_CHECKING:
    data: SyncData
    """A cache for the current application's own values, over the middleware's connections."""

CONFIG = "UPSTASH_MIDDLEWARE"
EXTENSION = "upstash_middleware"
_HANDLER_RUNTIME = "upstash_middleware.limits"
_SESSIONS = "upstash_middleware.sessions"
_ATTACHED = "upstash_middleware.attached"
"""The environ's key for the decorators' fields of the response, outermost first."""
_ATTACHED_TO_NEXT = "upstash_middleware.unanswered"
"""The environ's key for the same fields before there is a response."""
_ADDED_FIELDS = "_upstash_middleware_added"
"""The attribute of a response with the names of the fields that limits have added."""

rate_limited: NamedSignal = Namespace().signal(
    "rate-limited",
    """A limit has denied a request, in the middleware or in a decorator of a view.

    The application sends it with ``decision``, the Decision; ``flask.request`` is the request. If
    a receiver raises, the observers get the exception.
    """,
)


# ------------------------------------------------------------------------------------------------
# Extensions


class _FlaskMiddleware(Middleware):
    """The WSGI middleware of a Flask application; its error handlers respond to denials."""

    def __init__(self, wsgi_app: WSGIApplication, runtime: Runtime, flask_app: Flask) -> None:
        super().__init__(wsgi_app, runtime)
        self._flask_app = flask_app

    def answer(
        self, environ: WSGIEnvironment, response: Response, decision: Decision | None, /
    ) -> Response:
        """Return the response of the application's error handlers to a denial.

        Its ``after_request`` functions are called, such as those that add CORS fields;
        ``before_request`` functions are not called.
        """
        if decision is None or decision.allowed:
            return response
        app = self._flask_app
        try:
            with app.request_context(environ):
                g.rate_limit = decision
                _send_rate_limited(app, self.runtime, decision)
                handled = app.handle_http_exception(exception_for(app, response, decision))
                answer = app.finalize_request(handled, from_error_handler=True)
                with answer:
                    head = head_of(answer.status, answer.headers.to_wsgi_list())
                    return Response(completed(head, response), answer.get_data())
        except Exception as error:  # noqa: BLE001 - any exception of the application's functions
            self.runtime.observe(UserCodeFailed("the error handler for a denial", error))
            return response


class Extension:
    """A middleware's arguments, for all applications that install it as an extension.

    Settings are keyword arguments or entries of ``app.config["UPSTASH_MIDDLEWARE"]``, which is read
    when the extension is added to the application. A setting in both places is an error.
    ``app.extensions["upstash_middleware"]`` maps the extensions of an application to their
    middlewares.
    """

    features: ClassVar[Features]

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments

    def runtime_for(self, app: Any, exempts: Callable[[HTTPRequest], bool] | None) -> Runtime:
        """Return a runtime for an application. Raises ConfigurationError."""
        if self in app.extensions.setdefault(EXTENSION, {}):
            raise ConfigurationError(
                f"this {type(self).__name__} is already installed in {app.name!r}, and every "
                "request would count twice; give it the application or call init_app, not both"
            )
        return Runtime.of(
            _with_config(app, self._arguments, type(self).__name__),
            self.features,
            source="" if self._arguments else CONFIG,
            exempts=exempts,
            refreshes=True,
            has_users=False,
            own="Client",
            kept_cookies={app.config["SESSION_COOKIE_NAME"]: "SESSION_COOKIE_NAME"},
        )


def _with_config(app: Any, arguments: Mapping[str, Any], given_to: str) -> dict[str, Any]:
    """Return the arguments together with the application's config. Raises ConfigurationError."""
    config = app.config.get(CONFIG, {})
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"{CONFIG}: {config!r} should be a dict of settings")
    for name in config:
        if name in arguments:
            raise ConfigurationError(
                f"{name}: given to {given_to} and in app.config[{CONFIG!r}] too; leave out one of "
                "them"
            )
    return {**config, **arguments}


class _FlaskExtension(WithSettings["Flask | WSGIApplication | None"], Extension):
    @passing_to("_configure")
    def __init__(  # noqa: PLR0913 - as WithSettings, which documents the arguments
        self,
        app: Flask | WSGIApplication | None = None,
        *,
        config: str | PathLike[str] | None = None,
        enabled: bool = True,
        rate_limits: Sequence[RateLimitRule | Mapping[str, Any]] = (),
        default_limit: AnyLimits | RateLimitRule | Mapping[str, Any] | None = None,
        cache: Sequence[CacheRule | Mapping[str, Any]] = (),
        match: Match = "first",
        remember_denials: Duration = 60.0,
        lease: AnyLease | None = None,
        client_ip: int | str | Sequence[str] | AnyExtractor | None = None,
        deny_list: str | None = None,
        analytics: str | None = None,
        on_denied: OnDenied | None = None,
        cache_profile: str = "safe",
        cache_max_body: int = 1024 * 1024,
        cache_grace: Duration = 3600.0,
        cache_max_keep: Duration = 7 * 24 * 3600.0,
        cache_targets: Sequence[str] = ("CDN-Cache-Control",),
        cache_groups: bool = True,
        cache_ignore_cookies: Sequence[str] | None = None,
        cache_refresh: bool = True,
        cache_collapse: Duration = 5.0,
        cache_lock: bool = False,
        cache_store_first: bool | None = None,
        cache_max_variants: int = 100,
        cache_l1_bytes: int = 0,
        cache_l1_seconds: Duration = 5.0,
        cache_version: str | None = None,
        cache_previous_version: str | None = None,
        cache_status_key: bool = False,
        cache_debug: str | None = None,
        cache_keys: Sequence[str] = (),
        cache_encrypt: bool = False,
        data_l1_bytes: int = 0,
        data_l1_seconds: Duration = 5.0,
        credential_fields: Sequence[str] = (),
        reflected_fields: Sequence[str] = (),
        cdn: str | None = None,
        on_purge: Callable[[Purge], Any] | None = None,
        purge_directories: bool = False,
        purge_path: str | None = None,
        purge_token: str | None = None,
        url: str | None = None,
        token: str | None = None,
        redis: Any = None,
        transport: Any = None,
        sessions: bool | Mapping[str, Any] | SessionSettings | None = None,
        prefix: str = "upstash-middleware",
        secret: str | None = None,
        deadline: Duration = 1.0,
        cache_deadline: Duration = 0.25,
        breaker: bool = True,
        breaker_slow: Duration | None = None,
        observers: Sequence[Observer] = (),
    ) -> None: ...

    def _configure(
        self, app: Flask | WSGIApplication | None = None, **arguments: Unpack[Arguments]
    ) -> None:
        """Wrap a Flask application or its ``wsgi_app``; without either, wait for ``init_app``."""
        Extension.__init__(self, arguments)
        self.wsgi_app: WSGIApplication = self._raise_without_app  # the name that Flask uses
        if isinstance(app, Flask):
            self.init_app(app)
            self.wsgi_app = app.wsgi_app
        elif app is not None:
            self.wsgi_app = self._middleware(_flask_within(app), app)

    def init_app(self, app: Flask) -> None:
        """Wrap an application; several applications may share one extension.

        Args:
            app: The Flask application.

        Raises:
            ConfigurationError: A setting is wrong; the message names it.
        """
        app.wsgi_app = self._middleware(app, app.wsgi_app)  # type: ignore[method-assign]  # Flask's own way to do this

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request; this object is the value of Flask's ``wsgi_app``."""
        return self.wsgi_app(environ, start_response)

    @property
    def data(self) -> SyncData:
        """A cache for the application's own values, as ``upstash_middleware.flask.data``."""
        return cast("SyncData", __getattr__("data"))

    def _middleware(self, app: Flask, wsgi_app: WSGIApplication) -> Middleware:
        def exempts(request: HTTPRequest) -> bool:
            return bool(exempt_types) and is_exempt_request(
                app, app.request_class(request.native), request.method
            )

        runtime = self.runtime_for(app, exempts if _routes(app, wsgi_app) else None)
        runtime.before_serving.append(partial(_prepare_sessions, app))
        installed = dict(app.config.get(CONFIG, {}))
        runtime.before_serving.append(partial(_doubt_later_config, app, runtime, installed))
        middleware = _FlaskMiddleware(wsgi_app, runtime, app)
        app.extensions[EXTENSION][self] = middleware
        request_started.connect(_show_decision, app)
        return middleware

    def _raise_without_app(
        self, _environ: WSGIEnvironment, _start_response: StartResponse
    ) -> Iterable[bytes]:
        raise RuntimeError(
            f"this {type(self).__name__} has no application to call; serve the Flask "
            "application that was given to init_app"
        )


class UpstashMiddleware(_FlaskExtension):
    """Rate limits and response cache in one middleware; cache hits count against the limits."""

    features = Features.BOTH


class RateLimitMiddleware(_FlaskExtension):
    """Rate limits only. Directly outside a CacheMiddleware, both need one round trip in total."""

    features = Features.RATE_LIMIT


class CacheMiddleware(_FlaskExtension):
    """Response cache only. Outside a RateLimitMiddleware, its hits count against no limit."""

    features = Features.CACHE


def purge(
    *urls: str,
    tags: Sequence[str] = (),
    directories: Sequence[str] = (),
    rules: Sequence[str] = (),
    everything: bool = False,
    soft: bool = False,
) -> None:
    """Invalidate stored responses of the current application, in views, commands and tasks.

    Args:
        *urls: Paths with their query, or whole URLs; each is purged with all its variants.
        tags: Tags. A tag includes all tags below it: ``product`` also purges ``product:7``.
        directories: Paths that end in a slash: ``/products/`` includes all URLs that begin with it.
            Requires the setting ``purge_directories``.
        rules: Paths of cache rules; all responses that they cover are purged. They need the
            setting ``purge_directories``.
        everything: Whether all stored responses are purged.
        soft: Whether these responses may still be served stale if their rule allows it.

    Raises:
        UpstashError: The purge failed, for instance because Upstash is unreachable. A part of it
            may have been done; repeat it.
        PurgeNotPassedOn: The purge was done, but the function in ``on_purge`` raised.
        RuntimeError: There is no application context, or the application has no cache.
        ValueError: A URL is invalid, a directory does not end in a slash, or no cache rule has one
            of the paths in ``rules``.
        TypeError: An argument is a string and not a sequence, such as ``tags="product:7"``.
        ConfigurationError: ``directories`` or ``rules`` needs the setting ``purge_directories``, or
            credentials are missing.
    """
    for runtime in caches_of(current_app):
        runtime.purge(
            *urls,
            tags=tags,
            directories=directories,
            rules=rules,
            everything=everything,
            soft=soft,
        )


def caches_of(app: Any) -> list[Runtime]:
    """Return the runtimes of an application that have a cache. Raises RuntimeError if none has."""
    caches = [each for each in runtimes_of(app) if Features.CACHE in each.features]
    if not caches:
        raise RuntimeError(
            f"{app.name!r} has no cache to purge: add UpstashMiddleware or CacheMiddleware"
        )
    return caches


def runtimes_of(app: Any) -> list[Runtime]:
    """Return the runtimes of an application's extensions."""
    return [middleware.runtime for middleware in app.extensions.get(EXTENSION, {}).values()]


def runtime_for_handlers(app: Any) -> Runtime:
    """Return the runtime for limits that decorate an application's views."""
    if present := runtimes_of(app):  # prefer one with its own limits
        return max(present, key=lambda runtime: Features.RATE_LIMIT in runtime.features)
    # Without a middleware, create a runtime from the config and the environment.
    if _HANDLER_RUNTIME not in app.extensions:
        config = app.config.get(CONFIG, {})
        made = Runtime.of(config, Features(0), os.environ, source=CONFIG, own="Client")
        app.extensions.setdefault(_HANDLER_RUNTIME, made)
    return cast("Runtime", app.extensions[_HANDLER_RUNTIME])


def _runtime_for_data(app: Any) -> Runtime:
    """Return the runtime for an application's own values; one with a cache, if there is one."""
    caching = [each for each in runtimes_of(app) if Features.CACHE in each.features]
    return caching[0] if caching else runtime_for_handlers(app)


def caching_backend(
    app: Flask, config: Mapping[str, Any], _args: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """Return the backend for Flask-Caching, which calls this function.

    Set ``CACHE_TYPE="upstash_middleware.flask.caching_backend"``. Values are stored in the database
    of the application's middleware, over its connections. A timeout of 0 keeps a value for 400
    days. ``CACHE_OPTIONS`` may contain:

    - ``serializer``: ``"json"``, the default, reads each value back as an equal value of the same
      type, including responses, dates and tuples; other values raise NotStorable.
      ``"signed-pickle"`` signs pickles with SECRET_KEY (HMAC), and verifies them before loading.
    - ``strict``: whether writes raise UpstashError if Upstash fails. Default False: the write is
      lost and an event reports it. In either case, reads are misses.

    Raises:
        ConfigurationError: ``CACHE_OPTIONS`` is wrong.
    """
    from upstash_middleware.flask_caching_backend import UpstashBackend  # noqa: PLC0415 - if used

    return UpstashBackend.of(app, lambda: _runtime_for_data(app), config, options)


def __getattr__(name: str) -> Any:
    """Create ``data`` on first use."""
    if name != "data":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from upstash_middleware.data import SyncData  # noqa: PLC0415 - only if used

    made = globals()["data"] = SyncData.over(lambda: _runtime_for_data(current_app))
    return made


redis: Any = LazyProxy(lambda: runtime_for_handlers(current_app).redis())
"""Redis commands for the application's own data, over the middleware's connections."""


def _show_decision(_app: Flask, **_: object) -> None:
    """Set ``g.rate_limit`` before any function of the application is called."""
    g.rate_limit = request.environ.get(RATE_LIMIT_KEY, UNCHECKED)
    if STREAMS in request.environ:
        _forbid_for_invalid_session(request.environ[STREAMS])


def _forbid_for_invalid_session(streams: Sequence[ref[ResponseStream]]) -> None:
    """Do not store the response to a request whose session cookie is invalid or expired.

    It would be stored for this Cookie field as a whole. While a key is being replaced, another
    process may accept the same cookie as a login.
    """
    if current_app.config["SESSION_COOKIE_NAME"] not in request.cookies:
        return
    context = vars(request_ctx._get_current_object())  # type: ignore[attr-defined] # noqa: SLF001 - documented by Werkzeug
    # Reading the public attribute would count as use by the application.
    session = context.get("_session", context.get("session"))
    if not isinstance(session, SecureCookieSession) or isinstance(session, NullSession) or session:
        return  # another interface's session, one without a key, or a valid one
    for each in streams:
        if (stream := each()) is not None:
            stream.exchange.forbid_storing("its session cookie is not valid", client_left=True)


def _flask_within(wsgi_app: WSGIApplication) -> Flask:
    """Return the Flask application of a ``wsgi_app``, also inside wrappers of Werkzeug."""
    current: object = wsgi_app
    while current is not None:
        if isinstance(current, Flask):
            return current
        names = ("__self__", "wsgi_app", "app")
        current = next((found for name in names if (found := getattr(current, name, None))), None)
    raise ConfigurationError(
        f"{wsgi_app!r} is neither a Flask application nor the wsgi_app of one; for other WSGI "
        "applications, use upstash_middleware.wsgi"
    )


# ------------------------------------------------------------------------------------------------
# Sessions


_OWN = ("paths", "max_size", "on_error", "read_from", "absolute_timeout")
"""Arguments of Sessions that are not settings."""


class Sessions:
    """Sessions on Upstash: ``Sessions(app)`` replaces Flask's sessions in signed cookies.

    Flask's settings define the cookie and the lifetime: ``SESSION_COOKIE_…``,
    ``PERMANENT_SESSION_LIFETIME`` (the idle timeout), ``SESSION_REFRESH_EACH_REQUEST`` (whether
    reading a session extends it) and ``SECRET_KEY`` with ``SECRET_KEY_FALLBACKS``. A middleware of
    this module for the same database loads the session in its first round trip, in whichever order
    the two are added to the application. A login or logout with Flask-Login regenerates the
    session's id.

    With ``SESSION_COOKIE_SECURE`` the cookie's name begins with ``__Host-``: ``__Host-session``;
    or with ``__Secure-`` if there is a domain or another path (RFC 6265bis §4.1.3).
    """

    @passing_to("_configure")
    def __init__(  # noqa: PLR0913
        self,
        app: Flask | None = None,
        *,
        absolute_timeout: Duration | None = None,
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
        """Set the ``session_interface`` of ``app``; without ``app``, call ``init_app`` later.

        The settings from ``config`` on default to those of the application's innermost middleware,
        or of ``app.config["UPSTASH_MIDDLEWARE"]``.

        Args:
            app: The application.
            absolute_timeout: Seconds after which a session ends in any case; default 90 days, or
                ``PERMANENT_SESSION_LIFETIME`` if that is longer.
            paths: Patterns of the paths that use sessions; empty for all paths.
            max_size: The largest stored size of a session, in bytes; more raises NotStorable.
            on_error: If a session cannot be saved, ``"open"`` sends the response without a new
                cookie, and ``"closed"`` sends a 503. A failed login or logout always gets the 503.
            read_from: The replica of a Global database that sessions are read from: ``"nearest"``,
                or ``"primary"``, which costs one additional command.
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
            ConfigurationError: An argument or one of Flask's settings is wrong.
        """

    def _configure(self, app: Flask | None = None, **arguments: Any) -> None:
        self._settings = {name: arguments.pop(name) for name in _OWN if name in arguments}
        if self._settings.get("absolute_timeout", ...) is None:
            del self._settings["absolute_timeout"]
        self._arguments = arguments
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Set an application's ``session_interface``; several applications may share one object.

        With ``enabled=False``, Flask's own interface is kept.

        Args:
            app: The Flask application.

        Raises:
            ConfigurationError: An argument or one of Flask's settings is wrong.
        """
        from upstash_middleware.flask_sessions import (  # noqa: PLC0415
            UpstashSessionInterface,
            refuse_unknown,
        )

        if _SESSIONS in app.extensions:
            raise ConfigurationError(
                f"Sessions are already installed in {app.name!r}; pass the application to "
                "Sessions or call init_app, not both"
            )
        settings = _with_config(app, self._arguments, "Sessions")
        if "sessions" in settings:
            raise ConfigurationError(
                "sessions: this setting is for ASGI applications; in Flask, give Sessions its "
                "fields, such as absolute_timeout='30 days', and set Flask's SESSION_COOKIE_…"
            )
        refuse_unknown(self._arguments, _OWN)
        # The middleware may be added later, so nothing is created before the first request.
        settings_from(settings, os.environ, source="" if self._arguments else CONFIG)
        interface = UpstashSessionInterface(app, self._runtimes, self._settings)
        app.extensions[_SESSIONS] = interface
        app.session_interface = interface

    def _runtimes(self, app: Flask) -> tuple[Runtime, Runtime]:
        """Return the runtime that keeps sessions, and the middleware's runtime that loads them."""
        present = runtimes_of(app)  # innermost first
        if present and not self._arguments:
            chosen = next((each for each in present if each.enabled), present[0])
            return chosen, chosen
        settings = _with_config(app, self._arguments, "Sessions")
        source = "" if self._arguments else CONFIG
        own = Runtime.of(settings, Features.SESSIONS, source=source, own="Client")
        for each in present:
            if own.enabled and each.enabled and own.settings.same_database(each.settings):
                return own, each
        return own, own


def _doubt_later_config(app: Flask, runtime: Runtime, installed: dict[str, Any]) -> None:
    """Report settings that were changed after the middleware had read them."""
    now = app.config.get(CONFIG, {})
    changed = [name for name in {**installed, **now} if installed.get(name) != now.get(name)]
    if changed:
        runtime.observe(
            SettingDoubted(
                f"app.config[{CONFIG!r}]",
                f"{', '.join(changed)}: changed after the middleware was installed, so the change "
                "has no effect; set it before UpstashMiddleware(app) or init_app(app)",
            )
        )


def _prepare_sessions(app: Any) -> None:
    """Make the middleware load sessions from its first request on."""
    interface: Any = app.extensions.get(_SESSIONS)
    if interface is not None:
        with suppress(ConfigurationError):  # raised when the session is opened
            interface.ready(app)


session: FlaskSession = cast("FlaskSession", current_session)
"""``flask.session`` with its actual type, for methods such as ``session.bind(user)``."""


# ------------------------------------------------------------------------------------------------
# Exempt views


def _routes(app: Flask, wsgi_app: object) -> bool:
    """Whether Flask gets each request unchanged, so that its view can be looked up.

    A wrapper in between may call another application, or change the path or the method. A
    subclass of Flask may do the same.
    """
    by_host = app.url_map.host_matching or app.subdomain_matching
    while isinstance(wsgi_app, Middleware) or (type(wsgi_app) is ProxyFix and not by_host):
        wsgi_app = wsgi_app.app
    kind = type(app)
    own = kind.wsgi_app, kind.request_context, kind.__call__
    if own != (Flask.wsgi_app, Flask.request_context, Flask.__call__):
        return False
    return wsgi_app is app or wsgi_app == MethodType(Flask.wsgi_app, app)


def is_exempt_request(app: Any, request: Any, method: str) -> bool:
    """Whether the view of a request is exempt; ``request`` is the framework's object."""
    try:
        adapter = app.create_url_adapter(request)
        if adapter is None:
            return False
        endpoint, _ = adapter.match()
    except (HTTPException, UnicodeError):  # no route, wrong method, a redirect, or no host
        return False
    return is_exempt_view(app, endpoint, app.view_functions.get(endpoint), method)


def is_exempt_view(app: Any, endpoint: str | None, view: object, method: str) -> bool:
    """Whether a view, its class, its method or its blueprint is exempt."""
    if not exempt_types:
        return False
    if is_exempt(view) or is_exempt_class(getattr(view, "view_class", None), method):
        return True
    name = endpoint or ""
    while name := name.rpartition(".")[0]:  # nested blueprints: "outer.inner.view"
        if is_exempt(app.blueprints.get(name)):
            return True
    return False


# ------------------------------------------------------------------------------------------------
# Denials


class RateLimitExceeded(TooManyRequests):
    """A limit has denied a request; handle it with ``errorhandler(429)`` or for this class.

    ``decision`` is the Decision. If the application has no handler, the ``response`` of this
    package is sent.
    """

    def __init__(self, response: FlaskResponse, decision: Decision) -> None:
        wait = None if decision.retry_after is None else math.ceil(decision.retry_after)
        super().__init__(response=response, retry_after=wait)
        self.decision = decision


def exception_for(app: Any, denial: Response, decision: Decision) -> HTTPException:
    """Return the exception for a denial: 429; 403 by a deny list; 503 if counting failed."""
    status = denial.head.status
    response = app.response_class(denial.body, status, fields_of(denial.head.headers))
    if status == 403:
        return Forbidden(response=response)
    if status == 503:
        return ServiceUnavailable(response=response)
    return RateLimitExceeded(response, decision)


def _send_rate_limited(app: Flask, runtime: Runtime, decision: Decision) -> None:
    if not rate_limited.receivers:
        return
    for receiver in rate_limited.receivers_for(app):
        try:
            app.ensure_sync(receiver)(app, decision=decision)
        except Exception as error:  # noqa: BLE001 - the other receivers are still called
            runtime.observe(UserCodeFailed("a receiver of rate_limited", error))


# ------------------------------------------------------------------------------------------------
# Decorators


class _ViewCall(HandlerCall):
    """One call of a Flask view, with the request of the current context."""

    __slots__ = ("_app",)

    expected = (
        "a view function; for a class, put the decorator into its `decorators`, for a blueprint, "
        "a limit into its `before_request`"
    )

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002 - a hook
        self.owner = owner_of(self.handler, args)
        self.method = request.method
        self.path = request.path
        self.path_params = request.view_args or {}
        self._app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - Flask's documented way to the object behind its proxy

    @staticmethod
    def is_async(handler: Any) -> bool:  # noqa: ARG004 - a hook
        return False  # Flask calls async views in threads

    def to_call(self, handler: Any) -> Any:
        return self._app.ensure_sync(handler)

    def runtime(self) -> Runtime:
        return runtime_for_handlers(self._app)

    def cache_runtime(self) -> Runtime | None:
        present = runtimes_of(self._app)
        return max(present, key=lambda runtime: Features.CACHE in runtime.features, default=None)

    def request(self) -> HTTPRequest:
        return request_of(request.environ)

    def body(self) -> RequestBody:
        return ViewBody(request)

    def decision(self) -> Decision:
        found: Decision = request.environ.get(RATE_LIMIT_KEY, UNCHECKED)
        return found

    def show(self, decision: Decision) -> None:
        g.rate_limit = request.environ[RATE_LIMIT_KEY] = decision

    def is_uncounted(self) -> bool:
        if BACKGROUND_REQUEST in request.environ:
            return True
        if is_exempt_view(self._app, request.endpoint, self.wrapper, self.method):
            return True
        return is_exempt_class(self.owner, self.method)

    def deny(self, pending: PendingExchange) -> Any:
        denial, decision = pending.denial, pending.exchange.decision
        _send_rate_limited(self._app, pending.runtime, decision)
        self.enter(Attached(partial(completed, denial=denial)))
        raise exception_for(self._app, denial, decision)

    def enter(self, attached: Attached) -> None:
        """Apply the fields to the response before those of outer decorators."""
        attached.finished_elsewhere = True
        environ = request.environ
        if _ATTACHED not in environ:
            environ[_ATTACHED] = environ[_ATTACHED_TO_NEXT] = []
            after_this_request(_apply_attached)
            request_tearing_down.connect(_give_up, self._app)
        environ[_ATTACHED].append(attached)


class ViewBody(EnvironBody):
    """The body of a request, which Flask may already have read and parsed."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        super().__init__(request.environ)
        self._request = request

    def read(self, limit: int) -> bytes | None:
        """See RequestBody."""
        known: bytes | None = getattr(self._request, "_cached_data", None)
        if known is not None:
            return known if len(known) <= limit else None
        return None if "stream" in vars(self._request) else super().read(limit)

    def parsed(self, name: str) -> list[Any] | None:
        """See RequestBody."""
        if "form" not in vars(self._request):
            return None
        return [*self._request.form.getlist(name), *self._request.files.getlist(name)]

    def is_available(self, *, waits: bool) -> bool:  # noqa: ARG002 - a thread may wait
        """See RequestBody."""
        request, kept = self._request, vars(self._request)
        if getattr(request, "_cached_data", None) is not None or "stream" not in kept:
            return True
        return "form" in kept and request.mimetype in _FORMS


_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


class Limit(HandlerLimit):
    """A limit that is a decorator of views and a ``before_request`` function; see ``limit``."""

    @overload
    def __call__(self, /) -> None: ...
    @overload
    def __call__(self, view: F, /) -> F: ...
    def __call__(self, view: Any = None, /) -> Any:
        """Decorate a view; without a view, check the current request."""
        if view is not None:
            return super().__call__(view)
        # All requests that no route matches share a quota.
        view = current_app.view_functions.get(request.endpoint or "", unrouted)
        automatic = getattr(request.url_rule, "provide_automatic_options", False)
        call = _ViewCall(view, view, self)
        call.read((), {})
        if automatic and is_preflight(call.request()):  # Flask answers without calling the view
            call.show(call.decision())
        elif (pending := self.begin(call)) is not None:
            if pending.denies:
                call.deny(pending)
            call.enter(pending)
        return None


def unrouted() -> None:
    """Placeholder view for requests that no route matches."""


class _ViewLimits(LimitFactory[Limit]):
    """Limit the requests for a view: ``@limit("5/minute")``, below ``@app.route``.

    For all views of a blueprint or an application, use
    ``blueprint.before_request(limit("100/minute"))``; for a class, ``decorators =
    [limit("5/minute")]``. The limit applies after routing, in a separate round trip. Each view has
    a separate quota under its qualified name; views that share a limit object with a ``name`` share
    a quota. A denial raises RateLimitExceeded. The view reads ``g.rate_limit``.
    """

    def _limit(self, limits: AnyLimits, **arguments: Any) -> Limit:
        made = Limit(limits, arguments, _ViewCall)
        if needs_user(made.rule.extractor):
            raise ConfigurationError(
                f"limit({limits!r}, by='user'): this package knows no user in Flask; give a "
                "function of the request, such as lambda _: flask_login.current_user.get_id()"
            )
        return made


limit: LimitFactory[Limit] = _ViewLimits()
cached: CachedDecorator = CachedDecorator(_ViewCall)
never_cached: NeverCached = NeverCached(_ViewCall)


def change_fields(response: Any, attached: Attached) -> None:
    """Add a decorator's fields to the head of a response."""
    head = head_of(response.status, response.headers.to_wsgi_list())
    sent = attached.head(head)
    if sent is head:
        return
    count = len(head.headers.raw)
    added = fields_of(sent.headers)[count:]
    if sent.headers.raw[:count] != head.headers.raw:
        response.headers.clear()
        response.headers.extend(fields_of(sent.headers))
        return
    for name, value in added:
        response.headers.add(name, value)
    if isinstance(attached, PendingExchange):
        vars(response).setdefault(_ADDED_FIELDS, []).extend(name for name, _ in added)


def _apply_attached(response: FlaskResponse) -> FlaskResponse:
    attached: list[Attached] = request.environ[_ATTACHED]
    for added in vars(response).pop(_ADDED_FIELDS, ()):  # a view may reuse one response object
        response.headers.remove(added)
    for each in reversed(attached):
        change_fields(response, each)
    request.environ.pop(_ATTACHED_TO_NEXT, None)
    pending = [each for each in attached if isinstance(each, PendingExchange)]
    if not pending:
        return response
    # The exchanges end when the body is exhausted or closed, whichever comes first: test clients
    # may not close a response, bridges to ASGI never do, and Werkzeug does not call the
    # response's ``close`` if a server closes a file.
    this = ref(response)  # a weak reference, because the response refers to the function

    def get_app_iter(environ: WSGIEnvironment) -> Iterable[bytes]:
        answered = cast("FlaskResponse", this())
        iterable = type(answered).get_app_iter(answered, environ)
        body = _Body(iterable, pending)
        if iterable is answered.response and "wsgi.file_wrapper" in environ:
            with suppress(AttributeError):  # keep a server's own file wrapper, which it recognizes
                iterable.close = body.close  # type: ignore[attr-defined]
                return iterable
        return body

    response.get_app_iter = get_app_iter  # type: ignore[method-assign]  # Werkzeug has no other hook
    return response


def _give_up(_app: Flask, **_: object) -> None:
    """End the exchanges of a request without a response: the exception goes to the server."""
    request.environ.pop(_ATTACHED, None)  # unsent ones end when they are garbage-collected
    for each in request.environ.pop(_ATTACHED_TO_NEXT, ()):
        each.failed()
        each.finish(complete=False)


class _Body(ClosingBody):
    """A response's body; the exchanges end with it."""

    __slots__ = ("_pending",)

    def __init__(self, iterable: Iterable[bytes], pending: list[PendingExchange]) -> None:
        super().__init__(iterable)
        self._pending = pending

    def _end(self) -> None:
        for each in self._pending:
            each.finish()
