"""The contract's application in Flask, called as a WSGI server calls it (PEP 3333)."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from flask import Flask, Response, g, request

from tests.contract.neutral import Answer, Seen, limited
from upstash_middleware import Warmed, flask, warm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from wsgiref.types import WSGIEnvironment

    from tests.contract.neutral import Fields, Handler, Layers, Limits, Reply, Served

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class _Flask:
    """A Backend; see ``neutral``."""

    name = "flask"

    @contextmanager
    def serve(self, handler: Handler, layers: Layers, limits: Limits) -> Iterator[Served]:
        app = Flask("contract", static_folder=None)
        has_cache = any(name != "RateLimitMiddleware" for name, _ in layers)

        def view(path: str) -> Response:
            return response_of(handler(seen_of(has_cache=has_cache)))

        view = limited(view, flask.limit, limits)
        app.add_url_rule("/", view_func=view, defaults={"path": ""}, methods=_METHODS)
        app.add_url_rule("/<path:path>", view_func=view, methods=_METHODS)
        for name, arguments in reversed(layers):
            getattr(flask, name)(app, **arguments)
        try:
            yield ServedByWSGI(app)
        finally:
            for middleware in app.extensions.get(flask.EXTENSION, {}).values():
                middleware.runtime.close()
            if (own := app.extensions.get("upstash_middleware.limits")) is not None:
                own.close()


FLASK = _Flask()


def seen_of(*, has_cache: bool) -> Seen:
    return Seen(
        method=request.method,
        path=request.path,
        query=request.query_string.decode("latin-1"),
        headers=tuple(request.headers.items()),
        body=request.get_data(),
        cookies=lambda name: request.cookies.get(name),  # noqa: PLW0108 - parses when called
        rate_limit=getattr(g, "rate_limit", None),
        purge=flask.purge if has_cache else None,
    )


def response_of(reply: Reply) -> Response:
    body = reply.body if isinstance(reply.body, bytes) else iter(reply.body)
    return Response(body, reply.status, list(reply.headers))


class ServedByWSGI:
    """A Served that does with each response what a WSGI server does."""

    def __init__(self, app: Flask) -> None:
        self._app = app

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
        path, _, query = target.partition("?")
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": root_path,
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "RAW_URI": root_path + target,
            "REMOTE_ADDR": peer,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1" if announced else "HTTP/2",
            "wsgi.input_terminated": True,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **_header_variables((("host", host), *headers)),
        }
        if body and announced:
            environ["CONTENT_LENGTH"] = str(len(body))
        return _answered(self._app, environ)

    def warm(self, *urls: str, **options: Any) -> list[Warmed]:
        return warm(self._app, urls, **options)


def _header_variables(headers: Fields) -> dict[str, str]:
    """Return header fields as a server does: lines of one name joined (RFC 9110 §5.2)."""
    variables: dict[str, str] = {}
    for name, value in headers:
        key = name.upper().replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        separator = "; " if key == "HTTP_COOKIE" else ", "
        variables[key] = variables[key] + separator + value if key in variables else value
    return variables


def _answered(app: Flask, environ: WSGIEnvironment) -> Answer:
    started: list[tuple[str, Fields]] = []
    pieces: list[bytes] = []

    def start_response(status: str, fields: list[tuple[str, str]], _: Any = None, /) -> Any:
        started.append((status, tuple(fields)))
        return pieces.append

    iterable = app(environ, start_response)
    try:
        pieces.extend(iterable)
    except Exception:
        if not started:  # else a server has sent what there is, and cuts the connection
            raise
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
    status, fields = started[-1]
    body = b"" if environ["REQUEST_METHOD"] == "HEAD" else b"".join(pieces)
    return Answer(int(status[:3]), fields, body)
