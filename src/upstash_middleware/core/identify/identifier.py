"""What an identifier is, and how it is written into keys; no request is read here."""

from __future__ import annotations

import hmac
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import lru_cache
from urllib.parse import quote

from upstash_middleware.messages import Request
from upstash_middleware.values import dataclass

LONGEST_PLAIN = 128
"""Characters, escaped; what is longer is hashed, so that no key grows with what a client sent."""
LONGEST_KIND = 64

# The colon separates a key's parts, the percent sign escapes, the number sign marks a hash;
# braces would be a cluster's hash tags.
_PLAIN = "/-._~!$&'()*+,;=@"


@dataclass(frozen=True, slots=True)
class Identifier:
    """Whose quota it is: a value, and the kind of thing that it is, so that kinds never collide."""

    kind: str
    value: str
    secret: bool = False
    """Whether the value gives access to something: it is then hashed wherever it is written."""


class Finder(ABC):
    """An extractor that calls others: ``find`` is a flow, so it is awaited and not called."""

    __slots__ = ()

    @abstractmethod
    async def find(self, request: Request) -> Identifier | None:
        """Return what it finds."""


Found = Identifier | str | int | None
"""What an extractor answers. Text or a number of the application's own is written as it is."""
Extractor = Callable[[Request], Found | Awaitable[Found]]


def escape(part: str) -> str:
    """Return one part of a key with whatever could end it, or look like another, escaped."""
    return quote(part, safe=_PLAIN, errors="surrogatepass")


def _escaped_kind(kind: str) -> str:
    return escape(kind).replace("=", "%3D")


@lru_cache(maxsize=1024)
def _plain_text(kind: str, value: str) -> str | None:
    """Return ``KIND=VALUE``, or None where that would be too long."""
    if len(value) > LONGEST_PLAIN:
        return None
    kind, value = _escaped_kind(kind), escape(value)
    short = len(kind) <= LONGEST_KIND and len(value) <= LONGEST_PLAIN
    return f"{kind}={value}" if short else None


def key_text(identifier: Identifier, secret: Callable[[], bytes]) -> str:
    """Return the identifier as it stands in keys, events and decisions: ``KIND=VALUE``.

    A secret value, or a long one, becomes ``KIND=#HASH`` with 128 bits of HMAC-SHA256 under
    ``secret()``. Other kinds and values give other texts.
    """
    if not identifier.secret:
        plain = _plain_text(identifier.kind, identifier.value)
        if plain is not None:
            return plain
    kind = _escaped_kind(identifier.kind)
    message = f"{kind}={identifier.value}".encode("utf-8", "surrogatepass")
    return f"{kind[:LONGEST_KIND]}=#{hmac.digest(secret(), message, 'sha256')[:16].hex()}"
