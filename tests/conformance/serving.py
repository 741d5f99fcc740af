"""The same application under real servers: ASGI, WSGI, Django by both. No case lives here."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.asgi.serving import served_by_uvicorn
from tests.django.project import Urls
from upstash_middleware import asgi, wsgi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from contextlib import AbstractContextManager

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from tests.conformance.playing import Given, Origin


@contextmanager
def asgi_server(origin: Origin, settings: dict[str, Any]) -> Iterator[int]:
    """Serve a plain ASGI application by uvicorn."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        fields = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        given = origin.answer(scope["method"], scope["path"], fields)
        head = [(n.lower().encode(), v.encode("latin-1")) for n, v in given.fields]
        await send({"type": "http.response.start", "status": given.status, "headers": head})
        for piece in _pieces(given):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with _uvicorn(asgi.CacheMiddleware(app, **settings)) as port:
        yield port


@contextmanager
def wsgi_server(origin: Origin, settings: dict[str, Any]) -> Iterator[int]:
    """Serve a plain WSGI application by Werkzeug."""

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        fields = [(k[5:].replace("_", "-"), v) for k, v in environ.items() if k[:5] == "HTTP_"]
        given = origin.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], fields)
        start_response(f"{given.status} As Told", given.fields)
        return _pieces(given)

    with _werkzeug(wsgi.CacheMiddleware(app, **settings)) as port:
        yield port


@contextmanager
def django_wsgi_server(origin: Origin, settings: dict[str, Any]) -> Iterator[int]:
    """Serve a Django project by Werkzeug."""

    def view(request: HttpRequest) -> HttpResponseBase:
        return _django_response(_asked(origin, request), is_async=False)

    with _project(view, settings), _werkzeug(WSGIHandler()) as port:
        yield port


@contextmanager
def django_asgi_server(origin: Origin, settings: dict[str, Any]) -> Iterator[int]:
    """Serve a Django project by uvicorn."""

    async def view(request: HttpRequest) -> HttpResponseBase:
        return _django_response(await sync_to_async(_asked)(origin, request), is_async=True)

    with _project(view, settings), _uvicorn(_Handler()) as port:
        yield port


SERVERS = {
    "asgi": asgi_server,
    "wsgi": wsgi_server,
    "django-wsgi": django_wsgi_server,
    "django-asgi": django_asgi_server,
}


class _Handler(ASGIHandler):
    """Django's, which leaves the file of a request's body open where a stream raises."""

    async def read_body(self, receive: Any) -> Any:
        with await super().read_body(receive) as file:
            return BytesIO(file.read())


def _uvicorn(app: Any) -> AbstractContextManager[int]:
    return served_by_uvicorn(app, http="h11", date_header=False, server_header=False)


def _project(view: Any, settings: dict[str, Any]) -> AbstractContextManager[Any]:
    return override_settings(
        MIDDLEWARE=["upstash_middleware.django.CacheMiddleware"],
        ROOT_URLCONF=Urls(anything=view),
        UPSTASH_MIDDLEWARE=settings,
        DEBUG_PROPAGATE_EXCEPTIONS=False,
    )


def _asked(origin: Origin, request: HttpRequest) -> Given:
    return origin.answer(request.method or "", request.path, request.headers.items())


def _django_response(given: Given, *, is_async: bool) -> HttpResponseBase:
    response: HttpResponseBase
    if len(given.pieces) == 1 and not given.fault:
        response = HttpResponse(given.pieces[0], status=given.status)
    elif given.pieces:
        pieces: Any = _asynchronously(_pieces(given)) if is_async else _pieces(given)
        response = StreamingHttpResponse(pieces, status=given.status)
    else:
        response = HttpResponse(status=given.status)
    del response["Content-Type"]
    for name, value in given.fields:
        if name.lower() == "set-cookie":
            response.cookies.load(value)
        else:
            response[name] = f"{response[name]}, {value}" if name in response else value
    return response


async def _asynchronously(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def _pieces(given: Given) -> Iterator[bytes]:
    for piece in given.pieces:
        yield piece
        if given.fault == "breaks":
            raise RuntimeError("as the case wants it")


class _Quiet(WSGIRequestHandler):
    """Speaks HTTP/1.1, and writes no log."""

    protocol_version = "HTTP/1.1"

    def send_response(self, code: int, message: str | None = None) -> None:
        """Add neither Date nor Server: the stored ones are to be seen."""
        self.send_response_only(code, message)

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass


@contextmanager
def _werkzeug(app: Any) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    server.log = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
