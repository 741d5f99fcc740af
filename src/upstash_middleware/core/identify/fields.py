"""Identifiers that a client sends along: header fields, cookies, query parameters.

Their values may be credentials, so they are secret always. A client can invent them: where that
matters, check the credential before the limit, or limit by address as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from upstash_middleware.core.identify.identifier import Identifier
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.messages import Request


@dataclass(frozen=True, slots=True)
class SentValue:
    """The extractor that ``header``, ``cookie`` and ``query`` make."""

    kind: str
    name: str
    read: Callable[[Request, str], str | None]

    def __call__(self, request: Request) -> Identifier | None:
        """Return the value as a secret identifier; None if it is absent or empty."""
        value = self.read(request, self.name)
        return Identifier(f"{self.kind}.{self.name}", value, secret=True) if value else None


def header(name: str) -> SentValue:
    """Identify by a request header field, for instance ``X-API-Key``."""
    return SentValue("header", _named("header", name).lower(), _header)


def cookie(name: str) -> SentValue:
    """Identify by a cookie."""
    return SentValue("cookie", _named("cookie", name), _cookie)


def query(name: str) -> SentValue:
    """Identify by a parameter of the URL's query; the first, if it is repeated."""
    return SentValue("query", _named("query", name), _query)


def _named(function: str, name: str) -> str:
    if not name.isascii() or not 0 < len(name) <= 64 or " " in name:
        raise ConfigurationError(
            f"{function}({name!r}): a name should be 1 to 64 ASCII characters without spaces"
        )
    return name


def _header(request: Request, name: str) -> str | None:
    value = request.headers.combined(name)
    return value.strip() if value else None


def _cookie(request: Request, name: str) -> str | None:
    for line in request.headers.lines("cookie"):
        for pair in line.split(";"):
            key, equals, value = pair.partition("=")
            if equals and key.strip() == name:
                return value.strip().strip('"')
    return None


def _query(request: Request, name: str) -> str | None:
    for key, value in parse_qsl(request.query):
        if key == name:
            return value
    return None
