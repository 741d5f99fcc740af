"""The interface of transports, and their common parts.

A transport sends calls with the credentials of one database. Applications and tests may supply
their own transport.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from upstash_middleware.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from upstash_middleware.upstash.credentials import Credentials
    from upstash_middleware.upstash.protocol import Call, Header, Response

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("upstash_middleware")

VERSION: Final = "0.1.0"
"""The version of this package, which a test compares with the distribution's."""

IDLE_SECONDS: Final = 25.0
"""Seconds for which an idle connection is kept: less than the 60 s and more of common load
balancers, so that a call does not use a connection that the other side is closing."""


class Transport(Protocol):
    """Sends calls for threads; thread-safe."""

    def send(self, call: Call, seconds: float) -> Response:
        """Return the response, whatever its status, within ``seconds`` in total.

        Raises NotConnected only if the server has received nothing, ConnectionLost if it may have
        received the call, DeadlineExceeded, and UnexpectedAnswer for invalid or truncated HTTP.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AsyncTransport(Protocol):
    """Sends calls for event loops; several loops may share it."""

    async def send(self, call: Call, seconds: float) -> Response:
        """Do the same as ``Transport.send`` on an event loop."""
        ...

    async def aclose(self) -> None:
        """Close the connections that this event loop can close."""
        ...


def completed(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits for an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast("T", end.value)
    raise RuntimeError("the coroutine waits for an event loop")


def exceeded(seconds: float) -> DeadlineExceeded:
    """Return the error for a call that took longer than ``seconds``."""
    return DeadlineExceeded(f"no response within {seconds:.2g} s")


def common_headers(credentials: Credentials) -> list[Header]:
    """Return the header fields of every call: the token, the format, and the client's name.

    The telemetry fields are those of Upstash's SDKs, with the name of this package.
    """
    if not (credentials.local or credentials.url.startswith("https://")) and (
        credentials.transport is None
    ):
        warn_once(f"the REST token is sent to {credentials.host} unencrypted: its URL is http://")
    headers = [
        ("Authorization", f"Bearer {credentials.token}"),
        ("User-Agent", f"upstash-middleware/{VERSION}"),
        ("Accept-Encoding", "identity"),
    ]
    if credentials.telemetry:
        headers += [
            ("Upstash-Telemetry-Sdk", f"upstash-middleware@v{VERSION}"),
            ("Upstash-Telemetry-Runtime", f"python@v{sys.version.split()[0]}"),
            ("Upstash-Telemetry-Platform", _platform()),
        ]
    return headers


def _platform() -> str:
    if os.environ.get("VERCEL"):
        return "vercel"
    return "aws" if os.environ.get("AWS_REGION") else "unknown"


@functools.cache
def warn_once(sentence: str) -> None:
    """Log a warning once in a process."""
    logger.warning(sentence)
