"""Calls over httpx: under trio, behind a proxy, and with the application's own httpx client.

This module imports httpx, so it is imported only when needed.

httpx's pool compares every connection with every waiting call, so more than 16 connections make it
slower. Connections belong to the event loop that opened them, so each loop has its own client.
httpx limits only single reads, so anyio limits the whole call. Threads use an event loop in a
separate thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary, finalize

import anyio
import anyio.lowlevel
import httpx

from upstash_middleware.errors import (
    ConnectionLost,
    NotConnected,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import tls
from upstash_middleware.upstash.process import current_process
from upstash_middleware.upstash.protocol import MAX_RESPONSE_BYTES, Response
from upstash_middleware.upstash.transport import IDLE_SECONDS, common_headers, exceeded

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator

    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.protocol import Call, Header

T = TypeVar("T")

_LIMITS: Final = httpx.Limits(
    max_connections=16, max_keepalive_connections=16, keepalive_expiry=IDLE_SECONDS
)


class AsyncHttpxTransport:
    """An AsyncTransport over httpx, with one client per event loop, or the application's client.

    The application's client is used on the event loop of each call, and is never closed here.
    """

    def __init__(self, credentials: Credentials, own: httpx.AsyncClient | None = None) -> None:
        self._credentials = credentials
        self._own = own
        self._headers = common_headers(credentials)
        self._tls: ssl.SSLContext | bool = (
            tls.context() if credentials.url.startswith("https:") else False
        )
        self._clients: WeakKeyDictionary[Any, _LoopClient] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def send(self, call: Call, seconds: float) -> Response:
        """See AsyncTransport."""
        client = self._own or await self._client()
        request = _request(client, self._credentials, call, self._headers)
        try:
            with anyio.fail_after(seconds):
                return await _send_with_handshake(client, request)
        except TimeoutError:
            raise exceeded(seconds) from None

    async def aclose(self) -> None:
        """Close this loop's client; other running event loops close their own clients."""
        here = _event_loop()
        with self._lock:
            clients = dict(self._clients)
            self._clients.clear()
        for loop, opened in clients.items():
            if loop is here:
                await opened.aclose()
            elif isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running():
                asyncio.run_coroutine_threadsafe(opened.aclose(), loop)

    async def _client(self) -> httpx.AsyncClient:
        loop = _event_loop()
        with self._lock:
            opened = self._clients.get(loop)
            if opened is None:
                for ended in [known for known in self._clients if _has_ended(known)]:
                    del self._clients[ended]  # the loop did not close its asynchronous generators
                opened = self._clients[loop] = _LoopClient(self._new_client(), self._forget)
        if not opened.closes_with_its_loop:
            opened.closes_with_its_loop = True
            await anext(opened.closing)
        return opened.client

    def _forget(self, opened: _LoopClient) -> None:
        with self._lock:
            for loop in [loop for loop, known in self._clients.items() if known is opened]:
                del self._clients[loop]

    def _new_client(self) -> httpx.AsyncClient:
        try:
            return httpx.AsyncClient(
                timeout=None,  # noqa: S113 - the whole call has a deadline
                limits=_LIMITS,
                verify=self._tls,
                trust_env=not self._credentials.local,
                transport=self._credentials.transport,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            )
        except Exception as error:
            raise NotConnected(
                f"httpx cannot use the proxies that the environment sets (ALL_PROXY, HTTP_PROXY, "
                f"HTTPS_PROXY, NO_PROXY): {error}"
            ) from error


class _LoopClient:
    """The client of an event loop, which is closed when the loop ends, if not before.

    asyncio and trio close all asynchronous generators of a loop when it ends.
    """

    def __init__(self, client: httpx.AsyncClient, forget: Callable[[_LoopClient], None]) -> None:
        self.client: httpx.AsyncClient = client
        self.closing: AsyncGenerator[None, None] = self._closing(forget)
        self.closes_with_its_loop: bool = False

    async def aclose(self) -> None:
        """Close the client on its event loop."""
        await self.client.aclose()
        await self.closing.aclose()

    async def _closing(self, forget: Callable[[_LoopClient], None]) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            forget(self)
            with anyio.CancelScope(shield=True):  # trio cancels everything at this point
                await self.client.aclose()


class HttpxTransport:
    """A Transport over httpx, on an event loop in a separate thread.

    It is a daemon thread, so that a process that never closes its client can exit. The thread also
    ends when this object is garbage-collected without being closed.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._over = AsyncHttpxTransport(credentials)
        # In a new context, because the loop keeps it, and it may contain a visitor's data.
        self._loop = Context().run(asyncio.new_event_loop)
        self._thread = threading.Thread(
            target=_run_and_close, args=(self._loop,), name="upstash-middleware-httpx", daemon=True
        )
        self._thread.start()
        self._when_collected = finalize(self, _begin_end, self._loop, self._over, current_process())
        self._when_collected.atexit = False

    def send(self, call: Call, seconds: float) -> Response:
        """See Transport."""
        sending = self._over.send(call, seconds)
        try:
            return self._run(sending, seconds + 1)  # the loop may be closed before the call starts
        except TimeoutError:
            raise exceeded(seconds) from None
        except CancelledError:
            raise ConnectionLost("the client was closed during the call") from None
        except RuntimeError as error:
            if not self._loop.is_closed():
                raise
            sending.close()
            raise NotConnected("the client was closed before the call") from error

    def close(self) -> None:
        """Close the client; calls in flight raise ConnectionLost."""
        self._when_collected()
        self._thread.join()

    def _run(self, work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        finally:
            future.cancel()  # needed if this thread was interrupted


def _run_and_close(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _begin_end(loop: asyncio.AbstractEventLoop, over: AsyncHttpxTransport, process: int) -> None:
    """Make a loop cancel its calls, close its connections and stop, in its own process."""
    if process != current_process():
        return

    async def end() -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        try:
            await over.aclose()
        finally:
            loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


class OwnClientTransport:
    """A Transport over the application's own httpx.Client, which is not closed here.

    httpx cannot limit the time of a whole call, so it runs in a separate thread. After the deadline
    the thread is abandoned, and ends with the next piece of the response.
    """

    def __init__(self, credentials: Credentials, own: httpx.Client) -> None:
        self._credentials = credentials
        self._own = own
        self._headers = common_headers(credentials)
        self._threads = ThreadPoolExecutor(_LIMITS.max_connections, "upstash-middleware-httpx")

    def send(self, call: Call, seconds: float) -> Response:
        """See Transport."""
        request = _request(self._own, self._credentials, call, self._headers)
        request.extensions["timeout"] = httpx.Timeout(seconds).as_dict()
        until = time.monotonic() + seconds
        sending = self._threads.submit(self._send, request, until)
        try:
            return sending.result(seconds)
        except TimeoutError:
            raise exceeded(seconds) from None
        finally:
            sending.cancel()

    def close(self) -> None:
        """See Transport."""
        self._threads.shutdown(wait=False)

    def _send(self, request: httpx.Request, until: float) -> Response:
        with _translated_errors():
            response = self._own.send(request, stream=True)
        with _translated_errors(begun=True):
            try:
                is_read = response.is_stream_consumed  # already read by a mock or a hook
                body = response.content if is_read else _join_pieces(response.iter_raw(), until)
                _check_size(len(body))
            finally:
                response.close()
        return _response(response, body)


def _has_ended(loop: object) -> bool:
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()


def _event_loop() -> object:
    """Return an object that identifies the current event loop, of asyncio or trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return anyio.lowlevel.current_token().native_token


class _Handshake:
    """The TLS handshake of a call; httpcore does not close the connection of a cancelled one."""

    def __init__(self) -> None:
        self._stream: Any = None

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Handle an event; httpcore calls this."""
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]
        elif event == "connection.start_tls.complete":
            self._stream = None

    async def abandon(self) -> None:
        """Close the connection if its handshake has not ended."""
        if self._stream is not None:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()


def _request(
    client: httpx.Client | httpx.AsyncClient,
    credentials: Credentials,
    call: Call,
    headers: list[Header],
) -> httpx.Request:
    own = list(call.headers)
    if call.sync_token is not None:
        own.append(("Upstash-Sync-Token", call.sync_token))
    url = credentials.url + call.path
    return client.build_request("POST", url, headers=[*headers, *own], content=call.body)


async def _send_with_handshake(client: httpx.AsyncClient, request: httpx.Request) -> Response:
    if request.url.scheme != "https":
        return await _send_request(client, request)
    handshake = _Handshake()
    request.extensions["trace"] = handshake.trace
    try:
        return await _send_request(client, request)
    except BaseException:
        await handshake.abandon()
        raise


async def _send_request(client: httpx.AsyncClient, request: httpx.Request) -> Response:
    with _translated_errors():
        response = await client.send(request, stream=True)
    with _translated_errors(begun=True):
        try:
            pieces, size = [], 0
            if response.is_stream_consumed:  # already read by a mock or a hook
                pieces.append(response.content)
            else:
                async for piece in response.aiter_raw():
                    size += len(piece)
                    _check_size(size)
                    pieces.append(piece)
        finally:
            await response.aclose()
    return _response(response, b"".join(pieces))


def _join_pieces(pieces: Iterable[bytes], until: float) -> bytes:
    joined, size = [], 0
    for piece in pieces:
        if time.monotonic() > until:
            raise TimeoutError
        size += len(piece)
        _check_size(size)
        joined.append(piece)
    return b"".join(joined)


def _check_size(size: int) -> None:
    if size > MAX_RESPONSE_BYTES:
        raise UnexpectedAnswer(f"the response is longer than {MAX_RESPONSE_BYTES} bytes")


def _response(response: httpx.Response, body: bytes) -> Response:
    head = response.headers
    token = head.get("upstash-sync-token")
    return Response(response.status_code, head.get("content-type", ""), body, token)


@contextmanager
def _translated_errors(*, begun: bool = False) -> Iterator[None]:
    """Translate httpx's errors; ``begun`` means that the response may have started."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except httpx.TransportError as error:
        if isinstance(error, httpx.ConnectError | httpx.ProxyError):
            raise NotConnected(f"no connection to Upstash: {error}") from error
        if isinstance(error, httpx.RemoteProtocolError):
            if begun:
                raise UnexpectedAnswer(f"the response was cut short: {error}") from error
            if "disconnected" not in str(error):
                raise UnexpectedAnswer(f"the response is not HTTP: {error}") from error
        raise ConnectionLost(f"the connection to Upstash was lost: {error!r}") from error
    except (UpstashError, TimeoutError):
        raise
    except Exception as error:  # such as a hook's HTTPStatusError, or a closed client
        name = type(error).__name__
        raise ConnectionLost(f"the application's httpx client raised {name}") from error
