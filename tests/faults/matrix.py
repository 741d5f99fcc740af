"""The fault matrix as tables: what can befall a call, and what is to come of it.

``test_matrix`` holds every framework to these tables, and ``docs/fault-matrix.md`` is written
from them. Nothing is run here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final, assert_never

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
    "slow": Fault("answers take 100 ms", {"latency_ms": 100}),
    "too slow": Fault(
        "answers take longer than the deadline; the commands are run all the same",
        {"latency_ms": SHORT * 1500},
        errors=("DeadlineExceeded",),
        late=SHORT * 0.5,
        costs_deadline=True,
    ),
    "silent": Fault(
        "half of the answer, then nothing more",
        {"fault": "stall"},
        errors=("DeadlineExceeded",),
        costs_deadline=True,
    ),
    "trickling": Fault(
        "the answer comes a byte every 20 ms",
        {"fault": "trickle"},
        errors=("DeadlineExceeded",),
        costs_deadline=True,
    ),
    "refused": Fault("no connection can be made", {"fault": "refuse"}, errors=LOST, runs=False),
    "reset before": Fault(
        "the connection ends before the commands are run",
        {"fault": "drop-before"},
        errors=LOST,
        runs=False,
    ),
    "reset after": Fault(
        "the connection ends after they were run", {"fault": "drop-after"}, errors=LOST
    ),
    "truncated": Fault(
        "half of the answer, then the end of the connection",
        {"fault": "truncate"},
        errors=("UnexpectedAnswer", "ConnectionLost"),
    ),
    "500": Fault("status 500", {"fault": "server-error"}, errors=("UnexpectedAnswer",), runs=False),
    "502": Fault(
        "status 502 with a page of HTML",
        {"fault": "bad-gateway"},
        errors=("UnexpectedAnswer",),
        runs=False,
    ),
    "401": Fault(
        "the token is refused", {"fault": "unauthorized"}, errors=("Refused",), runs=False
    ),
    "quota": Fault(
        "the plan's requests are used up", {"fault": "quota"}, errors=("Refused",), runs=False
    ),
    "cut JSON": Fault(
        "JSON that breaks off",
        {"fault": "bad-gateway"},
        instead=_json(b'[{"result":"O'),
        errors=("UnexpectedAnswer",),
        runs=False,
    ),
    "wrong JSON": Fault(
        "JSON of another shape",
        {"fault": "bad-gateway"},
        instead=_json(b'{"hello":["world"]}'),
        errors=("UnexpectedAnswer",),
        runs=False,
    ),
    "no script": Fault("the server has forgotten all scripts", {"fault": "noscript"}),
    "data lost": Fault("a restart with nothing left", change=Change.FLUSH),
    "wrong type": Fault("other data stands at our keys", change=Change.WRONG_TYPE),
    "clock ahead": Fault("this machine's clock jumps two minutes ahead", change=Change.CLOCK_AHEAD),
    "clock back": Fault("it jumps two minutes back", change=Change.CLOCK_BACK),
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

`make docs-tables` writes this page from the table that the tests hold Starlette, Flask and Django
(sync and async) to: every line is produced with the local Upstash, for every operation, framework
and policy; the columns about sessions with Starlette, and those about data with Django's `CACHES`
too. Each request had a limit of 9 a day, of which one was used before; *remaining* is what
`X-RateLimit-Remaining` said, *then* what the next request was told when all was well again: so it
shows whether Redis had counted the one before. A session had one entry; *then* says what it
contained when all was well again. `data.get` read a value, and `data.set` replaced it, once with
`strict=True`; *then* says whether the new value was found when all was well again.

In every cell: the request took no longer than the deadline (with room for a slow machine), the log
got one line where a call failed and none where it did not, a 503 carried `Retry-After`,
`Cache-Control: no-store` and the problem type `temporary-reduced-capacity`, and all that was left
on Redis had a time to live.
"""

_COLUMNS: Final = {
    '`on_error="open"`': (Operation.LIMIT, "open"),
    '`"closed"`': (Operation.LIMIT, "closed"),
    '`"local"`': (Operation.LIMIT, "local"),
    'a page in the cache, `"open"`': (Operation.LOOKUP, "open"),
    "taking a page's lock": (Operation.LOCK, "open"),
    "storing a page": (Operation.STORE, "open"),
    "a handler that purges": (Operation.PURGE, "open"),
    "a session that is loaded": (Operation.SESSION_LOAD, "open"),
    'a session that is saved, `"open"`': (Operation.SESSION_SAVE, "open"),
    '`"closed"`, saved': (Operation.SESSION_SAVE, "closed"),
    "`data.get`": (Operation.DATA_GET, "open"),
    "`data.set`": (Operation.DATA_SET, "open"),
    "`strict=True`": (Operation.DATA_SET_STRICT, "open"),
}


def document() -> str:
    """Return the documentation's page: what is expected above, as a table."""
    heads = ["what happens", *_COLUMNS]
    rows = [
        [fault.said, *(_cell(name, *column) for column in _COLUMNS.values())]
        for name, fault in FAULTS.items()
    ]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join([_HEADING, *(f"| {' | '.join(line)} |" for line in lines), ""])


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
            told = "done" if outcome.purged else "an UpstashError"
            return f"told: {told}; the page is {'still there' if outcome.cached_after else 'gone'}"
        case Operation.SESSION_LOAD:
            return f"{outcome.status}, {outcome.session}, then {outcome.session_after}"
        case Operation.SESSION_SAVE:
            return f"{outcome.status}, then {outcome.session_after}"
        case Operation.DATA_GET:
            return outcome.value
        case Operation.DATA_SET | Operation.DATA_SET_STRICT:
            told = "an UpstashError" if "Error" in outcome.told else f"`{outcome.told}`"
            return f"{told}, then {outcome.value_after}"
    assert_never(operation)


def _counted(outcome: Outcome) -> list[str]:
    return [] if outcome.remaining is None else [f"remaining {outcome.remaining}"]


def _after(outcome: Outcome) -> str:
    told = "not told" if outcome.remaining_after is None else outcome.remaining_after
    return f"then {told}"
