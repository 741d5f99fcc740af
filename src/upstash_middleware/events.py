"""What happened, as frozen values, and who is told.

An observer is any function of one event. Logs, metrics and traces hang here. It is called where
the event happens, in the request's own thread or task, so it shall be quick. What an event shows
when printed holds no secret: identifiers are as they stand in keys, so those made from tokens are
hashed; the request is carried along, and not printed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from upstash_middleware.values import dataclass, field

if TYPE_CHECKING:
    from upstash_middleware.errors import UpstashError
    from upstash_middleware.messages import Request


@dataclass(frozen=True, slots=True)
class RateLimitDecided:
    """A rule has decided about a request, or its policy has where Upstash could not be asked."""

    rule: str
    identifier: str
    allowed: bool
    remaining: int
    """Of the limit that is nearest to being used up; 0 where nobody has counted."""
    retry_after: float | None = None
    """Seconds until the same request would pass; None if it passed, or if it never will."""
    settled_by: str = "upstash"
    """What the decision rests on, as in ``Decision.settled_by``."""
    shadow: bool = False
    """Whether the rule only reports, so that a denial stopped nothing."""
    request: Request | None = field(default=None, repr=False, compare=False)
    """The request; its ``native`` is the framework's own."""


@dataclass(frozen=True, slots=True)
class CacheLookedUp:
    """The cache has been asked for a response."""

    url: str
    outcome: str
    """``hit``, or why the request went forward: an RFC 9211 ``fwd`` reason."""
    request: Request | None = field(default=None, repr=False, compare=False)
    """The request; its ``native`` is the framework's own."""


@dataclass(frozen=True, slots=True)
class CacheStored:
    """A response was stored, or could not be stored."""

    url: str
    stored: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CacheEntryRefused:
    """What stands in a stored response's place is none that may be used; it counts as a miss."""

    key: str
    """Where it stands on Redis."""
    detail: str


@dataclass(frozen=True, slots=True)
class UpstashFailed:
    """A call to Upstash failed and was settled by policy."""

    during: str
    """``rate limit``, ``cache lookup``, ``cache store``, ``invalidation``"""
    error: UpstashError


@dataclass(frozen=True, slots=True)
class UpstashAnswered:
    """A call to Upstash succeeded."""

    during: str


@dataclass(frozen=True, slots=True)
class UpstashCalled:
    """A call to Upstash has ended: what one request waited for, from asking to the answer.

    Told in the thread or task that had asked. Calls of several requests that travelled together
    are told of one by one, and sending again what was lost is a part of the call. What the open
    circuit held back was no call.
    """

    server: str
    """The host name of the database."""
    port: int
    commands: tuple[str, ...]
    """The names of the Redis commands in it."""
    seconds: float
    error: BaseException | None = None
    """What befell the call, or the first of its commands that failed; a cancellation, too."""


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """Too many of the latest calls were bad, so Upstash is asked no more but for a probe at times.

    Until CircuitClosed, every request is settled by its policy at once.
    """

    bad: int
    of: int
    """The latest calls, of which ``bad`` failed or were slow."""
    last: str
    """What the last of them met."""


@dataclass(frozen=True, slots=True)
class CircuitClosed:
    """A probe went well, so Upstash is asked again."""

    after: float
    """Seconds since the circuit had opened."""


@dataclass(frozen=True, slots=True)
class UserCodeFailed:
    """A function of the application's that a rule calls has raised; the rule went on without."""

    where: str
    """The setting that holds the function, for instance ``rate_limits[0].by``; ``the application``
    where a WSGI application raised and a stale response stands in for its own."""
    error: Exception


@dataclass(frozen=True, slots=True)
class SettingDoubted:
    """Something about the requests looks as if a setting were wrong; told once."""

    where: str
    """The setting, for instance ``rate_limits[0].by``."""
    advice: str
    """What was seen, and what to set."""


@dataclass(frozen=True, slots=True)
class InternalError:
    """This package itself has failed; the response was let through as it was."""

    where: str
    error: Exception


Event = (
    RateLimitDecided
    | CacheLookedUp
    | CacheStored
    | CacheEntryRefused
    | UpstashFailed
    | UpstashAnswered
    | UpstashCalled
    | CircuitOpened
    | CircuitClosed
    | UserCodeFailed
    | SettingDoubted
    | InternalError
)
Observer = Callable[[Event], None]


def hears(observer: Observer, kind: type[Event]) -> bool:
    """Whether an observer does anything at all with events of a kind.

    One that has a set of kinds as its ``ignores`` spares whoever asks this the making of them.
    """
    return kind not in getattr(observer, "ignores", ())
