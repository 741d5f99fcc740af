"""What a hostile client can send, as strategies; and an application to send it to."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from hypothesis import strategies as st

from upstash_middleware import CacheRule, FixedWindow, RateLimitRule, combine, cookie, header, query
from upstash_middleware.asgi import UpstashMiddleware as ASGIMiddleware
from upstash_middleware.core.identify import client_ip, first_of
from upstash_middleware.wsgi import UpstashMiddleware as WSGIMiddleware

if TYPE_CHECKING:
    import asyncio

    from upstash_middleware.events import Event

NASTY = [
    b"",
    b"\r\nSet-Cookie: evil=1",
    b"\nINFO forged line",
    b"\x00",
    b"\xff\xfe\xfd",
    b"\xed\xa0\x80",
    b'"\\"; max-age=99999999999999999999',
    b"max-age=" + b"9" * 5000,
    b"bytes=" + b"0-," * 2000,
    b"," * 5000,
    b'"' * 5000,
    b"W/" * 3000,
    b"*",
    b"for=" + b"[" * 2000,
    b"1.2.3.4, " * 1000,
    b"::ffff:" + b"1:" * 100,
    b"Thu, 99 Foo 99999 99:99:99 GMT",
    b"a=b; " * 3000,
    b"%" * 3000,
    b"a" * 60_000,
]
FIELD_NAMES = [
    b"accept",
    b"accept-language",
    b"age",
    b"authorization",
    b"cache-control",
    b"content-length",
    b"cookie",
    b"date",
    b"forwarded",
    b"host",
    b"if-match",
    b"if-modified-since",
    b"if-none-match",
    b"if-range",
    b"pragma",
    b"range",
    b"ratelimit",
    b"transfer-encoding",
    b"vary",
    b"x-api-key",
    b"x-forwarded-for",
    b"x-ratelimit-remaining",
    b"\xff",
    b"",
]
VALUES = st.one_of(st.sampled_from(NASTY), st.binary(max_size=60))
FIELDS = st.lists(st.tuples(st.sampled_from(FIELD_NAMES), VALUES), max_size=12)
PATHS = st.one_of(
    st.sampled_from(
        [
            b"/page/%2f%2e%2e%2fadmin",
            b"/page/..%00",
            b"//page//",
            b"/page/%",
            b"/page/%zz",
            b"/page/%C3%28",
            b"/page/%ED%A0%80",
            b"/page/\r\nX: y",
            b"/page/" + b"%2e" * 3000,
            b"/page/" + b"a" * 20_000,
            b"*",
            b"",
            b"http://other.example/page/x",
        ]
    ),
    st.binary(max_size=40).map(lambda tail: b"/page/" + tail),
)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "get", "A" * 10_000, "GE\r\nT", "PURGE", "\xff"])


@dataclass(frozen=True)
class Hostile:
    """One request."""

    method: str
    path: bytes
    query: bytes
    fields: list[tuple[bytes, bytes]]
    peer: str
    """The server's own word, not the client's."""


REQUESTS = st.builds(
    Hostile,
    METHODS,
    PATHS,
    VALUES,
    FIELDS,
    st.sampled_from(["203.0.113.9", "::1", "2001:db8::7"]),
)

SECRET = b"s3cr3t-0f-the-us3r"
TOKEN_FIELDS = [
    (b"authorization", b"Bearer " + SECRET),
    (b"cookie", b"session=" + SECRET + b"; theme=dark"),
    (b"x-api-key", SECRET),
]


def settings(prefix: str, events: list[Event]) -> dict[str, Any]:
    """Return a middleware's arguments that read as much of a request as they can."""
    return {
        "rate_limits": [
            RateLimitRule(
                "/page/{rest:path}",
                [FixedWindow(1_000_000, 60)],
                name="page",
                by=first_of(header("x-api-key"), cookie("session"), client_ip(trusted_hops=1)),
            ),
        ],
        "default_limit": RateLimitRule(
            limits="1000000/minute", name="default", by=combine(query("q"), client_ip())
        ),
        "cache": [
            CacheRule(
                "/page/{rest:path}",
                ttl=60,
                tags=("page:{rest}",),
                vary_cookies=("theme",),
                vary_headers=("accept-language",),
                ignore_query=("utm_*",),
            )
        ],
        "prefix": prefix,
        "deadline": 20.0,
        "cache_deadline": 20.0,
        "observers": [events.append],
    }


PAGE_FIELDS = [(b"content-type", b"text/plain"), (b"vary", b"accept")]


class OverASGI:
    """The application over ASGI."""

    def __init__(self, runner: asyncio.Runner, arguments: dict[str, Any]) -> None:
        self._runner = runner
        self.middleware = ASGIMiddleware(self._app, **arguments)

    async def _app(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": PAGE_FIELDS})
        await send({"type": "http.response.body", "body": b"page"})

    def send(self, hostile: Hostile) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return status and header fields of the answer."""
        return self._runner.run(self._send(hostile))

    async def _send(self, hostile: Hostile) -> tuple[int, list[tuple[bytes, bytes]]]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": hostile.method,
            "scheme": "http",
            "path": hostile.path.decode("utf-8", "replace"),
            "raw_path": hostile.path,
            "query_string": hostile.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in hostile.fields],
            "client": (hostile.peer, 1),
            "server": ("127.0.0.1", 80),
        }
        await self.middleware(scope, receive, send)
        return sent[0]["status"], list(sent[0]["headers"])

    def close(self) -> None:
        """Close what was opened."""
        self._runner.run(self.middleware.runtime.aclose())


class OverWSGI:
    """The application over WSGI."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.middleware = WSGIMiddleware(self._app, **arguments)

    def _app(self, _environ: Any, start_response: Any) -> list[bytes]:
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in PAGE_FIELDS]
        start_response("200 OK", fields)
        return [b"page"]

    def send(self, hostile: Hostile) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Return status and header fields of the answer."""
        started: list[Any] = []
        environ: dict[str, Any] = {
            "REQUEST_METHOD": hostile.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(hostile.path).decode("latin-1"),
            "RAW_URI": hostile.path.decode("latin-1"),
            "QUERY_STRING": hostile.query.decode("latin-1"),
            "REMOTE_ADDR": hostile.peer,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.version": (1, 0),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in hostile.fields:
            key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
            environ[key] = value.decode("latin-1")

        def start_response(status: str, fields: Any, _: Any = None) -> Any:
            started.append((int(status[:3]), fields))
            return lambda _data: None

        iterable = self.middleware(environ, start_response)
        for _ in iterable:
            pass
        if hasattr(iterable, "close"):
            iterable.close()
        status, fields = started[-1]
        return status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]

    def close(self) -> None:
        """Close what was opened."""
        self.middleware.runtime.close()
