"""The fixtures of the contract suite: every test that asks for ``serve`` runs in each framework.

A module ``backend_FRAMEWORK`` beside this file has an object for each way of serving; one that
cannot be imported is an error, never a skipped test.
"""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.clocks import MovableClock, use_clock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.contract.neutral import Backend, Handler, Served
    from upstash_middleware.local import LocalUpstash

BACKENDS = {
    "starlette": ("tests.contract.backend_starlette", "STARLETTE"),
    "flask": ("tests.contract.backend_flask", "FLASK"),
    "django-wsgi": ("tests.contract.backend_django", "DJANGO_WSGI"),
    "django-asgi": ("tests.contract.backend_django", "DJANGO_ASGI"),
}


GUARDS = (
    "starlette",
    "starlette-sync",
    "starlette-class",
    "fastapi",
    "flask",
    "flask-class",
    "flask-before-request",
    "django-wsgi",
    "django-wsgi-async",
    "django-wsgi-class",
    "django-asgi",
    "django-asgi-sync",
    "rest-framework-wsgi",
    "rest-framework-asgi",
)
"""What stands in front of single handlers; see ``guards``."""


PATIENT = {"deadline": 20.0, "cache_deadline": 20.0}
"""Seconds; a machine under load is no outage. A test that is about deadlines gives its own."""


class Serve(Protocol):
    """Serves a handler behind layers, outermost first, until the test ends.

    ``limits`` are what the framework's ``limit`` in front of the handler is called with.
    """

    def __call__(
        self,
        handler: Handler,
        *layers: tuple[str, dict[str, Any]],
        limits: Sequence[tuple[Any, dict[str, Any]]] = (),
    ) -> Served: ...


class Guarded(Protocol):
    """Serves a handler behind a limit of its own and layers of middleware, until the test ends."""

    def __call__(
        self, handler: Handler, limits: Any, *layers: tuple[str, dict[str, Any]], **arguments: Any
    ) -> Served: ...


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each framework in turn."""
    module, name = BACKENDS[request.param]
    found: Backend = getattr(import_module(module), name)
    return found


@pytest.fixture
def serve(backend: Backend, upstash: LocalUpstash) -> Iterator[Serve]:
    """Serve handlers against the local Upstash, whose credentials are in the environment."""
    with ExitStack() as running:

        def serve(
            handler: Handler,
            *layers: tuple[str, dict[str, Any]],
            limits: Sequence[tuple[Any, dict[str, Any]]] = (),
        ) -> Served:
            patient = [(name, {**PATIENT, **given}) for name, given in layers]
            before = [(given, {"deadline": PATIENT["deadline"], **more}) for given, more in limits]
            served: Served = running.enter_context(backend.serve(handler, patient, before))
            return served

        yield serve


@pytest.fixture(params=GUARDS)
def guarded(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Iterator[Guarded]:
    """Serve a handler behind each kind of guard, against the local Upstash."""
    guard = import_module("tests.contract.guards").GUARDS[request.param]
    with ExitStack() as running:

        def guarded(
            handler: Handler, limits: Any, *layers: tuple[str, dict[str, Any]], **arguments: Any
        ) -> Served:
            patient = [(name, {**PATIENT, **given}) for name, given in layers]
            arguments = {"deadline": PATIENT["deadline"], **arguments}
            served: Served = running.enter_context(guard(handler, limits, arguments, patient))
            return served

        yield guarded


@pytest.fixture
def clock(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> MovableClock:
    """The clock of every middleware until the test ends."""
    movable = MovableClock()
    use_clock(movable, monkeypatch)
    return movable
