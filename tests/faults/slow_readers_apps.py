"""Applications for real servers, with bodies that a client can read as slowly as it likes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from flask import Flask, Response, send_file
from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tests.django.project import Urls
from upstash_middleware import flask, starlette

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest
    from starlette.requests import Request

LARGE = b"a page that no socket takes at once\n" * 200_000
FILE = Path(os.environ["SLOW_READERS_DIRECTORY"]) / "file.txt"
FILE.write_bytes(LARGE)
SMALL = FILE.with_name("small.txt")
SMALL.write_bytes(LARGE[:500_000])
SETTINGS: dict[str, Any] = {
    "cache": [{"path": "/{page}", "ttl": 600}],
    "cache_max_body": 9_000_000,
    "cache_collapse": 40.0,
    "cache_deadline": 20.0,
}


def lines() -> Iterator[bytes]:
    """Give lines for ever."""
    while True:
        yield b"{}\n" * 10_000


async def alines() -> AsyncIterator[bytes]:
    """Give lines for ever, and let others have the event loop."""
    while True:
        yield b"{}\n" * 10_000
        await anyio.sleep(0.001)


def of_starlette() -> Any:
    """Return the application in Starlette."""

    async def large(_: Request) -> PlainTextResponse:
        return PlainTextResponse(LARGE)

    async def file(_: Request) -> FileResponse:
        return FileResponse(FILE)

    async def small(_: Request) -> FileResponse:
        return FileResponse(SMALL)

    async def endless(_: Request) -> StreamingResponse:
        return StreamingResponse(alines(), media_type="application/x-ndjson")

    app = Starlette(
        routes=[
            Route("/large", large),
            Route("/file", file),
            Route("/small", small),
            Route("/endless", endless),
        ]
    )
    app.add_middleware(starlette.CacheMiddleware, **SETTINGS)
    return app


def of_flask() -> Any:
    """Return the application in Flask."""
    app = Flask(__name__, static_folder=None)
    app.add_url_rule("/large", "large", lambda: LARGE)
    app.add_url_rule("/file", "file", lambda: send_file(FILE))
    app.add_url_rule("/small", "small", lambda: send_file(SMALL))
    app.add_url_rule("/endless", "endless", lambda: Response(lines()))
    flask.CacheMiddleware(app, **SETTINGS)
    return app


def of_django(handler: Callable[[], Any], endless: Callable[[], Any]) -> Any:
    """Return the application in Django."""
    from django.conf import settings  # noqa: PLC0415 - where it is not served, nobody configures it
    from django.http import FileResponse as File  # noqa: PLC0415
    from django.http import HttpResponse, StreamingHttpResponse  # noqa: PLC0415

    def large(_: HttpRequest) -> HttpResponse:
        return HttpResponse(LARGE)

    def file(_: HttpRequest) -> File:
        return File(FILE.open("rb"))

    def small(_: HttpRequest) -> File:
        return File(SMALL.open("rb"))

    def stream(_: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(endless())

    settings.MIDDLEWARE = ["upstash_middleware.django.CacheMiddleware"]
    settings.ROOT_URLCONF = Urls(large=large, file=file, small=small, endless=stream)
    settings.UPSTASH_MIDDLEWARE = SETTINGS
    return handler()


def django_wsgi() -> Any:
    """Return the application for a WSGI server."""
    from django.core.handlers.wsgi import WSGIHandler  # noqa: PLC0415

    return of_django(WSGIHandler, lines)


def django_asgi() -> Any:
    """Return the application for an ASGI server."""
    from django.core.handlers.asgi import ASGIHandler  # noqa: PLC0415

    return of_django(ASGIHandler, alines)
