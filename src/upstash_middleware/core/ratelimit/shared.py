"""Whether a shared cache downstream may store a response: it then tells of no client's limits.

A cautious reading of RFC 9111 §3: where a cache could find any reason to store, it is assumed to.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upstash_middleware.messages import Headers, Request, ResponseHead

_DIRECTIVE = re.compile(r'\s*([^\s=,"]+)\s*(?:=\s*(?:"(?:[^"\\]|\\.)*"|[^,]*))?\s*(?:,|$)')
_EXPLICIT = frozenset({"public", "max-age", "s-maxage"})
# RFC 9111 §3.5: what lets a shared cache store the answer to an authorized request.
_DESPITE_AUTHORIZATION = frozenset({"public", "s-maxage", "must-revalidate"})
# RFC 9110 §15.1.
_HEURISTIC = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})


def may_be_shared(request: Request, head: ResponseHead) -> bool:
    """Whether a shared cache might store this response, or has stored it already."""
    # Most answers of an API have no field that a cache would look at.
    return any(map(_is_for_caches, head.headers.names())) and _may_be_stored(request, head)


def _may_be_stored(request: Request, head: ResponseHead) -> bool:
    headers = head.headers
    if "age" in headers:  # RFC 9111 §5.1: it comes from a cache, ours or one behind us
        return True
    if any(_targeted(headers)):
        return True
    directives = _directives(headers.combined("cache-control"))
    if "no-store" in directives or "private" in directives:
        return False
    if "authorization" in request.headers and not directives & _DESPITE_AUTHORIZATION:
        return False
    if directives & _EXPLICIT or "expires" in headers:
        return True
    validated = "etag" in headers or "last-modified" in headers
    return request.method in {"GET", "HEAD"} and validated and head.status in _HEURISTIC | {304}


_FIELDS = frozenset({"age", "cache-control", "etag", "expires", "last-modified"})


@lru_cache(maxsize=512)
def _is_for_caches(name: str) -> bool:
    return name in _FIELDS or _is_targeted(name)


def _is_targeted(name: str) -> bool:
    return name.endswith("cdn-cache-control") or name == "surrogate-control"


def _targeted(headers: Headers) -> list[bool]:
    """Tell of each field for certain caches (RFC 9213) whether it lets them store."""
    return [
        not _directives(headers.combined(name)) & {"no-store", "private"}
        for name in headers.names()
        if _is_targeted(name)
    ]


def _directives(value: str | None) -> frozenset[str]:
    if value is None:
        return frozenset()
    # `private="field"` restricts one field only, so it does not keep the response from a cache.
    return frozenset(
        found[1].lower()
        for found in _DIRECTIVE.finditer(value)
        if not (found[1].lower() == "private" and "=" in found[0])
    )
