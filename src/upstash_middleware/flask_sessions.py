# ruff: noqa: SLF001 - the interface uses private attributes of the session
"""Flask's sessions on Upstash: ``flask.session``, and the interface that loads and saves it.

The first pipeline of this package's middleware loads the session, if a middleware uses the same
database. Otherwise a separate call loads it on first use. It is saved where Flask saves sessions:
after the ``after_request`` functions, and before the response's head is sent.
"""

from __future__ import annotations

import sys
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import flask
from flask.sessions import NullSession, SessionInterface, SessionMixin
from markupsafe import Markup

from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.sessions import (
    COOKIE_NOT_SHARED,
    CookieChange,
    Session,
    SessionExchange,
    Sessions,
    SessionSettings,
    may_be_shared,
)
from upstash_middleware.core.values import Codec, Form
from upstash_middleware.errors import (
    ConfigurationError,
    NotStorable,
    named_part,
    unknown_name,
)
from upstash_middleware.events import SettingDoubted, UserCodeFailed
from upstash_middleware.messages import NO_HEADERS, Headers, Response, ResponseHead
from upstash_middleware.runtime import BACKGROUND_REQUEST
from upstash_middleware.settings import DEFAULTS, WITHOUT_EFFECT_ON_SESSIONS
from upstash_middleware.wsgi import STREAMS, ClosingBody, fields_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from weakref import ref

    from flask import Flask
    from flask.wrappers import Request
    from flask.wrappers import Response as FlaskResponse

    from upstash_middleware.core.sessions import StoredSession
    from upstash_middleware.runtime import Runtime
    from upstash_middleware.wsgi import ResponseStream

__all__ = ["FlaskSession", "UpstashSessionInterface"]

_PERMANENT_ENTRY = "_permanent"
"""The entry in which Flask stores whether the cookie outlives the browser session."""
_LOGIN_SIGNALS = ("user_logged_in", "user_logged_out", "user_login_confirmed")
"""Flask-Login's signals after which the session gets a new id."""
_CODEC = Codec((Form("markup", Markup, str.__str__, Markup),))


# ------------------------------------------------------------------------------------------------
# The session


class FlaskSession(Session, SessionMixin):
    """``flask.session``: Flask's session with the methods of ``upstash_middleware.Session``.

    Changes inside an entry are detected without ``modified = True``. Deleting all entries does not
    end the session; ``clear`` does. Setting only ``permanent`` does not create a session.
    """

    cookie_change: CookieChange | None

    def __init__(
        self,
        stored: StoredSession | None = None,
        entries: Mapping[str, bytes] | None = None,
        *,
        load: Callable[[bytes], Any],
    ) -> None:
        """Create the object; only this package calls this."""
        super().__init__(stored, entries, load=load)
        self.outer: Sequence[ref[ResponseStream]] = ()
        """The responses of outer middleware, which may be stored."""
        self._loads: Callable[[], Session] | None = None
        """Loads the session on first use; None after that."""
        self._had = self._entries.get(_PERMANENT_ENTRY)
        self._only_renews = False
        """Whether the only reason for a new id is a login by the "remember me" cookie."""

    @property
    def accessed(self) -> bool:
        """Whether the application has used the session, so that the response depends on it."""
        return self._is_accessed

    @accessed.setter
    def accessed(self, value: bool) -> None:
        self._is_accessed = value
        if value and self._loads is not None:
            self._load_now()

    _is_accessed = False

    @property
    def available(self) -> bool:
        """See Session."""
        self._load_now()
        return super().available

    @property
    def new(self) -> bool:  # type: ignore[override]
        """See Session."""
        self._load_now()
        return super().new

    @property
    def user_hash(self) -> str:
        """See Session."""
        self._load_now()
        return super().user_hash

    def save(self) -> None:  # type: ignore[override] # Flask's views are not coroutines
        """Save the changes now instead of after the view.

        Raises:
            UpstashError: The session could not be loaded or saved.
            NotStorable: A value cannot be stored, or the session is too large.
            RuntimeError: A cookie must be set, but the response's head has been sent.
        """
        self.drop_lone_permanence()
        self.save_sync()

    def regenerate(self) -> None:
        """See Session."""
        self._only_renews = False
        super().regenerate()

    def renew(self) -> None:
        """Change the id only if the session can be saved; otherwise the next request repeats it."""
        if not self.available or self._regenerates:
            return
        self.regenerate()
        self._only_renews = True

    @property
    def _is_certain(self) -> bool:
        return bool(self._ended or self._revoked or (self._regenerates and not self._only_renews))

    def drop_lone_permanence(self) -> None:
        """Do not create a session if only ``permanent`` is set, as some applications always do."""
        if (
            self._stored is None
            and self._user_to_bind is None
            and [*self._values] == [_PERMANENT_ENTRY]
        ):
            self._values.clear()

    def note_permanence(self, part: Sessions) -> None:
        """Send the cookie again if ``permanent`` has changed."""
        has, stored = self._entries.get(_PERMANENT_ENTRY), self._stored
        if has != self._had and stored is not None and not self._is_over:
            self.cookie_change = self.cookie_change or CookieChange(
                stored.id, part.store.seconds_left(stored)
            )

    def _load_now(self) -> None:
        loads, self._loads = self._loads, None
        if loads is None:
            return
        found = loads()
        self._stored, self._entries, self._error = found._stored, found._entries, found._error
        self._had = self._entries.get(_PERMANENT_ENTRY)


class _NoSession(NullSession):
    """The session of requests on paths without sessions."""

    def _fail(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError(
            f"The session is unavailable because {flask.request.path!r} matches none of the paths= "
            "that Sessions was given."
        )

    __setitem__: Any = _fail
    __delitem__: Any = _fail
    clear: Any = _fail
    pop: Any = _fail
    popitem: Any = _fail
    update: Any = _fail
    setdefault: Any = _fail
    del _fail


# ------------------------------------------------------------------------------------------------
# Loading and saving


class _SessionBackend(NamedTuple):
    """The runtime and part for an application's sessions; created at the first request."""

    part: Sessions
    runtime: Runtime


class UpstashSessionInterface(SessionInterface):
    """Loads and saves the sessions of one application; see ``upstash_middleware.flask.Sessions``.

    The configuration is read again at the first request. Later changes of keys, lifetime and
    cookie name have no effect.
    """

    null_session_class = _NoSession

    def __init__(
        self,
        app: Flask,
        find: Callable[[Flask], tuple[Runtime, Runtime]],
        settings: Mapping[str, Any],
    ) -> None:
        """``find`` returns the runtime that keeps the sessions, and the one that loads them.

        This object must not refer to the application, which would create a reference cycle.

        Raises ConfigurationError.
        """
        settings_of(app, settings)
        self._find = find
        self._settings = settings
        self._otherwise = app.session_interface
        """The session interface to use if the middleware is disabled."""
        self._ready: _SessionBackend | None = None
        self._is_off = False
        self._lock = Lock()

    def ready(self, app: Flask) -> _SessionBackend | None:
        """Return the session backend; None if the middleware is disabled.

        Raises ConfigurationError.
        """
        if self._ready is None and not self._is_off:
            with self._lock:
                self._prepare(app)
        return self._ready

    def _prepare(self, app: Flask) -> None:
        if self._ready is not None or self._is_off:  # another thread was first
            return
        config, (owner, joined) = app.config, self._find(app)
        if not joined.enabled:
            self._is_off = True
            return
        part = owner.create_sessions(
            settings_of(app, self._settings),
            make=FlaskSession,
            dump=_CODEC.encode,
            load=_CODEC.decode,
            key_setting="SECRET_KEY",
            sets_cookie=False,
            rolls=lambda: config["SESSION_REFRESH_EACH_REQUEST"],
        )
        joined.keep_sessions(part)
        _doubt_settings(app, owner)
        _follow_logins(app)
        self._ready = _SessionBackend(part, joined)

    def get_cookie_name(self, app: Flask) -> str:
        """Return the cookie's name; over HTTPS it begins with ``__Host-`` or ``__Secure-``."""
        ready = self.ready(app)
        if ready is None:
            return self._otherwise.get_cookie_name(app)
        return ready.part.settings.cookie_name

    def get_cookie_samesite(self, app: Flask) -> str:
        """Return SESSION_COOKIE_SAMESITE, by default ``"Lax"``."""
        return super().get_cookie_samesite(app) or "Lax"

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        """Return a request's session, which is already loaded or is loaded on first use."""
        ready = self.ready(app)
        if ready is None:
            return self._otherwise.open_session(app, request)
        part, runtime = ready
        if not part.covers(request.path):
            return None
        streams: Sequence[ref[ResponseStream]] = request.environ.get(STREAMS, ())
        session = cast("FlaskSession | None", _session_from_middleware(part, streams))
        if session is None:
            if BACKGROUND_REQUEST in request.environ:
                session = cast("FlaskSession", part.detached().session)
            else:
                session = cast("FlaskSession", part.session())
                if (id_ := request.cookies.get(part.settings.cookie_name)) is not None:
                    session._loads = lambda: runtime.perform(part.load(id_))
        session.outer = streams
        session.performer = runtime
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: FlaskResponse) -> None:
        """Save the changes, and set the cookie if they were saved.

        Raises:
            NotStorable: A value cannot be stored, or the session is too large.
        """
        ready = self.ready(app)
        if ready is None:
            self._otherwise.save_session(app, session, response)
            return
        if not isinstance(session, FlaskSession):
            return
        part, runtime = ready
        session.drop_lone_permanence()
        accept = flask.request.headers.get("Accept", "").encode("latin-1", "replace")
        exchange = SessionExchange(part, session, Headers(((b"Accept", accept),)))
        runtime.perform(exchange.save())
        session.note_permanence(part)
        head = exchange.head(ResponseHead(response.status_code, NO_HEADERS))
        if isinstance(head, Response):
            session._is_refused, session._is_manual = False, True
            session.cookie_change = None
            _replace(response, head)
        elif session.accessed:
            response.vary.add("Cookie")
            self._set_cookie(app, session, response)
        _forbid_sharing(session, exchange)
        if response.is_streamed and not response.direct_passthrough:
            response.response = _Body(response.response, session, exchange, runtime)

    def regenerate(self, session: FlaskSession) -> None:
        """Change a session's id, like its own method; Flask-Session has this name."""
        session.regenerate()

    def _set_cookie(self, app: Flask, session: FlaskSession, response: FlaskResponse) -> None:
        change = session.cookie_change
        if change is None:
            return
        attributes: dict[str, Any] = {
            "domain": self.get_cookie_domain(app),
            "path": self.get_cookie_path(app),
            "secure": self.get_cookie_secure(app),
            "httponly": self.get_cookie_httponly(app),
            "samesite": self.get_cookie_samesite(app),
        }
        if app.config.get("SESSION_COOKIE_PARTITIONED"):  # Flask 3.1
            attributes["partitioned"] = True
        for field, value in [*response.headers]:
            if may_be_shared(field, value):
                response.headers.add(field, COOKIE_NOT_SHARED)
        name = self.get_cookie_name(app)
        if change.value is None:
            response.delete_cookie(name, **attributes)
            return
        max_age = int(change.seconds) if session.permanent else None
        response.set_cookie(name, change.value, max_age=max_age, **attributes)


def _session_from_middleware(
    part: Sessions, streams: Sequence[ref[ResponseStream]]
) -> Session | None:
    """Return the session that an outer middleware has loaded, if any."""
    for each in streams:
        if (stream := each()) is not None:
            saving: Any = stream.exchange.saving
            if saving is not None and saving.session.part is part:
                return cast("Session", saving.session)
    return None


def _forbid_sharing(session: FlaskSession, exchange: SessionExchange) -> None:
    """Prevent a response that depends on the session from being stored for others."""
    if session.accessed:
        for each in session.outer:
            if (stream := each()) is not None:
                stream.exchange.note_session(
                    sets_cookie=exchange.changes_cookie, absent_cookie=exchange.absent_cookie
                )


class _Body(ClosingBody):
    """A streamed response's body; the application may use the session while it is sent."""

    __slots__ = ("_exchange", "_is_over", "_runtime", "_session")

    def __init__(
        self,
        body: Iterable[Any],
        session: FlaskSession,
        exchange: SessionExchange,
        runtime: Runtime,
    ) -> None:
        super().__init__(body)
        self._session = session
        self._exchange = exchange
        self._runtime = runtime
        self._is_over = False

    def __next__(self) -> Any:
        try:
            piece = next(self._pieces)
        except BaseException:
            self._end()
            raise
        _forbid_sharing(self._session, self._exchange)
        return piece

    def _end(self) -> None:
        """Save late changes once, into an existing session."""
        if self._is_over:
            return
        self._is_over = True
        _forbid_sharing(self._session, self._exchange)
        try:
            self._runtime.perform(self._exchange.finish(complete=True))
        except NotStorable as error:  # the response has been sent
            self._runtime.observe(UserCodeFailed("the session, after the response's head", error))


def _replace(response: FlaskResponse, whole: Response) -> None:
    """Replace a response with another one, but keep the CORS fields of the first."""
    if (close := getattr(response.response, "close", None)) is not None:
        close()
    kept = [(name, value) for name, value in response.headers if _is_cors_field(name)]
    response.headers.clear()
    response.headers.extend([*kept, *fields_of(whole.head.headers)])
    response.direct_passthrough = False
    response.status_code = whole.head.status
    response.set_data(whole.body)


def _is_cors_field(name: str) -> bool:
    return name.lower() == "vary" or name.lower().startswith("access-control-")


# ------------------------------------------------------------------------------------------------
# Flask-Login


def _follow_logins(app: Flask) -> None:
    """Change the session's id at each login and logout of Flask-Login, if it is used."""
    if (module := sys.modules.get("flask_login")) is None:
        return
    for name in _LOGIN_SIGNALS:
        getattr(module, name).connect(_regenerate, app)
    module.user_loaded_from_cookie.connect(_renew, app)


def _regenerate(_app: Flask, **_: object) -> None:
    session = _current()
    if session is not None:
        session.regenerate()


def _renew(_app: Flask, **_: object) -> None:
    """Change the id after a "remember me" login, which is repeated if it is not saved."""
    session = _current()
    if session is not None:
        session.renew()


def _current() -> FlaskSession | None:
    current: Any = flask.session._get_current_object()  # type: ignore[attr-defined] # documented by Werkzeug
    return current if isinstance(current, FlaskSession) else None


# ------------------------------------------------------------------------------------------------
# Configuration

_FLASK_SETTINGS = {
    "secret_key": "SECRET_KEY, SECRET_KEY_FALLBACKS",
    "session_cookie": "SESSION_COOKIE_NAME",
    "path": "SESSION_COOKIE_PATH",
    "same_site": "SESSION_COOKIE_SAMESITE",
    "https_only": "SESSION_COOKIE_SECURE",
    "domain": "SESSION_COOKIE_DOMAIN",
    "partitioned": "SESSION_COOKIE_PARTITIONED",
    "max_age": "PERMANENT_SESSION_LIFETIME",
    "idle_timeout": "PERMANENT_SESSION_LIFETIME",
}
"""Flask's names of the fields of SessionSettings."""
_FLASK_SESSION_SETTINGS = (
    "SESSION_TYPE",
    "SESSION_REDIS",
    "SESSION_KEY_PREFIX",
    "SESSION_PERMANENT",
    "SESSION_USE_SIGNER",
    "SESSION_ID_LENGTH",
    "SESSION_SERIALIZATION_FORMAT",
    "SESSION_CLEANUP_N_REQUESTS",
)
"""Settings of Flask-Session, which have no effect here."""
_SETTING = "Sessions"
_DAY = 24 * 3600.0


def settings_of(app: Flask, settings: Mapping[str, Any]) -> SessionSettings:
    """Return the settings of an application's sessions, from Flask and from this package.

    Raises ConfigurationError, which names Flask's setting.
    """
    config, lifetime = app.config, app.permanent_session_lifetime.total_seconds()
    keys = [app.secret_key, *(config.get("SECRET_KEY_FALLBACKS") or ())] if app.secret_key else []
    own = {"absolute_timeout": max(90 * _DAY, lifetime), **settings}
    # Shortening only the absolute timeout must not conflict with Flask's default lifetime.
    if app.permanent_session_lifetime == app.default_config["PERMANENT_SESSION_LIFETIME"]:
        absolute = seconds_in(own["absolute_timeout"])
        lifetime = min(lifetime, absolute) if absolute and absolute > 0 else lifetime
    try:
        return SessionSettings(
            secret_key=[_key_as_text(key) for key in keys],
            session_cookie=config["SESSION_COOKIE_NAME"],
            max_age=lifetime,
            path=config["SESSION_COOKIE_PATH"] or config["APPLICATION_ROOT"],
            same_site=config["SESSION_COOKIE_SAMESITE"] or "lax",
            https_only=config["SESSION_COOKIE_SECURE"],
            domain=config["SESSION_COOKIE_DOMAIN"] or None,
            partitioned=config.get("SESSION_COOKIE_PARTITIONED", False),
            setting=_SETTING,
            **own,
        )
    except ConfigurationError as error:
        message = str(error).replace("https_only=True", "SESSION_COOKIE_SECURE=True")
        for field, name in _FLASK_SETTINGS.items():
            message = message.replace(f"{named_part(_SETTING, field)}:", f"{name}:")
        raise ConfigurationError(message) from None


def refuse_unknown(arguments: Iterable[str], own: Iterable[str]) -> None:
    """Reject arguments that are neither settings nor arguments of Sessions.

    Raises ConfigurationError, which names Flask's setting or the closest argument.
    """
    for name in arguments:
        if name in WITHOUT_EFFECT_ON_SESSIONS:
            raise ConfigurationError(
                f"{named_part(_SETTING, name)}: this setting has no effect in Sessions; "
                f"also add UpstashMiddleware(app, {name}=…)"
            )
        if name in DEFAULTS:
            continue
        from difflib import get_close_matches  # noqa: PLC0415 - for a mistake only

        close = get_close_matches(name, [*own, *_FLASK_SETTINGS, *DEFAULTS], n=1, cutoff=0.7)
        if (field := close[0] if close else name) in _FLASK_SETTINGS:
            names = " or ".join(map("app.config[{!r}]".format, _FLASK_SETTINGS[field].split(", ")))
            raise ConfigurationError(
                f"{named_part(_SETTING, name)}: there is no such argument; set {names}"
            )
        raise unknown_name(_SETTING, name, [*own, "url", "token", "redis", "prefix"])


def _doubt_settings(app: Flask, runtime: Runtime) -> None:
    """Log settings of Flask-Session that are still present."""
    left = [name for name in _FLASK_SESSION_SETTINGS if name in app.config]
    if left:
        runtime.observe(
            SettingDoubted(
                ", ".join(left),
                "this is a setting of Flask-Session, and Sessions does not read it; remove it",
            )
        )


def _key_as_text(key: Any) -> Any:
    """Return a key as text, because a key of Flask's may be bytes."""
    if not isinstance(key, bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.decode("latin-1")
