"""The seam between a call and the network: what a transport is, and which one runs here.

A transport is made for one process's credentials and sends calls; it decides nothing about them.
An application, or a test, may bring its own.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final, Literal, Protocol

from upstash_middleware.errors import DeadlineExceeded
from upstash_middleware.upstash.protocol import COMMON_HEADERS, Answer, Call, Header

if TYPE_CHECKING:
    from upstash_middleware.upstash.credentials import Credentials

logger: logging.Logger = logging.getLogger("upstash_middleware")

VERSION: Final = "0.1.0"
"""This package's, for the servers' logs; a test holds it to the distribution's."""

IDLE_SECONDS: Final = 25.0
"""How long an unused connection is kept: less than the 60 s and more of common load balancers,
so that a call does not meet a connection that the other side is closing."""

Library = Literal["sockets", "httpx"]
"""``sockets`` is the package's own wire (``over_sockets``), which knows no proxy."""

_WITH_PROXY_SETTINGS: Final = frozenset({"darwin", "win32"})


class Transport(Protocol):
    """Sends calls for threads; safe to use from several at once."""

    def send(self, call: Call, seconds: float) -> Answer:
        """Return the answer, whatever its status, within so many seconds in all.

        Raises NotConnected only where the server has seen nothing, ConnectionLost where it may
        have, DeadlineExceeded, and UnexpectedAnswer for what is not HTTP or is cut short.
        """
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class AsyncTransport(Protocol):
    """Sends calls for event loops; may be used from several."""

    async def send(self, call: Call, seconds: float) -> Answer:
        """Do the same as ``Transport.send`` on an event loop."""
        ...

    async def aclose(self) -> None:
        """Close what is open, as far as this event loop can."""
        ...


def exceeded(seconds: float) -> DeadlineExceeded:
    """Return what a transport raises when so many seconds are over."""
    return DeadlineExceeded(f"no answer within {seconds:.2g} s")


def standing_headers(credentials: Credentials) -> list[Header]:
    """Return what a transport sends with every call: the token, the format, who calls.

    The telemetry fields are those of Upstash's SDKs, under this package's name.
    """
    if not (credentials.local or credentials.url.startswith("https://")) and (
        credentials.transport is None
    ):
        _say_once(f"the REST token goes to {credentials.host} unencrypted: its URL is http://")
    headers = [
        ("Authorization", f"Bearer {credentials.token}"),
        ("User-Agent", f"upstash-middleware/{VERSION}"),
        *COMMON_HEADERS,
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


def open_transport(credentials: Credentials, library: Library | None) -> Transport:
    """Return a transport for threads over ``library``, or over the one that is for the URL."""
    if _chosen(library, credentials) == "httpx":
        from upstash_middleware.upstash.over_httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

        return HttpxTransport(credentials)
    from upstash_middleware.upstash.over_sockets_threads import SocketsTransport  # noqa: PLC0415 - loads socket

    return SocketsTransport(credentials)


def open_async_transport(credentials: Credentials, library: Library | None) -> AsyncTransport:
    """Do the same as ``open_transport`` for event loops."""
    if _chosen(library, credentials) == "httpx":
        from upstash_middleware.upstash.over_httpx import AsyncHttpxTransport  # noqa: PLC0415 - loads httpx

        return AsyncHttpxTransport(credentials)
    from upstash_middleware.upstash.over_sockets import AsyncSocketsTransport  # noqa: PLC0415 - loads asyncio

    return AsyncSocketsTransport(credentials)


def _chosen(library: Library | None, credentials: Credentials) -> Library:
    if credentials.transport is not None:
        return "httpx"
    if library is not None:
        return library
    if not credentials.local and _behind_proxy(credentials):
        _say_once("a proxy is set, so calls to Upstash go over httpx, which is slower")
        return "httpx"
    return "sockets"


def _behind_proxy(credentials: Credentials) -> bool:
    """Whether a proxy is set for the URL: in the environment, or in the system's settings."""
    if sys.platform not in _WITH_PROXY_SETTINGS and not any(
        text and name.lower().endswith("_proxy") for name, text in os.environ.items()
    ):
        return False  # and importing what follows takes as long as all the package
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415

    proxies = getproxies()
    scheme = credentials.url.partition(":")[0]
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(
        f"{credentials.host}:{credentials.port}"
    )


_said: set[str] = set()


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        logger.warning(sentence)
