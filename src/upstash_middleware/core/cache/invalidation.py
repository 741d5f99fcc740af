"""Invalidation (RFC 9111 §4.4): what an unsafe request makes unusable; rules only."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from upstash_middleware.core.cache.keys import origin_of

if TYPE_CHECKING:
    from upstash_middleware.messages import Request, ResponseHead

# The methods registered as safe; all others, unknown ones too, may change what is stored.
SAFE_METHODS = frozenset(
    {"GET", "HEAD", "OPTIONS", "PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH", "TRACE"}
)


def invalidated_urls(request: Request, head: ResponseHead) -> list[str]:
    """Return the URLs, as path and query, that the response to an unsafe request invalidates.

    Its target first, and what Location and Content-Location name of the same origin, where the
    response is no error.
    """
    if not 200 <= head.status < 400:
        return []
    named = (head.headers.get(name) for name in ("location", "content-location"))
    return [_target(request), *(url for value in named if (url := resolved(request, value)))]


def resolved(request: Request, reference: str | None) -> str | None:
    """Return a URI reference's path and query; None where it is none or of another origin."""
    origin = origin_of(request.scheme, request.host)
    try:
        url = urljoin(f"{origin}{_target(request)}", (reference or "").strip())
        parts = urlsplit(url)
    except ValueError:
        return None
    if reference is None or origin_of(parts.scheme, parts.netloc.lower()) != origin:
        return None
    return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def names_its_target(request: Request, head: ResponseHead) -> bool:
    """Whether a response says by Content-Location that it is its target's new state.

    Then the response to a POST may answer a later GET (RFC 9110 §9.3.3).
    """
    return resolved(request, head.headers.get("content-location")) == _target(request)


def _target(request: Request) -> str:
    return f"{request.raw_path}?{request.query}" if request.query else request.raw_path
