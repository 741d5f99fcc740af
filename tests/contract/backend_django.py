"""Django in the contract: real handlers of both kinds, called as servers call them.

``WSGIHandler`` gets environs and ``ASGIHandler`` gets scopes. The layers stand in ``MIDDLEWARE``
and share one setting, as in a project. No test lives here.
"""

from __future__ import annotations

import io
import itertools
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import setup_testing_defaults

from anyio import sleep_forever
from anyio.from_thread import start_blocking_portal
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.test import override_settings

from tests.contract.neutral import Answer, Reply, Seen, limited
from tests.django.project import Urls
from upstash_middleware import Warmed, awarm, warm
from upstash_middleware.django import limit, purge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from anyio.from_thread import BlockingPortal
    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from tests.contract.neutral import Fields, Handler, Layers, Limits, Served


class DjangoWSGI:
    """Django under a WSGI server."""

    name = "django-wsgi"

    @contextmanager
    def serve(self, handler: Handler, layers: Layers, limits: Limits) -> Iterator[Served]:
        """Serve a project with the handler as its only view."""
        has_cache = _has_cache(layers)

        def view(request: HttpRequest) -> HttpResponseBase:
            return response_of(handler(seen_of(request, has_cache)))

        with override_settings(**settings_of(limited(view, limit, limits), layers)):
            yield WSGIServed(WSGIHandler())


class DjangoASGI:
    """Django under an ASGI server."""

    name = "django-asgi"

    @contextmanager
    def serve(self, handler: Handler, layers: Layers, limits: Limits) -> Iterator[Served]:
        """Serve a project with the handler, in a thread, as its only view, which is async."""
        has_cache = _has_cache(layers)

        async def view(request: HttpRequest) -> HttpResponseBase:
            reply = await sync_to_async(handler)(seen_of(request, has_cache))
            return response_of(reply, is_async=True)

        with (
            override_settings(**settings_of(limited(view, limit, limits), layers)),
            start_blocking_portal() as portal,
        ):
            yield ASGIServed(ASGIHandler(), portal)


DJANGO_WSGI = DjangoWSGI()
DJANGO_ASGI = DjangoASGI()


def _has_cache(layers: Layers) -> bool:
    return any(name != "RateLimitMiddleware" for name, _ in layers)


def settings_of(view: Any, layers: Layers) -> dict[str, Any]:
    mapping = dict(itertools.chain.from_iterable(given.items() for _, given in layers))
    return {
        "MIDDLEWARE": [f"upstash_middleware.django.{name}" for name, _ in layers],
        "ROOT_URLCONF": Urls(anything=view),
        "UPSTASH_MIDDLEWARE": mapping,
    }


def seen_of(request: HttpRequest, has_cache: bool) -> Seen:
    return Seen(
        method=request.method or "",
        path=request.path,
        query=request.META["QUERY_STRING"],
        headers=tuple(request.headers.items()),
        body=request.body,
        cookies=request.COOKIES.get,
        rate_limit=getattr(request, "rate_limit", None),
        purge=purge if has_cache else None,
    )


def response_of(reply: Reply, *, is_async: bool = False) -> HttpResponseBase:
    response: HttpResponseBase
    if isinstance(reply.body, bytes):
        response = HttpResponse(reply.body, status=reply.status)
    else:
        pieces = _asynchronously(reply.body) if is_async else reply.body
        response = StreamingHttpResponse(pieces, status=reply.status)
    del response["Content-Type"]
    for name, value in reply.headers:
        if name.lower() == "set-cookie":
            response.cookies.load(value)
        else:  # Django holds a field once
            response[name] = f"{response[name]}, {value}" if name in response else value
    return response


async def _asynchronously(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    iterator = iter(pieces)
    while (piece := await sync_to_async(lambda: next(iterator, None))()) is not None:
        yield piece


class WSGIServed:
    def __init__(self, handler: WSGIHandler) -> None:
        self._handler = handler

    def request(
        self,
        method: str,
        target: str,
        headers: Fields = (),
        body: bytes = b"",
        *,
        peer: str = "203.0.113.9",
        host: str = "shop.example",
        root_path: str = "",
        announced: bool = True,
    ) -> Answer:
        """Call the handler as a server that leaves out the body of an answer to HEAD."""
        environ = _environ(method, target, (("Host", host), *headers), body, peer)
        environ["SCRIPT_NAME"] = root_path
        if not announced:
            environ |= {"SERVER_PROTOCOL": "HTTP/2", "CONTENT_LENGTH": ""}
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, fields: list[tuple[str, str]], *_: Any) -> Any:
            started.append((status, fields))

        iterable = self._handler(environ, start_response)
        try:
            pieces = list(iterable)
        finally:
            iterable.close()
        ((status, fields),) = started
        return Answer(int(status[:3]), tuple(fields), _sent(method, pieces))

    def warm(self, *urls: str, **options: Any) -> list[Warmed]:
        return warm(self._handler, urls, **options)


def _environ(method: str, target: str, headers: Fields, body: bytes, peer: str) -> dict[str, Any]:
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "REMOTE_ADDR": peer,
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "wsgi.input": io.BytesIO(body),
    }
    for name, value in headers:
        key = name.upper().replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if environ.get(key) else value
    setup_testing_defaults(environ)
    return environ


class ASGIServed:
    def __init__(self, handler: ASGIHandler, portal: BlockingPortal) -> None:
        self._handler = handler
        self._portal = portal

    def request(
        self,
        method: str,
        target: str,
        headers: Fields = (),
        body: bytes = b"",
        *,
        peer: str = "203.0.113.9",
        host: str = "shop.example",
        root_path: str = "",
        announced: bool = True,
    ) -> Answer:
        """Call the handler as a server that leaves out the body of an answer to HEAD."""
        length = (("Content-Length", str(len(body))),) if body and announced else ()
        scope = _scope(method, target, (("Host", host), *length, *headers), peer)
        scope["root_path"] = root_path
        scope["path"] = root_path + scope["path"]
        scope["raw_path"] = root_path.encode("ascii") + scope["raw_path"]
        return self._portal.call(partial(self._serve, scope, body))

    def warm(self, *urls: str, **options: Any) -> list[Warmed]:
        return self._portal.call(partial(awarm, self._handler, urls, **options))

    async def _serve(self, scope: dict[str, Any], body: bytes) -> Answer:
        sent: list[Mapping[str, Any]] = []
        client = _Client(body)

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await self._handler(scope, client.receive, send)
        start, *rest = sent
        fields = tuple((name.decode(), value.decode("latin-1")) for name, value in start["headers"])
        pieces = [message.get("body", b"") for message in rest]
        return Answer(start["status"], fields, _sent(scope["method"], pieces))


class _Client:
    """The client's side: it sends its request and stays until it is answered."""

    def __init__(self, body: bytes) -> None:
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if not self._messages:
            await sleep_forever()  # the handler cancels it
        return self._messages.pop()


def _scope(method: str, target: str, headers: Fields, peer: str) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote_to_bytes(path).decode(),
        "raw_path": path.encode("ascii"),
        "query_string": query.encode("ascii"),
        "root_path": "",
        "headers": [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers],
        "client": (peer, 50000),
        "server": ("127.0.0.1", 80),
    }


def _sent(method: str, pieces: Iterable[bytes]) -> bytes:
    return b"" if method == "HEAD" else b"".join(pieces)
