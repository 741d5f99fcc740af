"""Validation (RFC 9111 §4.3): conditions of requests against stored responses; rules only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.dates import format_date, parse_date
from upstash_middleware.core.cache.fields import entity_tags, is_strong, opaque_tag
from upstash_middleware.core.cache.freshness import date_of

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.messages import Headers

# RFC 9110 §15.4.5: what a 304 leaves out, since it describes a body that is not sent.
_OF_THE_BODY = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
)
_OF_THE_STORED_BYTES = ("content-encoding", "content-length", "content-range")
# §4.3.2: conditions that are for the origin server alone.
_FOR_THE_ORIGIN = frozenset({"if-match", "if-unmodified-since"})


def is_for_the_origin(headers: Headers) -> bool:
    """Whether a request carries conditions that a cache must not evaluate (§4.3.2)."""
    return not headers.names().isdisjoint(_FOR_THE_ORIGIN)


def has_validator(headers: Headers) -> bool:
    """Whether a response can be validated: it has an ETag or a Last-Modified."""
    return "etag" in headers or "last-modified" in headers


def not_modified(request: Headers, stored: StoredResponse) -> bool:
    """Whether a request's conditions make a 304 of a stored response (§4.3.2).

    If-None-Match wins over If-Modified-Since; one that is no list of entity tags matches
    nothing. Conditions count only against a successful response (RFC 9110 §13.2.1).
    """
    if not 200 <= stored.status < 300 or stored.status == 206:
        return False
    condition = request.combined("if-none-match")
    if condition is not None:
        return _matches(condition, stored.headers.get("etag"))
    if (date := request.get("if-modified-since")) is None:
        return False
    since = parse_date(date, stored.stored_at)
    return since is not None and _modified(stored) <= since


def _matches(condition: str, etag: str | None) -> bool:
    if condition.strip() == "*":
        return True
    tags = entity_tags(condition)
    if etag is None or tags is None:
        return False
    return opaque_tag(etag.strip()) in map(opaque_tag, tags)


def _modified(stored: StoredResponse) -> float:
    """Return Last-Modified, else Date, else when it was received (§4.3.2)."""
    modified = parse_date(stored.headers.get("last-modified") or "", stored.stored_at)
    return modified if modified is not None else date_of(stored.headers, stored.stored_at)


def conditional(request: Headers, stored: Headers) -> Headers:
    """Return a request's header fields with the validators of a stored response (§4.3.1).

    Conditions that the client brought stay beside them: what the application answers to
    If-None-Match tells by its ETag whose condition was met. If-Modified-Since is replaced,
    since only one fits.
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
    """Whether a 304 identifies this stored response, by the validators that it carries (§4.3.4).

    One without validators answers the only condition that was sent.
    """
    etag, own = head_of_304.get("etag"), stored.get("etag")
    if etag is not None and own is not None:
        return etag == own if is_strong(etag) else opaque_tag(etag) == opaque_tag(own)
    modified = head_of_304.get("last-modified")
    return etag is None and modified in {None, stored.get("last-modified")}


def confirms_head(stored: StoredResponse, head: Headers) -> bool:
    """Whether the 200 to a HEAD request describes this stored response to GET (§4.3.5)."""
    length = head.get("content-length")
    return (length is None or length == str(stored.length)) and all(
        head.get(name) in {None, stored.headers.get(name)} for name in ("etag", "last-modified")
    )


def updated(stored: Headers, received: Headers, now: float, profile: Profile) -> Headers:
    """Return stored header fields updated by those of a newer response (§3.2).

    Those that tell how the stored bytes are to be read stay as they are; in profile ``safe``
    Content-Type is one of them, since an application that answers 304 with a default one did not
    change the bytes that another one made.
    ``now``, when it was received, is the Date of a response without one (RFC 9110 §6.6.1).
    """
    if "date" not in received:
        received = received.setting("date", format_date(now))
    received = received.without(*_OF_THE_STORED_BYTES)
    if not profile.updates_content_type:
        received = received.without("content-type")
    return stored.without(*received.names()).adding(*received.raw)


def headers_of_304(headers: Headers) -> Headers:
    """Return the header fields of a 304 in place of a response with these (RFC 9110 §15.4.5)."""
    return headers.without(*_OF_THE_BODY)
