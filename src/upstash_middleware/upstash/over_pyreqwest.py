"""Calls over pyreqwest: one client for all threads, or for all event loops, of a process.

Nothing but the translation of calls, answers and errors may live here. Importing it imports
pyreqwest, so only ``transport`` does, when the first client is made.
"""

from __future__ import annotations

import asyncio
import atexit
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

import anyio.lowlevel
from pyreqwest.client import ClientBuilder, SyncClientBuilder
from pyreqwest.exceptions import (
    DecodeError,
    RequestError,
    RequestTimeoutError,
)

from upstash_middleware.errors import (
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash.protocol import Answer
from upstash_middleware.upstash.transport import IDLE_SECONDS, standing_headers

if TYPE_CHECKING:
    from pyreqwest.client import BaseClientBuilder
    from pyreqwest.request import BaseRequestBuilder
    from pyreqwest.response import BaseResponse

    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.protocol import Call

B = TypeVar("B", bound="BaseClientBuilder")
R = TypeVar("R", bound="BaseRequestBuilder")

_NEVER_SENT: Final = "client error (Connect)"
"""The cause that tells a connection that was never made from one that was lost."""


_SETTLING_SECONDS: Final = 0.02

# pyreqwest's thread may still be leaving Python with the last answer when the interpreter ends,
# which aborts the process: let it finish first.
atexit.register(time.sleep, _SETTLING_SECONDS)


class PyreqwestTransport:
    """A Transport over pyreqwest's client for threads."""

    def __init__(self, credentials: Credentials) -> None:
        self._url = credentials.url
        self._client = _configured(SyncClientBuilder(), credentials).build()

    def send(self, call: Call, seconds: float) -> Answer:
        """See Transport."""
        request = _filled(self._client.post(self._url + call.path), call, seconds).build()
        try:
            response = request.send()
            body = response.bytes().to_bytes()
        except RequestError as error:
            raise _translated(error, seconds) from error
        return _answer(response, body)

    def close(self) -> None:
        """See Transport."""
        self._client.close()


class AsyncPyreqwestTransport:
    """An AsyncTransport over pyreqwest's client for asyncio; several loops may share it."""

    def __init__(self, credentials: Credentials) -> None:
        self._url = credentials.url
        self._client = _configured(ClientBuilder(), credentials).build()

    async def send(self, call: Call, seconds: float) -> Answer:
        """See AsyncTransport."""
        request = _filled(self._client.post(self._url + call.path), call, seconds).build()
        try:
            response = await request.send()
            body = (await response.bytes()).to_bytes()
        except RequestError as error:
            raise _translated(error, seconds) from error
        except asyncio.CancelledError:
            # pyreqwest raises one of its own, by which anyio's cancel scopes would not know theirs.
            await anyio.lowlevel.checkpoint_if_cancelled()
            raise
        return _answer(response, body)

    async def aclose(self) -> None:
        """See AsyncTransport."""
        await self._client.close()


def _configured(builder: B, credentials: Credentials) -> B:
    """Return the builder of a client that does one HTTP request per call and nothing besides."""
    builder = (
        builder.default_headers(standing_headers(credentials))
        .follow_redirects(enable=False)
        .referer(enable=False)
        .gzip(enable=False)
        .brotli(enable=False)
        .zstd(enable=False)
        .deflate(enable=False)
        .pool_idle_timeout(timedelta(seconds=IDLE_SECONDS))
    )
    return builder.no_proxy() if credentials.local else builder


def _filled(request: R, call: Call, seconds: float) -> R:
    return request.headers(call.headers).body_bytes(call.body).timeout(timedelta(seconds=seconds))


def _answer(response: BaseResponse, body: bytes) -> Answer:
    header = response.get_header
    try:
        kind, sync_token = header("content-type") or "", header("upstash-sync-token")
    except ValueError as error:
        raise UnexpectedAnswer("the answer's head holds bytes that are no text") from error
    return Answer(response.status, kind, body, sync_token)


def _translated(error: RequestError, seconds: float) -> UpstashError:
    causes = [cause["message"] for cause in error.details["causes"] or ()]
    said = causes[-1] if causes else error.message
    if isinstance(error, RequestTimeoutError):
        return DeadlineExceeded(f"no answer within {seconds:.2g} s")
    if _NEVER_SENT in causes:
        return NotConnected(f"no connection to Upstash: {said}")
    if isinstance(error, DecodeError):
        return UnexpectedAnswer(f"the answer is not HTTP, or was cut short: {said}")
    return ConnectionLost(f"the connection to Upstash was lost: {said}")
