"""Puts the middleware around every application of a framework's test suite.

This runs in the framework's environment. The variable FRAMEWORKS_RUN names a JSON file, written
by the parent process, with the mode, the database's URL and token, and where the results go. Each
application has a key prefix of its own in each test, so that none finds what another has stored.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upstash_middleware import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware import HTTPRequest

_RUN: dict[str, Any] = json.loads(Path(os.environ["FRAMEWORKS_RUN"]).read_text())

_CACHED: dict[str, Any] = {"cache": [{"path": "/{rest:path}", "ttl": 60}], "cache_collapse": 0.05}
"""A request waits a moment only for another one: some tests hold one until the next arrives."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "limits": {},
    "cache": _CACHED,
    "conforming": {**_CACHED, "cache_profile": "conforming"},
    "dead": _CACHED,
    "sessions": {},
    "signed-pickle": {},
    "json": {},
}
CACHE_MODES = ("signed-pickle", "json")
"""In these modes the framework's cache in memory is this package's, with this serializer."""
_PATIENT = {"deadline": 30.0, "cache_deadline": 30.0}
"""A busy machine is no failure of Upstash."""


class Run:
    """What happened in one run of a suite."""

    def __init__(self) -> None:
        self.mode: str = _RUN["mode"]
        self.outcomes: dict[str, str] = {}
        """By test: passed, failed, skipped, xfailed or error."""
        self.texts: dict[str, str] = {}
        """By test that failed: the end of its traceback."""
        self.requests: Counter[str] = Counter()
        """By test: the requests that the middleware decided about, or sessions that it saved."""
        self.events: Counter[str] = Counter()
        self.reports: dict[str, str] = {}
        """By test: what the middleware reported and should not have."""
        self.test = ""
        """The test that is running."""

    def begin(self, test: str) -> None:
        """Name the test that starts."""
        self.test = test

    def record(self, test: str, outcome: str, text: str = "") -> None:
        """Note a test's outcome; of several the worst counts."""
        order = ("passed", "skipped", "xfailed", "xpassed", "failed", "error")
        before = self.outcomes.get(test, "passed")
        self.outcomes[test] = max(before, outcome, key=order.index)
        if text:
            self.texts[test] = (self.texts.get(test, "") + text)[-4000:]

    def observe(self, event: events.Event) -> None:
        """Count what the middleware reports."""
        self.events[type(event).__name__] += 1
        dead = self.mode == "dead"
        if isinstance(event, events.RateLimitDecided):
            if event.settled_by == ("open" if dead else "upstash"):
                self.requests[self.test] += 1
            else:
                self.reports[self.test] = f"decided by {event.settled_by!r}"
        elif isinstance(event, events.SessionSaved) and self.mode == "sessions":
            self.requests[self.test] += event.saved
        elif isinstance(event, events.UpstashAnswered) and self.mode in CACHE_MODES:
            self.requests[self.test] += 1
        elif isinstance(event, events.CacheLookedUp):
            self.events[f"lookup: {event.outcome}"] += 1
        elif isinstance(event, events.CacheStored):
            self.events[f"stored: {event.stored}"] += 1
        elif isinstance(event, events.InternalError) or (
            isinstance(event, events.UpstashFailed) and not dead
        ):
            self.reports[self.test] = repr(event)

    def save(self) -> None:
        """Write the results where the parent process reads them."""
        names = ("outcomes", "texts", "requests", "events", "reports")
        Path(_RUN["results"]).write_text(json.dumps({name: getattr(self, name) for name in names}))


run = Run()


def sender(request: HTTPRequest) -> str:
    """Return whose quota a request uses: not every test client says where it sends from."""
    return request.peer or "nobody"


_numbers = count()


def arguments() -> dict[str, Any]:
    """Return the middleware's settings for one application."""
    return {
        "url": _RUN["url"],
        "token": _RUN["token"],
        "prefix": f"{_RUN['prefix']}:{next(_numbers)}",
        "default_limit": {"limits": "1000000/minute", "by": sender},
        "observers": [run.observe],
        **({} if run.mode == "dead" else _PATIENT),
        **_SETTINGS[run.mode],
    }


class Around:
    """An application in the middleware, which is made once for each test."""

    def __init__(self, app: Any, make: Callable[..., Any]) -> None:
        self.app = app
        self._make = make
        self._test = ""
        self._middleware: Any = None

    def __call__(self, *call: Any) -> Any:
        """Call the middleware as the application is called."""
        if self._middleware is None or self._test != run.test:
            self._test = run.test
            self._middleware = self._make(self.app, **arguments())
        return self._middleware(*call)


def around_starlette() -> None:
    """Wrap what Starlette.build_middleware_stack returns, and FastAPI's."""
    from starlette.applications import Starlette

    from upstash_middleware.starlette import UpstashMiddleware

    classes: list[Any] = [Starlette]
    try:
        from fastapi import FastAPI
    except ImportError:
        pass
    else:
        classes.append(FastAPI)
    for cls in classes:
        build = cls.__dict__["build_middleware_stack"]

        def built(app: Any, build: Any = build) -> Around:
            return Around(build(app), UpstashMiddleware)

        cls.build_middleware_stack = built


def around_flask() -> None:
    """Wrap Flask.wsgi_app."""
    from weakref import WeakKeyDictionary

    from flask import Flask

    from upstash_middleware.flask import UpstashMiddleware

    inside = Flask.wsgi_app
    wrapped: WeakKeyDictionary[Flask, Around] = WeakKeyDictionary()

    def wsgi_app(app: Flask, environ: Any, start_response: Any) -> Any:
        if app not in wrapped:
            wrapped[app] = Around(inside.__get__(app), UpstashMiddleware)
        return wrapped[app](environ, start_response)

    Flask.wsgi_app = wsgi_app  # type: ignore[method-assign, assignment]


def sessions_in_flask() -> None:
    """Let the sessions of each Flask application be this package's, unless it has its own."""
    from flask import Flask

    from upstash_middleware.flask import Sessions

    init: Any = Flask.__init__
    own = Flask.session_interface

    def __init__(app: Flask, *positional: Any, **named: Any) -> None:  # noqa: N807
        init(app, *positional, **named)
        if app.session_interface is own:
            given = arguments()
            del given["default_limit"]  # Sessions limits nothing
            Sessions(app, **given)

    Flask.__init__ = __init__  # type: ignore[method-assign, assignment]


def around_werkzeug() -> None:
    """Wrap the application that werkzeug.test.Client is given."""
    from werkzeug.test import Client

    from upstash_middleware.wsgi import UpstashMiddleware

    init: Any = Client.__init__

    def __init__(client: Any, application: Any, *more: Any, **named: Any) -> None:  # noqa: N807
        init(client, Around(application, UpstashMiddleware), *more, **named)

    Client.__init__ = __init__  # type: ignore[method-assign, assignment]


def around_django() -> None:
    """Put the middleware in front of MIDDLEWARE whenever BaseHandler.load_middleware reads it."""
    from django.conf import settings
    from django.core.handlers.base import BaseHandler

    load = BaseHandler.load_middleware

    def load_middleware(handler: BaseHandler, is_async: bool = False) -> None:
        settings.UPSTASH_MIDDLEWARE = arguments()
        chosen = settings.MIDDLEWARE
        settings.MIDDLEWARE = ["upstash_middleware.django.UpstashMiddleware", *chosen]
        try:
            load(handler, is_async)
        finally:
            settings.MIDDLEWARE = chosen

    BaseHandler.load_middleware = load_middleware  # type: ignore[method-assign, assignment]


def sessions_in_starlette() -> None:
    """Let Starlette's SessionMiddleware be this package's.

    A session is no dictionary, so JSON has to be made of ``dict(request.session)``; its tests do
    without.
    """
    import json

    from starlette.middleware import sessions
    from starlette.responses import JSONResponse

    from upstash_middleware.starlette import SessionMiddleware

    def made(app: Any, **own: Any) -> SessionMiddleware:
        settings = arguments()
        del settings["default_limit"]
        key = f"{own.pop('secret_key')}, which is at least 16 characters long"
        return SessionMiddleware(app, secret_key=key, **own, **settings)

    def render(_response: JSONResponse, content: Any) -> bytes:
        return json.dumps(content, default=dict).encode()

    sessions.SessionMiddleware = made  # type: ignore[misc, assignment]
    JSONResponse.render = render  # type: ignore[method-assign, assignment]


class _ExpiryTimes:
    """When Redis drops the values of a kind, by key."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getitem__(self, key: str) -> int:
        from django.conf import settings

        from upstash_middleware.django import redis

        prefix = settings.UPSTASH_MIDDLEWARE["prefix"]
        return int(redis.execute(["PEXPIRETIME", f"{prefix}:data#{self._kind}:{key}"]))


def upstash_in_django() -> None:
    """Let Django's cache in memory be this package's."""
    from django.core.cache.backends import locmem

    from upstash_middleware.django.cache import UpstashCache

    class LocMemCache(UpstashCache):
        """One whose LOCATION names it, as that of Django's; its tests read ``_expire_info``."""

        def __init__(self, name: str, params: dict[str, Any]) -> None:
            super().__init__("", {**params, "OPTIONS": {"serializer": run.mode}})
            self._kind += f".{name}" if name else ""
            self._cache: Any = None
            self._expire_info = _ExpiryTimes(self._kind)

    locmem.LocMemCache = LocMemCache  # type: ignore[misc, assignment]


def upstash_in_flask_caching() -> None:
    """Let Flask-Caching's cache in memory be this package's."""
    import os

    from flask import Flask
    from flask_caching import backends
    from flask_caching.backends import simplecache

    from upstash_middleware.flask_caching_backend import UpstashBackend
    from upstash_middleware.runtime import Features, Runtime
    from upstash_middleware.settings import settings_from

    runtimes: dict[str, Runtime] = {}

    def runtime() -> Runtime:
        if run.test not in runtimes:
            for before in runtimes.values():
                before.close()
            runtimes.clear()
            runtimes[run.test] = Runtime(settings_from(arguments(), os.environ), Features(0))
        return runtimes[run.test]

    class SimpleCache(UpstashBackend):
        """One whose objects share nothing, as those of Flask-Caching's."""

        def __init__(self, app: Any = None, **options: Any) -> None:
            if app is None:
                app = Flask("alone")
                app.secret_key = "of a test"
            options.pop("ignore_delete_many_errors", None)
            options = {"serializer": run.mode, **options}
            super().__init__(app, runtime, str(next(_numbers)), **options)

        @classmethod
        def factory(
            cls, app: Flask, _config: Any, _args: Any, options: dict[str, Any]
        ) -> SimpleCache:
            app.secret_key = app.secret_key or "of a test"
            return cls(app, default_timeout=options["default_timeout"])

    for module in (backends, simplecache):
        module.SimpleCache = SimpleCache  # type: ignore[attr-defined]


def wrap(framework: str) -> None:
    """Put the middleware around a framework's applications, unless this is the baseline."""
    if run.mode == "sessions":
        {"starlette": sessions_in_starlette, "flask": sessions_in_flask}[framework]()
    elif run.mode in CACHE_MODES:
        {"django": upstash_in_django, "flask-caching": upstash_in_flask_caching}[framework]()
    elif run.mode != "none":
        {
            "starlette": around_starlette,
            "fastapi": around_starlette,
            "flask": around_flask,
            "werkzeug": around_werkzeug,
            "django": around_django,
        }[framework]()
