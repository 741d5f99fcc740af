"""A rate limit whose denials a function of the application's puts into words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.effects import call
from upstash_middleware.core.ratelimit.decision import Decision
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import Headers, Request, Response, ResponseHead
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.ratelimit.exchange import RateLimitExchange
    from upstash_middleware.core.ratelimit.limiter import RateLimiter
    from upstash_middleware.events import Observer

Words = tuple[int, Mapping[str, str], str | bytes] | None
"""A status, header fields and a body, text in UTF-8; None for this package's own answer."""
OnDenied = Callable[[Request, Decision], Words | Awaitable[Words]]

_OF_THE_BODY = frozenset({"content-type", "content-length"})


@dataclass(frozen=True, slots=True)
class Answering:
    """A rate limit, and who words its denials; implements ``core.exchange.Half``.

    What a denial has to tell is added where the function does not tell it. One that raises, or
    answers anything else, is told to the observer, and our own answer stands.
    """

    limiter: RateLimiter
    on_denied: OnDenied
    observe: Observer

    async def begin(self, request: Request) -> RateLimitExchange:
        """Decide about a request, and word the response if it is denied."""
        exchange = await self.limiter.begin(request)
        if exchange.response is not None and exchange.decision is not None:
            exchange.response = await self._worded(request, exchange.decision, exchange.response)
        return exchange

    async def _worded(self, request: Request, decision: Decision, own: Response) -> Response:
        try:
            words: Any = await call(self.on_denied, request, decision)
            return own if words is None else _response(words, own, request)
        except Exception as error:  # noqa: BLE001 - whatever the application's function raises
            self.observe(UserCodeFailed("on_denied", error))
            return own


def _response(words: Any, own: Response, request: Request) -> Response:
    status, fields, content = words
    body = content.encode() if isinstance(content, str) else bytes(content)
    if not isinstance(status, int) or not 200 <= status <= 599:
        raise ValueError(f"on_denied answered the status {status!r}; it should be 200 to 599")
    given = Headers((n.encode("latin-1"), v.encode("latin-1")) for n, v in dict(fields).items())
    missing = [
        (name, value)
        for name, value in own.head.headers.without(*_OF_THE_BODY).raw
        if name.decode("latin-1").lower() not in given
    ]
    headers = given.setting("content-length", str(len(body))).adding(*missing)
    return Response(ResponseHead(status, headers), b"" if request.method == "HEAD" else body)
