"""Calls over httpx: under trio, behind a proxy, and to a transport that is one of httpx's.

Nothing but the translation of calls, answers and errors may live here. Importing it imports
httpx, so only ``transport`` does.

httpx's pool looks through every connection for every waiter, so more than 16 make it slower. Its
connections belong to the event loop that made them, so each loop has a client of its own. Its
timeouts are for each read, so the deadline is anyio's, and threads, too, go through an event
loop, which runs on a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import httpx

from upstash_middleware.errors import (
    ConnectionLost,
    NotConnected,
    UnexpectedAnswer,
)
from upstash_middleware.upstash.protocol import Answer
from upstash_middleware.upstash.transport import IDLE_SECONDS, exceeded, standing_headers

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine

    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.protocol import Call

T = TypeVar("T")

_LIMITS: Final = httpx.Limits(
    max_connections=16, max_keepalive_connections=16, keepalive_expiry=IDLE_SECONDS
)


class AsyncHttpxTransport:
    """An AsyncTransport over httpx, with one client for each event loop."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._headers = standing_headers(credentials)
        self._tls: ssl.SSLContext | bool = (
            httpx.create_ssl_context() if credentials.url.startswith("https:") else False
        )
        self._clients: WeakKeyDictionary[Any, httpx.AsyncClient] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def send(self, call: Call, seconds: float) -> Answer:
        """See AsyncTransport."""
        client = self._client()
        try:
            with anyio.fail_after(seconds):
                return await _sent(client, self._credentials.url + call.path, call)
        except TimeoutError:
            raise exceeded(seconds) from None

    async def aclose(self) -> None:
        """See AsyncTransport; other event loops that still run close what they opened."""
        here = _event_loop()
        with self._lock:
            clients = dict(self._clients)
            self._clients.clear()
        for loop, client in clients.items():
            if loop is here:
                await client.aclose()
            elif isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running():
                asyncio.run_coroutine_threadsafe(client.aclose(), loop)

    def _client(self) -> httpx.AsyncClient:
        loop = _event_loop()
        with self._lock:
            client = self._clients.get(loop)
            if client is None:
                client = self._clients[loop] = httpx.AsyncClient(
                    headers=self._headers,
                    timeout=None,  # noqa: S113 - the deadline is around the whole call
                    limits=_LIMITS,
                    verify=self._tls,
                    trust_env=not self._credentials.local,
                    transport=self._credentials.transport,
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                )
            return client


class HttpxTransport:
    """A Transport over httpx: an event loop on a thread of its own does the work.

    The thread is a daemon: a process that never closes its client ends all the same.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._over = AsyncHttpxTransport(credentials)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="upstash-middleware-httpx", daemon=True
        )
        self._thread.start()

    def send(self, call: Call, seconds: float) -> Answer:
        """See Transport."""
        return self._run(self._over.send(call, seconds))

    def close(self) -> None:
        """See Transport."""
        self._run(self._over.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # nobody waits any more if this thread was interrupted


def _event_loop() -> object:
    """Return what stands for this event loop, asyncio's or trio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return anyio.lowlevel.current_token().native_token


class _Handshake:
    """The TLS handshake of a call, if it takes one: httpcore closes none that is cancelled."""

    def __init__(self) -> None:
        self._stream: Any = None

    async def trace(self, event: str, info: dict[str, Any]) -> None:
        """Hear of what httpcore does."""
        if event == "connection.connect_tcp.complete":
            self._stream = info["return_value"]
        elif event == "connection.start_tls.complete":
            self._stream = None

    async def abandon(self) -> None:
        """Close the connection of one that has not come to its end."""
        if self._stream is not None:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()


async def _sent(client: httpx.AsyncClient, url: str, call: Call) -> Answer:
    request = client.build_request("POST", url, headers=call.headers, content=call.body)
    if not url.startswith("https:"):
        return await _answered(client, request)
    handshake = _Handshake()
    request.extensions["trace"] = handshake.trace
    try:
        return await _answered(client, request)
    except BaseException:
        await handshake.abandon()
        raise


async def _answered(client: httpx.AsyncClient, request: httpx.Request) -> Answer:
    try:
        response = await client.send(request, stream=True)
    except (httpx.ConnectError, httpx.ProxyError) as error:
        raise NotConnected(f"no connection to Upstash: {error}") from error
    except httpx.TransportError as error:
        raise _while_sending(error) from error
    try:
        body = b"".join([chunk async for chunk in response.aiter_raw()])
    except httpx.RemoteProtocolError as error:
        raise UnexpectedAnswer(f"the answer was cut short: {error}") from error
    except httpx.TransportError as error:
        raise ConnectionLost(f"the connection to Upstash was lost: {error!r}") from error
    finally:
        await response.aclose()
    head = response.headers
    token = head.get("upstash-sync-token")
    return Answer(response.status_code, head.get("content-type", ""), body, token)


def _while_sending(error: httpx.TransportError) -> ConnectionLost | UnexpectedAnswer:
    """Tell a connection that closed from one over which something came that is not HTTP."""
    if isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error):
        return UnexpectedAnswer(f"the answer is not HTTP: {error}")
    return ConnectionLost(f"the connection to Upstash was lost: {error!r}")
