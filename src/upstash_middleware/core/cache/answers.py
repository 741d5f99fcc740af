"""Responses made from stored ones (RFC 9111 §4): whole, a part, for HEAD, a 304; values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.dates import format_date
from upstash_middleware.core.cache.entries import Damaged, body_of
from upstash_middleware.core.cache.freshness import date_of
from upstash_middleware.core.cache.ranges import (
    UNSATISFIABLE,
    part_held,
    wanted_of_part,
    wanted_range,
)
from upstash_middleware.core.cache.validation import headers_of_304, not_modified
from upstash_middleware.messages import WITHOUT_BODY, Headers, Response, ResponseHead

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.core.cache.status import CacheStatus
    from upstash_middleware.messages import Request

FOR_LESS = frozenset({"if-modified-since", "if-none-match", "if-range", "range"})
"""Fields with which a request may be answered by less than what is stored."""


def current_age(stored: StoredResponse, now: float) -> float:
    """Return its current age in seconds (§4.2.3); clocks that disagree make nothing younger."""
    resident = now - stored.stored_at
    return stored.initial_age + resident if resident > 0 else stored.initial_age


def head_of(
    stored: StoredResponse, age: float, profile: Profile, status: CacheStatus
) -> ResponseHead:
    """Return the head of a stored response as it is told at this current age, in seconds."""
    fields = _fields(stored, profile)
    return ResponseHead(stored.status, fields.adding((b"age", b"%d" % age), status.field()))


def answer(request: Request, stored: StoredResponse, head: ResponseHead) -> Response:
    """Return what a stored response, whose head is to be told as this one, answers to a request.

    Raises Damaged if that takes its body, and its body does not open or is a part that does not
    hold what is asked for.
    """
    asks_for_less = not request.headers.names().isdisjoint(FOR_LESS)
    if asks_for_less and not_modified(request.headers, stored):
        return Response(ResponseHead(304, headers_of_304(head.headers)))
    if request.method == "HEAD":
        return Response(head)
    body = body_of(stored)
    if stored.status == 206:
        return _part_of_part(request, stored, head.headers, body)
    if asks_for_less and stored.status == 200:
        part = wanted_range(request.headers, stored)
        if part is not None:
            return _part_of_whole(head.headers, body, part)
    return Response(head, body)


def answers(request: Request, stored: StoredResponse) -> bool:
    """Whether a stored response holds what a request asks for: a part may not (§3.3)."""
    if stored.status != 206:
        return True
    return request.method == "GET" and wanted_of_part(request.headers, stored) is not None


def _part_of_whole(headers: Headers, body: bytes, part: range) -> Response:
    """Return a part of a body (RFC 9110 §15.3.7), or that there is no such part (§15.5.17)."""
    if part == UNSATISFIABLE:
        headers = headers_of_304(headers).setting("content-range", f"bytes */{len(body)}")
        return Response(ResponseHead(416, headers.setting("content-length", "0")))
    return _part(headers, body[part.start : part.stop], part.start, str(len(body)))


def _part_of_part(
    request: Request, stored: StoredResponse, headers: Headers, body: bytes
) -> Response:
    held, wanted = part_held(stored.headers), wanted_of_part(request.headers, stored)
    if held is None or wanted is None:
        raise Damaged
    content = body[wanted.start : wanted.stop]
    total = "*" if held.total is None else str(held.total)
    return _part(headers, content, held.first + wanted.start, total)


def _part(headers: Headers, content: bytes, start: int, total: str) -> Response:
    span = f"bytes {start}-{start + len(content) - 1}/{total}"
    headers = headers.setting("content-range", span).setting("content-length", str(len(content)))
    return Response(ResponseHead(206, headers), content)


def only_if_cached() -> Response:
    """Return what a client gets that wants a stored response and nothing else (§5.2.1.7).

    Without Cache-Status: it is based upon no stored response (RFC 9211 §2).
    """
    return Response(ResponseHead(504, Headers([(b"content-length", b"0")])))


def _fields(stored: StoredResponse, profile: Profile) -> Headers:
    """Return the fields that each response made from a stored one has; worked out once."""
    fields = stored.fields
    if fields is None:
        fields = _own_fields(stored, profile)
        object.__setattr__(stored, "fields", fields)
    return fields


def _own_fields(stored: StoredResponse, profile: Profile) -> Headers:
    headers = stored.headers
    if not profile.replays_date:
        headers = headers.without("date")
    elif "date" not in headers:
        # RFC 9110 §6.6.1: a response without Date gets the time when it was received.
        date = format_date(date_of(headers, stored.stored_at)).encode("ascii")
        headers = headers.adding((b"date", date))
    if "content-length" not in headers and stored.status not in WITHOUT_BODY:
        headers = headers.adding((b"content-length", b"%d" % stored.length))
    return headers
