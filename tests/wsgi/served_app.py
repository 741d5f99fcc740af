"""An application for a real server's workers: responses that wait until another request comes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from upstash_middleware import CacheRule, RateLimitRule
from upstash_middleware.wsgi import UpstashMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

released = threading.Event()
ended = threading.Event()
LONGEST_SECONDS = 20.0
"""So that no worker waits for ever where a test has failed."""


def stream() -> Iterator[bytes]:
    """Give a piece, and another when a request for ``/release`` has come."""
    ended.clear()
    try:
        yield b"first\n"
        released.wait(LONGEST_SECONDS)
        for _ in range(50):  # the kernel takes some before it says that nobody reads
            yield b"more\n" * 10_000
    finally:
        ended.set()


class ClosingLate:
    """A whole body at once, and a ``close`` that lasts until ``/release``."""

    def __iter__(self) -> Iterator[bytes]:
        yield b"all\n"

    def close(self) -> None:
        released.wait(LONGEST_SECONDS)


def release() -> list[bytes]:
    """Let everything that waits go on."""
    released.set()
    return [b"released\n"]


def end() -> Iterator[bytes]:
    """Answer when the stream has ended, whole or not."""
    ended.wait(LONGEST_SECONDS)
    yield b"ended\n"


_PAGES: dict[str, Callable[[], Iterable[bytes]]] = {
    "/stream": stream,
    "/closing-late": ClosingLate,
    "/release": release,
    "/end": end,
    "/limited": lambda: [b"passed\n"],
}


def pages(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer the page at the path."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return _PAGES.get(environ["PATH_INFO"], lambda: [b"page\n"])()


app = UpstashMiddleware(
    pages,
    rate_limits=[RateLimitRule("/limited", "log 10/hour")],
    default_limit=None,
    cache=[
        CacheRule("/stream", ttl=60),
        CacheRule("/closing-late", ttl=60),
        CacheRule("/products/{id}", ttl=60, tags=("product:{id}",)),
    ],
)
