"""The three middleware classes as Flask extensions: Flask's idioms over ``wsgi``, nothing else.

    upstash = UpstashMiddleware(default_limit="100/minute", cache=[CacheRule("/tea", ttl=60)])

    def create_app():
        app = Flask(__name__)
        upstash.init_app(app)        # or UpstashMiddleware(app, …)
        return app                   # or app.wsgi_app = UpstashMiddleware(app.wsgi_app, …)

A view reads the rate limit's decision at ``g.rate_limit`` and purges by ``purge(…)``. What is
added last stands outermost: a CacheMiddleware first, a RateLimitMiddleware after it, and both
take one round trip. Flask's test client closes a response only when it is told to, and a page is
stored when its response is closed: ``client.get(path, buffered=True)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from flask import Flask, current_app, g, request, request_started

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.flask.denying import answered_by
from upstash_middleware.flask.routing import exempts
from upstash_middleware.gateway import Gateway, Halves
from upstash_middleware.wsgi.middleware import RATE_LIMIT_KEY, Middleware

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.messages import Response
    from upstash_middleware.settings import Arguments

CONFIG = "UPSTASH_MIDDLEWARE"
EXTENSION = "upstash_middleware"


class _OfFlask(Middleware):
    """The WSGI middleware of a Flask application, which answers denials as it does errors."""

    def __init__(self, wsgi_app: WSGIApplication, gateway: Gateway, flask_app: Flask) -> None:
        super().__init__(wsgi_app, gateway)
        self._flask_app = flask_app

    def answer(
        self, environ: WSGIEnvironment, response: Response, decision: Decision | None, /
    ) -> Response:
        """Return what the application's error handlers and ``after_request`` make of a denial."""
        if decision is None or decision.allowed:
            return response
        try:
            return answered_by(self._flask_app, environ, response, decision, self.gateway)
        except Exception as error:  # noqa: BLE001 - it is the application's, and the answer stands
            self.gateway.observe(UserCodeFailed("the error handler for a denial", error))
            return response


class _Extension:
    """A middleware's arguments, and the WSGI middlewares that are made of them.

    Settings are keyword arguments here or entries of ``app.config["UPSTASH_MIDDLEWARE"]``, read
    when the extension meets the application. Each may stand in one of the two only: whichever
    won, somebody would be surprised. ``app.extensions["upstash_middleware"]`` maps the
    extensions of an application to their middlewares.
    """

    halves: ClassVar[Halves]

    def __init__(
        self, app: Flask | WSGIApplication | None = None, **arguments: Unpack[Arguments]
    ) -> None:
        """Stand in front of ``app``, a Flask application or one's ``wsgi_app``; or wait for one.

        Raises ConfigurationError, which names the setting that is wrong.
        """
        self._arguments = arguments
        self.wsgi_app: WSGIApplication = self._without_app
        """What a call of this object calls; its name as in Flask, for who looks inside."""
        if isinstance(app, Flask):
            self.wsgi_app = self._add_to(app)
        elif app is not None:
            self.wsgi_app = self._middleware(_flask_within(app), app)

    def init_app(self, app: Flask) -> None:
        """Stand in front of an application; any number of applications may share the extension.

        Raises ConfigurationError, which names the setting that is wrong.
        """
        self._add_to(app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request as the WSGI application that stands in Flask's ``wsgi_app``."""
        return self.wsgi_app(environ, start_response)

    def _add_to(self, app: Flask) -> Middleware:
        middleware = self._middleware(app, app.wsgi_app)
        app.wsgi_app = middleware  # type: ignore[method-assign]  # Flask's own way to do this
        return middleware

    def _middleware(self, app: Flask, wsgi_app: WSGIApplication) -> Middleware:
        present = app.extensions.setdefault(EXTENSION, {})
        if self in present:
            raise ConfigurationError(
                f"this {type(self).__name__} stands in front of {app.name!r} already, and every "
                "request would count twice; give it the application or call init_app, not both"
            )
        arguments, source = self._settings(app.config.get(CONFIG, {}))
        gateway = Gateway.of(
            arguments, self.halves, source=source, exempts=exempts(app), refreshes=True
        )
        present[self] = middleware = _OfFlask(wsgi_app, gateway, app)
        request_started.connect(_show_decision, app)
        return middleware

    def _settings(self, config: object) -> tuple[Mapping[str, Any], str]:
        """Return the settings of both places, and how errors shall name that place."""
        if not isinstance(config, Mapping):
            raise ConfigurationError(f"{CONFIG}: {config!r} should be a dict of settings")
        for name in config:
            if name in self._arguments:
                raise ConfigurationError(
                    f"{name}: given to {type(self).__name__} and in app.config[{CONFIG!r}] too; "
                    "leave out one of them"
                )
        return {**config, **self._arguments}, "" if self._arguments else CONFIG

    def _without_app(
        self, _environ: WSGIEnvironment, _start_response: StartResponse
    ) -> Iterable[bytes]:
        raise RuntimeError(
            f"this {type(self).__name__} has no application of its own to call; serve the Flask "
            "application that was given to init_app"
        )


class UpstashMiddleware(_Extension):
    """Rate limit and response cache in one; a hit is charged to the limit."""

    halves = Halves.BOTH


class RateLimitMiddleware(_Extension):
    """The rate limit alone; directly outside a CacheMiddleware both take one round trip."""

    halves = Halves.RATE_LIMIT


class CacheMiddleware(_Extension):
    """The response cache alone; outside a RateLimitMiddleware its hits are not charged."""

    halves = Halves.CACHE


def purge(
    *urls: str, tags: tuple[str, ...] = (), everything: bool = False, soft: bool = False
) -> None:
    """Make stored responses of the current application unusable, in views, commands and tasks.

    ``urls`` are paths with their query, or whole URLs; each goes with all its variants. A tag
    takes its colon-descendants along: ``product`` purges ``product:7``. ``soft`` leaves them to
    be served stale where their rule allows it. Raises UpstashError if Upstash could not be told,
    RuntimeError outside of an application context or where the application has no cache.
    """
    present: Mapping[_Extension, Middleware] = current_app.extensions.get(EXTENSION, {})
    caches = [each.gateway for each in present.values() if Halves.CACHE in each.gateway.halves]
    if not caches:
        raise RuntimeError(
            f"{current_app.name!r} has no cache to purge: add UpstashMiddleware or CacheMiddleware"
        )
    for cache in caches:
        cache.purge(*urls, tags=tags, everything=everything, soft=soft)


def _show_decision(_app: Flask, **_: object) -> None:
    """Set ``g.rate_limit``, before any function of the application's is called."""
    g.rate_limit = request.environ.get(RATE_LIMIT_KEY)


def _flask_within(wsgi_app: WSGIApplication) -> Flask:
    """Return the Flask application whose ``wsgi_app`` this is, through wrappers of Werkzeug's."""
    inside: object = wsgi_app
    while inside is not None:
        if isinstance(inside, Flask):
            return inside
        names = ("__self__", "wsgi_app", "app")
        inside = next((found for name in names if (found := getattr(inside, name, None))), None)
    raise ConfigurationError(
        f"{wsgi_app!r} is neither a Flask application nor the wsgi_app of one; for other WSGI "
        "applications there is upstash_middleware.wsgi"
    )
