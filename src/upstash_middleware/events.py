"""Events, and the observers that receive them: logs, metrics and traces.

An observer is any function with one parameter, the event. It is called where the event happens, in
the request's thread or task, so it should be fast. The repr of an event contains no secrets:
identifiers are as in keys, where those made from tokens are hashed, and the request is omitted.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from msgspec import Struct

# Imported at run time, because inspect.signature evaluates the annotations.
from upstash_middleware.errors import UpstashError  # noqa: TC001
from upstash_middleware.messages import Discreet, HTTPRequest


class _AboutRequest(Discreet, Struct, frozen=True):
    """An event with a request, which its repr and comparisons omit."""

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
    """The identifier whose quota is used, as in keys: secrets are hashed."""
    allowed: bool
    """Whether the request may pass."""
    remaining: int
    """The remaining units of the tightest limit; 0 if nothing was counted."""
    retry_after: float | None = None
    """Seconds until the same request would pass; None if it passed or never will."""
    settled_by: str = "upstash"
    """The source of the decision, as in ``Decision.settled_by``."""
    shadow: bool = False
    """Whether the rule only reports, so that a denial had no effect."""
    request: HTTPRequest | None = None
    """The request; ``native`` is the framework's request."""


class QuotaLeased(Struct, frozen=True):
    """Units of a quota were reserved for a lease, or unused units of a lease were returned."""

    rule: str
    """The name of the rule."""
    identifier: str
    """The identifier whose quota is used, as in keys: secrets are hashed."""
    change: str
    """``leased``: reserved in addition to a request's cost; ``returned``: given back by a later
    call; ``wasted``: unused, but could not be given back."""
    units: int
    """The number of units."""


class CacheLookedUp(_AboutRequest, frozen=True):
    """The cache looked for a stored response."""

    url: str
    """The URL of the request."""
    outcome: str
    """``hit``, or the reason for forwarding the request: an RFC 9211 ``fwd`` value."""
    request: HTTPRequest | None = None
    """The request; ``native`` is the framework's request."""


class CacheStored(Struct, frozen=True):
    """A response was stored, or could not be stored."""

    url: str
    """The URL of the request."""
    stored: bool
    """Whether it was stored."""
    detail: str = ""
    """The reason if it could not be stored."""


class CacheNotStored(Struct, frozen=True):
    """A response was not stored. Emitted for up to three paths per rule, reason and hour."""

    where: str
    """The rule, for instance ``cache[0]``."""
    why: str
    """The reason."""
    advice: str = ""
    """The setting that would allow storing it; empty if not storing it is probably intended."""
    path: str = ""
    """The path of the request."""


class CacheEntryRefused(Struct, frozen=True):
    """A stored response or value on Redis cannot be used, and counts as a miss."""

    key: str
    """The key on Redis."""
    detail: str
    """The reason why it cannot be used."""


class SessionSaved(Struct, frozen=True):
    """A session was changed on Redis, or a change was lost."""

    change: str
    """``created``, ``saved``, ``touched`` if only its timeout was extended, ``regenerated``,
    ``ended``"""
    saved: bool
    """Whether the change was saved."""
    detail: str = ""
    """The reason if the change was lost."""


class UpstashFailed(Struct, frozen=True):
    """A call to Upstash failed, and the on_error policy was applied."""

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
    """A call to Upstash ended, from the point of view of one request.

    It is emitted in the thread or task of the request. If calls of several requests were batched,
    there is one event for each request. A retry is part of the call. Calls that the open circuit
    breaker prevents are not reported.
    """

    server: str
    """The host name of the database."""
    port: int
    """Its port."""
    commands: tuple[str, ...]
    """The names of the Redis commands in the call."""
    seconds: float
    """The duration in seconds."""
    error: BaseException | None = None
    """The error of the call, or of its first failed command; or a cancellation."""


class CircuitOpened(Struct, frozen=True):
    """Too many recent calls failed or were slow, so only probes are sent to Upstash.

    Until CircuitClosed, each rule's on_error policy applies without a call.
    """

    bad: int
    """The number of recent calls that failed or were slow."""
    of: int
    """The number of recent calls."""
    last: str
    """The problem of the last call."""
    commands: bool = False
    """Whether they were Redis commands of the application, which now raise CircuitOpen."""


class CircuitClosed(Struct, frozen=True):
    """A probe succeeded, so calls are sent to Upstash again."""

    after: float
    """Seconds since the circuit opened."""


class UserCodeFailed(Struct, frozen=True):
    """A function of the application that a rule calls raised; the rule continued without it."""

    where: str
    """The setting with the function, for instance ``rate_limits[0].by``; ``the application`` if a
    WSGI application raised and a stale response was sent instead."""
    error: Exception
    """The exception."""


class SettingDoubted(Struct, frozen=True):
    """The requests suggest that a setting is wrong. Emitted once."""

    where: str
    """The observation, and the recommended setting."""
    advice: str
    """What was observed, and what to set."""


class InternalError(Struct, frozen=True):
    """This package has a bug; the request continued without the part that failed."""

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
    """Return the kinds of events that an observer does not need; the set may change.

    An observer may have such a set as ``ignores``. Events that all ignore are not created.

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
