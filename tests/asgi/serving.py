"""A real uvicorn on a free loopback port, in a thread, for as long as a test needs it."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.asgi import ASGIApp

PATIENCE = 20.0
"""Seconds that anything in these tests may take at most, on a machine under load."""


@contextmanager
def served_by_uvicorn(app: ASGIApp, **options: Any) -> Iterator[int]:
    """Serve an application and give the port; raises SystemExit if its lifespan fails.

    ``options`` are uvicorn's own.
    """
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        log_config=None,
        log_level=logging.INFO,
        loop="asyncio",
        **options,
    )
    server = uvicorn.Server(config)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=_run, args=(server, listener))
        thread.start()
        try:
            _wait_until(lambda: server.started or not thread.is_alive())
            if not server.started:
                raise SystemExit("uvicorn did not start")
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with suppress(SystemExit):  # how uvicorn says that it could not start
        server.run(sockets=[listener])


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
