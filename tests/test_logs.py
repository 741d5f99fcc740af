"""What a person reads in the log: one line for each change of state, with the remedy in it."""

from __future__ import annotations

import logging
import threading

import pytest

from upstash_middleware.errors import (
    CircuitOpen,
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    Refusal,
    Refused,
    UpstashError,
)
from upstash_middleware.events import (
    CacheEntryRefused,
    CircuitClosed,
    CircuitOpened,
    Event,
    InternalError,
    SettingDoubted,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
)
from upstash_middleware.logs import LogObserver


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "upstash_middleware")
    return caplog


MINUTE = 60.0


def said(log: pytest.LogCaptureFixture, *events: Event | float) -> list[str]:
    """Return what the events come to in the log; a number lets so many seconds pass."""
    now = 0.0
    observe = LogObserver(lambda: now)
    for event in events:
        if isinstance(event, float):
            now += event
        else:
            observe(event)
    return [record.getMessage() for record in log.records]


def failed(error: UpstashError) -> UpstashFailed:
    return UpstashFailed("rate limit", error)


REFUSALS: dict[Refusal, list[Refused | CommandError]] = {
    Refusal.TOKEN: [
        Refused("WRONGPASS invalid or missing auth token"),
        Refused("NOAUTH Authentication required."),
        Refused("Upstash refused the token with status 401: "),
    ],
    Refusal.PERMISSION: [
        Refused("NOPERM this user has no permissions to run the 'set' command"),
        CommandError("NOPERM this user has no permissions to run the 'evalsha' command"),
    ],
    Refusal.QUOTA: [
        Refused("ERR max requests limit exceeded. Limit: 500000, Usage: 500000."),
        Refused("ERR max daily request limit exceeded"),
        CommandError("ERR max requests limit exceeded."),
    ],
    Refusal.FULL: [
        Refused("ERR DB capacity quota exceeded"),
        CommandError("OOM command not allowed when used memory > 'maxmemory'. script: 1f0a"),
    ],
    Refusal.SIZE: [
        Refused("ERR max request size exceeded"),
        CommandError("ERR max single record size exceeded"),
        CommandError("ERR max key size exceeded. Limit: 32768 bytes, Actual: 40000 bytes"),
    ],
}
REMEDY = {
    Refusal.TOKEN: "copy the token again",
    Refusal.PERMISSION: "read-only",
    Refusal.QUOTA: "requests are used up",
    Refusal.FULL: "the database is full",
    Refusal.SIZE: "exclude it from the cache rules",
}


@pytest.mark.parametrize(
    ("kind", "error"),
    [(kind, error) for kind, errors in REFUSALS.items() for error in errors],
    ids=lambda value: value.name if isinstance(value, Refusal) else str(value)[:40],
)
def test_what_is_refused_is_said_once_with_its_remedy(log, kind, error):
    lines = said(log, *[failed(error)] * 5)
    assert len(lines) == 1
    assert str(error)[:40] in lines[0]
    assert REMEDY[kind] in lines[0]
    assert all(text not in lines[0] for other, text in REMEDY.items() if other is not kind)


def test_entries_that_are_none_are_said_once_a_minute_and_without_their_keys(log):
    """A key holds a URL, and a URL may hold what a log should not."""
    lines = said(log, *[CacheEntryRefused(f"p:cache:/page?{n}", "damaged") for n in range(9)])
    assert len(lines) == 1
    assert "damaged" in lines[0]
    assert "/page" not in lines[0]


@pytest.mark.parametrize("error", [ConnectionLost("reset"), CommandError("ERR unknown command")])
def test_other_failures_are_said_once_without_a_remedy(log, error):
    (line,) = said(log, failed(error), failed(error))
    assert line.endswith(f": {error}")


def test_another_refusal_during_an_outage_is_said_too(log):
    lines = said(log, failed(REFUSALS[Refusal.QUOTA][0]), failed(REFUSALS[Refusal.FULL][0]))
    assert len(lines) == 2


def test_an_outage_is_said_when_it_begins_and_when_it_ends(log):
    outage: list[Event] = [*[failed(DeadlineExceeded("1 s"))] * 3]
    outage += [UpstashAnswered("rate limit")] * 3
    lines = said(log, *outage, MINUTE, *outage)
    assert [line[:14] for line in lines] == ["Upstash failed", "Upstash is rea"] * 2


def test_an_outage_that_ends_in_another_thread_while_it_begins_has_ended():
    """Both change what is known and what is ignored; see LogObserver.ignores."""
    observe = LogObserver()
    others: list[threading.Thread] = []

    class Meeting(set[type[Event]]):
        def discard(self, value: object) -> None:
            others.append(threading.Thread(target=observe, args=[UpstashAnswered("rate limit")]))
            others[0].start()
            others[0].join(0.2)
            super().discard(value)

    observe.ignores = Meeting(observe.ignores)
    observe(failed(ConnectionLost("the connection was lost")))
    others[0].join()
    assert UpstashAnswered in observe.ignores


def test_what_comes_and_goes_all_the_time_is_said_once_a_minute(log):
    flapping: list[Event] = [failed(ConnectionLost("reset")), UpstashAnswered("rate limit")] * 100
    assert len(said(log, *flapping)) == 2


def test_an_outage_that_begins_soon_after_another_is_said_when_it_has_gone_on_for_a_minute(log):
    failure = failed(ConnectionLost("reset"))
    lines = said(log, failure, UpstashAnswered("rate limit"), failure, MINUTE, failure, failure)
    assert len(lines) == 3


@pytest.mark.parametrize(
    "error", [Refused("NOPERM this user"), CommandError("ERR no"), CommandError("OOM command")]
)
def test_a_command_that_fails_while_others_do_not_is_said_once_and_not_with_every_request(
    log, error
):
    """As with a read-only token: the cache's lookup answers, the limit beside it never does."""
    request: list[Event] = [UpstashFailed("rate limit", error), UpstashAnswered("cache lookup")]
    assert len(said(log, *request * 10)) == 1


@pytest.mark.parametrize(
    "error",
    [
        CommandError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        CommandError("WRONGVALUE not a rate limit of this kind: the value at app:default:ip=a"),
    ],
    ids=lambda error: error.code,
)
def test_a_broken_key_is_no_outage_and_said_once_however_long_its_client_goes_on(log, error):
    """Others are answered in between, and nothing has recovered when they are."""
    request: list[Event | float] = [failed(error), UpstashAnswered("rate limit"), MINUTE]
    lines = said(log, *request * 10)
    assert len(lines) == 1
    assert str(error) in lines[0]
    assert "delete the key" in lines[0]


def test_an_outage_is_said_although_a_key_is_broken(log):
    broken = failed(CommandError("WRONGTYPE Operation"))
    outage: list[Event] = [failed(ConnectionLost("reset")), UpstashAnswered("rate limit")]
    lines = said(log, broken, *outage, broken)
    assert [line[:14] for line in lines] == [
        "Upstash reject",
        "Upstash failed",
        "Upstash is rea",
    ]


def test_a_circuit_is_said_when_it_opens_and_when_it_closes_and_requests_between_are_not(log):
    lines = said(
        log,
        failed(ConnectionLost("reset")),
        CircuitOpened(5, 8, "ConnectionLost: reset"),
        *[failed(CircuitOpen("not asked"))] * 5,
        UpstashAnswered("rate limit"),  # a call that was on its way
        failed(ConnectionLost("a probe")),
        CircuitClosed(2.5),
        *[UpstashAnswered("rate limit")] * 5,
    )
    assert len(lines) == 3
    assert (
        "(5 of 8 calls to Upstash failed or were slow, the last with ConnectionLost: reset)"
        in (lines[1])
    )
    assert "2.5 s" in lines[2]


def test_code_that_raises_is_said_once_at_each_place_with_its_traceback(log):
    error = ZeroDivisionError("division by zero")
    lines = said(
        log,
        *[UserCodeFailed("rate_limits[0].by", error)] * 3,
        UserCodeFailed("rate_limits[1].by", error),
        *[InternalError("head", error)] * 3,
    )
    assert len(lines) == 3
    assert "rate_limits[0].by" in lines[0]
    assert all(record.exc_info for record in log.records)


@pytest.mark.parametrize("name", ["limits", "cost", "when"])
def test_a_function_that_raises_may_lift_the_limit_and_the_log_says_so(log, name):
    (line,) = said(log, UserCodeFailed(f"rate_limits[0].{name}", ZeroDivisionError()))
    assert f"rate_limits[0].{name} raised" in line
    assert "the request was not limited by this rule" in line


def test_the_line_of_a_circuit_says_what_applies_while_it_is_open(log):
    of_rules, of_commands = said(
        log,
        CircuitOpened(5, 8, "ConnectionLost: reset"),
        *[CircuitOpened(5, 8, "ConnectionLost: reset", commands=True)] * 2,
    )
    assert of_rules.endswith("); applying each rule's on_error policy")
    assert of_commands.endswith("); Redis commands raise CircuitOpen until a probe succeeds")


@pytest.mark.parametrize("text", ["a\r\nERROR forged", "a\x1b[2Jb", "a\u2028b", "a\x85b", "a\x00b"])
def test_nothing_that_a_server_says_makes_a_second_line_or_a_terminal_obey(log, text):
    lines = said(log, failed(ConnectionLost(text)), CircuitOpened(5, 5, f"ConnectionLost: {text}"))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_what_a_server_says_is_cut_to_a_length(log):
    (line,) = said(log, failed(ConnectionLost("x" * 100_000)))
    assert len(line) < 1000


def test_each_line_carries_what_a_program_reads(log):
    """The event and its values, as fields of the record; each a plain value, and no message."""
    broken = CommandError("WRONGTYPE Operation against a key holding the wrong kind of value")
    said(
        log,
        failed(ConnectionLost("reset")),
        UpstashAnswered("rate limit"),
        failed(REFUSALS[Refusal.QUOTA][0]),
        failed(broken),
        CircuitOpened(5, 8, "ConnectionLost: reset"),
        CircuitClosed(2.5),
        UserCodeFailed("rate_limits[0].by", ZeroDivisionError()),
        SettingDoubted("rate_limits[0].by", "everybody has one address"),
        InternalError("head", KeyError("x")),
    )
    assert [
        {
            name.removeprefix("upstash_"): value
            for name, value in vars(record).items()
            if name.startswith("upstash_")
        }
        for record in log.records
    ] == [
        {"event": "UpstashFailed", "during": "rate limit", "error": "ConnectionLost"},
        {"event": "UpstashAnswered"},
        {
            "event": "UpstashFailed",
            "during": "rate limit",
            "error": "Refused",
            "refusal": "quota",
        },
        {"event": "UpstashFailed", "during": "rate limit", "error": "CommandError"},
        {"event": "CircuitOpened", "bad": 5, "of": 8},
        {"event": "CircuitClosed", "seconds": 2.5},
        {"event": "UserCodeFailed", "where": "rate_limits[0].by", "error": "ZeroDivisionError"},
        {"event": "SettingDoubted", "where": "rate_limits[0].by"},
        {"event": "InternalError", "where": "head", "error": "KeyError"},
    ]
