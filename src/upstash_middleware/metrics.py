"""The metrics, their names and labels, and the measurement for each event.

The exporters ``opentelemetry`` and ``prometheus`` and the documentation use this table. The
application's settings and code limit the values of labels: they never contain an identifier, a URL,
a key, or text from the server.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from upstash_middleware.errors import CommandError
from upstash_middleware.events import (
    CacheEntryRefused,
    CacheLookedUp,
    CacheStored,
    CircuitClosed,
    CircuitOpened,
    InternalError,
    QuotaLeased,
    RateLimitDecided,
    SessionSaved,
    UpstashCalled,
    UpstashFailed,
    UserCodeFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from upstash_middleware.events import Event


class Kind(Enum):
    """How a metric's values are aggregated."""

    COUNTER = "counter"
    HISTOGRAM = "histogram"
    GAUGE = "gauge"
    """A sum that can decrease: an UpDownCounter in OpenTelemetry."""


class Label(Struct, frozen=True):
    """A dimension of a metric."""

    attribute: str
    """Its name in OpenTelemetry."""
    label: str
    """Its name in Prometheus."""
    meaning: str


class Metric(Struct, frozen=True, eq=False):
    """A metric with its OpenTelemetry name."""

    name: str
    kind: Kind
    unit: str
    """The unit in UCUM notation, as in OpenTelemetry."""
    meaning: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()


class Measurement(Struct, frozen=True):
    """The contribution of one event to a metric; ``values`` are in the order of its labels."""

    metric: Metric
    amount: float
    values: tuple[str, ...] = ()


_NAME_PREFIX: Final = "upstash_middleware"
_RULE = Label(f"{_NAME_PREFIX}.rate_limit.rule", "rule", "the rule's name")
_VERDICT = Label(
    f"{_NAME_PREFIX}.rate_limit.verdict",
    "verdict",
    "`allowed`, `denied`, or `shadow-denied`: only reported",
)
_SETTLED_BY = Label(
    f"{_NAME_PREFIX}.rate_limit.settled_by",
    "settled_by",
    "`upstash`, `lease`, `memory`, `deny list`, `challenge`, or the policy: `open`, `closed`, "
    "`local`",
)
_LEASE_CHANGE = Label(
    f"{_NAME_PREFIX}.lease.change",
    "change",
    "`leased`, taken beyond a request's cost; `returned`, given back; or `wasted`, lost unused",
)
_OUTCOME = Label(
    f"{_NAME_PREFIX}.cache.outcome", "outcome", "`hit`, or the reason for forwarding, from RFC 9211"
)
_STORED = Label(f"{_NAME_PREFIX}.cache.stored", "stored", "`true` or `false`")
_CHANGE = Label(
    f"{_NAME_PREFIX}.session.change",
    "change",
    "`created`, `saved`, `touched`: only its timeout was extended, `regenerated`, `ended`",
)
_SAVED = Label(
    f"{_NAME_PREFIX}.session.saved", "saved", "`true`, or `false` for a change that was dropped"
)
_DURING = Label(
    f"{_NAME_PREFIX}.during",
    "during",
    "`rate limit`, `cache lookup`, `cache store`, `invalidation`, `purge`, `session load`, "
    "`session save`, `data read`, `data write`",
)
_SETTING = Label(
    f"{_NAME_PREFIX}.where", "where", "the setting of the function, or a part of this package"
)
_OPERATION = Label("db.operation.name", "operation", "the command's name; `PIPELINE` for several")
_SERVER = Label("server.address", "server", "the database's host name")
_PORT = Label("server.port", "port", "its port")
_STATUS = Label("db.response.status_code", "code", "the error code of a command that failed")
_ERROR = Label("error.type", "error", "that code, or the exception's class; none for success")

DECISIONS: Final = Metric(
    f"{_NAME_PREFIX}.rate_limit.decisions",
    Kind.COUNTER,
    "{decision}",
    "Decisions of rate-limit rules about requests.",
    (_RULE, _VERDICT, _SETTLED_BY),
)
LEASED: Final = Metric(
    f"{_NAME_PREFIX}.rate_limit.leased",
    Kind.COUNTER,
    "{unit}",
    "Units that were taken ahead for leases, given back, or lost unused.",
    (_RULE, _LEASE_CHANGE),
)
LOOKUPS: Final = Metric(
    f"{_NAME_PREFIX}.cache.lookups",
    Kind.COUNTER,
    "{lookup}",
    "Lookups in the cache.",
    (_OUTCOME,),
)
STORES: Final = Metric(
    f"{_NAME_PREFIX}.cache.stores",
    Kind.COUNTER,
    "{response}",
    "Responses that were stored, or could not be stored.",
    (_STORED,),
)
REFUSED: Final = Metric(
    f"{_NAME_PREFIX}.cache.refused",
    Kind.COUNTER,
    "{entry}",
    "Entries that were damaged, of another version, or signed with none of `cache_keys`.",
)
SAVES: Final = Metric(
    f"{_NAME_PREFIX}.session.saves",
    Kind.COUNTER,
    "{change}",
    "Changes of sessions that were saved, or dropped.",
    (_CHANGE, _SAVED),
)
CALLS: Final = Metric(
    "db.client.operation.duration",
    Kind.HISTOGRAM,
    "s",
    "How long requests waited for Upstash.",
    (_OPERATION, _SERVER, _PORT, _STATUS, _ERROR),
    (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0),
)
"""Follows the semantic conventions for database clients, including the buckets."""
FAILURES: Final = Metric(
    f"{_NAME_PREFIX}.failures",
    Kind.COUNTER,
    "{failure}",
    "Failed calls to Upstash, for which a policy was applied.",
    (_DURING, _ERROR),
)
CIRCUIT: Final = Metric(
    f"{_NAME_PREFIX}.circuit.open", Kind.GAUGE, "{circuit}", "Circuit breakers that are open."
)
FAULTS: Final = Metric(
    f"{_NAME_PREFIX}.faults",
    Kind.COUNTER,
    "{fault}",
    "Exceptions in functions of the application, or in this package.",
    (_SETTING, _ERROR),
)
METRICS: Final = (
    *(DECISIONS, LEASED, LOOKUPS, STORES, REFUSED, SAVES),
    *(CALLS, FAILURES, CIRCUIT, FAULTS),
)

OTHER: Final = "_OTHER"
"""The name for an unknown error in the semantic conventions."""
_CODES: Final = frozenset(
    "BUSY BUSYGROUP CLUSTERDOWN CROSSSLOT ERR EXECABORT LOADING MASTERDOWN MISCONF NOAUTH NOPERM "  # noqa: SIM905
    "NOREPLICAS NOSCRIPT OOM READONLY TRYAGAIN UNKILLABLE WRONGPASS WRONGTYPE WRONGVALUE".split()
)


def measurement_of(event: Event) -> Measurement | None:
    """Return the measurement for an event; None if no metric counts it."""
    measure = _MEASURES.get(type(event))
    return None if measure is None else measure(event)


def operation(commands: tuple[str, ...]) -> str:
    """Return the operation name of a call, as in the semantic conventions for Redis."""
    names = set(commands)
    if len(names) > 1:
        return "PIPELINE"
    (name,) = names
    return name if len(commands) == 1 else f"PIPELINE {name}"


def status_code(error: BaseException | None) -> str:
    """Return the error code of a failed command if it is known; "" if none failed."""
    if not isinstance(error, CommandError):
        return ""
    return error.code if error.code in _CODES else OTHER


def error_type(error: BaseException | None) -> str:
    """Return the error code of a failed command, or the exception's class; "" for no error."""
    return status_code(error) or ("" if error is None else type(error).__name__)


def verdict(event: RateLimitDecided) -> str:
    """Return a rule's decision as one word."""
    if event.allowed:
        return "allowed"
    return "shadow-denied" if event.shadow else "denied"


def _decision_measurement(event: RateLimitDecided) -> Measurement:
    return Measurement(DECISIONS, 1, (event.rule, verdict(event), event.settled_by))


def _call_measurement(event: UpstashCalled) -> Measurement:
    code, error = status_code(event.error), error_type(event.error)
    name = operation(event.commands)
    return Measurement(CALLS, event.seconds, (name, event.server, str(event.port), code, error))


def _fault_measurement(event: UserCodeFailed | InternalError) -> Measurement:
    return Measurement(FAULTS, 1, (event.where, error_type(event.error)))


_MEASURES: Mapping[type, Callable[[Any], Measurement]] = {
    RateLimitDecided: _decision_measurement,
    CacheLookedUp: lambda event: Measurement(LOOKUPS, 1, (event.outcome,)),
    CacheStored: lambda event: Measurement(STORES, 1, (str(event.stored).lower(),)),
    CacheEntryRefused: lambda _event: Measurement(REFUSED, 1),
    QuotaLeased: lambda event: Measurement(LEASED, event.units, (event.rule, event.change)),
    SessionSaved: lambda event: Measurement(SAVES, 1, (event.change, str(event.saved).lower())),
    UpstashCalled: _call_measurement,
    UpstashFailed: lambda event: Measurement(FAILURES, 1, (event.during, error_type(event.error))),
    CircuitOpened: lambda _event: Measurement(CIRCUIT, 1),
    CircuitClosed: lambda _event: Measurement(CIRCUIT, -1),
    UserCodeFailed: _fault_measurement,
    InternalError: _fault_measurement,
}
