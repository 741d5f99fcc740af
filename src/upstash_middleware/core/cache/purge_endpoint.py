"""Purging over HTTP: the endpoint of the settings purge_path and purge_token.

``POST /PATH?url=/products/7&tag=product:7&soft=1`` with ``Authorization: Bearer TOKEN``; ``url``,
``tag``, ``directory`` and ``rule`` any number of times, or ``everything=1``; ``true``, ``yes`` and
``on`` mean the same as ``1``.
"""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from upstash_middleware.core.cache.exchanges import Answered
from upstash_middleware.core.cache.store import Purge
from upstash_middleware.core.engine import Part
from upstash_middleware.errors import PurgeNotPassedOn, UpstashError
from upstash_middleware.events import UpstashFailed, UserCodeFailed
from upstash_middleware.messages import Headers, Response, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.core.flow import Flow
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import HTTPRequest

_PARAMETERS = ("url", "tag", "directory", "rule", "everything", "soft")
_FLAGS = dict.fromkeys(("1", "true", "yes", "on"), True)
_FLAGS |= dict.fromkeys(("0", "false", "no", "off"), False)


class PurgeEndpoint(Part):
    """Answers the requests for one path; implements ``core.engine.Part``."""

    __slots__ = ("_emit", "_purge", "_token", "path")

    def __init__(
        self, path: str, token: str, purge: Callable[[Purge], Flow[None]], emit: Observer
    ) -> None:
        self.path: str = path
        self._token = token
        self._purge = purge
        self._emit = emit

    def covers(self, request: HTTPRequest) -> bool:
        """Whether a request is for the endpoint."""
        return request.path == self.path

    async def prepare(self, request: HTTPRequest) -> Answered:
        """Answer a request: 200, or why nothing was purged."""
        return Answered(response=await self._answer(request))

    async def _answer(self, request: HTTPRequest) -> Response:  # noqa: PLR0911 - one each
        # First, because limits may not count such requests, and they must reveal no token.
        if request.method != "POST":
            return _response(405, "Purge with POST.", allow="POST")
        if not self._is_authorized(request):
            return _response(401, "A bearer token is missing or wrong.", www_authenticate="Bearer")
        what = _parse_purge(request.query)
        if isinstance(what, str):
            return _response(400, what)
        try:
            await self._purge(what)
        except ValueError as error:
            return _response(400, str(error))
        except UpstashError as error:
            self._emit(UpstashFailed("purge", error))
            return _response(503, "The purge may be incomplete; try again.")
        except PurgeNotPassedOn as error:
            cause = error.__cause__
            self._emit(UserCodeFailed("on_purge", cause if isinstance(cause, Exception) else error))
            return _response(502, "Purged, and not passed on to the CDN; try again.")
        return _response(200, "Purged.")

    def _is_authorized(self, request: HTTPRequest) -> bool:
        """Compare tokens in a time that reveals nothing, not even their length."""
        scheme, _, given = (request.headers.get("authorization") or "").partition(" ")
        ours, theirs = (
            sha256(text.encode("utf-8", "surrogateescape")).digest()
            for text in (self._token, given.strip())
        )
        return hmac.compare_digest(ours, theirs) and scheme.lower() == "bearer"


def _parse_purge(query: str) -> Purge | str:
    """Return the purge that a query describes, or what is wrong with the query."""
    pairs = parse_qsl(query, keep_blank_values=True)
    for name, text in pairs:
        if name not in _PARAMETERS:
            return f"Unknown parameter {name!r}; known: {', '.join(_PARAMETERS)}."
        if not text:
            return f"The parameter {name!r} is empty."
        if name in {"everything", "soft"} and text.lower() not in _FLAGS:
            return f"The parameter {name!r} is {text!r}; it should be 1 or 0."
    flags = {name for name, text in pairs if _FLAGS.get(text.lower())}
    what = Purge(
        urls=tuple(text for name, text in pairs if name == "url"),
        tags=tuple(text for name, text in pairs if name == "tag"),
        everything="everything" in flags,
        soft="soft" in flags,
        directories=tuple(text for name, text in pairs if name == "directory"),
        rules=tuple(text for name, text in pairs if name == "rule"),
    )
    if what in {Purge(), Purge(soft=True)}:
        return "Nothing to purge: give url=, tag=, directory=, rule= or everything=1."
    return what


def _response(status: int, detail: str, **fields: str) -> Response:
    body = json.dumps({"status": status, "detail": detail}).encode()
    headers = Headers.of(
        content_type="application/json",
        content_length=str(len(body)),
        cache_control="no-store",
        **fields,
    )
    return Response(ResponseHead(status, headers), body)
