"""Two wrappers around a limit: for exempt requests, and for custom responses to denials."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from upstash_middleware.core.flow import call
from upstash_middleware.core.ratelimit.decision import Decision, completing
from upstash_middleware.events import UserCodeFailed
from upstash_middleware.messages import (
    WITHOUT_BODY,
    Headers,
    HTTPRequest,
    Response,
    ResponseHead,
)

if TYPE_CHECKING:
    from upstash_middleware.core.engine import Part, PartExchange
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.core.ratelimit.exchange import RateLimitExchange
    from upstash_middleware.core.ratelimit.limiter import RateLimiter
    from upstash_middleware.events import Observer

DeniedResponse = tuple[int, Mapping[str, str], str | bytes] | None
"""A status, header fields and a body, text in UTF-8; None for this package's own response."""
OnDenied = Callable[[HTTPRequest, Decision], DeniedResponse | Awaitable[DeniedResponse]]


class Exemptions(Struct, frozen=True):
    """A limit that ignores the requests that ``exempts`` selects; implements ``core.engine.Part``.

    Where that raises, as in a framework that cannot look up its routes, a request is counted.
    """

    limit: Part
    exempts: Callable[[HTTPRequest], bool]
    observe: Observer

    def begin(self, request: HTTPRequest) -> Flow[PartExchange | None]:
        """Decide about a request, unless it is exempt. A flow."""
        try:
            is_exempt = self.exempts(request)
        except Exception as error:  # noqa: BLE001 - a fault in routing must lift no limit
            self.observe(UserCodeFailed("looking for an exempt handler", error))
            is_exempt = False
        return _nothing() if is_exempt else self.limit.begin(request)


async def _nothing() -> None:
    pass


class CustomDenials(Struct, frozen=True):
    """A limit with ``on_denied`` for its denials; implements ``core.engine.Part``.

    The fields of a denial are added if the function does not set them. If it raises or returns
    anything else, this package's own response is sent, and a UserCodeFailed is emitted.
    """

    limiter: RateLimiter
    on_denied: OnDenied
    observe: Observer

    async def begin(self, request: HTTPRequest) -> RateLimitExchange:
        """Decide about a request, and call ``on_denied`` if it is denied."""
        exchange = await self.limiter.begin(request)
        if exchange.response is not None and exchange.decision is not None:
            try:
                returned: Any = await call(self.on_denied, request, exchange.decision)
                if returned is not None:
                    exchange.response = _response(returned, exchange.response, request)
            except Exception as error:  # noqa: BLE001 - whatever the application's function raises
                self.observe(UserCodeFailed("on_denied", error))
        return exchange


_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ENDS_LINES = re.compile(r"[\r\n\x00]")
_FRAMING = frozenset({"content-length", "transfer-encoding"})
"""Fields that follow from the body."""


def _response(returned: Any, own: Response, request: HTTPRequest) -> Response:
    if not isinstance(returned, tuple | list) or len(returned) != 3:
        raise TypeError(f"on_denied returned {returned!r}; it should return (status, fields, body)")
    status, fields, body = returned
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"on_denied returned the status {status!r}; it should be 200 to 599")
    if not isinstance(body, str | bytes):
        raise TypeError(f"on_denied returned the body {body!r}; it should be text or bytes")
    body = body.encode() if isinstance(body, str) else body
    lines = [(name, text) for name, text in dict(fields).items() if name.lower() not in _FRAMING]
    for name, text in lines:
        # What breaks a line would end the connection, or forge a field (RFC 9110 §5.1, §5.5).
        if not _NAME.fullmatch(name) or _ENDS_LINES.search(text):
            raise ValueError(f"on_denied returned the field {name!r}: {text!r}, which is not one")
    given = Headers((name.encode("latin-1"), text.encode("latin-1")) for name, text in lines)
    missing = completing(own.head.headers, given.names())
    if status in WITHOUT_BODY:
        return Response(ResponseHead(status, given.adding(*missing)))
    headers = given.setting("content-length", str(len(body))).adding(*missing)
    return Response(ResponseHead(status, headers), b"" if request.method == "HEAD" else body)
