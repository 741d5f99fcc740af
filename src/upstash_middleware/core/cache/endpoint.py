"""Purging over HTTP: the endpoint of the settings ``purge_path`` and ``purge_token``.

``POST /PATH?url=/products/7&tag=product:7&soft=1`` with ``Authorization: Bearer TOKEN``; ``url``
and ``tag`` any number of times, or ``everything=1``. What a purge does stands in ``purging``.
"""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from upstash_middleware.core.cache.exchanges import Passing
from upstash_middleware.core.cache.purging import Purge
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import UpstashFailed
from upstash_middleware.messages import Headers, Response, ResponseHead
from upstash_middleware.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.effects import Flow
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Request

_PARAMETERS = ("url", "tag", "everything", "soft")
_YES = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class PurgeEndpoint:
    """Answers the requests for one path, and none other; implements ``core.exchange.Half``."""

    path: str
    token: str = field(repr=False)
    purge: Callable[[Purge], Flow[None]]
    observe: Observer

    def covers(self, request: Request) -> bool:
        """Whether a request is for the endpoint, and for nobody else."""
        return request.path == self.path

    async def begin(self, request: Request) -> Answered:
        """Answer a request: 200, or why nothing was purged."""
        return Answered(await self._answer(request))

    async def _answer(self, request: Request) -> Response:
        if not self._is_authorized(request):
            return _response(401, "A bearer token is missing or wrong.", www_authenticate="Bearer")
        if request.method != "POST":
            return _response(405, "Purge with POST.", allow="POST")
        asked = _asked(request.query)
        if isinstance(asked, str):
            return _response(400, asked)
        try:
            await self.purge(asked)
        except ValueError as error:
            return _response(400, str(error))
        except UpstashError as error:
            self.observe(UpstashFailed("purge", error))
            return _response(503, "It is not certain that all was purged; try again.")
        return _response(200, "Purged.")

    def _is_authorized(self, request: Request) -> bool:
        """Compare in a time that tells nothing, not even how long the token is."""
        scheme, _, given = (request.headers.get("authorization") or "").partition(" ")
        mine, theirs = (
            sha256(text.encode("utf-8", "surrogateescape")).digest()
            for text in (self.token, given.strip())
        )
        return hmac.compare_digest(mine, theirs) and scheme.lower() == "bearer"


class Answered(Passing):
    """A request that the endpoint has answered; implements ``core.exchange.Exchange``."""

    __slots__ = ("response",)

    def __init__(self, response: Response) -> None:
        self.response: Response = response


def _asked(query: str) -> Purge | str:
    """Return what a query asks for, or in words what is wrong with it."""
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, value in pairs:
        if name not in _PARAMETERS:
            return f"There is no parameter {name!r}; there are {', '.join(_PARAMETERS)}."
        if not value:
            return f"The parameter {name!r} is empty."
    asked = Purge(
        urls=tuple(value for name, value in pairs if name == "url"),
        tags=tuple(value for name, value in pairs if name == "tag"),
        everything=_is_set(pairs, "everything"),
        soft=_is_set(pairs, "soft"),
    )
    if not (asked.urls or asked.tags or asked.everything):
        return "Nothing to purge: give url=, tag= or everything=1."
    return asked


def _is_set(pairs: list[tuple[str, str]], name: str) -> bool:
    return any(found == name and value.lower() in _YES for found, value in pairs)


def _response(status: int, detail: str, **fields: str) -> Response:
    body = json.dumps({"status": status, "detail": detail}).encode()
    headers = Headers.of(
        content_type="application/json",
        content_length=str(len(body)),
        cache_control="no-store",
        **fields,
    )
    return Response(ResponseHead(status, headers), body)
