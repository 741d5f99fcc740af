"""One request's way through a middleware: what the sync and the async entry do alike.

The exchange decides, ``translation`` translates; here is only in which order, and that the
exchange is finished when the request is closed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from upstash_middleware.django import translation
from upstash_middleware.django.denying import denied_or_ready
from upstash_middleware.messages import WITHOUT_BODY, Response, content_length

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
    from django.http.response import HttpResponseBase

    from upstash_middleware.core.engine import Exchange
    from upstash_middleware.gateway import Gateway
    from upstash_middleware.messages import Request

_HANDED = "upstash_middleware.handed"
"""Where in ``META`` a rate limit leaves its exchange for the cache directly inside."""


def handed_over(request: HttpRequest, gateway: Gateway) -> tuple[Request, Exchange] | None:
    """Take what a rate limit directly outside has found out for this gateway, if it has."""
    asked, outer = request.META.get(_HANDED, (None, None))
    if outer is None or outer.inner is None or outer.inner.engine is not gateway.engine:
        return None
    return asked, outer.take_inner()


class Passage:
    """One request, its exchange, and whether the response has passed whole."""

    def __init__(
        self, request: HttpRequest, asked: Request, gateway: Gateway, exchange: Exchange
    ) -> None:
        self._request = request
        self._asked = asked
        self._gateway = gateway
        self._exchange = exchange
        self._complete = False
        self._finished = False
        self._announced: int | None = None
        """Bytes still to come by Content-Length; None where it does not tell."""
        self.refresh: Callable[[HttpRequest, Exchange], None] | None = None
        """Fetches anew what was sent stale; None where nobody does."""

    def ready(self) -> HttpResponse | None:
        """Return the response to give at once, or None: call the application."""
        if self._exchange.response is None:
            return None
        self._complete = True
        self._finish_when_closed()
        return denied_or_ready(self._request, self._exchange, self._gateway)

    def forwarding(self) -> AbstractContextManager[None]:
        """Show the application its request, and the middleware directly inside its lookup."""
        if self._exchange.inner is None and self._exchange.request is self._asked:
            return nullcontext()
        return self._forwarding()

    @contextmanager
    def _forwarding(self) -> Iterator[None]:
        meta, wanted = self._request.META, self._exchange.request.headers
        if self._exchange.inner is not None:
            meta[_HANDED] = self._asked, self._exchange
        try:
            with translation.forwarding(self._request, self._asked.headers, wanted):
                yield
        finally:
            meta.pop(_HANDED, None)

    @property
    def ends_here(self) -> bool:
        """Whether all has been seen, and the exchange is to be finished before it goes out."""
        return self._complete and self._gateway.finishes_first

    async def afinish(self) -> None:
        """Do the same as ``finish`` on an event loop."""
        if not self._finished:
            self._finished = True
            await self._gateway.afinish(self._exchange, complete=self._complete)

    def answer(self, response: HttpResponseBase) -> HttpResponseBase:
        """Return what to send for the application's response, whose body is seen as it passes."""
        self._finish_when_closed()
        head = translation.head_from(response)
        sent = self._exchange.head(head)
        if response.streaming:
            self._announced = content_length(head.headers)
        if isinstance(sent, Response):
            self._complete = True
            return translation.stand_in(sent, response, without_body=self._is_head)
        translation.change_head(response, head, sent)
        if not response.streaming:
            self._see_whole(cast("HttpResponse", response))
        elif self._gateway.finishes_first and self._head_is_all(response.status_code):
            self._complete = True
        elif not self._is_for_the_server(response):
            self._see_pieces(cast("StreamingHttpResponse", response))
        return response

    def finish(self) -> None:
        """Finish the exchange, unless that has been done."""
        if not self._finished:
            self._finished = True
            self._gateway.finish(self._exchange, complete=self._complete)

    @property
    def _is_head(self) -> bool:
        return self._asked.method == "HEAD"

    def _head_is_all(self, status: int) -> bool:
        """Whether a client has all once it has the head, whatever a stream would give."""
        return self._is_head or status in WITHOUT_BODY or self._announced == 0

    def _is_for_the_server(self, response: HttpResponseBase) -> bool:
        """Whether the server reads a file itself, by ``wsgi.file_wrapper``; it is not stored then.

        To see the file pass would be to read it here, and the server would lose ``sendfile``.
        """
        is_file = getattr(response, "file_to_stream", None) is not None
        return is_file and "wsgi.file_wrapper" in self._request.META

    def _see_whole(self, response: HttpResponse) -> None:
        if self._exchange.watching and (content := response.content):
            self._exchange.chunk(content)
        self._complete = True

    def _see_pieces(self, response: StreamingHttpResponse) -> None:
        content: Any = response.streaming_content
        response.streaming_content = (
            self._watched_async(content) if response.is_async else self._watched(content)
        )

    def _watched(self, content: Iterator[bytes]) -> Iterator[bytes]:
        for piece in content:
            self._exchange.chunk(piece)
            if self._is_last(piece):
                self._complete = True
                self.finish()
            yield piece
            if self._exchange.holding and not self._finished:
                self._gateway.renew(self._exchange)
        self._complete = True
        if self._gateway.finishes_first:
            self.finish()

    async def _watched_async(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in content:
            self._exchange.chunk(piece)
            if self._is_last(piece):
                self._complete = True
                await self.afinish()
            yield piece
            if self._exchange.holding and not self._finished:
                await self._gateway.arenew(self._exchange)
        self._complete = True
        if self._gateway.finishes_first:
            await self.afinish()

    def _is_last(self, piece: bytes) -> bool:
        """Whether Content-Length says that this piece ends what is to be finished first."""
        if self._announced is None or not self._gateway.finishes_first:
            return False
        self._announced -= len(piece)
        return self._announced == 0 and bool(piece)

    def _finish_when_closed(self) -> None:
        close, request = self._request.close, self._request

        def finish_and_close() -> None:
            vars(request).pop("close", None)  # once; and nothing holds on to the body seen
            stale = self._exchange.take_refresh() if self.refresh else None
            try:
                self.finish()
            finally:
                close()
            if stale is not None and self.refresh is not None:
                self.refresh(request, stale)

        request.close = finish_and_close  # type: ignore[method-assign]  # Django has no other hook
