"""What each half of the engine gives for one request: the rate limit's, and the cache's.

``begin(request)`` of a half is a flow whose result is an Exchange. The engine asks it whether
there is a response already, shows it the application's response as that passes, and lets it
finish after the last byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from upstash_middleware.core.effects import Flow
    from upstash_middleware.core.ratelimit import Decision
    from upstash_middleware.messages import Request, Response, ResponseHead


class Exchange(Protocol):
    """One request's passage through one half of the engine."""

    @property
    def decision(self) -> Decision | None:
        """What was decided about the request, of a half that decides."""
        ...

    @property
    def holds(self) -> bool:
        """Whether the request may hold something on Redis that expires, as a Holding's."""
        ...

    @property
    def watches(self) -> bool:
        """Whether ``chunk`` does anything."""
        ...

    @property
    def response(self) -> Response | None:
        """A response to give at once, without calling the application; None to go on."""
        ...

    def request_to_forward(self, request: Request) -> Request:
        """Return the request as the application shall see it, perhaps with a validator."""
        ...

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """See the response's head; return it as it shall be sent.

        A whole Response stands in for the application's, whose body is then thrown away: the
        stored page that a 304 has confirmed.
        """
        ...

    def chunk(self, data: bytes) -> None:
        """See a piece of the application's body as it passes."""
        ...

    def finish(self, *, complete: bool) -> Flow[None] | None:
        """Return what is left to do after the last byte, or None if that is nothing.

        Called once on every way out. ``complete`` is False where not every byte was shown to
        ``chunk``: the application raised, the client left, the response was cut short, or the
        server read a file itself. So it tells whether to store, and nothing of what to charge.
        """
        ...


class Holding(Exchange, Protocol):
    """A passage that may hold something on Redis which expires unless it is renewed."""

    def renewal(self) -> Flow[None] | None:
        """Return what renews that, or None if it is not yet time to.

        Asked for between two pieces of the application's body.
        """
        ...


class Half(Protocol):
    """The rate limit or the cache."""

    def begin(self, request: Request) -> Flow[Exchange | None]:
        """Return the flow that decides about a request; its result is None if nothing is to do.

        It never raises an UpstashError.
        """
        ...
