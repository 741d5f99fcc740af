"""Conditional requests, of clients and of the cache: RFC 9111 §4.3 and §3.2, RFC 9110 §13."""

from __future__ import annotations

from typing import Any

from tests.conformance.telling import (
    CACHED,
    DAY,
    FORWARDED,
    HOUR,
    VALIDATED,
    Case,
    Date,
    Fields,
    Reply,
    Step,
    again,
    cached,
    control,
    each,
    forwarded,
    max_age,
)

_MODIFIED = "Tue, 14 Nov 2023 20:00:00 GMT"
_EARLIER = "Tue, 14 Nov 2023 19:59:59 GMT"
_LATER = "Tue, 14 Nov 2023 20:00:01 GMT"
_MATCHING = (
    ('"a"', '"a"'),
    ('"a"', 'W/"a"'),
    ('W/"a"', '"a"'),
    ('W/"a"', 'W/"a"'),
    ('"a"', "*"),
    ('"a"', '"x", "a"'),
    ('"a"', '"a", "x"'),
    ('"a"', '"x","a" ,W/"y"'),
    ('"a,b"', '"x", "a,b"'),
    ('"a\\b"', '"a\\b"'),
    ('"a\\"', '"a\\", "b"'),
    ('"a"', '"b\\", "a"'),
    ('""', '""'),
    ('"a"', ' "a" '),
    ("a", "a"),
    ("a", '"a"'),
    ('"a"', "a"),
)
_DIFFERING = (
    ('"a"', '"b"'),
    ('"a"', '"A"'),
    ('"a"', 'W/"b"'),
    ('"a,b"', '"a"'),
    ('"a"', '"a,b"'),
    ('"a"', '"x", "y"'),
    ('W/"a"', 'w/"b"'),
    ('"a"', '"'),
)
_UPDATED: tuple[tuple[str, str], ...] = (
    ("Test", "new"),
    ("X-Test", "new"),
    ("Content-Foo", "new"),
    ("X-Content-Foo", "new"),
    ("Content-Type", "text/new"),
    ("Content-Language", "de"),
    ("Content-Location", "/new"),
    ("Content-MD5", "new"),
    ("Content-Security-Policy", "new"),
    ("Location", "/new"),
    ("Set-Cookie", "a=new"),
    ("Expires", "Tue, 14 Nov 2099 20:00:00 GMT"),
    ("X-Frame-Options", "new"),
    ("Clear-Site-Data", "new"),
    ("Last-Modified", _LATER),
    ("Warning", "new"),
)
_LEFT_ALONE: tuple[tuple[str, str], ...] = (
    ("Content-Encoding", "x-new"),
    ("Content-Range", "bytes 0-1/2"),
)


def _told(etag: str, condition: str) -> Case:
    reply = max_age(HOUR, ("ETag", etag), ("X", "1"))
    got = {"ETag": etag, "X": "1", "Cache-Control": "max-age=3600", "Content-Length": None}
    step = cached(("If-None-Match", condition), status=304, got=got)
    name = f"a client with If-None-Match {condition!r} has what has ETag {etag!r}"
    return Case(name, "9111 §4.3.2", (forwarded(reply), step))


def _sent(etag: str, condition: str) -> Case:
    reply = max_age(HOUR, ("ETag", etag))
    name = f"a client with If-None-Match {condition!r} has not what has ETag {etag!r}"
    return Case(name, "9111 §4.3.2", (forwarded(reply), cached(("If-None-Match", condition))))


def _conditional(name: str, status: int, stored: Fields, sends: Fields) -> Case:
    steps = (forwarded(max_age(HOUR, *stored)), cached(*sends, status=status))
    return Case(name, "9111 §4.3.2", steps)


def _confirmed(name: str, stored: Fields, saw: dict[str, Any], answer: Fields) -> Case:
    """Tell that what is stale is asked for with conditions, and fresh again by a 304."""
    steps = (
        forwarded(control("max-age=1", *stored)),
        Step(VALIDATED, max_age(HOUR, *answer, status=304), after=5, status=200, saw=saw),
        cached(),
    )
    return Case(name, "9111 §4.3.1", steps)


def _updates(name: str, value: str, validator: str) -> Case:
    stored = ("ETag", '"a"') if validator == "ETag" else ("Last-Modified", _MODIFIED)
    got = {name: value if name != "Set-Cookie" else lambda line: line.startswith(value)}
    steps = (
        forwarded(control("max-age=1", stored, (name, _old(name)))),
        Step(
            VALIDATED,
            max_age(HOUR, *((stored,) if stored[0] != name else ()), (name, value), status=304),
            after=5,
            status=200,
            got=got,
        ),
        cached(got=got),
    )
    return Case(f"a 304 by {validator} updates {name}", "9111 §3.2", steps)


def _old(name: str) -> str:
    return {"Expires": "Tue, 14 Nov 2098 20:00:00 GMT", "Last-Modified": _MODIFIED}.get(
        name, "a=old"
    )


def _leaves(name: str, value: str) -> Case:
    stored = ("ETag", '"a"')
    steps = (
        forwarded(control("max-age=1", stored)),
        Step(
            VALIDATED,
            max_age(HOUR, stored, (name, value), status=304),
            after=5,
            status=200,
            got={name: None},
        ),
        cached(got={name: None}),
    )
    return Case(f"a 304 does not change how the body is read by {name}", "9111 §3.2", steps)


CASES: list[Case] = [
    *each(_told, _MATCHING),
    *each(_sent, _DIFFERING),
    _conditional(
        "If-None-Match on two lines is one list",
        304,
        (("ETag", '"a"'),),
        (("If-None-Match", '"x"'), ("If-None-Match", '"a"')),
    ),
    _conditional("If-None-Match * has what has no ETag too", 304, (), (("If-None-Match", "*"),)),
    _conditional(
        "If-None-Match does not match what has no ETag", 200, (), (("If-None-Match", '"a"'),)
    ),
    _conditional(
        "If-Modified-Since of the same moment",
        304,
        (("Last-Modified", _MODIFIED),),
        (("If-Modified-Since", _MODIFIED),),
    ),
    _conditional(
        "If-Modified-Since of a later moment",
        304,
        (("Last-Modified", _MODIFIED),),
        (("If-Modified-Since", _LATER),),
    ),
    _conditional(
        "If-Modified-Since of an earlier moment",
        200,
        (("Last-Modified", _MODIFIED),),
        (("If-Modified-Since", _EARLIER),),
    ),
    _conditional(
        "If-Modified-Since in the form of RFC 850",
        304,
        (("Last-Modified", _MODIFIED),),
        (("If-Modified-Since", "Tuesday, 14-Nov-23 20:00:00 GMT"),),
    ),
    _conditional(
        "If-Modified-Since in the form of asctime",
        304,
        (("Last-Modified", _MODIFIED),),
        (("If-Modified-Since", "Tue Nov 14 20:00:00 2023"),),
    ),
    _conditional(
        "If-Modified-Since that is no date",
        200,
        (("Last-Modified", _MODIFIED),),
        (("If-Modified-Since", "today"),),
    ),
    _conditional(
        "If-Modified-Since is compared to Date without Last-Modified",
        304,
        (("Date", Date(-10)),),
        (("If-Modified-Since", Date(-5)),),
    ),
    _conditional(
        "If-Modified-Since earlier than Date without Last-Modified",
        200,
        (("Date", Date(-10)),),
        (("If-Modified-Since", Date(-DAY)),),
    ),
    _conditional(
        "If-None-Match that differs goes before If-Modified-Since that does not",
        200,
        (("ETag", '"a"'), ("Last-Modified", _MODIFIED)),
        (("If-None-Match", '"b"'), ("If-Modified-Since", _LATER)),
    ),
    _conditional(
        "If-None-Match that matches goes before If-Modified-Since that is earlier",
        304,
        (("ETag", '"a"'), ("Last-Modified", _MODIFIED)),
        (("If-None-Match", '"a"'), ("If-Modified-Since", _EARLIER)),
    ),
    Case(
        "a 304 to a client carries what it is to update, and nothing about the body",
        "9110 §15.4.5",
        (
            forwarded(
                max_age(
                    HOUR,
                    ("ETag", '"a"'),
                    ("Vary", "Foo"),
                    ("Content-Location", "/x"),
                    ("Expires", "Tue, 14 Nov 2099 20:00:00 GMT"),
                    ("Content-Type", "text/plain"),
                )
            ),
            cached(
                ("If-None-Match", '"a"'),
                status=304,
                got={
                    "ETag": '"a"',
                    "Vary": "Foo",
                    "Content-Location": "/x",
                    "Expires": "Tue, 14 Nov 2099 20:00:00 GMT",
                    "Date": lambda date: date.endswith("GMT"),
                    "Age": lambda age: age.isdecimal(),
                    "Content-Type": None,
                    "Content-Length": None,
                },
            ),
        ),
    ),
    Case(
        "a HEAD with a condition is answered with 304 too",
        "9111 §4.3.2",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'))),
            cached(("If-None-Match", '"a"'), method="HEAD", status=304),
        ),
    ),
    Case(
        "a condition means nothing against what is no success",
        "9110 §13.2.1",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'), status=404)),
            cached(("If-None-Match", '"a"'), status=404),
        ),
    ),
    *(
        Case(
            f"a condition is weighed against a stored {status}, which is a success",
            "9110 §13.2.1",
            (
                forwarded(max_age(HOUR, ("ETag", '"a"'), status=status)),
                cached(("If-None-Match", '"a"'), status=304),
                cached(("If-None-Match", '"b"')),
            ),
        )
        for status in (201, 203, 204)
    ),
    Case(
        "where nothing is stored a condition goes forward",
        "9111 §4.3.2",
        (
            forwarded(
                Reply((("ETag", '"a"'),), status=304),
                ("If-None-Match", '"a"'),
                saw={"If-None-Match": '"a"'},
                status=304,
            ),
            forwarded(max_age()),
        ),
    ),
    Case(
        "a variant's condition is answered by that variant",
        "9111 §4.3.2",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo"), ("ETag", '"1"')), ("Foo", "1")),
            forwarded(max_age(HOUR, ("Vary", "Foo"), ("ETag", '"2"')), ("Foo", "2")),
            cached(("Foo", "1"), ("If-None-Match", '"1"'), status=304, of=0),
            cached(("Foo", "2"), ("If-None-Match", '"1"'), of=1),
        ),
    ),
    _confirmed(
        "an ETag is asked for",
        (("ETag", '"a"'),),
        {"If-None-Match": '"a"'},
        (("ETag", '"a"'),),
    ),
    _confirmed(
        "a weak ETag is asked for",
        (("ETag", 'W/"a"'),),
        {"If-None-Match": 'W/"a"'},
        (("ETag", 'W/"a"'),),
    ),
    _confirmed(
        "an ETag that is none is asked for as it is",
        (("ETag", "a"),),
        {"If-None-Match": "a"},
        (("ETag", "a"),),
    ),
    _confirmed(
        "a Last-Modified is asked for",
        (("Last-Modified", _MODIFIED),),
        {"If-Modified-Since": _MODIFIED, "If-None-Match": None},
        (),
    ),
    _confirmed(
        "both validators are asked for",
        (("Last-Modified", _MODIFIED), ("ETag", '"a"')),
        {"If-Modified-Since": _MODIFIED, "If-None-Match": '"a"'},
        (("ETag", '"a"'),),
    ),
    Case(
        "without a validator nothing is asked conditionally",
        "9111 §4.3.1",
        (
            forwarded(max_age(1)),
            again(FORWARDED, after=5, saw={"If-None-Match": None, "If-Modified-Since": None}),
        ),
    ),
    Case(
        "no-cache with a validator is asked for each time",
        "9111 §5.2.2.4",
        (
            forwarded(control("no-cache", ("ETag", '"a"'))),
            *(
                Step(
                    VALIDATED,
                    control("no-cache", ("ETag", '"a"'), status=304),
                    status=200,
                    saw={"If-None-Match": '"a"'},
                )
                for _ in range(2)
            ),
        ),
    ),
    Case(
        "a full answer to a condition replaces what is stored",
        "9111 §4.3.3",
        (
            forwarded(max_age(1, ("ETag", '"a"'))),
            forwarded(max_age(HOUR, ("ETag", '"b"')), after=5, saw={"If-None-Match": '"a"'}),
            cached(of=1),
        ),
    ),
    Case(
        "an error to a condition is sent and replaces nothing",
        "9111 §4.3.3",
        (
            forwarded(max_age(1, ("ETag", '"a"'))),
            forwarded(Reply(status=503), after=5),
            Step(VALIDATED, max_age(HOUR, ("ETag", '"a"'), status=304), status=200, of=0),
        ),
    ),
    Case(
        "a client's own condition is answered once what is stored is confirmed",
        "9111 §4.3.3",
        (
            forwarded(max_age(1, ("ETag", '"a"'))),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"a"'), status=304),
                (("If-None-Match", '"a"'),),
                after=5,
                status=304,
            ),
            cached(of=0),
        ),
    ),
    Case(
        "a client whose own condition differs gets what is stored once that is confirmed",
        "9111 §4.3.3",
        (
            forwarded(max_age(1, ("ETag", '"a"'))),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"a"'), status=304),
                (("If-None-Match", '"b"'),),
                after=5,
                status=200,
                saw={"If-None-Match": lambda tags: '"a"' in tags},
            ),
        ),
    ),
    Case(
        "a 304 with another strong ETag updates nothing",
        "9111 §4.3.4",
        (
            forwarded(max_age(1, ("ETag", '"a"'), ("X", "1"))),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"b"'), ("X", "2"), status=304),
                after=5,
                status=200,
                got={"X": "1"},
            ),
            forwarded(max_age()),
        ),
    ),
    *(
        _updates(name, value, validator)
        for validator in ("ETag", "Last-Modified")
        for name, value in _UPDATED
        if not (validator == name == "Last-Modified")
    ),
    *each(_leaves, _LEFT_ALONE),
    Case(
        "a 304 does not change Content-Length",
        "9111 §3.2",
        (
            forwarded(max_age(1, ("ETag", '"a"'), body=b"12345")),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"a"'), ("Content-Length", "10"), status=304),
                after=5,
                status=200,
                got={"Content-Length": "5"},
            ),
            cached(got={"Content-Length": "5"}),
        ),
    ),
    Case(
        "a field that a 304 leaves out stays",
        "9111 §3.2",
        (
            forwarded(max_age(1, ("ETag", '"a"'), ("X", "1"), ("Y", "1"))),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"a"'), ("Y", "2"), status=304),
                after=5,
                status=200,
                got={"X": "1", "Y": "2"},
            ),
            cached(got={"X": "1", "Y": "2"}),
        ),
    ),
    Case(
        "a 304 may make what is stored stale, or say that it is not to be stored",
        "9111 §4.3.4",
        (
            forwarded(max_age(1, ("ETag", '"a"'))),
            Step(VALIDATED, max_age(0, ("ETag", '"a"'), status=304), after=5, status=200),
            Step(VALIDATED, max_age(HOUR, ("ETag", '"a"'), status=304), status=200),
            cached(of=0),
        ),
    ),
    Case(
        "the 200 to a HEAD updates the stored GET",
        "9111 §4.3.5",
        (
            forwarded(max_age(1, ("ETag", '"a"'), ("X", "1"), ("Y", "1"))),
            forwarded(max_age(HOUR, ("ETag", '"a"'), ("X", "2")), method="HEAD", after=5),
            cached(of=0, got={"X": "2", "Y": "1"}),
        ),
    ),
    Case(
        "a HEAD that tells of another length makes the stored GET stale",
        "9111 §4.3.5",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'), body=b"12345")),
            forwarded(
                max_age(HOUR, ("ETag", '"a"'), ("Content-Length", "6"), body=b"123456"),
                ("Cache-Control", "no-cache"),
                method="HEAD",
            ),
            again(FORWARDED),
        ),
    ),
    Case(
        "a HEAD that tells of another ETag makes the stored GET stale",
        "9111 §4.3.5",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'))),
            forwarded(max_age(HOUR, ("ETag", '"b"')), ("Cache-Control", "no-cache"), method="HEAD"),
            again(FORWARDED),
        ),
    ),
    Case(
        "a HEAD that is told of an error leaves the stored GET",
        "9111 §4.3.5",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'))),
            forwarded(Reply(status=501), ("Cache-Control", "no-cache"), method="HEAD"),
            cached(of=0),
        ),
    ),
    Case(
        "a HEAD that is told that it is gone makes the stored GET stale",
        "9111 §4.3.5",
        (
            forwarded(max_age(HOUR, ("ETag", '"a"'))),
            forwarded(Reply(status=410), ("Cache-Control", "no-cache"), method="HEAD"),
            again(FORWARDED),
        ),
    ),
    Case(
        "a 304 to a HEAD confirms the stored GET",
        "9111 §4.3.3",
        (
            forwarded(max_age(1, ("ETag", '"a"'), body=b"12345")),
            Step(
                VALIDATED,
                max_age(HOUR, ("ETag", '"a"'), status=304),
                method="HEAD",
                after=5,
                status=200,
                got={"Content-Length": "5"},
            ),
            cached(),
        ),
    ),
    Case(
        "only the variant that was asked for is confirmed",
        "9111 §4.3.4",
        (
            forwarded(max_age(1, ("Vary", "Foo"), ("ETag", '"1"')), ("Foo", "1")),
            forwarded(max_age(1, ("Vary", "Foo"), ("ETag", '"2"')), ("Foo", "2")),
            Step(
                VALIDATED,
                max_age(HOUR, ("Vary", "Foo"), ("ETag", '"1"'), status=304),
                (("Foo", "1"),),
                after=5,
                status=200,
                of=0,
                saw={"If-None-Match": '"1"'},
            ),
            cached(("Foo", "1"), of=0),
            again(FORWARDED, ("Foo", "2"), saw={"If-None-Match": '"2"'}),
        ),
    ),
    *(
        Case(
            f"{name} is for the origin alone",
            "9111 §4.3.2",
            (
                forwarded(max_age(HOUR, ("ETag", '"a"'), ("Last-Modified", _MODIFIED))),
                forwarded(Reply(status=412), (name, value), saw={name: value}),
                again(CACHED, of=0),
            ),
        )
        for name, value in (("If-Match", '"b"'), ("If-Unmodified-Since", _EARLIER))
    ),
]
