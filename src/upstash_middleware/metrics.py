"""What is counted and measured of the events: names, labels, and which event counts as what.

The exporters, ``opentelemetry`` and ``prometheus``, and the documentation follow this table; none
has a metric of its own. A label's values are bounded by the application's settings and code:
never an identifier, a URL, a key, or a server's words.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from upstash_middleware.errors import CommandError
from upstash_middleware.events import (
    CacheEntryRefused,
    CacheLookedUp,
    CacheStored,
    CircuitClosed,
    CircuitOpened,
    InternalError,
    RateLimitDecided,
    UpstashCalled,
    UpstashFailed,
    UserCodeFailed,
)
from upstash_middleware.values import dataclass, value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from upstash_middleware.events import Event


class Kind(Enum):
    """How the values of a metric come together."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"
    """A number that goes up and down by what is added: OpenTelemetry's UpDownCounter."""


@dataclass(frozen=True, slots=True)
class Label:
    """What the values of a metric are told apart by."""

    attribute: str
    """As an attribute of OpenTelemetry."""
    label: str
    """As a label of Prometheus."""
    meaning: str


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric, under OpenTelemetry's name for it."""

    name: str
    kind: Kind
    unit: str
    """In UCUM, as OpenTelemetry has it."""
    meaning: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()


@value(frozen=True, slots=True)
class Measurement:
    """What one event adds to a metric; ``values`` in the order of its labels, "" for none."""

    metric: Metric
    amount: float
    values: tuple[str, ...] = ()


_OWN: Final = "upstash_middleware"
_RULE = Label(f"{_OWN}.rate_limit.rule", "rule", "the rule's name")
_VERDICT = Label(
    f"{_OWN}.rate_limit.verdict", "verdict", "`allowed`, `denied`, or `shadow-denied`: stopped not"
)
_SETTLED_BY = Label(
    f"{_OWN}.rate_limit.settled_by",
    "settled_by",
    "`upstash`, `memory`, `deny list`, `challenge`, or the policy: `open`, `closed`, `local`",
)
_OUTCOME = Label(
    f"{_OWN}.cache.outcome", "outcome", "`hit`, or the reason of RFC 9211 for going forward"
)
_STORED = Label(f"{_OWN}.cache.stored", "stored", "`true` or `false`")
_DURING = Label(
    f"{_OWN}.during",
    "during",
    "`rate limit`, `cache lookup`, `cache store`, `invalidation`, `purge`",
)
_SETTING = Label(f"{_OWN}.where", "where", "the setting that holds the function, or our own part")
_OPERATION = Label(
    "db.operation.name", "operation", "the command's name; `PIPELINE` where there are several"
)
_SERVER = Label("server.address", "server", "the database's host name")
_PORT = Label("server.port", "port", "its port")
_STATUS = Label("db.response.status_code", "code", "the error code of a command that failed")
_ERROR = Label("error.type", "error", "that code, or the exception's class; none if all went well")

DECISIONS: Final = Metric(
    f"{_OWN}.rate_limit.decisions",
    Kind.COUNTER,
    "{decision}",
    "Decisions of rate-limit rules about requests.",
    (_RULE, _VERDICT, _SETTLED_BY),
)
LOOKUPS: Final = Metric(
    f"{_OWN}.cache.lookups",
    Kind.COUNTER,
    "{lookup}",
    "Requests that the cache was asked about.",
    (_OUTCOME,),
)
STORES: Final = Metric(
    f"{_OWN}.cache.stores",
    Kind.COUNTER,
    "{response}",
    "Responses that were to be stored.",
    (_STORED,),
)
REFUSED: Final = Metric(
    f"{_OWN}.cache.refused",
    Kind.COUNTER,
    "{entry}",
    "Entries that were damaged, of another version, or sealed under none of `cache_keys`.",
)
CALLS: Final = Metric(
    "db.client.operation.duration",
    Kind.HISTOGRAM,
    "s",
    "What requests waited for Upstash.",
    (_OPERATION, _SERVER, _PORT, _STATUS, _ERROR),
    (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0),
)
"""By the semantic conventions for database clients, buckets included."""
FAILURES: Final = Metric(
    f"{_OWN}.failures",
    Kind.COUNTER,
    "{failure}",
    "What Upstash could not be asked for, so that a policy settled it.",
    (_DURING, _ERROR),
)
CIRCUIT: Final = Metric(
    f"{_OWN}.circuit.open", Kind.GAUGE, "{circuit}", "Circuit breakers that are open: 0 is well."
)
FAULTS: Final = Metric(
    f"{_OWN}.faults",
    Kind.COUNTER,
    "{fault}",
    "Functions of the application's, or parts of this package, that have raised.",
    (_SETTING, _ERROR),
)
METRICS: Final = (DECISIONS, LOOKUPS, STORES, REFUSED, CALLS, FAILURES, CIRCUIT, FAULTS)

OTHER: Final = "_OTHER"
"""What the conventions call an error that has no name of its own."""
_CODES: Final = frozenset(
    {
        "BUSY",
        "BUSYGROUP",
        "CLUSTERDOWN",
        "CROSSSLOT",
        "ERR",
        "EXECABORT",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "NOSCRIPT",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "UNKILLABLE",
        "WRONGPASS",
        "WRONGTYPE",
        "WRONGVALUE",
    }
)


def measured(event: Event) -> Measurement | None:
    """Return what an event adds, None for one that adds nothing."""
    measure = _MEASURES.get(type(event))
    return None if measure is None else measure(event)


def operation(commands: tuple[str, ...]) -> str:
    """Return a call's name, by the semantic conventions for Redis."""
    names = set(commands)
    if len(names) > 1:
        return "PIPELINE"
    (name,) = names
    return name if len(commands) == 1 else f"PIPELINE {name}"


def status_code(error: BaseException | None) -> str:
    """Return the code of a command that failed, as one of those that are known; else ""."""
    if not isinstance(error, CommandError):
        return ""
    return error.code if error.code in _CODES else OTHER


def error_type(error: BaseException | None) -> str:
    """Return the code of a failed command, or the class of what was raised; "" for no error."""
    return status_code(error) or ("" if error is None else type(error).__name__)


def verdict(event: RateLimitDecided) -> str:
    """Return what a rule has decided, in one word."""
    if event.allowed:
        return "allowed"
    return "shadow-denied" if event.shadow else "denied"


def _decided(event: RateLimitDecided) -> Measurement:
    return Measurement(DECISIONS, 1, (event.rule, verdict(event), event.settled_by))


def _called(event: UpstashCalled) -> Measurement:
    code, error = status_code(event.error), error_type(event.error)
    name = operation(event.commands)
    return Measurement(CALLS, event.seconds, (name, event.server, str(event.port), code, error))


def _failed(event: UserCodeFailed | InternalError) -> Measurement:
    return Measurement(FAULTS, 1, (event.where, error_type(event.error)))


_MEASURES: Mapping[type, Callable[[Any], Measurement]] = {
    RateLimitDecided: _decided,
    CacheLookedUp: lambda event: Measurement(LOOKUPS, 1, (event.outcome,)),
    CacheStored: lambda event: Measurement(STORES, 1, (str(event.stored).lower(),)),
    CacheEntryRefused: lambda _event: Measurement(REFUSED, 1),
    UpstashCalled: _called,
    UpstashFailed: lambda event: Measurement(FAILURES, 1, (event.during, error_type(event.error))),
    CircuitOpened: lambda _event: Measurement(CIRCUIT, 1),
    CircuitClosed: lambda _event: Measurement(CIRCUIT, -1),
    UserCodeFailed: _failed,
    InternalError: _failed,
}
