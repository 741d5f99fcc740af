"""A WSGI environ as a Request, and a ResponseHead as a status line and fields (PEP 3333).

Translation only; ``wsgi`` calls it and decides nothing here.
"""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from io import BytesIO
from itertools import compress, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from upstash_middleware.handlers import REFRESH
from upstash_middleware.messages import PATH_SAFE, Headers, Request, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from wsgiref.types import WSGIEnvironment

_WITHOUT_PREFIX = ("CONTENT_TYPE", "CONTENT_LENGTH")
_EMPTY_IF_ABSENT = (b"content-type", b"content-length")
_FIRST, _SECOND = itemgetter(0), itemgetter(1)
_DEFAULT_PORTS = {"http": "80", "https": "443"}

_OF_ANY_REQUEST = (
    "SCRIPT_NAME",
    "PATH_INFO",
    "QUERY_STRING",
    "RAW_URI",
    "REMOTE_ADDR",
    "REQUEST_URI",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
    "SERVER_SOFTWARE",
    "wsgi.errors",
    "wsgi.file_wrapper",
    "wsgi.multiprocess",
    "wsgi.multithread",
    "wsgi.run_once",
    "wsgi.url_scheme",
    "wsgi.version",
)


def request_of(environ: WSGIEnvironment) -> Request:
    """Return the request that an environ tells of.

    The method is in upper case, as Werkzeug and Django route on it: a rule for ``POST`` holds
    for ``post`` too.
    """
    path = _bytes(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""))
    return Request(
        environ["REQUEST_METHOD"].upper(),
        path.decode("utf-8", "replace"),
        Headers(_fields(environ)),
        environ.get("QUERY_STRING", ""),
        environ["wsgi.url_scheme"],
        _host(environ),
        environ.get("REMOTE_ADDR") or None,
        _sent_path(environ, path),
        environ,
    )


def forwarded(environ: WSGIEnvironment, was: Headers, now: Headers) -> WSGIEnvironment:
    """Return an environ whose header fields are ``now`` in place of ``was``."""
    changed = {name for name in (*was.names(), *now.names()) if was.lines(name) != now.lines(name)}
    if not changed:
        return environ
    environ = environ.copy()  # what stands outside of us goes on seeing the client's request
    for name in changed:
        key = _key(name)
        value = now.combined(name)
        if value is None:
            del environ[key]
        else:
            environ[key] = value
    return environ


def head_of(status: str, fields: Sequence[tuple[str, str]]) -> ResponseHead:
    """Return what an application gave to ``start_response`` as a value."""
    latin = repeat("latin-1")
    names, values = map(_FIRST, fields), map(_SECOND, fields)
    raw = zip(map(str.encode, names, latin), map(str.encode, values, latin), strict=True)
    return ResponseHead(int(status[:3]), Headers(raw))


def refresh_environ(environ: WSGIEnvironment, request: Request) -> WSGIEnvironment:
    """Return the environ of a request made in nobody's name, after the one that it refreshes.

    It has no body, and nothing that the server or middleware outside have added for that one.
    """
    kept = {name: environ[name] for name in _OF_ANY_REQUEST if name in environ}
    fields = {_key(name): ",".join(request.headers.lines(name)) for name in request.headers.names()}
    return {
        **kept,
        **fields,
        "REQUEST_METHOD": request.method,
        "wsgi.input": BytesIO(),
        REFRESH: True,
    }


def to_nobody(
    _status: str, _headers: list[tuple[str, str]], _exc_info: Any = None, /
) -> Callable[[bytes], object]:
    """Start a response that nobody waits for."""
    return len


def status_line(status: int) -> str:
    """Return the status with its reason phrase; PEP 3333 wants one, whatever the status."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def fields_of(headers: Headers) -> list[tuple[str, str]]:
    """Return header fields as ``start_response`` takes them."""
    latin = repeat("latin-1")
    names, values = map(_FIRST, headers.raw), map(_SECOND, headers.raw)
    return [*zip(map(bytes.decode, names, latin), map(bytes.decode, values, latin), strict=True)]


def _fields(environ: WSGIEnvironment) -> list[tuple[bytes, bytes]]:
    names: list[Any] = [*map(_name, environ)]  # most keys are no field's
    return [
        (name, value.encode("latin-1", "backslashreplace"))  # as _bytes, without a call for each
        for name, value in compress(zip(names, environ.values(), strict=True), names)
        if value or name not in _EMPTY_IF_ABSENT
    ]


@lru_cache(maxsize=512)
def _name(key: str) -> bytes | None:
    """Return the name of the header field that a key stands for; None if it is none."""
    if key not in _WITHOUT_PREFIX:
        if not key.startswith("HTTP_") or key[5:] in _WITHOUT_PREFIX:
            return None
        key = key[5:]
    return key.replace("_", "-").lower().encode("latin-1")


def _key(name: str) -> str:
    key = name.replace("-", "_").upper()
    return key if key in _WITHOUT_PREFIX else f"HTTP_{key}"


def _host(environ: WSGIEnvironment) -> str:
    """Return the Host field, or what PEP 3333 ("URL Reconstruction") has in its place."""
    host: str = environ.get("HTTP_HOST", "")
    if not host:
        host, port = environ["SERVER_NAME"], environ["SERVER_PORT"]
        if port != _DEFAULT_PORTS.get(environ["wsgi.url_scheme"]):
            host = f"{host}:{port}"
    return host.lower()


def _sent_path(environ: WSGIEnvironment, path: bytes) -> str:
    """Return the path as it was sent, where the server tells and nothing has changed it since.

    A middleware outside of us may have rewritten PATH_INFO; the server's word is then about
    another resource, and two resources must never share a stored response.
    """
    sent: str = (environ.get("RAW_URI") or environ.get("REQUEST_URI") or "").partition("?")[0]
    if not sent.startswith("/"):  # RFC 9112 §3.2.2: the absolute-form has an authority before it
        sent = "/" + sent.partition("://")[2].partition("/")[2]
    is_plain = sent.isascii() and "%" not in sent
    if (sent.encode() if is_plain else unquote_to_bytes(sent)) == path:
        return sent
    return quote(path, safe=PATH_SAFE)


def _bytes(text: str) -> bytes:
    """Return a native string's bytes: Latin-1 by PEP 3333, told apart where a layer broke that."""
    return text.encode("latin-1", "backslashreplace")
