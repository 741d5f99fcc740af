"""ASGI's scopes and messages as the package's own values, and back; nothing is sent here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

from upstash_middleware.handlers import REFRESH
from upstash_middleware.messages import Headers, Request, ResponseHead

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_OF_ANY_REQUEST = (
    "type",
    "asgi",
    "http_version",
    "scheme",
    "path",
    "raw_path",
    "root_path",
    "query_string",
    "server",
    "client",
    "app",  # Starlette's, which its routing asks for
)


def request_of(scope: Scope) -> Request:
    """Return the request that an HTTP scope tells of, or a WebSocket's, whose handshake is one."""
    headers = Headers(map(tuple, scope["headers"]))
    path: str = scope["path"]
    """Includes root_path already: ASGI specification, HTTP connection scope."""
    sent = (scope.get("raw_path") or b"").decode("latin-1")
    client = scope.get("client")
    return Request(
        scope.get("method", "GET"),  # of a handshake: RFC 6455 §4.1
        path,
        headers,
        scope.get("query_string", b"").decode("latin-1"),
        scope.get("scheme", "http"),
        _host(headers),
        (client[0] or None) if client else None,
        # Middleware outside may have rewritten the path alone; what was sent is then about another
        # resource, and two resources must never share a stored response.
        sent if sent == path or unquote(sent) == path else "",
        scope,
    )


def _host(headers: Headers) -> str:
    for name, value in headers.raw:  # it is among the first, and in lower case, as ASGI has it
        if name == b"host":
            return value.decode("latin-1").lower()
    return (headers.get("host") or "").lower()


def refresh_scope(scope: Scope, request: Request, lifespan_state: Mapping[str, Any]) -> Scope:
    """Return the scope of a request made in nobody's name, after the one that it refreshes.

    What middleware outside has found out about that one's sender is left behind, wherever it was
    put: only names known to be of any request are kept.
    """
    kept = {name: scope[name] for name in _OF_ANY_REQUEST if name in scope}
    headers = list(request.headers.raw)
    return {
        **kept,
        "method": request.method,
        "headers": headers,
        "state": {**lifespan_state},
        REFRESH: True,
    }


async def nothing_more() -> Message:
    """Receive what a request without a body has."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def to_nobody(message: Message) -> None:
    """Send a response that nobody waits for."""


def headers_of(pairs: Iterable[Iterable[bytes]]) -> Headers:
    """Return header fields; a server's pairs may be lists."""
    return Headers(map(tuple, pairs))  # type: ignore[arg-type] # each is of two


def start_message(head: ResponseHead) -> Message:
    """Return the message that starts a response."""
    return {
        "type": "http.response.start",
        "status": head.status,
        # ASGI wants lower case, and middleware outside looks for nothing else.
        "headers": head.headers.lowered(),
    }
