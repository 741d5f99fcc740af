"""Events as log records: one for each change of state, not one for each request.

The logger is ``upstash_middleware``. An outage is logged when it begins and when it ends. If a
command fails while others succeed, or a stored response cannot be used, this is logged at most once
a minute; if a command fails because its key has another type, only once. An exception in the
application's functions or in this package is logged with its traceback, once for each place.
Responses that were not stored are logged for up to three paths per rule, reason and hour; as a
warning if a setting would change this.

Each record has attributes for programs: ``upstash_event``, the event's class, and for some events
``upstash_during``, ``upstash_where``, ``upstash_error`` (the exception's class),
``upstash_refusal``, ``upstash_bad`` and ``upstash_of``, or ``upstash_seconds``.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from upstash_middleware.errors import CircuitOpen, CommandError, Refusal, Refused, refusal_in
from upstash_middleware.events import (
    CacheEntryRefused,
    CacheLookedUp,
    CacheNotStored,
    CacheStored,
    CircuitClosed,
    CircuitOpened,
    InternalError,
    RateLimitDecided,
    SessionSaved,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.errors import UpstashError
    from upstash_middleware.events import Event

logger: logging.Logger = logging.getLogger("upstash_middleware")

_MINUTE: Final = 60.0
_MAX_LENGTH: Final = 400
_UNPRINTABLE: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+"

_REFUSALS_OF_SINGLE_COMMANDS: Final = frozenset({Refusal.PERMISSION, Refusal.FULL, Refusal.SIZE})
"""Refusals that affect some commands while others succeed."""

_WRONG_VALUE_CODES: Final = frozenset({"WRONGTYPE", "WRONGVALUE"})
"""Errors that a command returns until its key, which has the wrong type, is deleted."""

_REMEDIES: Final = {
    Refusal.TOKEN: "copy the token again from the database's page in the Upstash console, into "
    "UPSTASH_REDIS_REST_TOKEN or wherever this application reads it",
    Refusal.PERMISSION: "the token is read-only, but counting and storing need write access: use "
    "the database's standard token",
    Refusal.QUOTA: "the plan's requests are used up: raise the plan or the budget in the Upstash "
    "console, or wait until the quota is renewed",
    Refusal.FULL: "the database is full: increase its size in the Upstash console, or store less, "
    "with a shorter ttl or fewer cache rules; expired entries free space",
    Refusal.SIZE: "one response is larger than the plan allows in a request: exclude it from the "
    "cache rules, or raise the plan in the Upstash console",
}


class LogObserver:
    """Logs the events that operators should know; thread-safe.

    ``clock`` returns seconds; recurring events are logged once a minute.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logged_at: dict[tuple[str, str], float] = {}
        self._outage: set[str] = set()
        self.ignores: set[type[Event]] = {
            CacheLookedUp,
            CacheStored,
            RateLimitDecided,
            UpstashAnswered,
        }
        """Events that need not be created: successful calls matter only during an outage."""
        self._open = False

    def __call__(self, event: Event) -> None:  # noqa: PLR0912 - one case for each event
        """Log the event if it changes the known state."""
        match event:
            case UpstashFailed(_, CircuitOpen()):
                pass  # logged when the circuit breaker opened
            case UpstashFailed(during, error):
                self._log_failure(during, error)
            case UpstashAnswered() if self._outage and not self._open:
                self._end_outage()
                logger.warning("Upstash is reachable again", extra=_fields("UpstashAnswered"))
            case CircuitOpened():
                self._log_circuit_opened(event)
            case CircuitClosed(after):
                self._log_circuit_closed(after)
            case CacheNotStored(where, why, advice, path):
                extra = _fields("CacheNotStored", where=where)
                said = where, one_line(path), one_line(why)
                if not advice:
                    logger.info("%s: the response for %s was not stored: %s", *said, extra=extra)
                    return
                logger.warning(
                    "%s: the response for %s was not stored: %s; %s (logged for at most three "
                    "paths an hour, for each rule and reason)",
                    *said,
                    one_line(advice),
                    extra=extra,
                )
            case SettingDoubted(where, advice):
                extra = _fields("SettingDoubted", where=where)
                logger.warning("%s: %s", where, advice, extra=extra)
            case CacheEntryRefused(_, detail) if self._is_news("cache", "entry", _MINUTE):
                logger.warning(
                    "a stored response cannot be used and counts as a miss: it is %s "
                    "(observers get an event for each)",
                    detail,
                    extra=_fields("CacheEntryRefused"),
                )
            case SessionSaved(_, False, detail) if self._is_news("session", detail, _MINUTE):
                logger.warning(
                    "a change of a session was dropped: %s (observers get an event for each)",
                    detail,
                    extra=_fields("SessionSaved"),
                )
            case UserCodeFailed(where, failure) if self._is_news(where, type(failure).__name__):
                _log_raised("UserCodeFailed", where, failure)
            case InternalError(where, failure):
                if self._is_news(f"internal {where}", type(failure).__name__):
                    _log_raised("InternalError", where, failure)
            case _:
                pass

    def _log_failure(self, during: str, error: UpstashError) -> None:
        """Log a failure: once for the whole outage, or once for each kind of command."""
        refusal = error.kind if isinstance(error, Refused) else refusal_in(str(error))
        name = type(error).__name__
        kind = refusal.name if refusal else name
        extra = _fields("UpstashFailed", during=during, error=error)
        if refusal:
            extra["upstash_refusal"] = refusal.name.lower()
        if isinstance(error, CommandError) and error.code in _WRONG_VALUE_CODES:
            if self._is_news(during, error.code):  # every request with this key fails: no outage
                logger.warning(
                    "Upstash rejected a %s; applying its on_error policy: %s (another program "
                    "wrote the key's value: delete the key, and give this application its own "
                    "prefix; further such keys are not logged)",
                    during,
                    one_line(str(error)),
                    extra=extra,
                )
        elif refusal in _REFUSALS_OF_SINGLE_COMMANDS or isinstance(error, CommandError):
            if self._is_news(during, kind, _MINUTE):
                logger.warning(
                    "Upstash rejected a %s; applying its on_error policy: %s: %s%s",
                    during,
                    name,
                    one_line(str(error)),
                    _remedy(refusal),
                    extra=extra,
                )
        elif kind not in self._outage and self._is_news("upstash", kind, _MINUTE):
            self._begin_outage(kind)
            logger.warning(
                "Upstash failed during a %s; applying the on_error policy until it is reachable: "
                "%s: %s%s",
                during,
                name,
                one_line(str(error)),
                _remedy(refusal),
                extra=extra,
            )

    def _log_circuit_opened(self, event: CircuitOpened) -> None:
        self._open = True
        effect = "applying each rule's on_error policy"
        if event.commands:
            effect = "Redis commands raise CircuitOpen until a probe succeeds"
        if self._is_news("upstash", effect, _MINUTE):
            self._begin_outage("circuit")
            logger.warning(
                "Circuit breaker opened (%d of %d calls to Upstash failed or were slow, the last "
                "with %s); %s",
                event.bad,
                event.of,
                one_line(event.last),
                effect,
                extra=_fields("CircuitOpened", bad=event.bad, of=event.of),
            )

    def _log_circuit_closed(self, after: float) -> None:
        logged, self._open = bool(self._outage), False
        self._end_outage()
        if logged:
            extra = _fields("CircuitClosed", seconds=after)
            logger.warning(
                "Upstash is reachable again: the circuit breaker closed after %.3g s",
                after,
                extra=extra,
            )

    def _begin_outage(self, kind: str) -> None:
        with self._lock:
            self._outage |= {kind}
            self.ignores.discard(UpstashAnswered)

    def _end_outage(self) -> None:
        with self._lock:
            self._outage = set()
            self.ignores.add(UpstashAnswered)

    def _is_news(self, place: str, kind: str, again_after: float = math.inf) -> bool:
        with self._lock:
            now = self._clock()
            if now - self._logged_at.get((place, kind), -math.inf) < again_after:
                return False
            self._logged_at[place, kind] = now
            return True


def one_line(text: str) -> str:
    """Return an external text, shortened, and without characters that could forge a log line."""
    return re.sub(_UNPRINTABLE, " ", text)[:_MAX_LENGTH]


def _log_raised(event: str, where: str, failure: Exception) -> None:
    """Log an exception in a function of the application or in this package."""
    extra = _fields(event, where=where, error=failure)
    error = partial(logger.error, exc_info=failure, extra=extra)
    if event == "InternalError":
        error("upstash-middleware failed in %s; the request went on without that part", where)
    elif where == "on_purge":
        error(
            "on_purge raised: the purge is done on Redis, but was not passed on, so a CDN in front "
            "may still have what was purged; purge again, or purge the CDN in another way"
        )
    elif where.startswith("cache["):
        error("%s raised, so the request bypassed the cache", where)
    elif where.endswith((".limits", ".cost", ".when")):
        error(
            "%s raised, so on_error of its rule applied: with 'open', the default, the request was "
            "not limited by this rule",
            where,
        )
    else:
        error("%s raised; its rule continued without it", where)


def _fields(event: str, **values: object) -> dict[str, object]:
    """Return a record's attributes for programs."""
    attributes = {
        f"upstash_{name}": type(value).__name__ if isinstance(value, Exception) else value
        for name, value in values.items()
    }
    return {"upstash_event": event, **attributes}


def _remedy(refusal: Refusal | None) -> str:
    return f" ({_REMEDIES[refusal]})" if refusal else ""
