"""What clients ask of the cache: RFC 9111 §5.2.1 and §5.4."""

from __future__ import annotations

from tests.conformance.telling import (
    CACHED,
    FORWARDED,
    HOUR,
    VALIDATED,
    Case,
    Reply,
    Step,
    Use,
    again,
    cached,
    control,
    each,
    forwarded,
    max_age,
)

_CC = "Cache-Control"


def _of(asked: str, use: Use, lifetime: int, age: int, *, section: str, **fields: str) -> Case:
    """Tell what comes of a response that is so old, with so many seconds of freshness in all."""
    reply = control(f"max-age={lifetime}", *((k, v) for k, v in fields.items()))
    does = "is used" if use is CACHED else "is not used"
    name = f"under {asked!r} a response of {age} s, fresh for {lifetime} s, {does}"
    return Case(
        name,
        section,
        (forwarded(reply), again(use, (_CC, asked), after=age, of=0 if use is CACHED else None)),
    )


_ROWS = (
    ("max-age=0", FORWARDED, HOUR, 1, "9111 §5.2.1.1"),
    ("max-age=10", FORWARDED, HOUR, 20, "9111 §5.2.1.1"),
    ("max-age=30", CACHED, HOUR, 20, "9111 §5.2.1.1"),
    ('MAX-AGE="30"', CACHED, HOUR, 20, "9111 §5.2.1.1"),
    ("max-age=7200", FORWARDED, 10, 20, "9111 §5.2.1.1"),
    ("max-stale", CACHED, 10, 100, "9111 §5.2.1.2"),
    ("max-stale=1000", CACHED, 10, 100, "9111 §5.2.1.2"),
    ("max-stale=50", FORWARDED, 10, 100, "9111 §5.2.1.2"),
    ("max-stale=50", CACHED, 10, 30, "9111 §5.2.1.2"),
    ("min-fresh=50", CACHED, 100, 10, "9111 §5.2.1.3"),
    ("min-fresh=50", FORWARDED, 100, 60, "9111 §5.2.1.3"),
    ("min-fresh=200", FORWARDED, 100, 1, "9111 §5.2.1.3"),
    ("no-cache", FORWARDED, HOUR, 1, "9111 §5.2.1.4"),
    ("NO-cache", FORWARDED, HOUR, 1, "9111 §5.2.1.4"),
    ("foo, no-cache", FORWARDED, HOUR, 1, "9111 §5.2.1.4"),
    ("no-store", FORWARDED, 1, 5, "9111 §5.2.1.5"),
    ("no-transform", CACHED, HOUR, 1, "9111 §5.2.1.6"),
    ("only-if-cached", CACHED, HOUR, 1, "9111 §5.2.1.7"),
    ("only-if-cached, max-stale", CACHED, 10, 20, "9111 §5.2.1.7"),
    ("foo=bar", CACHED, HOUR, 1, "9111 §5.2.3"),
    ('foo="no-cache"', CACHED, HOUR, 1, "9111 §5.2.3"),
)


def _row(asked: str, use: Use, lifetime: int, age: int, section: str) -> Case:
    return _of(asked, use, lifetime, age, section=section)


def _pragma(value: str, use: Use) -> Case:
    does = "is not" if use is FORWARDED else "is"
    steps = (forwarded(max_age()), again(use, ("Pragma", value), of=0 if use is CACHED else None))
    return Case(f"with Pragma {value!r} what is fresh {does} used", "9111 §5.4", steps)


CASES: list[Case] = [
    *each(_row, _ROWS),
    *each(
        _pragma,
        (
            ("no-cache", FORWARDED),
            ("No-Cache", FORWARDED),
            ("foo, no-cache", FORWARDED),
            ("foo", CACHED),
        ),
    ),
    Case(
        "Pragma means nothing beside Cache-Control",
        "9111 §5.4",
        (forwarded(max_age()), cached(("Pragma", "no-cache"), (_CC, "max-stale"))),
    ),
    Case(
        "an age from upstream counts for a client's max-age",
        "9111 §5.2.1.1",
        (forwarded(max_age(HOUR, ("Age", "100"))), again(FORWARDED, (_CC, "max-age=50"))),
    ),
    Case(
        "an age from upstream counts for a client's min-fresh",
        "9111 §5.2.1.3",
        (forwarded(max_age(200, ("Age", "100"))), again(FORWARDED, (_CC, "min-fresh=150"))),
    ),
    Case(
        "what no-cache fetches is stored",
        "9111 §5.2.1.4",
        (forwarded(max_age()), again(FORWARDED, (_CC, "no-cache")), cached(of=1)),
    ),
    Case(
        "under no-cache what is stored is validated",
        "9111 §5.2.1.4",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'))),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"a"'), status=304),
                ((_CC, "no-cache"),),
                status=200,
                saw={"If-None-Match": '"a"', _CC: "no-cache"},
            ),
        ),
    ),
    Case(
        "only-if-cached without anything stored is answered 504",
        "9111 §5.2.1.7",
        (Step(CACHED, Reply(), ((_CC, "only-if-cached"),), status=504),),
    ),
    Case(
        "only-if-cached with something stale is answered 504",
        "9111 §5.2.1.7",
        (
            forwarded(max_age(1)),
            Step(CACHED, Reply(), ((_CC, "only-if-cached"),), after=5, status=504),
        ),
    ),
    Case(
        "max-stale does not outweigh what forbids stale use",
        "9111 §4.2.4",
        (
            forwarded(control("max-age=1, must-revalidate")),
            again(FORWARDED, (_CC, "max-stale=1000"), after=5),
        ),
    ),
    Case(
        "no-store of a request leaves what is stored",
        "9111 §5.2.1.5",
        (forwarded(max_age()), again(CACHED, (_CC, "no-store"), of=0)),
    ),
]
