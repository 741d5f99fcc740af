"""The seam between a call and the network: what a transport is, and which one runs here.

A transport is made for one process's credentials and sends calls; it decides nothing about them.
An application, or a test, may bring its own.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

from upstash_middleware.errors import DeadlineExceeded
from upstash_middleware.upstash.protocol import COMMON_HEADERS, Answer, Call, Header

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.upstash.credentials import Credentials

logger: logging.Logger = logging.getLogger("upstash_middleware")

VERSION: Final = "0.1.0"
"""This package's, for the servers' logs; a test holds it to the distribution's."""

IDLE_SECONDS: Final = 25.0
"""How long an unused connection is kept: less than the 60 s and more of common load balancers,
so that a call does not meet a connection that the other side is closing."""

Library = Literal["pyreqwest", "httpx"]

T = TypeVar("T")


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
    """Return a transport for threads over ``library``, or over the best that runs here."""

    def over_httpx() -> Transport:
        from upstash_middleware.upstash.over_httpx import HttpxTransport  # noqa: PLC0415 - loads httpx

        return HttpxTransport(credentials)

    def over_pyreqwest() -> Transport:
        _load_pyreqwest()
        from upstash_middleware.upstash.over_pyreqwest import PyreqwestTransport  # noqa: PLC0415 - loads pyreqwest

        return PyreqwestTransport(credentials)

    return _opened("httpx" if credentials.transport else library, over_pyreqwest, over_httpx)


def open_async_transport(credentials: Credentials, library: Library | None) -> AsyncTransport:
    """Return a transport for event loops over ``library``, or over the best that runs here."""

    def over_httpx() -> AsyncTransport:
        from upstash_middleware.upstash.over_httpx import AsyncHttpxTransport  # noqa: PLC0415 - loads httpx

        return AsyncHttpxTransport(credentials)

    def over_pyreqwest() -> AsyncTransport:
        _load_pyreqwest()
        from upstash_middleware.upstash.over_pyreqwest import AsyncPyreqwestTransport  # noqa: PLC0415 - loads pyreqwest

        return AsyncPyreqwestTransport(credentials)

    return _opened("httpx" if credentials.transport else library, over_pyreqwest, over_httpx)


def _opened(
    library: Library | None, over_pyreqwest: Callable[[], T], over_httpx: Callable[[], T]
) -> T:
    """Open the first that runs.

    pyreqwest is missing outside CPython, and raises a RuntimeError in a process that was forked
    after the parent had made a client of it.
    """
    if library == "httpx":
        return over_httpx()
    try:
        return over_pyreqwest()
    except (ImportError, RuntimeError) as error:
        if library == "pyreqwest":
            raise
        _say_once(f"pyreqwest cannot run here, so calls go over httpx, which is slower: {error}")
        return over_httpx()


def _load_pyreqwest() -> None:
    """Import pyreqwest from a thread that lives as long as the process.

    Its allocator takes the thread that loads it for the process's first. Once that thread has
    ended, the next use in any thread crashes the interpreter; and where each request has a
    thread of its own, a thread that soon ends is the first to come here.
    """
    if "pyreqwest.client" in sys.modules or threading.current_thread() is threading.main_thread():
        return  # the import that follows is safe
    loaded = threading.Event()

    def load() -> None:
        with suppress(ImportError):  # the import that follows says so
            import_module("pyreqwest.client")
        loaded.set()
        threading.Event().wait()

    threading.Thread(target=load, name="upstash-middleware pyreqwest", daemon=True).start()
    loaded.wait()


_said: set[str] = set()


def _say_once(sentence: str) -> None:
    if sentence not in _said:
        _said.add(sentence)
        logger.warning(sentence)
