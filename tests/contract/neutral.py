"""One application, told to every framework alike: what a handler sees and what it replies.

The contract's tests speak these values only. A backend (``backend_starlette``, ``backend_flask``,
``backend_django``) builds a real application of its framework around a handler, puts the
middleware layers around that, and carries requests to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from upstash_middleware import Warmed

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Seen:
    """What the framework's handler was called with."""

    method: str
    path: str
    query: str
    headers: Fields
    body: bytes
    cookies: Callable[[str], str | None]
    """Reads a cookie by its name, as the framework parses the Cookie field."""
    rate_limit: Any
    """The decision, as the framework's idiom gives it to handlers; None without a limit."""
    purge: Callable[..., None] | None
    """Purges from within the handler, as the framework's idiom has it; None without a cache."""

    def header(self, name: str) -> str | None:
        """Return the first field of that name, whatever its case."""
        return _first(self.headers, name)


@dataclass(frozen=True)
class Reply:
    """What the handler answers; several pieces of body are streamed one by one."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: Fields = (("content-type", "text/plain"),)


Handler = Callable[[Seen], Reply]


@dataclass(frozen=True)
class Answer:
    """What the client got."""

    status: int
    headers: Fields
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first field of that name, whatever its case."""
        return _first(self.headers, name)

    def lines(self, name: str) -> list[str]:
        """Return all fields of that name, in order."""
        return [value for field, value in self.headers if field.lower() == name.lower()]


class Served(Protocol):
    """A running application."""

    def request(
        self,
        method: str,
        target: str,
        headers: Fields = (),
        body: bytes = b"",
        *,
        peer: str = "203.0.113.9",
        host: str = "shop.example",
        root_path: str = "",
        announced: bool = True,
    ) -> Answer:
        """Send a request from ``peer`` and return the whole answer, after ``finish`` has run.

        A body that is not ``announced`` has no Content-Length, as HTTP/2 allows.

        ``root_path`` is the prefix under which the server says that the application is mounted;
        ``target`` is what follows it.
        """
        ...

    def warm(self, *urls: str, **options: Any) -> list[Warmed]:
        """Warm URLs through the application, as code inside it would."""
        ...


Layers = list[tuple[str, dict[str, Any]]]
"""Class names and their arguments, outermost first: ``[("RateLimitMiddleware", {...}), …]``."""


Limits = list[tuple[Any, dict[str, Any]]]
"""What limits in front of the handler are made from, the outermost first."""


class Backend(Protocol):
    """A framework in which applications can be served; ``serve`` is a context manager."""

    name: str

    def serve(self, handler: Handler, layers: Layers, limits: Limits) -> Any:
        """Return a context manager that gives a Served."""
        ...


def limited(handler: Any, limit: Any, limits: Limits) -> Any:
    """Return a framework's handler behind limits, by its decorator ``limit``."""
    for given, more in reversed(limits):
        handler = limit(given, **more)(handler)
    return handler


def _first(fields: Fields, name: str) -> str | None:
    return next((value for field, value in fields if field.lower() == name.lower()), None)
