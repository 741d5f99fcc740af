"""HTTP/1.1 as a client speaks it (RFC 9112): calls to bytes, bytes to responses. No I/O.

Every request is a POST with a Content-Length. One request is in flight on a connection at a time.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import httptools

from upstash_middleware.errors import ConnectionLost, UnexpectedAnswer
from upstash_middleware.upstash.protocol import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.upstash.protocol import Call, Header

MAX_HEAD_BYTES: Final = 65_536
"""The longest head that is read: far beyond any of Upstash's."""

MAX_RESPONSE_BYTES: Final = 100_000_000
"""The longest response that is read: ten times what Upstash accepts in one request."""

_MAX_INTERIM: Final = 20
"""The most interim (1xx) responses before a final one."""

_PATH_CHARACTERS: Final = "/%:@!$&'()*+,;=~"
_TARGET = re.compile(r"[!-~]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~]*")


class Requests:
    """Encodes the requests to one URL; what all of them have in common is encoded once."""

    __slots__ = ("_common", "_path")

    def __init__(self, url: str, headers: Iterable[Header]) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        name = host if host.isascii() else host.encode("idna").decode()
        name = f"[{name}]" if ":" in name else name
        default = 443 if parts.scheme == "https" else 80
        authority = name if parts.port in {None, default} else f"{name}:{parts.port}"
        self._path = quote(parts.path, safe=_PATH_CHARACTERS).encode()
        self._common = b" HTTP/1.1\r\n" + _lines((("Host", authority), *headers))

    def request(self, call: Call) -> bytes:
        """Return the whole request; raises ValueError for what would not fit on one line."""
        if _TARGET.fullmatch(call.path) is None:
            raise ValueError(
                f"the path {call.path[:60]!r} has a character that a request line cannot contain"
            )
        return b"POST %b%b%b%bContent-Length: %d\r\n\r\n%b" % (
            self._path,
            call.path.encode("ascii"),
            self._common,
            _lines(call.headers),
            len(call.body),
            call.body,
        )


@lru_cache(32)  # calls have few different header fields
def _lines(headers: tuple[Header, ...]) -> bytes:
    lines = []
    for name, value in headers:
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise ValueError(f"the header {name[:60]!r} has a character that a field cannot have")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines).encode("ascii")


class ResponseReader:
    """Reads one response from the pieces in which it arrives, with llhttp.

    Its own part is what llhttp does not do: interim responses are skipped, the size is bounded,
    and whatever makes the end of a response uncertain is rejected or ends the connection.
    """

    __slots__ = (
        "_body",
        "_content_type",
        "_framed",
        "_head",
        "_in_head",
        "_interim",
        "_parser",
        "_received",
        "_response",
        "_sync_token",
        "reusable",
    )

    def __init__(self) -> None:
        self.reusable: bool = False
        """Whether another request may follow on the connection, once the response is complete."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        """None once the response is complete, which breaks the reference cycle."""
        self._response: Response | None = None
        self._received = 0
        self._interim = 0
        self._body: bytes | bytearray = b""
        self._in_head = True
        self._head = 0
        self._framed = False
        self._content_type = b""
        self._sync_token: bytes | None = None

    def feed(self, data: bytes) -> Response | None:
        """Take the next bytes; return the response if they complete it.

        Raises UnexpectedAnswer for what is not HTTP/1.x or exceeds a bound.
        """
        assert self._parser is not None, "the response is complete"  # noqa: S101
        self._received += len(data)
        try:
            if self._received > MAX_RESPONSE_BYTES:
                raise _too_long(MAX_RESPONSE_BYTES)
            self._parser.feed_data(data)
            if self._response is None:
                if self._in_head and self._received > MAX_HEAD_BYTES:
                    raise _too_long(MAX_HEAD_BYTES)
                return None
        except UnexpectedAnswer:
            self._parser = None
            raise
        except httptools.HttpParserError as error:
            if self._response is None:
                self._parser = None
                cause = error.__context__
                raise (
                    cause
                    if isinstance(cause, UnexpectedAnswer)
                    else UnexpectedAnswer(f"the response is not HTTP/1.1: {error}")
                ) from None
            self.reusable = False  # bytes after its end belong to no response
        self._parser = None
        return self._response

    def end(self, *, orderly: bool = True) -> Response:
        """Raise for a connection that ended before the response did.

        ``orderly`` is False if TLS did not announce the end: someone else may have caused it.
        """
        self._parser = None
        if self._in_head:
            part = "within the head" if self._received else "before the head"
            raise ConnectionLost(f"the connection to Upstash was closed {part} of its response")
        close_notify = "" if orderly else ", without close_notify"
        raise UnexpectedAnswer(f"the response was cut short{close_notify}")

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self._response is not None:  # bytes after its end belong to no response
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > MAX_HEAD_BYTES:
            raise _too_long(MAX_HEAD_BYTES)
        if not self._in_head:
            return  # a trailer (RFC 9112 §7.1.2)
        name = name.lower()
        if name == b"content-type":
            self._content_type = value
        elif name == b"upstash-sync-token":
            self._sync_token = value
        elif name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            if value.strip(b" \t").lower() != b"chunked":
                raise UnexpectedAnswer("the response has a transfer coding that was not requested")
            self._framed = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101
        self._in_head = False
        status = self._parser.get_status_code()
        if status < 100 or not self._parser.get_http_version().startswith("1."):
            raise UnexpectedAnswer("the response is not HTTP/1.1: it has an unexpected status line")
        if status == 101:  # RFC 9110 §15.2.2: the request did not ask for it
            raise UnexpectedAnswer("the response switches to another protocol")
        if not self._framed and status >= 200 and status not in {204, 304}:
            # RFC 9112 §8: whether such a response is complete is uncertain.
            raise UnexpectedAnswer("the response has no length")

    def on_body(self, piece: bytes) -> None:
        if not self._body:
            self._body = piece
            return
        if isinstance(self._body, bytes):  # not a list: an object for each small chunk is large
            self._body = bytearray(self._body)
        self._body += piece

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser is None or self._response is not None:
            return
        status = parser.get_status_code()
        if status < 200:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise UnexpectedAnswer(f"more than {_MAX_INTERIM} interim responses arrived")
            self._in_head, self._head, self._framed = True, 0, False
            self._content_type, self._sync_token = b"", None
            return
        token = self._sync_token
        # RFC 9112 §9.3: persistence in HTTP/1.0 is not reliable.
        self.reusable = parser.should_keep_alive() and parser.get_http_version() == "1.1"
        self._response = Response(
            status,
            self._content_type.decode("latin-1"),
            bytes(self._body),
            None if token is None else token.decode("latin-1"),
        )


def _too_long(limit: int) -> UnexpectedAnswer:
    return UnexpectedAnswer(f"the response is longer than {limit} bytes")
