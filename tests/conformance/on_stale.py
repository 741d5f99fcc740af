"""Stale responses: RFC 9111 §4.2.4 and RFC 5861."""

from __future__ import annotations

from tests.conformance.telling import (
    CACHED,
    EITHER,
    FORWARDED,
    HOUR,
    REFRESHED,
    VALIDATED,
    Case,
    Reply,
    Step,
    again,
    cached,
    control,
    each,
    forwarded,
    max_age,
)

_FORBIDDING = ("must-revalidate", "proxy-revalidate", "no-cache", "s-maxage=1")
_ERRORS = (500, 502, 503, 504)


def _never_for_errors(directive: str, fault: str) -> Case:
    failing = Reply(fault="raises") if fault else Reply(status=503)
    status = 500 if fault else 503
    steps = (
        forwarded(control(f"max-age=1, stale-if-error=600, {directive}")),
        Step(FORWARDED, failing, after=5, status=status),
    )
    what = "an application that raises" if fault else "a 503"
    return Case(f"{directive} forbids stale use for {what}", "9111 §4.2.4", steps)


def _never_meanwhile(directive: str) -> Case:
    steps = (
        forwarded(control(f"max-age=1, stale-while-revalidate=600, {directive}")),
        again(FORWARDED, after=5),
    )
    return Case(f"{directive} forbids stale-while-revalidate", "9111 §4.2.4", steps)


def _stands_in(status: int) -> Case:
    steps = (
        forwarded(control("max-age=1, stale-if-error=600")),
        Step(VALIDATED, Reply(status=status), after=5, status=200, of=0),
    )
    return Case(f"stale-if-error stands in for a {status}", "5861 §4", steps)


def _does_not_stand_in(status: int) -> Case:
    steps = (
        forwarded(control("max-age=1, stale-if-error=600")),
        forwarded(Reply(status=status), after=5),
    )
    return Case(f"stale-if-error does not stand in for a {status}", "5861 §4", steps)


CASES: list[Case] = [
    *(_never_for_errors(d, fault) for d in _FORBIDDING for fault in ("", "raises")),
    *each(_never_meanwhile, ((directive,) for directive in _FORBIDDING)),
    *each(_stands_in, ((status,) for status in _ERRORS)),
    *each(_does_not_stand_in, ((status,) for status in (400, 404, 410, 501, 505))),
    Case(
        "stale-if-error stands in for an application that raises",
        "5861 §4",
        (
            forwarded(control("max-age=1, stale-if-error=600")),
            Step(VALIDATED, Reply(fault="raises"), after=5, status=200, of=0),
        ),
    ),
    Case(
        "stale-if-error ends",
        "5861 §4",
        (
            forwarded(control("max-age=1, stale-if-error=10")),
            forwarded(Reply(status=503), after=20),
        ),
    ),
    Case(
        "without leave nothing stale stands in for an error",
        "9111 §4.2.4",
        (forwarded(max_age(1)), forwarded(Reply(status=503), after=5)),
    ),
    Case(
        "within stale-while-revalidate what is stale is used, and asked for anew",
        "5861 §3",
        (
            forwarded(control("max-age=1, stale-while-revalidate=600")),
            Step(REFRESHED, max_age(HOUR), after=5, of=0),
        ),
    ),
    Case(
        "what was asked for anew is used thereafter",
        "5861 §3",
        (
            forwarded(control("max-age=1, stale-while-revalidate=600, foo")),
            Step(REFRESHED, max_age(HOUR), after=5, of=0, saw={"Cookie": None, "Range": None}),
            Step(EITHER),
        ),
    ),
    Case(
        "stale-while-revalidate ends",
        "5861 §3",
        (
            forwarded(control("max-age=1, stale-while-revalidate=10")),
            again(FORWARDED, after=20),
        ),
    ),
    Case(
        "what is stale is asked for anew",
        "9111 §4.2.4",
        (forwarded(max_age(1)), again(FORWARDED, after=5), cached()),
    ),
    Case(
        "must-revalidate means nothing to what is fresh",
        "9111 §5.2.2.2",
        (forwarded(control("max-age=3600, must-revalidate")), again(CACHED, after=100, of=0)),
    ),
]
