"""The fault matrix as tables: what can befall a call, and what is to come of it.

``test_matrix`` holds every framework to these tables, and ``docs/fault-matrix.md`` is written
from them. Nothing is run here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, assert_never

from documentation.site import table
from upstash_middleware.local.http1 import Answer

POLICIES: Final = ("open", "closed", "local")
SHORT: Final = 0.6
"""Seconds of deadline where a fault costs the whole of it."""
QUOTA: Final = 9


class Operation(Enum):
    """What is under way when the fault begins."""

    LIMIT = "limit"
    LOOKUP = "limit and lookup together"
    LOCK = "lock"
    STORE = "store"
    PURGE = "purge"
    SESSION_LOAD = "session load"
    SESSION_SAVE = "session save"
    DATA_GET = "data get"
    DATA_SET = "data set"
    DATA_SET_STRICT = "data set, strict"


class Change(Enum):
    """What happens besides the simulated faults."""

    FLUSH = "the database is emptied, scripts and all"
    WRONG_TYPE = "all keys hold hashes"
    CLOCK_AHEAD = "the clock jumps ahead"
    CLOCK_BACK = "the clock jumps back"


@dataclass(frozen=True, slots=True)
class Fault:
    """A row: what happens, whether commands are run, and how the calls then end."""

    said: str
    simulated: dict[str, Any] = field(default_factory=dict)
    instead: Answer | None = None
    """What is answered in place of the simulated 502."""
    change: Change | None = None
    errors: tuple[str, ...] = ()
    """The exceptions that it may show as; none where calls succeed."""
    runs: bool = True
    """Whether what is sent is carried out all the same."""
    costs_deadline: bool = False
    late: float = 0.0
    """Seconds after the deadline at which they are."""


def _json(body: bytes) -> Answer:
    return Answer(200, body, b"application/json")


LOST: Final = ("ConnectionLost", "NotConnected")
FAULTS: Final = {
    "slow": Fault("responses take 100 ms", {"latency_ms": 100}),
    "too slow": Fault(
        "responses take longer than the deadline",
        {"latency_ms": SHORT * 1500},
        errors=("DeadlineExceeded",),
        late=SHORT * 0.5,
        costs_deadline=True,
    ),
    "silent": Fault(
        "half of the response arrives, then nothing",
        {"fault": "stall"},
        errors=("DeadlineExceeded",),
        costs_deadline=True,
    ),
    "trickling": Fault(
        "the response arrives one byte every 20 ms",
        {"fault": "trickle"},
        errors=("DeadlineExceeded",),
        costs_deadline=True,
    ),
    "refused": Fault("no connection is possible", {"fault": "refuse"}, errors=LOST, runs=False),
    "reset before": Fault(
        "the connection closes before the commands are executed",
        {"fault": "drop-before"},
        errors=LOST,
        runs=False,
    ),
    "reset after": Fault(
        "the connection closes after the commands were executed",
        {"fault": "drop-after"},
        errors=LOST,
    ),
    "truncated": Fault(
        "half of the response arrives, then the connection closes",
        {"fault": "truncate"},
        errors=("UnexpectedAnswer", "ConnectionLost"),
    ),
    "500": Fault("status 500", {"fault": "server-error"}, errors=("UnexpectedAnswer",), runs=False),
    "502": Fault(
        "status 502 with an HTML page",
        {"fault": "bad-gateway"},
        errors=("UnexpectedAnswer",),
        runs=False,
    ),
    "401": Fault(
        "Upstash rejects the token", {"fault": "unauthorized"}, errors=("Refused",), runs=False
    ),
    "quota": Fault(
        "the plan's quota is used up", {"fault": "quota"}, errors=("Refused",), runs=False
    ),
    "cut JSON": Fault(
        "incomplete JSON",
        {"fault": "bad-gateway"},
        instead=_json(b'[{"result":"O'),
        errors=("UnexpectedAnswer",),
        runs=False,
    ),
    "wrong JSON": Fault(
        "JSON with another structure",
        {"fault": "bad-gateway"},
        instead=_json(b'{"hello":["world"]}'),
        errors=("UnexpectedAnswer",),
        runs=False,
    ),
    "no script": Fault("the server has lost all scripts", {"fault": "noscript"}),
    "data lost": Fault("the server restarts with an empty database", change=Change.FLUSH),
    "wrong type": Fault("the middleware's keys contain other data", change=Change.WRONG_TYPE),
    "clock ahead": Fault(
        "the application's clock jumps two minutes ahead", change=Change.CLOCK_AHEAD
    ),
    "clock back": Fault("the application's clock jumps two minutes back", change=Change.CLOCK_BACK),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client, the log and Redis show of one request under a fault, and after it."""

    status: int = 200
    from_cache: bool = False
    remaining: int | None = None
    """As X-RateLimit-Remaining tells it; None where the field is not there, as in what comes from
    the cache, or is not known."""
    retry_after: bool = False
    lines: int = 0
    """In the log, for any number of such requests."""
    purged: bool | None = None
    """What the handler was told of its purge: done, or an UpstashError."""
    remaining_after: int | None = None
    """The same once all is well again: so Redis tells what was counted."""
    cached_after: bool | None = None
    """Whether the page is then answered from the cache."""
    session: str = ""
    """What the handler found in its session: ``there``, ``empty`` or ``unavailable``."""
    session_after: str = ""
    """What the session is once all is well again: ``unchanged``, ``saved`` or ``gone``."""
    value: str = ""
    """What the handler read: ``there`` or ``missing``."""
    told: str = ""
    """What the handler was told of storing a value: ``True``, ``False`` or ``an UpstashError``."""
    value_after: str = ""
    """What the value is once all is well again: ``unchanged`` or ``stored``."""


def expected(name: str, operation: Operation, policy: str) -> Outcome:
    """Return what is to come of a fault."""
    fault = FAULTS[name]
    match operation:
        case Operation.LIMIT:
            return _limit(fault, policy)
        case Operation.LOOKUP:
            return _lookup(fault, policy)
        case Operation.LOCK:
            return _lock(fault, policy)
        case Operation.STORE:
            return _store(fault, policy)
        case Operation.PURGE:
            return _purge(fault)
        case Operation.SESSION_LOAD:
            return _session_load(fault)
        case Operation.SESSION_SAVE:
            return _session_save(fault, policy)
        case Operation.DATA_GET:
            return _data_get(fault)
        case Operation.DATA_SET:
            return _data_set(fault, "False")
        case Operation.DATA_SET_STRICT:
            return _data_set(fault, "an UpstashError")
    assert_never(operation)


def fails(fault: Fault, operation: Operation) -> bool:
    """Whether the call fails; other data at a key is in the way of counting alone."""
    counts = operation in {Operation.LIMIT, Operation.LOOKUP}
    return bool(fault.errors) or (fault.change is Change.WRONG_TYPE and counts)


def _limit(fault: Fault, policy: str) -> Outcome:
    if fails(fault, Operation.LIMIT):
        return _settled(fault, policy)
    used = 1 if fault.change is Change.FLUSH else 2
    return Outcome(remaining=QUOTA - used, remaining_after=QUOTA - used - 1)


def _settled(fault: Fault, policy: str) -> Outcome:
    """By policy; one request came before, and what was lost on the way may have counted."""
    counted: int | None = QUOTA - 2 - fault.runs
    if fault.change is Change.WRONG_TYPE:  # it stays, and so does the policy
        counted = QUOTA - 2 if policy == "local" else None
    after = Outcome(lines=1, remaining_after=counted)
    match policy:
        case "open":
            return after
        case "closed":
            return replace(after, status=503, retry_after=True)
        case _:
            return replace(after, remaining=QUOTA - 1)


def _lookup(fault: Fault, policy: str) -> Outcome:
    outcome = _limit(fault, policy)
    if fault.change is Change.WRONG_TYPE:  # the cache writes over it, unless a 503 keeps it away
        return replace(outcome, cached_after=policy != "closed")
    kept = not fails(fault, Operation.LOOKUP) and fault.change is not Change.FLUSH
    remaining = None if kept else outcome.remaining
    return replace(outcome, from_cache=kept, remaining=remaining, cached_after=True)


def _lock(fault: Fault, policy: str) -> Outcome:
    """The page is rendered without the lock, and stored when all is well again."""
    locked_out = fault.change is Change.WRONG_TYPE and policy == "closed"
    return Outcome(
        remaining=QUOTA - 1, lines=int(fails(fault, Operation.LOCK)), cached_after=not locked_out
    )


def _store(fault: Fault, policy: str) -> Outcome:
    """The response goes out as it is; afterwards the page is there if the store was carried out."""
    locked_out = fault.change is Change.WRONG_TYPE and policy == "closed"
    return Outcome(
        remaining=QUOTA - 1,
        lines=int(fails(fault, Operation.STORE)),
        cached_after=fault.runs and not locked_out,
    )


def _purge(fault: Fault) -> Outcome:
    """What was stored before is gone if the purge ran, whatever the handler was told."""
    return Outcome(
        purged=not fails(fault, Operation.PURGE), remaining=QUOTA - 2, cached_after=not fault.runs
    )


def _session_load(fault: Fault) -> Outcome:
    """The session reads as empty, and is still there when all is well again."""
    failed = fails(fault, Operation.SESSION_LOAD)
    lost = fault.change in {Change.FLUSH, Change.WRONG_TYPE}
    return Outcome(
        lines=int(failed),
        session="unavailable" if failed else "empty" if lost else "there",
        session_after="gone" if lost else "unchanged",
    )


def _session_save(fault: Fault, policy: str) -> Outcome:
    """The response goes out or is a 503; afterwards it shows whether the save was carried out."""
    failed = fails(fault, Operation.SESSION_SAVE)
    refused = failed and policy == "closed"
    lost = fault.change in {Change.FLUSH, Change.WRONG_TYPE}
    return Outcome(
        status=503 if refused else 200,
        retry_after=refused,
        lines=int(failed or fault.change is Change.FLUSH),
        session="there",
        session_after="gone" if lost else "saved" if fault.runs else "unchanged",
    )


def _data_get(fault: Fault) -> Outcome:
    """Whatever is in the way of a value, it is missing."""
    failed = fails(fault, Operation.DATA_GET)
    lost = fault.change in {Change.FLUSH, Change.WRONG_TYPE}
    return Outcome(lines=int(failed), value="missing" if failed or lost else "there")


def _data_set(fault: Fault, failure: str) -> Outcome:
    """The handler gets ``failure`` if it is not certain that the value was stored."""
    failed = fails(fault, Operation.DATA_SET)
    return Outcome(
        lines=int(failed),
        told=failure if failed else "True",
        value_after="stored" if fault.runs else "unchanged",
    )


_HEADING: Final = """# What happens when Upstash fails

These tables show what clients and handlers see when Upstash, the network or the clock fails.
[When Upstash fails](failure.md) explains the settings. The most important one is `on_error`:
`"open"`, the default, lets requests pass; `"closed"` answers 503; `"local"` counts in the process.

In every case,

- a request waits no longer than the deadline,
- a 503 carries `Retry-After`, `Cache-Control: no-store` and the problem type
  `temporary-reduced-capacity`,
- the log contains one line for failed calls, except for a purge, which raises the error,
- every key that the request leaves on Redis expires.

## Failures

Failures with the same consequences form a group. The tables below have one row for each group.
"""

_SECTIONS: Final = {
    """## Rate limits

The client has used 1 of 9 requests a day. A cell shows the status of its next request and
`X-RateLimit-Remaining`, if it is sent. *Then* is `X-RateLimit-Remaining` of another request after
the failure: 6 if Redis has counted the first one, 7 if not.
""": {
        '`on_error="open"`': (Operation.LIMIT, "open"),
        '`on_error="closed"`': (Operation.LIMIT, "closed"),
        '`on_error="local"`': (Operation.LIMIT, "local"),
    },
    """## Cache

The limit has `on_error="open"`. The first two columns show a request for a stored page and a
request that takes the lock of a page. The others show the storing of a page and a handler that
purges one.
""": {
        "stored page": (Operation.LOOKUP, "open"),
        "lock of a page": (Operation.LOCK, "open"),
        "storing a page": (Operation.STORE, "open"),
        "purge": (Operation.PURGE, "open"),
    },
    """## Sessions

A session contains one entry. A cell shows the status of the response and what the handler finds in
the session, then what is stored after the failure.
""": {
        "load": (Operation.SESSION_LOAD, "open"),
        'save, `on_error="open"`': (Operation.SESSION_SAVE, "open"),
        'save, `on_error="closed"`': (Operation.SESSION_SAVE, "closed"),
    },
    """## Data

A handler reads a value, or replaces it. A cell shows what the call returns or raises, then whether
the new value is stored.
""": {
        "`data.get`": (Operation.DATA_GET, "open"),
        "`data.set`": (Operation.DATA_SET, "open"),
        "`data.set` with `strict=True`": (Operation.DATA_SET_STRICT, "open"),
    },
}

_FOOT: Final = """## How the tables are made

The tests cause every failure with the local Upstash, and compare each cell with what they see.
Limits and the cache are tested in Starlette, Flask and Django (sync and async), sessions in
Starlette, and data in Starlette and with Django's `CACHES`. `make docs-tables` writes this page.
"""


def document() -> str:
    """Return the documentation's page: what is expected above, as tables."""
    groups: dict[str, list[str]] = {}
    for name, fault in FAULTS.items():
        groups.setdefault(_group(fault), []).append(name)
    failures = [
        (group, "; ".join(FAULTS[name].said for name in names)) for group, names in groups.items()
    ]
    parts = [_HEADING, table(("group", "failures"), failures), ""]
    for heading, columns in _SECTIONS.items():
        rows = []
        for group, names in groups.items():
            (cells,) = {  # the same for each fault of a group
                tuple(_cell(name, *column) for column in columns.values()) for name in names
            }
            rows.append((group, *cells))
        parts += [heading, table(("group", *columns), rows), ""]
    return "\n".join([*parts, _FOOT])


def _group(fault: Fault) -> str:
    match fault.change:
        case Change.FLUSH:
            return "database empty"
        case Change.WRONG_TYPE:
            return "other data"
        case _ if not fault.errors:
            return "call succeeded"
        case _:
            return f"call failed, {'commands' if fault.runs else 'nothing'} executed"


def _cell(name: str, operation: Operation, policy: str) -> str:
    outcome = expected(name, operation, policy)
    match operation:
        case Operation.LIMIT:
            return ", ".join([str(outcome.status), *_counted(outcome), _after(outcome)])
        case Operation.LOOKUP:
            source = "from the cache" if outcome.from_cache else "from the application"
            return f"{outcome.status}, {source}"
        case Operation.LOCK:
            return f"{outcome.status}, rendered and stored"
        case Operation.STORE:
            return "stored" if outcome.cached_after else "not stored"
        case Operation.PURGE:
            result = "success" if outcome.purged else "UpstashError"
            return f"{result}, {'still stored' if outcome.cached_after else 'purged'}"
        case Operation.SESSION_LOAD:
            return f"{outcome.status}, {_LOADED[outcome.session]}, {_KEPT[outcome.session_after]}"
        case Operation.SESSION_SAVE:
            return f"{outcome.status}, {_SAVED[outcome.session_after]}"
        case Operation.DATA_GET:
            return "the value" if outcome.value == "there" else "missing"
        case Operation.DATA_SET | Operation.DATA_SET_STRICT:
            result = "UpstashError" if "Error" in outcome.told else f"`{outcome.told}`"
            return f"{result}, {'stored' if outcome.value_after == 'stored' else 'not stored'}"
    assert_never(operation)


_LOADED: Final = {"there": "loaded", "empty": "empty", "unavailable": "unavailable"}
_KEPT: Final = {"unchanged": "still stored", "gone": "lost"}
_SAVED: Final = {"saved": "saved", "unchanged": "not saved", "gone": "lost"}


def _counted(outcome: Outcome) -> list[str]:
    return [] if outcome.remaining is None else [f"remaining {outcome.remaining}"]


def _after(outcome: Outcome) -> str:
    return f"then {'unknown' if outcome.remaining_after is None else outcome.remaining_after}"
