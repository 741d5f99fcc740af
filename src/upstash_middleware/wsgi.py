"""The middleware classes for any WSGI application (PEP 3333); no other name here is public."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import Context
from functools import cache, lru_cache, partial
from http import HTTPStatus
from io import BufferedIOBase, BytesIO
from itertools import chain, compress, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, cast
from urllib.parse import quote, unquote_to_bytes

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.ratelimit.decision import UNCHECKED
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import (
    PATH_SAFE,
    UNANNOUNCED_BODY,
    WITHOUT_BODY,
    Headers,
    HTTPRequest,
    RequestBody,
    Response,
    ResponseHead,
    announces_no_body,
    content_length,
)
from upstash_middleware.runtime import BACKGROUND_REQUEST, Features, LazyProxy, Runtime, run_soon
from upstash_middleware.settings import WithSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Unpack
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.data import SyncData
    from upstash_middleware.settings import Arguments

__all__ = ["CacheMiddleware", "RateLimitMiddleware", "UpstashMiddleware"]

RATE_LIMIT_KEY = "upstash_middleware.rate_limit"
CACHE_KEY = "upstash_middleware.cache"
DATA_KEY = "upstash_middleware.data"
_INNER = "upstash_middleware.handed"
"""The environ's key in which a rate limit passes its exchange to the cache directly inside it."""
STREAMS = "upstash_middleware.streams"
"""The environ's key for weak references to the ResponseStreams of the middleware that may have
loaded the session or may store the response."""
_Fields = list[tuple[str, str]]


class Middleware:
    """A runtime around a WSGI application; the public subclasses differ only in their runtime.

    The application finds the rate limit decision at
    ``environ["upstash_middleware.rate_limit"]``. It purges stored responses with
    ``environ["upstash_middleware.cache"].purge("/products/7", tags=("product",))``, and caches
    its own values with ``environ["upstash_middleware.data"]``; see SyncData.
    """

    def __init__(self, app: WSGIApplication, runtime: Runtime) -> None:
        self.app = app
        self.runtime = runtime
        self._limits = Features.RATE_LIMIT in runtime.features
        self._caches = Features.CACHE in runtime.features
        self._data = LazyProxy(cache(partial(_data_over, runtime)))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request.

        Raises MissingCredentials, and all exceptions of the application.
        """
        environ.setdefault(RATE_LIMIT_KEY, UNCHECKED)
        if self._caches or DATA_KEY not in environ:
            environ[DATA_KEY] = self._data
        if self._caches:
            environ[CACHE_KEY] = self.runtime
        if not self.runtime.enabled:
            return self.app(environ, start_response)
        request, exchange = self._begin(environ)
        stream = ResponseStream(self.runtime, exchange, request.method, start_response)
        try:
            if exchange.response is not None:
                if (refresh := exchange.take_refresh()) is not None:
                    # In a new context, because context variables may contain the visitor's data.
                    stream.after_end = partial(Context().run, self._revalidate, environ, refresh)
                stream.send_whole(self.answer(environ, exchange.response, exchange.decision))
                return stream
            if exchange.decision is not None:
                environ[RATE_LIMIT_KEY] = exchange.decision
            if exchange.inner is not None:
                environ[_INNER] = request, exchange
            if exchange.watching or exchange.saving is not None:
                environ[STREAMS] = (*environ.get(STREAMS, ()), weakref.ref(stream))
            is_http1 = environ.get("SERVER_PROTOCOL", "HTTP/1").startswith("HTTP/1")
            if self._caches and not is_http1 and announces_no_body(request):
                forbid = partial(exchange.forbid_storing, UNANNOUNCED_BODY)
                environ["wsgi.input"] = _WatchedInput(environ["wsgi.input"], forbid)
            stream.call(self.app, environ, request.headers, exchange.request.headers)
        except Exception as error:
            if not stream.send_fallback(error):
                stream.close()
                raise
        except BaseException:
            stream.close()
            raise
        return stream

    def answer(
        self, _environ: WSGIEnvironment, response: Response, _decision: Decision | None, /
    ) -> Response:
        """Return the framework's form of a response of this package; subclasses override it."""
        return response

    def _begin(self, environ: WSGIEnvironment) -> tuple[HTTPRequest, Exchange]:
        """Begin an exchange, or continue the exchange of a limit directly outside."""
        begun: tuple[HTTPRequest, Exchange] | None = environ.pop(_INNER, None)
        if begun is not None:
            request, outer = begun
            inner: Exchange | None = outer.inner
            if inner is not None and inner.engine is self.runtime.engine:
                outer.take_inner()
                return request, inner
        request = request_of(environ)
        if self.runtime.reads_body:
            request = replace(request, body=EnvironBody(environ))
        return request, self.runtime.begin(request, self._directly_inside())

    def _directly_inside(self) -> Runtime | None:
        # No other pair is joined: after a denial or a hit, inner middleware must charge nothing.
        if self.runtime.features is not Features.RATE_LIMIT:
            return None
        inside: object = self.app
        # A Flask object, and our extension for it, call the current value of ``wsgi_app``.
        while (called := getattr(inside, "wsgi_app", None)) is not None:
            inside = called
        if isinstance(inside, Middleware) and inside.runtime.features is Features.CACHE:
            return inside.runtime
        return None

    def _revalidate(self, visitors: WSGIEnvironment, refresh: Exchange) -> None:
        """Revalidate a stored response with a request that contains no data of the visitor."""
        stream = ResponseStream(self.runtime, refresh, refresh.request.method, _ignore_head)
        try:
            environ = refresh_environ(visitors, refresh.request)
            environ |= {
                RATE_LIMIT_KEY: UNCHECKED,
                CACHE_KEY: self.runtime,
                DATA_KEY: self._data,
                STREAMS: (weakref.ref(stream),),
            }
            stream.call(self.app, environ)
            for _piece in stream:
                if not refresh.kept:
                    break  # a response that is not stored may never end
        except Exception as error:  # noqa: BLE001 - the client already has its response
            self.runtime.observe(UserCodeFailed("background refresh", error))
        finally:
            stream.close()


class _Configured(WithSettings["WSGIApplication"], Middleware):
    features: ClassVar[Features]

    def _configure(self, app: WSGIApplication, **arguments: Unpack[Arguments]) -> None:
        has_users = self.features is Features.CACHE  # no rate limit rules identify the user
        runtime = Runtime.of(
            arguments, self.features, refreshes=True, has_users=has_users, own="Client"
        )
        Middleware.__init__(self, app, runtime)


class UpstashMiddleware(_Configured):
    """Rate limits and response cache in one middleware; cache hits count against the limits."""

    features = Features.BOTH


class RateLimitMiddleware(_Configured):
    """Rate limits only. Directly outside a CacheMiddleware, both need one round trip in total."""

    features = Features.RATE_LIMIT


class CacheMiddleware(_Configured):
    """Response cache only. Outside a RateLimitMiddleware, its hits count against no limit."""

    features = Features.CACHE


def _data_over(runtime: Runtime) -> SyncData:
    from upstash_middleware.data import SyncData  # noqa: PLC0415 - only if used

    return SyncData.over(lambda: runtime)


def _ignore_head(_status: str, _headers: _Fields, _exc_info: Any = None, /) -> Any:
    """Ignore the head of a response that is discarded; used as ``start_response``."""
    return len


class _WatchedInput:
    """A ``wsgi.input`` that calls ``found`` when the application reads data from it."""

    def __init__(self, stream: Any, found: Callable[[], None]) -> None:
        self._stream = stream
        self._found = found

    def read(self, *size: int) -> Any:
        return self._seen(self._stream.read(*size))

    def readline(self, *size: int) -> Any:
        return self._seen(self._stream.readline(*size))

    def readlines(self, *hint: int) -> Any:
        return self._seen(self._stream.readlines(*hint))

    def __iter__(self) -> Iterator[Any]:
        return map(self._seen, self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _seen(self, data: Any) -> Any:
        if data:
            self._found()
        return data


_PIECE_BYTES = 64 * 1024


class EnvironBody(RequestBody):
    """A request's body, read from ``wsgi.input`` and put back there for the application."""

    __slots__ = ("_environ",)

    def __init__(self, environ: WSGIEnvironment) -> None:
        self._environ = environ

    def read(self, limit: int) -> bytes | None:
        """Read the body; without Content-Length, only if the server terminates ``wsgi.input``."""
        environ = self._environ
        stream = environ["wsgi.input"]
        if not isinstance(stream, ReadAhead):
            length = environ.get("CONTENT_LENGTH") or ""
            expected = int(length) if length.isascii() and length.isdecimal() else None
            if expected is None and not environ.get("wsgi.input_terminated"):
                return b""  # PEP 3333: an application must not read beyond Content-Length
            if expected is not None and expected > limit:
                return None
            stream = environ["wsgi.input"] = ReadAhead(stream, expected)
        return stream.whole(limit)


class ReadAhead(BufferedIOBase):
    """A request's body whose beginning has already been read; reads return the beginning first.

    ``expected`` is the body's length, or None if the stream itself ends after the body. This class
    never reads beyond the length, where a server's stream may block forever.
    """

    def __init__(self, stream: Any, expected: int | None = None) -> None:
        super().__init__()
        self._stream = stream
        self._expected = expected
        self._begun = BytesIO()
        self._is_whole = expected == 0

    def whole(self, limit: int) -> bytes | None:
        """Return the body if it has at most ``limit`` bytes and no one else has read from it."""
        if self._begun.tell():
            return None
        data = bytearray(self._begun.getvalue())
        most = limit + 1 if self._expected is None else self._expected
        with suppress(Exception):  # the application gets the stream's next result or error
            while not self._is_whole and len(data) < most:
                piece = self._stream.read(most - len(data))
                data += piece
                self._is_whole = not piece if self._expected is None else len(data) == most
                if not piece:
                    break
        self._begun = BytesIO(data)
        return bytes(data) if self._is_whole and len(data) <= limit else None

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        most = -1 if size is None or size < 0 else size
        data = self._begun.read(most)
        if self._is_whole or len(data) == most:
            return data
        if most >= 0:
            return data + cast("bytes", self._stream.read(most - len(data)))
        rest = bytearray(data)
        while piece := self._stream.read(
            _PIECE_BYTES
        ):  # granian's ``read()`` without a size loses data after reads with a size
            rest += piece
        return bytes(rest)

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        most = -1 if size is None or size < 0 else size
        line = self._begun.readline(most)
        if self._is_whole or line.endswith(b"\n") or len(line) == most:
            return line
        rest = (most - len(line),) if most >= 0 else ()
        return line + cast("bytes", self._stream.readline(*rest))


# ------------------------------------------------------------------------------------------------
# Responses


class ClosingBody:
    """A body that calls ``_end``, perhaps repeatedly, when it is exhausted, raises or is closed."""

    __slots__ = ("_close", "_pieces")

    def __init__(self, body: Iterable[Any]) -> None:
        self._pieces = iter(body)
        self._close: Callable[[], object] | None = getattr(body, "close", None)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._pieces)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        close, self._close = self._close, None
        try:
            if close is not None:
                close()
        finally:
            self._end()

    def _end(self) -> None:
        raise NotImplementedError


_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""The methods that invalidate nothing, because they are safe (RFC 9110 §9.2.1)."""


class ResponseStream(Struct, eq=False, weakref=True):
    """Passes one response from the application to the server, and finishes its exchange.

    The server gets this object as the iterable. The head is passed on when the application returns
    or yields its first piece; before that, the application may replace the head with
    ``start_response(…, exc_info)``. Each piece of the body is passed on when it arrives.

    The exchange ends once: when the body is exhausted or raises, when the server calls ``close``,
    or, if the server does neither, when this object is deleted. With ``finishes_first``, the
    exchange ends before the last piece is passed on.
    """

    _runtime: Runtime
    exchange: Exchange
    _method: str
    _start: StartResponse
    after_end: Callable[[], None] | None = None
    """Called after the server has received the last piece."""
    _ended: bool = False
    _head: tuple[str, _Fields] | None = None  # the application's head until it is passed on
    _head_sent: bool = False  # whether the server's ``start_response`` has been called
    _body_begun: bool = False
    """Whether the server has received a non-empty piece, and has therefore sent the head."""
    _write: Callable[[bytes], object] | None = None
    """The server's ``write``; None if the server has none, contrary to PEP 3333."""
    _unsent: list[bytes] = []
    """Data that the application passed to ``write`` if the server provides no ``write``."""
    _app_iterable: Iterable[bytes] = ()
    _close_app: Callable[[], object] | None = None
    """The ``close`` method of the application's iterable, until it is called."""
    _close_error: Exception | None = None  # raised by it before the server called our ``close``
    _swapping: AbstractContextManager[object] = nullcontext()
    """Swaps the header fields in the environ before and after each call of the application."""
    _pieces: Iterator[bytes] = iter(())
    _is_bodiless: bool = False  # whether no piece is passed on, even if the application sends any
    _drops: bool = False
    """Whether the exchange gets the body but the server does not: a 304 replaces the response."""
    _ours: bool = False  # whether the body is from this package, and the application's is dropped
    _announced: int | None = None
    """Remaining body bytes according to Content-Length; None without Content-Length."""
    _exhausted: bool = False
    _broken: bool = False

    def __post_init__(self) -> None:
        self._is_bodiless = self._method == "HEAD"

    def call(
        self,
        app: WSGIApplication,
        environ: WSGIEnvironment,
        clients: Headers | None = None,
        shown: Headers | None = None,
    ) -> None:
        """Call the application and pass on its response.

        With ``shown``, the application sees these header fields instead of the client's.
        """
        if clients is not None and shown is not None and shown is not clients:
            self._swapping = SwappedFields(environ, clients, shown)
        # A generator's frame keeps its arguments, and this object keeps the generator: without a
        # weak reference, only the garbage collector could free this reference cycle.
        this = weakref.ref(self)

        def start_response(status: str, headers: Any, exc_info: Any = None, /) -> Any:
            stream = this()
            if stream is None:
                raise RuntimeError("start_response was called after the response was dropped")
            return stream.start_response(status, headers, exc_info)

        with self._swapping:
            iterable = app(environ, start_response)
            self._app_iterable = iterable
            self._close_app = getattr(iterable, "close", None)
            if not self._ours:
                self._pieces = iter(iterable)
        # Servers compute Content-Length from a list, but they get this object instead: most servers
        # for a list with one item, Granian for a list of any length.
        if isinstance(iterable, list | tuple) and (
            len(iterable) <= 1 or environ.get("SERVER_SOFTWARE") == "Granian"
        ):
            self._add_length(sum(map(len, iterable)))
        self._send_head()

    def _add_length(self, length: int) -> None:
        if self._head is None or self._method == "HEAD":
            return
        status, fields = self._head
        has_length = "content-length" in [name.lower() for name, _ in fields]
        if not has_length and int(status[:3]) not in WITHOUT_BODY:
            self._head = status, [*fields, ("Content-Length", str(length))]

    def send_whole(self, response: Response) -> None:
        """Send a whole response of this package, for HEAD without its body."""
        body = b"" if self._method == "HEAD" else response.body
        self._ours, self._announced, self._pieces = True, len(body), iter((body,))
        self._exhausted = self._broken = False
        head = response.head
        self._call_start_response(status_line(head.status), fields_of(head.headers))

    def start_response(
        self, status: str, headers: _Fields, exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """Take the application's head, or a head that replaces it (PEP 3333)."""
        if self._ours:
            return self._write_piece
        if exc_info is None and (self._head_sent or self._head is not None):
            raise AssertionError("start_response was called again without exc_info (PEP 3333)")
        if not self._head_sent:
            self._head = status, headers
            return self._write_piece
        self._broken, self._announced = True, None
        if self._body_begun:  # the head has been sent; a server would raise this as well
            raise exc_info[1].with_traceback(exc_info[2])
        with self._swapping:
            self._start(status, headers, exc_info)
        return self._write_piece

    def send_fallback(self, error: Exception) -> bool:
        """Send a stored response if the application failed; return whether one was sent."""
        response = None if self._head_sent else self.exchange.failed()
        if response is None:
            return False
        self._runtime.observe(UserCodeFailed("the application", error))
        self._head = None
        self.send_whole(response)
        return True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next piece as soon as the application has one."""
        if self._body_begun and self.exchange.holding:
            self._renew()
        if self._unsent:
            sent = self._unsent.pop(0)
        else:
            piece = self._next_piece()
            if self._send_head() and self._ours:
                piece = self._next_piece()
            while self._drops and piece is not None:
                self._pass(piece)
                piece = self._next_piece()
            if self._runtime.finishes_first and self._is_bodiless and not self._ended:
                # A server sends the head with the first piece, so the client has everything then.
                while (
                    piece is not None and self._method not in _SAFE_METHODS
                ):  # the application must finish its writes first
                    self._pass(piece)
                    piece = self._next_piece()
                self._end(complete=not self._broken)
            if piece is None:
                self._end()
                self._run_after_end()
                raise StopIteration
            sent = self._pass(piece)
        if self._runtime.finishes_first and self._announced == 0 and not self._unsent:
            self._finish_before_last()
        return sent

    def close(self) -> None:
        """Close the application's iterable and end the exchange, unless this has been done."""
        close, self._close_app = self._close_app, None
        try:
            if close is not None:
                with self._swapping:
                    close()
        except BaseException:
            self._broken = True
            raise
        finally:
            self._end()
            self._run_after_end()
        error, self._close_error = self._close_error, None
        if error is not None:
            raise error

    def __del__(self) -> None:
        """End the exchange of a response that the server dropped without closing it."""
        due = [] if self.after_end is None else [self.after_end]
        if not self._ended:
            self._ended = True
            complete = self._is_complete()
            due.insert(0, partial(self._runtime.finish, self.exchange, complete=complete))
        if due:
            run_soon(*due)

    def _end(self, *, complete: bool = False) -> None:
        """End the exchange once; ``complete`` means that the server received all pieces."""
        if self._ended:
            return
        self._ended = True
        try:
            # Changes that an application commits in ``close`` must be committed before stored
            # responses are invalidated.
            close = None if self._method in _SAFE_METHODS else self._close_app
            if close is not None:
                self._close_app = None
                with self._swapping:
                    close()
        except Exception as error:  # noqa: BLE001 - raised when the server calls our ``close``
            self._close_error, self._broken = error, True
        finally:
            self._runtime.finish(self.exchange, complete=complete or self._is_complete())

    def _run_after_end(self) -> None:
        then, self.after_end = self.after_end, None
        if then is not None:
            then()

    def _next_piece(self) -> bytes | None:
        """Return the application's next piece or None; a fallback if the application fails."""
        if self._exhausted:
            return None
        try:
            with self._swapping:
                piece = next(self._pieces, None)
        except BaseException as error:
            self._exhausted = self._broken = True
            if isinstance(error, Exception) and self.send_fallback(error):
                return self._next_piece()
            self._end()
            raise
        self._exhausted = piece is None
        return piece

    def _finish_before_last(self) -> None:
        """Finish the exchange before the last piece is sent, unless another piece follows."""
        try:
            with self._swapping:
                more = next(self._pieces, None)
        except Exception as error:  # noqa: BLE001 - raised after the piece has been sent
            self._pieces = _raising(error)
        else:
            if more is None:
                self._exhausted = True
                self._end()
            else:
                self._pieces = chain((more,), self._pieces)

    def _send_head(self) -> bool:
        """Pass on the application's head; return whether there was one to pass on."""
        if self._head is None:
            return False
        (status, fields), self._head = self._head, None
        head = head_of(status, fields)
        answer = self.exchange.head(head)
        self._release()
        if isinstance(answer, Response):
            self.send_whole(answer)
            return True
        if answer is not head:
            status = status if answer.status == head.status else status_line(answer.status)
            fields = fields_of(answer.headers)
        self._is_bodiless = self._method == "HEAD" or head.status in WITHOUT_BODY
        self._drops = not self._is_bodiless and answer.status in WITHOUT_BODY
        if not self._is_bodiless:
            self._announced = content_length(head.headers)
        self._call_start_response(status, fields)
        return True

    def _call_start_response(self, status: str, fields: _Fields) -> None:
        self._write = self._start(status, fields)
        self._head_sent = True

    def _write_piece(self, data: bytes) -> None:
        """Send a piece at once: the ``write`` that PEP 3333 has for older applications."""
        with self._swapping:
            self._send_head()
            if self._ours:
                return
            piece = self._pass(data)
            if self._write is None:
                self._unsent.append(piece)
                return
            self._write(piece)
            if self.exchange.holding:
                self._renew()

    def _pass(self, piece: bytes) -> bytes:
        """Pass a piece to the exchange, and return the bytes that the server gets instead."""
        if not self._ours:
            if self._method == "HEAD":
                return b""
            if self.exchange.watching and not self._broken:
                self.exchange.chunk(piece)
                self._release()
        if self._announced is not None:
            self._announced -= len(piece)
        if self._drops:
            return b""
        if piece:
            self._body_begun = True
        return piece

    def _release(self) -> None:
        """Release the lock for other processes before a slow client can delay this."""
        if self.exchange.locking is not None:
            self._runtime.perform(self.exchange.release())

    def _renew(self) -> None:
        """Renew slots and locks between two pieces, unless the body is complete."""
        if self._announced != 0:
            self._runtime.perform(self.exchange.renewal())

    def _is_complete(self) -> bool:
        """Return whether the server got everything; it may stop at the end of Content-Length."""
        if self._broken or self._unsent:
            return False
        return self._exhausted if self._announced is None else self._announced == 0


def _raising(error: Exception) -> Iterator[bytes]:
    yield from ()
    raise error


class SwappedFields:
    """A context manager that swaps header fields in an environ on entry, and again on exit.

    The application sees other fields than the outer code. Outer code that the application calls
    sees its own fields.
    """

    __slots__ = ("_environ", "_others")

    def __init__(self, environ: WSGIEnvironment, was: Headers, now: Headers) -> None:
        names = dict.fromkeys((*was.names(), *now.names()))
        changed = (name for name in names if was.lines(name) != now.lines(name))
        self._environ = environ
        self._others = {variable(name): now.combined(name) for name in changed}

    def __enter__(self) -> None:
        for key, value in self._others.items():
            self._others[key] = self._environ.pop(key, None)
            if value is not None:
                self._environ[key] = value

    def __exit__(self, *_: object) -> None:
        self.__enter__()


# ------------------------------------------------------------------------------------------------
# Environs, status lines and fields

_FIRST, _SECOND = itemgetter(0), itemgetter(1)
_WITHOUT_PREFIX = ("CONTENT_TYPE", "CONTENT_LENGTH")
_EMPTY_IF_ABSENT = (b"content-type", b"content-length", b"cookie")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def request_of(environ: WSGIEnvironment) -> HTTPRequest:
    """Return the request that a WSGI environ describes.

    The method is in upper case, because Werkzeug and Django route on upper case: a rule for
    ``POST`` also covers ``post``. Several slashes at the start of the path become one, as in
    Werkzeug and Bottle: ``//login`` is routed to the same view as ``/login``.
    """
    script_name = _bytes(environ.get("SCRIPT_NAME", "")).rstrip(b"/")
    path_info = _bytes(environ.get("PATH_INFO", ""))
    path = path_info.decode("utf-8", "replace")
    if path[:2] == "//" or not path:
        path = "/" + path.lstrip("/")
    names: list[Any] = field_names(environ)
    headers = Headers(
        (name, value.encode("latin-1", "backslashreplace"))  # as _bytes, inlined for speed
        for name, value in compress(zip(names, environ.values(), strict=True), names)
        if value or name not in _EMPTY_IF_ABSENT
    )
    host: str = environ.get("HTTP_HOST", "")
    if not host:  # PEP 3333, "URL Reconstruction"
        host, port = environ["SERVER_NAME"], environ["SERVER_PORT"]
        if port != _DEFAULT_PORTS.get(environ["wsgi.url_scheme"]):
            host = f"{host}:{port}"
    return HTTPRequest(
        environ["REQUEST_METHOD"].upper(),
        path,
        headers,
        environ.get("QUERY_STRING", ""),
        environ["wsgi.url_scheme"],
        host.lower(),
        environ.get("REMOTE_ADDR") or None,
        _sent_path(environ, script_name, path_info),
        script_name.decode("utf-8", "replace"),
        environ,
    )


def _sent_path(environ: WSGIEnvironment, script_name: bytes, path_info: bytes) -> str:
    """Return the path of the client's URL as it was sent, if the server provides it.

    A proxy may have removed the prefix before the server saw the path. If outer middleware has
    rewritten PATH_INFO, the server's value names another resource, and two resources must never
    share a stored response.
    """
    target: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if "#" in target or (not target.startswith("/") and "://" in target):
        # An absolute-form target (RFC 9112 §3.2.2) or a fragment: applications that read the
        # target see text that no other part of the request has, so it is a separate URL.
        return "/" + quote(target, safe="")
    sent = target.partition("?")[0]
    is_plain = sent.isascii() and "%" not in sent
    decoded = sent.encode() if is_plain else unquote_to_bytes(sent)
    if decoded == script_name + path_info:
        return sent
    if decoded == path_info:
        return quote(script_name, safe=PATH_SAFE) + sent
    return quote(script_name + path_info, safe=PATH_SAFE)


def _bytes(text: str) -> bytes:
    """Return a native string's bytes: Latin-1 by PEP 3333; other characters are escaped."""
    return text.encode("latin-1", "backslashreplace")


_MAX_REMEMBERED_LENGTH = 128
"""Maximum length of remembered keys, in characters: clients can invent longer keys."""


def field_names(environ: Mapping[str, Any]) -> list[bytes | None]:
    """Return the header field name for each key of an environ; None for keys without a field."""
    known = max(map(len, environ), default=0) <= _MAX_REMEMBERED_LENGTH
    return [*map(_field_name if known else _field_name.__wrapped__, environ)]


@lru_cache(maxsize=512)
def _field_name(key: str) -> bytes | None:
    if key == "REMOTE_USER":  # the user whom the server authenticated (RFC 3875 §4.1.11)
        return b"remote-user"
    if key not in _WITHOUT_PREFIX:
        if not key.startswith("HTTP_") or key[5:] in _WITHOUT_PREFIX:
            return None
        key = key[5:]
    return key.replace("_", "-").lower().encode("latin-1", "backslashreplace")


def variable(name: str) -> str:
    """Return the environ key of a header field."""
    key = name.replace("-", "_").upper()
    return key if key in _WITHOUT_PREFIX else f"HTTP_{key}"


def head_of(status: str, fields: Sequence[tuple[str, str]]) -> ResponseHead:
    """Return the arguments of ``start_response`` as a head."""
    latin = repeat("latin-1")
    names, values = map(_FIRST, fields), map(_SECOND, fields)
    raw = zip(map(str.encode, names, latin), map(str.encode, values, latin), strict=True)
    return ResponseHead(int(status[:3]), Headers(raw))


def fields_of(headers: Headers) -> _Fields:
    """Return header fields in the format of ``start_response``."""
    latin = repeat("latin-1")
    names, values = map(_FIRST, headers.raw), map(_SECOND, headers.raw)
    return [*zip(map(bytes.decode, names, latin), map(bytes.decode, values, latin), strict=True)]


def status_line(status: int) -> str:
    """Return the status with a reason phrase, which PEP 3333 requires for every status."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


_TO_ROUTE = (
    "SCRIPT_NAME",
    "PATH_INFO",
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


def refresh_environ(environ: WSGIEnvironment, request: HTTPRequest) -> WSGIEnvironment:
    """Return the environ of a background revalidation, made from a visitor's environ.

    It contains only what routing needs, and no data of the visitor: no address (as for a Unix
    socket), no body, and no keys that the server or outer middleware has added.
    """
    kept = {name: environ[name] for name in _TO_ROUTE if name in environ}
    query = f"?{request.query}" if request.query else ""
    for name in ("RAW_URI", "REQUEST_URI"):
        if (path := environ.get(name, "").partition("?")[0]).startswith("/"):
            kept[name] = path + query
    names = request.headers.names()
    fields = {variable(name): ",".join(request.headers.lines(name)) for name in names}
    return {
        **kept,
        **fields,
        "QUERY_STRING": request.query,
        "REMOTE_ADDR": "",
        "REQUEST_METHOD": request.method,
        "wsgi.input": BytesIO(),
        BACKGROUND_REQUEST: True,
    }
