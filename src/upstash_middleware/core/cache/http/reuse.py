"""Reuse of stored responses: whether it is allowed (RFC 9111 §4.2), and the response to send.

Also validation (RFC 9111 §4.3), range requests (RFC 9110 §14), combination of parts (RFC 9111 §3.4)
and Cache-Status (RFC 9211). The functions are pure.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from math import floor
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.cache.entries import Damaged, body_of
from upstash_middleware.core.cache.http.directives import (
    NO_DIRECTIVES,
    date_of,
    entity_tags,
    format_date,
    is_strong,
    opaque_tag,
    parse_date,
)
from upstash_middleware.messages import WITHOUT_BODY, Headers, Response, ResponseHead

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.http.directives import Directives
    from upstash_middleware.core.cache.rules import Profile
    from upstash_middleware.messages import HTTPRequest

CONDITIONS = ("if-modified-since", "if-none-match")
"""The conditions that the cache evaluates itself (§4.3.2)."""
RANGE_FIELDS = frozenset({"if-range", "range"})
"""Request fields for which the response may be only a part of the stored response."""
RANGE_AND_CONDITIONS = RANGE_FIELDS.union(CONDITIONS)
"""Request fields for which the response may be less than the stored response: a part or a 304."""

_STORED_BODY_FIELDS = ("content-encoding", "content-length", "content-range")
# RFC 9110 §15.4.5: a 304 does not describe a body, because it has none.
_BODY_FIELDS = (*_STORED_BODY_FIELDS, "content-language", "content-type")


# --- Whether a stored response may be used (RFC 9111 §4.2) --------------------------------------


class Use(Enum):
    """How a request that selects a stored response is answered."""

    FRESH = auto()
    STALE = auto()
    """Use the response although it is stale, because the client accepts it."""
    STALE_WHILE_REVALIDATE = auto()
    FORWARD_STALE = auto()
    """Forward the request, because the response is stale."""
    FORWARD_REQUESTED = auto()
    """Forward the request, because the client requests a fresher response."""


def current_age(stored: StoredResponse, now: float) -> float:
    """Return a response's current age in seconds (§4.2.3), at least its initial age."""
    return stored.initial_age + max(0.0, now - stored.stored_at)


def use(  # noqa: PLR0913 - all conditions
    stored: StoredResponse,
    age: float,
    requested: Directives = NO_DIRECTIVES,
    *,
    purged_softly: bool = False,
    outdated: bool = False,
    can_refresh: bool = False,
    immutable: bool = False,
) -> Use:
    """Return how to answer a request that selects this stored response, at its current age.

    Args:
        stored: The stored response.
        age: Its current age in seconds.
        requested: The request's directives, if the profile obeys them.
        purged_softly: Whether a soft purge has made it stale.
        outdated: Whether the application's previous version made it.
        can_refresh: Whether a stale response can be revalidated in the background.
        immutable: Whether the response does not change while it is fresh (RFC 8246).
    """
    left = stored.lifetime - age
    if purged_softly:
        left = min(left, 0.0)
    unwanted = requested is not NO_DIRECTIVES and _wants_fresher(requested, age, left)
    if left > 0 and not outdated:
        if immutable:  # RFC 8246 §2: a reload with max-age=0 would return the same response
            unwanted = _wants_fresher(requested.without("max-age"), age, left)
        return Use.FORWARD_REQUESTED if unwanted else Use.FRESH
    if left <= 0:
        if stored.stale.forbidden or "no-cache" in requested:
            return Use.FORWARD_STALE
        if "max-stale" in requested:  # §5.2.1.2
            limit = requested.arguments["max-stale"]
            if limit is None or -left <= (requested.seconds("max-stale") or 0):
                return Use.STALE
    refreshed = can_refresh and not unwanted
    if refreshed and (left > 0 or -left < stored.stale.while_revalidate):
        return Use.STALE_WHILE_REVALIDATE
    return Use.FORWARD_STALE


def usable_for_error(
    stored: StoredResponse, now: float, requested: Directives = NO_DIRECTIVES
) -> bool:
    """Whether a stale response may be used in place of an error (RFC 5861 §4).

    ``requested`` are the directives of a request received after the error, if they are obeyed.
    """
    age = current_age(stored, now)
    left = stored.lifetime - age
    if stored.stale.forbidden or _wants_fresher(requested, age, left):
        return False
    return -left < stored.stale.if_error


def usable_unverified(
    stored: StoredResponse, now: float, unverified_for: float, requested: Directives
) -> bool:
    """Whether a response in this process's memory may be used while Upstash is unreachable.

    For ``unverified_for`` seconds, purges and replacements may have gone unnoticed. This time
    counts as staleness, even if the response is fresh, and stale-if-error (RFC 5861 §4) limits it.
    """
    age = current_age(stored, now)
    left = min(stored.lifetime - age, -unverified_for)
    if _wants_fresher(requested, age, left):
        return False
    return left > 0 or (not stored.stale.forbidden and -left < stored.stale.if_error)


def _wants_fresher(requested: Directives, age: float, left: float) -> bool:
    """Whether the client requests a fresher response (§5.2.1.1, §5.2.1.3, §5.2.1.4)."""
    max_age, min_fresh = requested.seconds("max-age"), requested.seconds("min-fresh")
    return (
        "no-cache" in requested
        or (max_age is not None and age > max_age)
        or (min_fresh is not None and left < min_fresh)
    )


# --- Responses made from a stored one -----------------------------------------------------------


def head_of(
    stored: StoredResponse, age: float, profile: Profile, status: tuple[bytes, bytes]
) -> ResponseHead:
    """Return the head of a stored response for sending at this current age, in seconds."""
    headers = stored.headers
    if not profile.replays_date:
        headers = headers.without("date")
    elif "date" not in headers:
        # RFC 9110 §6.6.1: a response without Date gets the time when it was received.
        date = format_date(date_of(headers, stored.stored_at)).encode("ascii")
        headers = headers.adding((b"date", date))
    if "content-length" not in headers and stored.status not in WITHOUT_BODY:
        headers = headers.adding((b"content-length", b"%d" % stored.length))
    return ResponseHead(stored.status, headers.adding((b"age", b"%d" % age), status))


def satisfies(request: HTTPRequest, stored: StoredResponse) -> bool:
    """Whether a stored response contains the requested range; a stored part may not (§3.3)."""
    if stored.status != 206:
        return True
    return request.method == "GET" and wanted_range(request.headers, stored) is not None


def answer(request: HTTPRequest, stored: StoredResponse, head: ResponseHead) -> Response:
    """Return the response to a request from a stored one: all of it, a part, or a 304.

    Raises Damaged if the body is needed and damaged, or is a part without the requested range.
    """
    for_less = not request.headers.names().isdisjoint(RANGE_AND_CONDITIONS)
    if for_less and not_modified(request.headers, stored):
        return Response(ResponseHead(304, headers_of_304(head.headers)))
    if request.method == "HEAD":
        return Response(head)
    body = body_of(stored) if stored.compressed else stored.packed
    if not for_less and stored.status != 206:
        return Response(head, body)
    part, wanted = _part_of(stored), wanted_range(request.headers, stored)
    if part is None or wanted is None:
        if stored.status == 206:
            raise Damaged
        return Response(head, body)
    if wanted == UNSATISFIABLE:  # RFC 9110 §15.5.17
        headers = headers_of_304(head.headers).setting("content-range", f"bytes */{len(body)}")
        return Response(ResponseHead(416, headers.setting("content-length", "0")))
    content = body[wanted.start : wanted.stop]
    first = part.first + wanted.start
    content_range = Part(first, first + len(content) - 1, part.total)
    headers = head.headers.setting("content-range", str(content_range))
    headers = headers.setting("content-length", str(len(content)))
    return Response(ResponseHead(206, headers), content)  # RFC 9110 §15.3.7


# --- Validation (RFC 9111 §4.3) -----------------------------------------------------------------


def has_validator(headers: Headers) -> bool:
    """Whether a response has a validator."""
    return "etag" in headers or "last-modified" in headers


def not_modified(request: Headers, stored: StoredResponse) -> bool:
    """Whether a request's conditions lead to a 304 for a stored response (§4.3.2).

    If-None-Match takes precedence over If-Modified-Since, even if it is invalid and matches
    nothing. Conditions apply only to a successful response (RFC 9110 §13.2.1).
    """
    if not 200 <= stored.status < 300 or stored.status == 206:
        return False
    condition = request.combined("if-none-match")
    if condition is not None:
        return _lists(condition, stored.headers.get("etag"))
    if (date := request.get("if-modified-since")) is None:
        return False
    since = parse_date(date, stored.stored_at)
    # Last-Modified, otherwise Date, otherwise the time of receipt.
    modified = parse_date(stored.headers.get("last-modified") or "", stored.stored_at)
    if modified is None:
        modified = date_of(stored.headers, stored.stored_at)
    return since is not None and modified <= since


def makes_304(request: Headers, response: Headers, received_at: float) -> bool:
    """Whether a request's conditions lead to a 304 for a new 200 with these fields.

    The conditions were not forwarded, so only the application's own validators are compared (RFC
    9110 §13.1.2, §13.1.3).
    """
    condition = request.combined("if-none-match")
    if condition is not None:
        return _lists(condition, response.get("etag"))
    since = parse_date(request.get("if-modified-since") or "", received_at)
    modified = parse_date(response.get("last-modified") or "", received_at)
    return since is not None and modified is not None and modified <= since


def _lists(condition: str, etag: str | None) -> bool:
    if condition.strip() == "*":
        return True
    tags = entity_tags(condition)
    if etag is None or tags is None:
        return False
    return opaque_tag(etag.strip()) in map(opaque_tag, tags)


def with_validators(request: Headers, stored: Headers) -> Headers:
    """Return a request's header fields with the validators of a stored response (§4.3.1).

    The client's If-None-Match is kept and extended: the ETag of a 304 shows which one matched. Its
    If-Modified-Since is replaced, because the field has a single value.
    """
    etag, modified = stored.get("etag"), stored.get("last-modified")
    if etag is not None:
        own = request.combined("if-none-match")
        tags = etag if own is None else own if own.strip() == "*" else f"{own}, {etag}"
        request = request.setting("if-none-match", tags)
    if modified is not None:
        request = request.setting("if-modified-since", modified)
    return request


def confirms(stored: Headers, head_of_304: Headers) -> bool:
    """Whether a 304 confirms this stored response, by its validators (§4.3.4).

    A 304 without validators refers to the only condition that was sent.
    """
    etag, own = head_of_304.get("etag"), stored.get("etag")
    if etag is not None and own is not None:
        return etag == own if is_strong(etag) else opaque_tag(etag) == opaque_tag(own)
    modified = head_of_304.get("last-modified")
    return etag is None and modified in {None, stored.get("last-modified")}


def confirms_head(stored: StoredResponse, head: Headers) -> bool:
    """Whether the 200 to a HEAD request matches this stored response to GET (§4.3.5)."""
    length = head.get("content-length")
    return (length is None or length == str(stored.length)) and all(
        head.get(name) in {None, stored.headers.get(name)} for name in ("etag", "last-modified")
    )


def update_fields(stored: Headers, received: Headers, now: float, profile: Profile) -> Headers:
    """Return stored header fields, updated with those of a newer response (§3.2).

    Fields that describe the stored bytes are kept. In profile ``safe`` this includes Content-Type,
    because a framework may add its default to a 304 although the bytes have not changed. If Date is
    missing, the time of receipt, ``now``, is used (RFC 9110 §6.6.1).
    """
    if "date" not in received:
        received = received.setting("date", format_date(now))
    received = received.without(*_STORED_BODY_FIELDS)
    if not profile.updates_content_type:
        received = received.without("content-type")
    return stored.without(*received.names()).adding(*received.raw)


def headers_of_304(headers: Headers) -> Headers:
    """Return the header fields of a 304 for a response with ``headers`` (RFC 9110 §15.4.5)."""
    return headers.without(*_BODY_FIELDS)


# --- Range requests with a single range (RFC 9110 §14) ------------------------------------------

UNSATISFIABLE = range(0)
"""A range outside of the representation."""

_ONE_RANGE = re.compile(
    r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*", re.IGNORECASE
)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Part(Struct, frozen=True):
    """The part of a representation that a Content-Range describes (§14.4)."""

    first: int
    last: int
    total: int | None
    """The length of the whole representation; None if unknown."""

    def __str__(self) -> str:
        return f"bytes {self.first}-{self.last}/{'*' if self.total is None else self.total}"

    @property
    def reaches_the_end(self) -> bool:
        """Whether the part includes the last byte of the representation."""
        return self.total == self.last + 1


def parse_part(headers: Headers) -> Part | None:
    """Return the part that a 206 contains; None if it is not a single valid range."""
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range") or "")
    if found is None:
        return None
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    if last < first or (total is not None and total <= last):
        return None
    return Part(first, last, total)


def _part_of(stored: StoredResponse) -> Part | None:
    if stored.status == 200:
        return Part(0, stored.length - 1, stored.length)
    return parse_part(stored.headers) if stored.status == 206 else None


def wanted_range(request: Headers, stored: StoredResponse) -> range | None:
    """Return the positions in a stored body that a request's Range selects.

    None if there is no Range, if it is invalid or has several ranges, which servers may ignore
    (§14.2), if If-Range does not match, or if a stored part lacks the range (RFC 9111 §3.3).
    """
    part, value = _part_of(stored), request.combined("range")
    found = _ONE_RANGE.fullmatch(value) if value is not None else None
    if part is None or found is None or not _if_range_matches(request, stored):
        return None
    first, last, suffix = found.groups()
    length = stored.length
    if not last and not part.reaches_the_end:
        return None
    if suffix is not None:
        start, stop = length - int(suffix), length
    else:
        start, stop = int(first) - part.first, int(last) + 1 - part.first if last else length
    if stored.status == 206:
        return range(start, stop) if 0 <= start < stop <= length else None
    if last and int(last) < int(first):
        return None
    start, stop = max(0, start), min(stop, length)
    return range(start, stop) if start < stop else UNSATISFIABLE


def _if_range_matches(request: Headers, stored: StoredResponse) -> bool:
    """Whether If-Range is absent, or matches the stored strong validator (§13.1.5)."""
    condition = request.get("if-range")
    if condition is None:
        return True
    if condition.startswith('"'):
        return is_strong(condition) and condition == stored.headers.get("etag")
    if condition != stored.headers.get("last-modified"):
        return False
    # RFC 9110 §8.8.2.2: Last-Modified is strong if it is at least one second earlier than Date.
    modified = parse_date(condition, stored.stored_at)
    return modified is not None and date_of(stored.headers, stored.stored_at) - modified >= 1


def combine_parts(
    stored: StoredResponse, received: StoredResponse, largest: int
) -> StoredResponse | None:
    """Combine a stored part and a part received later into one response (RFC 9111 §3.4).

    None if they have no common strong ETag, if there is a gap, or if the result exceeds ``largest``
    bytes. The result is a 200 if it is complete, otherwise a 206.
    """
    older, newer = parse_part(stored.headers), parse_part(received.headers)
    etag = received.headers.get("etag")
    if older is None or newer is None:
        return None
    if etag is None or not is_strong(etag) or stored.headers.get("etag") != etag:
        return None
    total = newer.total if newer.total is not None else older.total
    span = Part(min(older.first, newer.first), max(older.last, newer.last), total)
    gap = max(older.first, newer.first) > min(older.last, newer.last) + 1
    if older.total not in {None, total} or gap or span.last - span.first >= largest:
        return None
    try:
        old, new = body_of(stored), body_of(received)
    except Damaged:
        return None
    before = old[: max(0, newer.first - older.first)]
    body = before + new + old[max(0, newer.last + 1 - older.first) :]
    if len(body) != span.last - span.first + 1:
        return None
    headers = stored.headers.without(*received.headers.names()).adding(*received.headers.raw)
    if span.first == 0 and span.reaches_the_end:
        status, headers = 200, headers.without("content-range")
    else:
        status, headers = 206, headers.setting("content-range", str(span))
    headers = headers.setting("content-length", str(len(body)))
    return replace(received, status=status, headers=headers, packed=body, length=len(body))


# --- Cache-Status (RFC 9211) --------------------------------------------------------------------

CACHE_NAME = "upstash-middleware"
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


def cache_status(  # noqa: PLR0913 - the parameters of RFC 9211 §2, in its order
    *,
    hit: bool = False,
    fwd: str | None = None,
    fwd_status: int | None = None,
    ttl: float | None = None,
    stored: bool = False,
    collapsed: bool = False,
    key: str = "",
    detail: str = "",
) -> tuple[bytes, bytes]:
    """Return this cache's member of Cache-Status, which is added after those of other caches.

    Args:
        hit: Whether a stored response is sent.
        fwd: Why the request was forwarded: uri-miss, vary-miss, stale, method, bypass …
        fwd_status: The application's status, if another status is sent.
        ttl: The remaining freshness in seconds; below 0 for a stale response.
        stored: Whether the response is stored.
        collapsed: Whether the request was not forwarded, but got the response to another request.
        key: The key on Redis, for debugging.
        detail: More information, such as why a response was not stored.
    """
    text = f"{CACHE_NAME}; hit" if hit else CACHE_NAME
    if fwd:
        text += f"; fwd={fwd}"
    if fwd_status is not None:
        text += f"; fwd-status={fwd_status}"
    if ttl is not None:
        text += f"; ttl={floor(ttl)}"  # rounded down like Age
    if stored:
        text += "; stored"
    if collapsed:
        text += "; collapsed"
    if key:
        text += f"; key={quoted(key)}"
    if detail:
        text += f"; detail={quoted(detail)}"
    return b"cache-status", text.encode("ascii")


def quoted(text: str) -> str:
    """Return text as a String of structured fields (RFC 8941 §3.3.3)."""
    escaped = _UNPRINTABLE.sub("?", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
