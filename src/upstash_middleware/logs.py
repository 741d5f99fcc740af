"""Events as log lines: one per change of state, never one per request.

Logger ``upstash_middleware``. An outage is said when it begins and when it ends, a command that
fails while others do not once a minute at most, one that fails for what its key holds the first
time only; what stands in a stored response's place and is none, once a minute at most; a fault of
the application's functions or of our own with its traceback, the first time at each place.

Each record carries, beside its sentence, what a program reads: ``upstash_event``, the event's
class, and with it ``upstash_during``, ``upstash_where``, ``upstash_error`` (the exception's
class), ``upstash_refusal``, ``upstash_bad`` and ``upstash_of``, or ``upstash_seconds``.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from typing import TYPE_CHECKING, ClassVar, Final

from upstash_middleware.errors import CircuitOpen, CommandError, Refused
from upstash_middleware.events import (
    CacheEntryRefused,
    CacheLookedUp,
    CacheStored,
    CircuitClosed,
    CircuitOpened,
    InternalError,
    RateLimitDecided,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
)
from upstash_middleware.refusals import Refusal, refusal_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.errors import UpstashError
    from upstash_middleware.events import Event

logger: logging.Logger = logging.getLogger("upstash_middleware")

_MINUTE: Final = 60.0
_LONGEST: Final = 400
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_OF_SOME_COMMANDS: Final = frozenset({Refusal.PERMISSION, Refusal.FULL, Refusal.SIZE})
"""What stands against some commands while others are carried out."""

_OF_ONE_KEY: Final = frozenset({"WRONGTYPE", "WRONGVALUE"})
"""Codes of commands that failed for what a key holds, as they will until somebody deletes it."""

_REMEDIES: Final = {
    Refusal.TOKEN: "copy the token anew from the database's page in the Upstash console, as "
    "UPSTASH_REDIS_REST_TOKEN or wherever this application reads it",
    Refusal.PERMISSION: "the token may only read, and counting and storing are writing: give the "
    "database's standard token in place of its read-only one",
    Refusal.QUOTA: "the plan's requests are used up: raise the plan or the budget in the Upstash "
    "console; else it answers again when the quota begins anew",
    Refusal.FULL: "the database is full: raise its size in the Upstash console, or store less, by "
    "a shorter ttl or fewer cache rules; entries that expire make room",
    Refusal.SIZE: "one response is larger than the plan takes in a request: keep it out of the "
    "cache's rules, or raise the plan in the Upstash console",
}


class LogObserver:
    """Writes the events that a person should hear of to the log; safe under threads.

    ``clock`` counts seconds: what comes and goes all the time is said once a minute.
    """

    ignores: ClassVar[frozenset[type[Event]]] = frozenset(
        {CacheLookedUp, CacheStored, RateLimitDecided}
    )

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._said_at: dict[tuple[str, str], float] = {}
        self._outage: set[str] = set()
        self._open = False

    def __call__(self, event: Event) -> None:
        """Log the event if it changes what is known."""
        if not self._outage and type(event) is UpstashAnswered:  # nearly all
            return
        match event:
            case UpstashFailed(_, CircuitOpen()):
                pass  # said when it opened
            case UpstashFailed(during, error):
                self._failed(during, error)
            case UpstashAnswered() if self._outage and not self._open:
                self._outage = set()
                logger.info("Upstash answers again", extra=_fields("UpstashAnswered"))
            case CircuitOpened(bad, of, last):
                self._opened(bad, of, last)
            case CircuitClosed(after):
                self._closed(after)
            case SettingDoubted(where, advice):
                extra = _fields("SettingDoubted", where=where)
                logger.warning("%s: %s", where, advice, extra=extra)
            case CacheEntryRefused() | UserCodeFailed() | InternalError():
                self._fault(event)
            case _:
                pass

    def _fault(self, event: CacheEntryRefused | UserCodeFailed | InternalError) -> None:
        """Say what goes wrong at one place, with nobody to blame on the wire."""
        match event:
            case CacheEntryRefused(_, detail):
                if self._is_news("cache", "entry", again_after=_MINUTE):
                    logger.warning(
                        "a stored response counts as a miss: what stands in its place is %s "
                        "(observers are told of each)",
                        detail,
                        extra=_fields("CacheEntryRefused"),
                    )
            case UserCodeFailed(where, failure):
                if self._is_news(where, type(failure).__name__):
                    logger.error(
                        "%s raised; its rule went on without it",
                        where,
                        exc_info=failure,
                        extra=_fields("UserCodeFailed", where=where, error=failure),
                    )
            case InternalError(where, failure):
                if self._is_news(f"internal {where}", type(failure).__name__):
                    logger.error(
                        "upstash-middleware failed in %s; the response was let through",
                        where,
                        exc_info=failure,
                        extra=_fields("InternalError", where=where, error=failure),
                    )

    def _failed(self, during: str, error: UpstashError) -> None:
        """Say what fails: once for the whole of Upstash, or for what is done there."""
        refusal, name = _refusal(error), type(error).__name__
        kind = refusal.name if refusal else name
        extra = _fields("UpstashFailed", during=during, error=error)
        if refusal:
            extra["upstash_refusal"] = refusal.name.lower()
        of_some_commands = refusal in _OF_SOME_COMMANDS or isinstance(error, CommandError)
        if isinstance(error, CommandError) and error.code in _OF_ONE_KEY:
            self._of_one_key(during, error, extra)
        elif of_some_commands:
            if self._is_news(during, kind, again_after=_MINUTE):
                logger.warning(
                    "Upstash failed a %s and its policy applies: %s: %s%s",
                    during,
                    name,
                    one_line(str(error)),
                    _remedy(refusal),
                    extra=extra,
                )
        elif kind not in self._outage and self._is_news("upstash", kind, again_after=_MINUTE):
            self._outage |= {kind}
            logger.warning(
                "Upstash failed during a %s and its policy applies until it answers again: "
                "%s: %s%s",
                during,
                name,
                one_line(str(error)),
                _remedy(refusal),
                extra=extra,
            )

    def _of_one_key(self, during: str, error: CommandError, extra: dict[str, object]) -> None:
        # Whoever owns the key meets this with each request: no outage, and no news either.
        if self._is_news(during, error.code):
            logger.warning(
                "Upstash failed a %s and its policy applies: %s (the key holds what something "
                "else has written: delete it, and give this application a prefix of its own; "
                "other such keys are not told of)",
                during,
                one_line(str(error)),
                extra=extra,
            )

    def _opened(self, bad: int, of: int, last: str) -> None:
        self._open = True
        if self._is_news("upstash", "circuit", again_after=_MINUTE):
            self._outage |= {"circuit"}
            logger.warning(
                "Upstash is not asked any more, but for a probe at times, and each rule's policy "
                "applies: %d of %d calls failed or were slow, the last with %s",
                bad,
                of,
                one_line(last),
                extra=_fields("CircuitOpened", bad=bad, of=of),
            )

    def _closed(self, after: float) -> None:
        told, self._outage, self._open = bool(self._outage), set(), False
        if told:
            extra = _fields("CircuitClosed", seconds=after)
            logger.info("Upstash answers again, %.3g s after the last time", after, extra=extra)

    def _is_news(self, place: str, kind: str, again_after: float = math.inf) -> bool:
        with self._lock:
            now = self._clock()
            if now - self._said_at.get((place, kind), -math.inf) < again_after:
                return False
            self._said_at[place, kind] = now
            return True


def one_line(text: str) -> str:
    """Return a text from outside so that it can forge no line of a log, and cut to a length."""
    return _UNPRINTABLE.sub(" ", text)[:_LONGEST]


def _fields(event: str, **values: object) -> dict[str, object]:
    """Return what a record carries for programs, under names that no other record has."""
    said = {
        f"upstash_{name}": type(value).__name__ if isinstance(value, Exception) else value
        for name, value in values.items()
    }
    return {"upstash_event": event, **said}


def _remedy(refusal: Refusal | None) -> str:
    return f" ({_REMEDIES[refusal]})" if refusal else ""


def _refusal(error: UpstashError) -> Refusal | None:
    return error.kind if isinstance(error, Refused) else refusal_in(str(error))
