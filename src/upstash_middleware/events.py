"""Events, and the observers that are called with them: logs, metrics and traces.

An observer is any function of one event. It is called where the event happens, in the request's own
thread or task, so it should be fast. The repr of an event contains no secret: identifiers appear
as in keys, so those made from tokens are hashed, and the request is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from msgspec import Struct

# Not for type checkers only: inspect.signature evaluates the annotations.
from upstash_middleware.errors import UpstashError  # noqa: TC001
from upstash_middleware.messages import Discreet, HTTPRequest


class _AboutRequest(Discreet, Struct, frozen=True):
    """An event with a request, which its repr and comparison leave out."""

    def _shown_values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__struct_fields__ if name != "request")

    def __repr__(self) -> str:
        names = [name for name in self.__struct_fields__ if name != "request"]
        shown = zip(names, self._shown_values(), strict=True)
        values = ", ".join(f"{name}={value!r}" for name, value in shown)
        return f"{type(self).__name__}({values})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _AboutRequest) and type(other) is type(self):
            return self._shown_values() == other._shown_values()
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._shown_values())


class RateLimitDecided(_AboutRequest, frozen=True):
    """A rule decided about a request; or its policy did, because Upstash was unreachable."""

    rule: str
    """The name of the rule."""
    identifier: str
    """Whose quota it is, as in keys: secrets are hashed."""
    allowed: bool
    """Whether the request may pass."""
    remaining: int
    """What remains of the limit that is closest to being used up; 0 if nothing was counted."""
    retry_after: float | None = None
    """Seconds until the same request would pass; None if it passed, or never will."""
    settled_by: str = "upstash"
    """What decided, as in ``Decision.settled_by``."""
    shadow: bool = False
    """Whether the rule only reports, so that a denial stopped nothing."""
    request: HTTPRequest | None = None
    """The request; its ``native`` is the framework's own."""


class QuotaLeased(Struct, frozen=True):
    """Units of a quota were taken ahead for a lease, or what was left of them was given back."""

    rule: str
    """The name of the rule."""
    identifier: str
    """Whose quota it is, as in keys: secrets are hashed."""
    change: str
    """``leased``, beyond the cost of a request; ``returned``, by a later call; or ``wasted``, where
    unused units could not be given back."""
    units: int
    """How many units."""


class CacheLookedUp(_AboutRequest, frozen=True):
    """The cache looked for a stored response."""

    url: str
    """The URL of the request."""
    outcome: str
    """``hit``, or why the request was forwarded: an RFC 9211 ``fwd`` reason."""
    request: HTTPRequest | None = None
    """The request; its ``native`` is the framework's own."""


class CacheStored(Struct, frozen=True):
    """A response was stored, or could not be stored."""

    url: str
    """The URL of the request."""
    stored: bool
    """Whether it was stored."""
    detail: str = ""
    """Why it could not be stored."""


class CacheNotStored(Struct, frozen=True):
    """A response was not stored; emitted for up to three paths of each rule and reason an hour."""

    where: str
    """The rule, for instance ``cache[0]``."""
    why: str
    """The reason."""
    advice: str = ""
    """The setting that would change it; empty if nothing suggests that it should change."""
    path: str = ""
    """The path of the request."""


class CacheEntryRefused(Struct, frozen=True):
    """What was found in place of a stored response or value cannot be used: a miss."""

    key: str
    """The key on Redis."""
    detail: str
    """Why it cannot be used."""


class SessionSaved(Struct, frozen=True):
    """A session was changed on Redis, or a change of it was dropped."""

    change: str
    """``created``, ``saved``, ``touched`` if only its timeout was extended, ``regenerated``,
    ``ended``"""
    saved: bool
    """Whether the change was saved."""
    detail: str = ""
    """Why it was dropped."""


class UpstashFailed(Struct, frozen=True):
    """A call to Upstash failed, and the policy was applied."""

    during: str
    """``rate limit``, ``cache lookup``, ``cache store``, ``invalidation``, ``session load``,
    ``session save``, ``data read``, ``data write``"""
    error: UpstashError
    """The error."""


class UpstashAnswered(Struct, frozen=True):
    """A call to Upstash succeeded."""

    during: str
    """As for ``UpstashFailed``."""


class UpstashCalled(Struct, frozen=True):
    """A call to Upstash ended: everything that one request waited for.

    Emitted in the thread or task that made it. Calls of several requests that were sent together
    are emitted one by one, and a call includes its retry. A call that the open circuit prevented
    is not emitted.
    """

    server: str
    """The host name of the database."""
    port: int
    """Its port."""
    commands: tuple[str, ...]
    """The names of the Redis commands in it."""
    seconds: float
    """How long it took, in seconds."""
    error: BaseException | None = None
    """The error of the call, or of the first of its commands that failed; or a cancellation."""


class CircuitOpened(Struct, frozen=True):
    """Too many of the latest calls failed or were slow, so that only probes are sent to Upstash.

    Until CircuitClosed, each rule's policy is applied at once, or commands raise CircuitOpen.
    """

    bad: int
    """How many of the latest calls failed or were slow."""
    of: int
    """The latest calls, of which ``bad`` failed or were slow."""
    last: str
    """What was wrong with the last of them."""
    commands: bool = False
    """Whether they were Redis commands of the application, which now raise CircuitOpen."""


class CircuitClosed(Struct, frozen=True):
    """A probe succeeded, so calls are sent to Upstash again."""

    after: float
    """Seconds since the circuit opened."""


class UserCodeFailed(Struct, frozen=True):
    """A function of the application that a rule calls raised; the rule continued without it."""

    where: str
    """The setting of the function, for instance ``rate_limits[0].by``; ``the application`` if a
    WSGI application raised and a stale response was sent in place of its response."""
    error: Exception
    """The exception."""


class SettingDoubted(Struct, frozen=True):
    """The requests suggest that a setting is wrong; emitted once."""

    where: str
    """The setting, for instance ``rate_limits[0].by``."""
    advice: str
    """What was observed, and what to set."""


class InternalError(Struct, frozen=True):
    """This package failed; the request went on without the part that failed."""

    where: str
    """The part that failed."""
    error: Exception
    """The exception."""


Event = (
    RateLimitDecided
    | QuotaLeased
    | CacheLookedUp
    | CacheStored
    | CacheNotStored
    | CacheEntryRefused
    | SessionSaved
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


def ignored_by(observer: Observer) -> AbstractSet[type[Event]]:
    """Return the kinds of events that an observer does not need; this may change.

    An observer may have a set of kinds as its ``ignores``; events that all ignore are not created.

    Args:
        observer: The observer.
    """
    ignored: AbstractSet[type[Event]] = getattr(observer, "ignores", frozenset())
    return ignored


def hears(observer: Observer, kind: type[Event]) -> bool:
    """Whether an observer uses events of a kind.

    Args:
        observer: The observer.
        kind: The class of the events.
    """
    return kind not in ignored_by(observer)
