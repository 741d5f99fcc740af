"""The Flask rows: ``app`` is the row's WSGI application."""

from __future__ import annotations

from typing import Any

from flask import Flask, request, session

from benchmarks.apps import common


def bare(**_parts: str) -> Any:
    """Answer."""
    return common.BODIES.get(request.path, common.KILOBYTE), {"content-type": "text/plain"}


def flask(view: Any = bare) -> Flask:
    """Return an application with one view for every path."""
    app = Flask(__name__)
    app.add_url_rule("/", "index", view)
    app.add_url_rule("/<path:name>", "page", view)
    return app


def with_ours() -> Flask:
    """Return the application behind this package."""
    from upstash_middleware.flask import UpstashMiddleware  # noqa: PLC0415

    app = flask()
    UpstashMiddleware(app, **common.ours())
    return app


def with_upstash_ratelimit() -> Flask:
    """Return the application whose view calls upstash_ratelimit."""
    from upstash_ratelimit import Ratelimit, SlidingWindow  # noqa: PLC0415
    from upstash_redis import Redis  # noqa: PLC0415

    limiter = Ratelimit(
        redis=Redis(**common.UPSTASH),
        limiter=SlidingWindow(max_requests=common.QUOTA, window=common.WINDOW),
    )

    def limited(**_parts: str) -> Any:
        response = limiter.limit(request.remote_addr or "")
        return bare() if response.allowed else ("", 429)

    return flask(limited)


def with_flask_limiter() -> Flask:
    """Return the application with Flask-Limiter on Redis over TCP."""
    from flask_limiter import Limiter  # noqa: PLC0415
    from flask_limiter.util import get_remote_address  # noqa: PLC0415

    app = flask()
    Limiter(
        get_remote_address,
        app=app,
        default_limits=[common.LIMIT],
        storage_uri=common.REDIS_URL,
    )
    return app


def with_flask_caching() -> Flask:
    """Return the application with flask-caching on Redis over TCP."""
    from flask_caching import Cache  # noqa: PLC0415

    app = Flask(__name__)
    cache = Cache(app, config={"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": common.REDIS_URL})
    app.add_url_rule("/1k", "page", cache.cached(timeout=3600)(bare))
    return app


def reading_sessions() -> Flask:
    """Return an application that stores a session's entries once, and reads one afterwards."""
    app = Flask(__name__)
    app.secret_key = common.SECRET

    def log_in() -> Any:
        session.update(common.SESSION)
        return bare()

    def read() -> Any:
        assert session["name"] == common.SESSION["name"]
        return bare()

    app.add_url_rule("/login", "login", log_in)
    app.add_url_rule("/", "read", read)
    return app


def with_sessions() -> Flask:
    """Return the application with this package's sessions."""
    from upstash_middleware.flask import Sessions  # noqa: PLC0415

    app, settings = reading_sessions(), common.ours()
    del settings["sessions"]  # the application's own
    Sessions(app, **settings)
    return app


def with_flask_session() -> Flask:
    """Return the application with Flask-Session on Redis over TCP."""
    import redis  # noqa: PLC0415
    from flask_session import Session  # noqa: PLC0415

    app = reading_sessions()
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=redis.Redis.from_url(common.REDIS_URL))
    Session(app)
    return app


FACTORIES = {
    "Flask: bare": flask,
    "Flask: upstash_ratelimit": with_upstash_ratelimit,
    "Flask: Flask-Limiter": with_flask_limiter,
    "Flask: flask-caching": with_flask_caching,
    "Flask: session": with_sessions,
    "Flask: Flask-Session": with_flask_session,
}

app = FACTORIES.get(common.ROW, with_ours)()
