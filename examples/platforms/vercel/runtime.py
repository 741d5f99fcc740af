"""Vercel's Python runtime, as far as an application can tell: a server on the loopback interface.

ASGI applications run under uvicorn with its own settings; WSGI ones under a server of threads,
whose ``REMOTE_ADDR`` is the forwarded field. An invocation ends, and the process may freeze, when
the application has returned, or its iterable has been closed.
"""

from __future__ import annotations

import io
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

from tests.asgi.serving import served_by_uvicorn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from wsgiref.types import WSGIApplication

    from upstash_middleware.asgi import ASGIApp, Receive, Scope, Send


@contextmanager
def asgi(app: ASGIApp, ended: Callable[[], None]) -> Iterator[str]:
    """Run an ASGI application, and give its address; ``ended`` is called where it may freeze."""

    async def invoked(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            if scope["type"] == "http":
                ended()

    with served_by_uvicorn(invoked) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def wsgi(app: WSGIApplication, ended: Callable[[], None]) -> Iterator[str]:
    """Run a WSGI application, and give its address; ``ended`` is called where it may freeze."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                self.answer()
            finally:
                ended()

        def answer(self) -> None:
            response = app(environ_of(self), self.start)
            try:
                for data in response:
                    self.wfile.write(data)
            finally:
                if hasattr(response, "close"):
                    response.close()

        def start(self, status: str, fields: list[tuple[str, str]], _: Any = None) -> Any:
            self.send_response(int(status.split(" ", maxsplit=1)[0]))
            for name, value in fields:
                self.send_header(name, value)
            self.end_headers()
            return self.wfile.write

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def environ_of(handler: BaseHTTPRequestHandler) -> dict[str, Any]:
    """Return a request's environ as the runtime makes it."""
    fields = handler.headers
    path, _, query = handler.path.partition("?")
    environ: dict[str, Any] = {
        "CONTENT_LENGTH": "0",
        "CONTENT_TYPE": fields.get("content-type", ""),
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": fields.get("x-forwarded-for", fields.get("x-real-ip")),
        "REQUEST_METHOD": handler.command,
        "SERVER_NAME": fields.get("host", "lambda"),
        "SERVER_PORT": fields.get("x-forwarded-port", "80"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.errors": sys.stderr,
        "wsgi.input": io.BytesIO(),
        "wsgi.multiprocess": False,
        "wsgi.multithread": False,
        "wsgi.run_once": False,
        "wsgi.url_scheme": fields.get("x-forwarded-proto", "http"),
        "wsgi.version": (1, 0),
    }
    for name, value in fields.items():
        environ["HTTP_" + name.replace("-", "_").upper()] = value
    return environ
