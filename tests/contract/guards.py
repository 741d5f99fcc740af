"""What stands in front of a handler in each framework, with the contract's application behind it.

A guard is a way of limiting one handler: decorators, dependencies, ``before_request`` functions,
throttles. ``guarded`` serves the contract's handler behind one; no test lives here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyio.from_thread import start_blocking_portal
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import Depends, FastAPI, Request
from flask import Flask
from flask.views import MethodView
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.contract import backend_django, backend_flask, backend_starlette
from tests.django.project import Urls
from upstash_middleware import django, fastapi, flask, starlette

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.neutral import Handler, Layers, Served

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@contextmanager
def _served_by_asgi(app: Any) -> Iterator[Served]:
    with TestClient(app) as client:
        assert client.portal is not None
        yield backend_starlette.ServedByASGI(app, client.portal)


def _starlette(kind: str) -> Any:
    @contextmanager
    def serve(
        handler: Handler, limits: Any, arguments: dict[str, Any], layers: Layers
    ) -> Iterator[Served]:
        limited = starlette.limit(limits, **arguments)
        endpoint: Any = backend_starlette.endpoint_of(handler)
        if kind == "sync":

            def endpoint(request: Request) -> Any:
                return backend_starlette.response_of(
                    handler(backend_starlette.seen_of(request, b""))
                )

        endpoint = limited(endpoint)
        if kind == "class":

            async def method(_self: Any, request: Request) -> Any:
                return await backend_starlette.endpoint_of(handler)(request)

            methods = {name.lower(): limited(method) for name in METHODS}
            endpoint = type("Endpoint", (HTTPEndpoint,), methods)
        app = Starlette(
            routes=[Route("/{path:path}", endpoint, methods=None if kind == "class" else METHODS)],
            middleware=[Middleware(getattr(starlette, name), **given) for name, given in layers],
        )
        with _served_by_asgi(app) as served:
            yield served

    return serve


@contextmanager
def _fastapi(
    handler: Handler, limits: Any, arguments: dict[str, Any], layers: Layers
) -> Iterator[Served]:
    app = FastAPI(dependencies=[Depends(fastapi.limit(limits, **arguments))])
    endpoint = backend_starlette.endpoint_of(handler)

    @app.api_route("/{path:path}", methods=METHODS)
    async def view(request: Request) -> Any:
        return await endpoint(request)

    for name, given in reversed(layers):
        app.add_middleware(getattr(fastapi, name), **given)
    with _served_by_asgi(app) as served:
        yield served


def _flask(kind: str) -> Any:
    @contextmanager
    def serve(
        handler: Handler, limits: Any, arguments: dict[str, Any], layers: Layers
    ) -> Iterator[Served]:
        app = Flask("contract", static_folder=None)
        limited = flask.limit(limits, **arguments)

        def view(path: str = "") -> Any:
            del path
            return backend_flask.response_of(handler(backend_flask.seen_of(has_cache=False)))

        found: Any = view if kind == "before_request" else limited(view)
        if kind == "before_request":
            app.before_request(limited)
        elif kind == "class":
            bodies = {name.lower(): lambda _, path="": view(path) for name in METHODS}
            made: Any = type("Viewed", (MethodView,), {"decorators": [limited], **bodies})
            found = made.as_view("view")
        app.add_url_rule("/", view_func=found, methods=METHODS)
        app.add_url_rule("/<path:path>", view_func=found, methods=METHODS)
        for name, given in reversed(layers):
            getattr(flask, name)(app, **given)
        yield backend_flask.ServedByWSGI(app)

    return serve


def _django(kind: str, *, asgi: bool) -> Any:
    @contextmanager
    def serve(
        handler: Handler, limits: Any, arguments: dict[str, Any], layers: Layers
    ) -> Iterator[Served]:
        def view(request: Any) -> Any:
            return backend_django.response_of(handler(backend_django.seen_of(request, False)))

        async def view_async(request: Any) -> Any:
            seen = backend_django.seen_of(request, False)
            return backend_django.response_of(await sync_to_async(handler)(seen), is_async=True)

        limited = django.limit(limits, **arguments)
        found: Any = limited(view_async if kind == "async" else view)
        bodies = {name.lower(): lambda _, request, **__: view(request) for name in METHODS}
        made: Any = type("Viewed", (View,), bodies)
        if kind == "class":
            found = method_decorator(limited, name="dispatch")(made).as_view()
        if kind == "throttle":
            from rest_framework.views import APIView  # noqa: PLC0415 - once Django is configured

            from upstash_middleware.django.rest_framework import throttle  # noqa: PLC0415

            throttles = {"throttle_classes": [throttle(limits, **arguments)]}
            made = type("Throttled", (APIView,), {**throttles, **bodies})
            found = made.as_view()
        settings = backend_django.settings_of(found, layers)
        settings["ROOT_URLCONF"] = Urls(anything=found)
        with override_settings(**settings):
            if not asgi:
                yield backend_django.WSGIServed(WSGIHandler())
                return
            with start_blocking_portal() as portal:
                yield backend_django.ASGIServed(ASGIHandler(), portal)

    return serve


GUARDS: dict[str, Any] = {
    "starlette": _starlette("async"),
    "starlette-sync": _starlette("sync"),
    "starlette-class": _starlette("class"),
    "fastapi": _fastapi,
    "flask": _flask("view"),
    "flask-class": _flask("class"),
    "flask-before-request": _flask("before_request"),
    "django-wsgi": _django("sync", asgi=False),
    "django-wsgi-async": _django("async", asgi=False),
    "django-wsgi-class": _django("class", asgi=False),
    "django-asgi": _django("async", asgi=True),
    "django-asgi-sync": _django("sync", asgi=True),
    "rest-framework-wsgi": _django("throttle", asgi=False),
    "rest-framework-asgi": _django("throttle", asgi=True),
}
