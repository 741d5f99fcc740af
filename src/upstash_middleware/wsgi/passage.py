"""One response on its way from a WSGI application to the server, and the exchange's end.

What PEP 3333 makes particular lives here: ``start_response``, ``write``, the iterable and its
``close``.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import WITHOUT_BODY, Response, content_length
from upstash_middleware.wsgi.environ import fields_of, head_of, status_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any
    from wsgiref.types import StartResponse

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway


class Passage:
    """A response on its way to the server, and the iterable that the server gets.

    The head goes out when the application has returned, or has given its first piece; until
    then the application may take it back by ``start_response(…, exc_info)``. Each piece goes
    out as it comes. ``close`` finishes the exchange, after the application's own ``close``: an
    invalidation must not come before what the application commits there. Where the gateway
    finishes first, both are done before the last piece goes out.
    """

    __slots__ = (
        "_announced",
        "_app_iterable",
        "_broken",
        "_closed",
        "_exchange",
        "_exhausted",
        "_gateway",
        "_has_passed",
        "_is_bodiless",
        "_is_head",
        "_ours",
        "_pieces",
        "_start",
        "_started",
        "_write",
        "then",
    )

    def __init__(
        self, gateway: Gateway, exchange: Exchange, method: str, start_response: StartResponse
    ) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._is_head = method == "HEAD"
        self._is_bodiless = self._is_head
        """Whether no piece goes out, whatever the application gives."""
        self._start = start_response
        self._started: tuple[str, list[tuple[str, str]]] | None = None
        """The application's head, until it goes out."""
        self._write: Callable[[bytes], object] | None = None
        """The server's; None until the head has gone out."""
        self._app_iterable: Iterable[bytes] = ()
        self._pieces: Iterator[bytes] = iter(())
        self._ours = False
        """Whether the body is our own, and the application's thrown away."""
        self._announced: int | None = None
        """Bytes still to come by Content-Length; None where it does not tell."""
        self._has_passed = False
        """Whether a piece has gone out."""
        self._exhausted = False
        self._broken = False
        self._closed = False
        self.then: Callable[[], None] | None = None
        """What is to be done at last, once the exchange is finished."""

    def give(self, response: Response) -> None:
        """Send a whole response of our own, without its body for HEAD."""
        body = b"" if self._is_head else response.body
        self._ours, self._announced, self._pieces = True, len(body), iter((body,))
        head = response.head
        self._write = self._start(status_line(head.status), fields_of(head.headers))

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None, /
    ) -> Callable[[bytes], object]:
        """Take the application's head: what it is given as ``start_response``."""
        if self._write is not None:
            # Only the server knows whether bytes are out; if they are, it raises.
            self._broken = True
            return self._start(status, headers, exc_info)
        if self._started is not None and exc_info is None:
            raise AssertionError("start_response was called again without exc_info (PEP 3333)")
        self._started = status, headers
        return self._write_piece

    def relay(self, iterable: Iterable[bytes]) -> None:
        """Send what the application has returned."""
        self._app_iterable = iterable
        if self._ours:
            return
        self._pieces = iter(iterable)
        if isinstance(iterable, list | tuple) and len(iterable) == 1:
            self._tell_length(len(iterable[0]))
        self._send_head()

    def stand_in(self, error: Exception) -> bool:
        """Send what may stand in for a response that the application has not begun, if anything."""
        response = None if self._write is not None else self._exchange.failed()
        if response is None:
            return False
        self._gateway.observe(UserCodeFailed("the application", error))
        self._started, self._broken = None, False
        self.give(response)
        return True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next piece, as soon as the application has one."""
        if self._has_passed and self._exchange.holding:
            self._renew()
        piece = self._next_piece()
        if self._send_head() and self._ours:
            piece = next(self._pieces)
        if self._gateway.finishes_first and self._is_bodiless:
            # A server sends the head with the first piece, and that is all there is.
            for unsent in self._pieces:
                self._passing(unsent)
            piece = None
        if piece is None:
            self._exhausted = True
            if self._gateway.finishes_first:
                self._finish()
            raise StopIteration
        sent = self._passing(piece)
        if self._gateway.finishes_first and self._announced == 0:
            self._finish_before_the_last()
        return sent

    def _next_piece(self) -> bytes | None:
        """Return the application's next piece, None where there is none; or ours in its stead."""
        try:
            return next(self._pieces, None)
        except Exception as error:
            self._broken = True
            if not self.stand_in(error):
                raise
            return next(self._pieces)
        except BaseException:
            self._broken = True
            raise

    def close(self) -> None:
        """Close the application's iterable and finish the exchange, once."""
        self._finish()
        then, self.then = self.then, None
        if then is not None:
            then()

    def _finish(self) -> None:
        """Close what the application has returned, and then finish the exchange."""
        if self._closed:
            return
        self._closed = True
        complete = False
        try:
            close = getattr(self._app_iterable, "close", None)
            if close is not None:
                close()
            complete = self._is_complete()
        finally:
            self._gateway.finish(self._exchange, complete=complete)

    def _finish_before_the_last(self) -> None:
        """Finish while the last piece is held back, unless the application has another one."""
        try:
            more = next(self._pieces, None)
        except BaseException:
            self._broken = True
            raise
        if more is None:
            self._exhausted = True
            self._finish()
        else:
            self._pieces = chain((more,), self._pieces)

    def _tell_length(self, length: int) -> None:
        """Say Content-Length of a single piece, as servers do, who cannot see it behind us."""
        if self._started is None or self._is_head:
            return
        status, fields = self._started
        told = "content-length" in [name.lower() for name, _ in fields]
        if not told and int(status[:3]) not in WITHOUT_BODY:
            self._started = status, [*fields, ("Content-Length", str(length))]

    def _send_head(self) -> bool:
        """Send the head that the application has given; return whether one was waiting."""
        if self._started is None:
            return False
        (status, fields), self._started = self._started, None
        head = head_of(status, fields)
        answer = self._exchange.head(head)
        if isinstance(answer, Response):
            self.give(answer)
            return True
        if answer is not head:
            status = status if answer.status == head.status else status_line(answer.status)
            fields = fields_of(answer.headers)
        self._is_bodiless = self._is_head or head.status in WITHOUT_BODY
        if not self._is_bodiless:
            self._announced = content_length(head.headers)
        self._write = self._start(status, fields)
        return True

    def _write_piece(self, data: bytes) -> None:
        """Send a piece at once: the ``write`` that PEP 3333 keeps for older applications."""
        if self._send_head() and self._ours:
            data = next(self._pieces)
        elif self._ours:
            return
        if self._write is not None:
            self._write(self._passing(data))
            if self._exchange.holding:
                self._renew()

    def _passing(self, piece: bytes) -> bytes:
        """Show a piece to the exchange and return what goes out for it."""
        if not self._ours:
            if self._is_head:
                return b""
            if self._exchange.watching and not self._broken:
                self._exchange.chunk(piece)
        if self._announced is not None:
            self._announced -= len(piece)
        self._has_passed = True
        return piece

    def _renew(self) -> None:
        """Renew what the request holds, between two pieces, unless its end is known to be near."""
        if self._announced != 0:
            self._gateway.renew(self._exchange)

    def _is_complete(self) -> bool:
        """Whether the client was given all; a server may stop at Content-Length's last byte."""
        if self._broken:
            return False
        return self._exhausted if self._announced is None else self._announced == 0
