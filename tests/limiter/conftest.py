"""The limiters under test: in threads and on an event loop, alone and with each framework."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel
import pytest
from anyio.from_thread import start_blocking_portal
from django.conf import settings as project
from django.test import override_settings
from flask import Flask
from starlette.applications import Starlette

import tests.django.project  # noqa: F401 - it configures Django
from upstash_middleware import Limiter, SyncLimiter
from upstash_middleware import flask as of_flask
from upstash_middleware import starlette as of_starlette

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.from_thread import BlockingPortal

    from upstash_middleware.local import LocalUpstash

PATIENT = 20.0
"""Seconds; a machine under load is no outage."""


class Make(Protocol):
    """Makes a limiter whose methods return when done; ``settings`` are the application's."""

    def __call__(
        self, limits: Any, name: str = "calls", settings: dict[str, Any] | None = None, **rule: Any
    ) -> Any: ...


class Awaited:
    """A Limiter whose methods, contexts and decorated functions are awaited on an event loop."""

    def __init__(self, limiter: Limiter, portal: BlockingPortal) -> None:
        self.limiter = limiter
        self.portal = portal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **named: self._call(getattr(self.limiter, name), *args, **named)

    def __call__(self, *args: Any, by: Any = None, **named: Any) -> Any:
        if by is None:
            return self.portal.wrap_async_context_manager(self.limiter(*args, **named))

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            async def later(*args: Any, **named: Any) -> Any:
                return function(*args, **named)

            later.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
            limited = self.limiter(by=by, **named)(later)
            return lambda *args, **named: self._call(limited, *args, **named)

        return decorate

    def _call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        async def call() -> Any:
            return await function(*args, **named)

        return self.portal.call(call)


def starlette_app(**settings: Any) -> Starlette:
    app = Starlette()
    app.add_middleware(of_starlette.UpstashMiddleware, **settings)
    return app


def flask_app(**settings: Any) -> Flask:
    app = Flask("shop", static_folder=None)
    of_flask.UpstashMiddleware(app, **settings)
    return app


KINDS = [
    ("sync", "alone"),
    ("async", "alone"),
    ("sync", "flask"),
    ("async", "starlette"),
    ("sync", "django"),
    ("async", "django"),
]


_numbers = count()
"""So that no test finds a limiter of another one, which may be collected later."""


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(params=KINDS, ids=" ".join)
def make(
    request: pytest.FixtureRequest, upstash: LocalUpstash, portal: BlockingPortal
) -> Iterator[Make]:
    """Make limiters of each kind; those of one test share an application if the settings agree."""
    way, where = request.param
    apps: dict[str, Any] = {}
    prefix = f"t{next(_numbers)}"
    with ExitStack() as closing:

        def app_of(settings: dict[str, Any]) -> Any:
            settings = {"default_limit": None, "deadline": PATIENT, **settings}
            if where == "django":
                closing.enter_context(override_settings(UPSTASH_MIDDLEWARE=settings))
                return project
            return (flask_app if where == "flask" else starlette_app)(**settings)

        def make(
            limits: Any,
            name: str = "calls",
            settings: dict[str, Any] | None = None,
            **rule: Any,
        ) -> Any:
            given = {"prefix": prefix, **(settings or {})}
            if where == "alone":
                arguments = {"deadline": PATIENT, **given, **rule}
            else:
                key = repr(sorted(given.items()))
                apps[key] = apps.get(key) or app_of(given)
                arguments = {**rule, "app": apps[key]}
            if way == "sync":
                return SyncLimiter(limits, name=name, **arguments)
            return Awaited(Limiter(limits, name=name, **arguments), portal)

        yield make


@pytest.fixture
def sleeping(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Have a pause move the clock, of this process and of the server, and take no time."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        upstash.advance(seconds)

    async def asleep(seconds: float) -> None:
        sleep(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr(anyio, "sleep", asleep)
    return slept
