"""Cache-Status (RFC 9211): what the cache did with a request, as a header field; text only."""

from __future__ import annotations

import re
from math import floor

from upstash_middleware.values import value

CACHE_NAME = "upstash-middleware"

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@value(frozen=True, slots=True)
class CacheStatus:
    """The parameters of this cache's member, in the order of RFC 9211 §2."""

    hit: bool = False
    fwd: str | None = None
    """Why the request went forward: uri-miss, vary-miss, stale, method, bypass …"""
    fwd_status: int | None = None
    """What the application answered, where that is not what is sent."""
    ttl: float | None = None
    """Seconds of freshness that are left; below 0 for a stale response."""
    stored: bool = False
    collapsed: bool = False
    """Whether the request waited for another one instead of going forward itself."""
    key: str = ""
    """Where the response stands or would stand on Redis, for whoever looks for a fault."""
    detail: str = ""
    """In words what the others cannot say: why something was not stored."""

    def __str__(self) -> str:
        text = f"{CACHE_NAME}; hit" if self.hit else CACHE_NAME
        if self.fwd:
            text += f"; fwd={self.fwd}"
        if self.fwd_status is not None:
            text += f"; fwd-status={self.fwd_status}"
        if self.ttl is not None:
            # Rounded down, as Age is: what is left must not sound like more than it is.
            text += f"; ttl={floor(self.ttl)}"
        if self.stored:
            text += "; stored"
        if self.collapsed:
            text += "; collapsed"
        if self.key:
            text += f"; key={_string(self.key)}"
        if self.detail:
            text += f"; detail={_string(self.detail)}"
        return text

    def field(self) -> tuple[bytes, bytes]:
        """Return the field line to add: a cache nearer to the client stands further right."""
        return b"cache-status", str(self).encode("ascii")


def _string(text: str) -> str:
    """Return text as a structured field's String (RFC 8941 §3.3.3)."""
    escaped = _UNPRINTABLE.sub("?", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
