"""One call over one connection, as a flow of bytes without I/O: what is sent, received, and lost.

A generator yields what to send, nothing where there is only to receive, and is sent what was
received, ``b""`` at the connection's end, or thrown the OSError that came instead. The transports
drive it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from upstash_middleware.errors import ConnectionLost
from upstash_middleware.upstash.http1 import AnswerReader
from upstash_middleware.upstash.protocol import Answer

if TYPE_CHECKING:
    from upstash_middleware.upstash.tls import Tls

Exchange = Generator[bytes, bytes, tuple[Answer, bool]]
"""Returns the answer, and whether another call may follow on the connection."""


def exchange(request: bytes, tls: Tls | None) -> Exchange:
    """Send the request and read its answer, after the handshake if that has not been made.

    Raises what a Transport's ``send`` does, but for the deadline.
    """
    if tls is not None and not tls.ready:
        yield from tls.handshake()
    reader = AnswerReader()
    ended = False
    try:
        received = yield request if tls is None else tls.sealed(request)
        while True:
            if tls is None:
                ended = not received
            else:
                received, ended = tls.opened(received)
            answer = reader.feed(received) if received else None
            if answer is None and ended:
                answer = reader.end()
            if answer is not None:
                return answer, reader.reusable and not ended
            received = yield b""
    except EOFError:
        return reader.end(orderly=False), False
    except OSError as error:
        raise ConnectionLost(f"the connection to Upstash was lost: {error}") from error
