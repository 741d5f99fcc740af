"""One application in each framework, for real servers: ``asgi`` and ``wsgi`` choose by the host.

Each has ``/login`` with a limit, ``/items/{id}`` that is cached, ``/large`` whose body is too large
for its cache rule, and ``/purge``; below ``/sub`` is an application with a middleware of its own,
below ``/open`` one that only the outer one guards.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from fastapi import FastAPI
from flask import Flask, Response
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002 - FastAPI reads it
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.servers.running import PATIENCE
from upstash_middleware import CacheRule, RateLimitRule, fastapi, flask, starlette
from upstash_middleware.django import purge as purge_django

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from django.http import HttpRequest

    from upstash_middleware.asgi import Receive, Scope, Send

BOTH = ["GET", "POST"]
_pages = itertools.count(1)


def guard(name: str, *paths: str, **more: Any) -> dict[str, Any]:
    """Return the settings of a middleware; its keys are its own."""
    return {
        "prefix": name,
        "rate_limits": [
            *(RateLimitRule(path, "log 2/month") for path in ("/login", *paths)),
            RateLimitRule("/echo", "log 99/month", by="form:name", name="by name"),
        ],
        "default_limit": None,
        "cache": [
            CacheRule("/items/{id}", ttl=600),
            CacheRule("/large", ttl=600, max_body=10_000),
        ],
        "cache_store_first": True,  # what a client has read is stored
        "remember_denials": 0,
        "deadline": 20.0,
        "cache_deadline": 20.0,
        **more,
    }


def pieces(marker: str) -> Iterator[bytes]:
    """Yield the first piece of a large body, nothing until a file exists, and the last piece."""
    yield b"x" * 20_000
    deadline = time.monotonic() + PATIENCE / 2
    while not Path(marker).exists() and time.monotonic() < deadline:
        yield b""
    yield b"last" if Path(marker).exists() else b"the first piece was not sent at once"


async def pieces_in_turn(marker: str) -> AsyncIterator[bytes]:
    for piece in pieces(marker):
        await asyncio.sleep(0 if piece else 0.02)
        if piece:
            yield piece


def pieces_in_a_thread(marker: str) -> Iterator[bytes]:
    for piece in pieces(marker):
        if piece:
            yield piece
        else:
            time.sleep(0.02)


async def large(request: Request) -> StreamingResponse:
    return StreamingResponse(pieces_in_turn(request.query_params["marker"]))


async def login(_: Request) -> PlainTextResponse:
    return PlainTextResponse("logged in")


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body())


async def item(_: Request) -> PlainTextResponse:
    return PlainTextResponse(f"page {next(_pages)}")


async def purge(request: Request) -> PlainTextResponse:
    await request.state.cache.purge(request.query_params["url"])
    return PlainTextResponse("purged")


def in_starlette() -> Starlette:
    routes = [
        Route("/login", login, methods=BOTH),
        Route("/echo", echo, methods=BOTH),
        Route("/unlimited", echo, methods=BOTH),
        Route("/items/{id}", item),
        Route("/purge", purge),
        Route("/large", large),
    ]
    sub = Starlette(
        routes=routes,
        middleware=[Middleware(starlette.UpstashMiddleware, **guard("starlette-sub"))],
    )
    return Starlette(
        routes=[*routes, Mount("/sub", sub), Mount("/open", Starlette(routes=routes))],
        middleware=[Middleware(starlette.UpstashMiddleware, **guard("starlette", "/open/login"))],
    )


def in_fastapi() -> FastAPI:
    app, opened = FastAPI(), FastAPI()
    for each in (app, opened):
        each.add_api_route("/login", login, methods=BOTH)
        each.add_api_route("/echo", echo, methods=BOTH)
        each.add_api_route("/unlimited", echo, methods=BOTH)
        each.add_api_route("/items/{id}", item)
        each.add_api_route("/purge", purge)
        each.add_api_route("/large", large)
    app.mount("/open", opened)
    app.add_middleware(fastapi.UpstashMiddleware, **guard("fastapi", "/open/login"))
    return app


def flask_app(name: str) -> Flask:
    app = Flask(name)

    @app.route("/login", methods=BOTH)
    def login() -> str:
        return "logged in"

    @app.route("/echo", methods=BOTH)
    @app.route("/unlimited", methods=BOTH)
    def echo() -> bytes:
        return flask_request.get_data()

    @app.get("/items/<number>")
    def item(number: str) -> str:
        return f"page {next(_pages)}"

    @app.get("/large")
    def large() -> Response:
        return Response(pieces_in_a_thread(flask_request.args["marker"]))

    @app.get("/purge")
    def purge() -> str:
        flask.purge(flask_request.args["url"])
        return "purged"

    return app


def in_flask() -> Flask:
    app, sub, opened = flask_app("app"), flask_app("sub"), flask_app("opened")
    flask.UpstashMiddleware(sub, **guard("flask-sub"))
    app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        app.wsgi_app, {"/sub": sub, "/open": opened}
    )
    flask.UpstashMiddleware(app, **guard("flask", "/open/login"))
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]
    return app


def configure_django() -> None:
    urls = ModuleType("tests.servers.urls")
    urls.__dict__["urlpatterns"] = [
        path("login", lambda _: HttpResponse("logged in")),
        path("echo", lambda request: HttpResponse(request.body)),
        path("unlimited", lambda request: HttpResponse(request.body)),
        path("items/<int:number>", lambda _, number: HttpResponse(f"page {next(_pages)}")),
        path("purge", _purge_in_django),
        path("large", _large_in_django),
    ]
    sys.modules[urls.__name__] = urls
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DEBUG=False,
        FORCE_SCRIPT_NAME=os.environ.get("FORCE_SCRIPT_NAME"),
        INSTALLED_APPS=["upstash_middleware.django"],
        LOGGING_CONFIG=None,
        MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
        ROOT_URLCONF=urls.__name__,
        SECRET_KEY="for tests alone",
        UPSTASH_MIDDLEWARE=guard("django"),
        WSGI_APPLICATION="tests.servers.apps.in_django_wsgi",
    )
    django.setup()


def _large_in_django(request: HttpRequest) -> StreamingHttpResponse:
    is_async = isinstance(request, ASGIRequest)
    stream = pieces_in_turn if is_async else pieces_in_a_thread
    return StreamingHttpResponse(stream(request.GET["marker"]))


def _purge_in_django(request: HttpRequest) -> HttpResponse:
    purge_django(request.GET["url"])
    return HttpResponse("purged")


configure_django()
in_django_wsgi = WSGIHandler()
_asgi: dict[str, Any] = {
    "starlette": in_starlette(),
    "fastapi": in_fastapi(),
    "django": ASGIHandler(),
}
_wsgi: dict[str, WSGIApplication] = {"flask": in_flask(), "django": in_django_wsgi}


async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application that the host names."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    host = dict(scope["headers"])[b"host"].decode()
    await _asgi[host.partition(".")[0]](scope, receive, send)


def wsgi(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Call the application that the host names."""
    return _wsgi[environ["HTTP_HOST"].partition(".")[0]](environ, start_response)
