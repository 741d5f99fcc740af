"""How long a response is fresh, and how old it is: RFC 9111 §4.2, §5.1, §5.2.2, §5.3."""

from __future__ import annotations

from typing import Any

from tests.conformance.telling import (
    DAY,
    EPOCH_FORMS,
    FORWARDED,
    HOUR,
    TWICE,
    Case,
    Date,
    Reply,
    again,
    cached,
    control,
    each,
    except_in_django,
    forwarded,
    max_age,
    not_used,
    used,
)

_FRESH = (
    "max-age=3600",
    "MaX-aGe=3600",
    'max-age="3600"',
    "max-age=0003600",
    "max-age=2147483647",
    "max-age=2147483648",
    "max-age=99999999999",
    "max-age=99999999999999999999999999999",
    "public, max-age=3600",
    "max-age=3600, public",
    "immutable, max-age=3600",
    "max-age=3600, max-age=0",
    "max-age=3600, no-transform",
    ",,max-age=3600,",
    "max-age=0, s-maxage=3600",
    "s-maxage=3600, max-age=0",
    "S-MaxAge=3600",
    "s-maxage=3600",
    "max-age=3600, must-revalidate",
    "max-age=3600, proxy-revalidate",
    'community="UCI", max-age=3600',
    "max-age=3600, foo=bar;max-age=0",
    "foo=max-age=0, max-age=3600",
    "max-age=3600, stale-if-error=60",
)
_STALE = (
    "max-age=0",
    "max-age=-3600",
    "max-age=3600.0",
    "max-age=3600.5",
    "max-age=a3600",
    "max-age=3600a",
    "max-age='3600'",
    "max-age=0, max-age=3600",
    "max-age",
    "max-age=",
    "max-age= 3600",
    "max-age =3600",
    "max-age:3600",
    "x-max-age=3600",
    "max-age=+3600",
    "max-age=1e4",
    "max-age=\u0663\u0666".encode().decode("latin-1"),
    "s-maxage=0, max-age=3600",
    "max-age=3600, s-maxage=0",
    "s-maxage=a, max-age=3600",
    "no-cache",
    "no-cache, max-age=3600",
    "NO-CACHE, max-age=3600",
    "max-age=3600, no-cache",
    'foo="max-age=3600"',
    "'max-age=3600'",
    'max-age="3600',
)
_AGES_THAT_COUNT = ("7200", "07200", "7200, 0", "7200,foo", "2147483648", "99999999999")
_AGES_THAT_DO_NOT = (
    "0",
    "-7200",
    "7200.0",
    "7200a",
    "a7200",
    "'7200'",
    '"7200"',
    "7200;foo=bar",
    "0, 7200",
    "foo, 7200",
    "",
    "7 200",
)
_INVALID_DATES: tuple[Any, ...] = (
    "0",
    "",
    "-1",
    "tomorrow",
    Date(HOUR, "%a, %d %b %Y %H:%M:%S UTC"),
    Date(HOUR, "%a, %d %b %Y %H:%M:%S PST"),
    Date(HOUR, "%a, %d %b %Y %H:%M:%S +0000"),
    Date(HOUR, "%a, %d %b %Y %H:%M:%S"),
    Date(HOUR, "%a %d %b %Y %H:%M:%S GMT"),
    Date(HOUR, "%a,  %d %b %Y %H:%M:%S GMT"),
    Date(HOUR, "%a, %d  %b %Y %H:%M:%S GMT"),
    Date(HOUR, "%a, %d %b %Y  %H:%M:%S GMT"),
    Date(HOUR, "%a, %d %b %y %H:%M:%S GMT"),
    Date(HOUR, "%a, %d-%b-%Y %H:%M:%S GMT"),
    Date(HOUR, "%a, %d %b %Y %H.%M.%S GMT"),
    Date(HOUR, "%a, %d %b %Y %H:%M GMT"),
    Date(HOUR, "%d %b %Y %H:%M:%S GMT"),
    Date(HOUR, "%a, %d %B. %Y %H:%M:%S GMT"),
    Date(HOUR, "%Y-%m-%dT%H:%M:%SZ"),
    Date(HOUR, '"%a, %d %b %Y %H:%M:%S GMT"'),
    Date(HOUR, "%s"),
    "Thu, 1 Jan 2099 00:00:00 GMT",
    "Thu, 01 Jan 2099 0:00:00 GMT",
    "Thu, 32 Jan 2099 00:00:00 GMT",
    "Thu, 01 Jan 2099 24:00:00 GMT",
    "Thu, 01 Jan 2099 00:60:00 GMT",
    "Xyz, 01 Jan 2099 00:00:00 GMT",
)


def _fresh(value: str) -> Case:
    return used(f"Cache-Control {value!r} is fresh", "9111 §4.2.1", control(value), after=10)


def _stale(value: str) -> Case:
    return not_used(f"Cache-Control {value!r} is not", "9111 §4.2.1", control(value))


def _age_counts(value: str) -> Case:
    reply = max_age(HOUR, ("Age", value))
    return not_used(f"Age {value!r} makes an hour's response stale", "9111 §5.1", reply)


def _age_does_not(value: str) -> Case:
    got = {"Age": lambda age: 10 <= int(age) < 100}
    name = f"Age {value!r} counts as nothing, and is replaced"
    return used(name, "9111 §5.1", max_age(HOUR, ("Age", value)), after=10, got=got)


def _expires_in(form: str, layout: str) -> Case:
    reply = Reply((("Expires", Date(HOUR, layout)), ("Date", Date(0))))
    return used(f"Expires is read as {form}", "9110 §5.6.7", reply, after=10)


def _invalid(value: str | Date) -> Case:
    form = value.form if isinstance(value, Date) else value
    reply = Reply((("Expires", value), ("Date", Date(0))))
    return not_used(f"Expires as {form!r} is in the past", "9111 §5.3", reply)


def _any_case(change: str, text: str) -> Case:
    reply = Reply((("Expires", text),))
    return used(f"a date is read with its {change} in another case", "9111 §4.2", reply)


def _expires(name: str, *fields: tuple[str, Any]) -> Case:
    return used(name, "9111 §4.2.1", Reply(fields), after=10)


def _expired(name: str, *fields: tuple[str, Any]) -> Case:
    return not_used(name, "9111 §4.2.1", Reply(fields))


CASES: list[Case] = [
    *each(_fresh, ((value,) for value in _FRESH)),
    *each(_stale, ((value,) for value in _STALE)),
    *each(_age_counts, ((value,) for value in _AGES_THAT_COUNT)),
    *each(_age_does_not, ((value,) for value in _AGES_THAT_DO_NOT)),
    except_in_django(
        not_used(
            "of several lines of Age the first counts when it is the greater",
            "9111 §5.1",
            max_age(HOUR, ("Age", "7200"), ("Age", "0")),
        ),
        TWICE,
    ),
    except_in_django(
        used(
            "of several lines of Age the first counts when it is the lesser",
            "9111 §5.1",
            max_age(HOUR, ("Age", "0"), ("Age", "7200")),
            got={"Age": lambda age: int(age) < 100},
        ),
        TWICE,
    ),
    Case(
        "Age is added to, and counts against the freshness that is left",
        "9111 §4.2.3",
        (
            forwarded(max_age(HOUR, ("Age", "1000"))),
            cached(after=100, got={"Age": lambda age: 1100 <= int(age) < 1200}),
            again(FORWARDED, after=2600),
        ),
    ),
    Case(
        "a response is fresh for its time and no longer",
        "9111 §4.2",
        (forwarded(max_age(100)), cached(after=90), again(FORWARDED, after=11)),
    ),
    Case(
        "each use tells its age anew",
        "9111 §5.1",
        (
            forwarded(max_age()),
            cached(got={"Age": lambda age: int(age) < 10}),
            cached(after=20, got={"Age": lambda age: 20 <= int(age) < 30}),
            cached(after=20, got={"Age": lambda age: 40 <= int(age) < 50}),
        ),
    ),
    except_in_django(
        used(
            "of a directive on two lines the first counts",
            "9111 §4.2.1",
            max_age(HOUR, ("Cache-Control", "max-age=0")),
        ),
        TWICE,
    ),
    used(
        "directives on two lines are one list",
        "9111 §5.2",
        control("public", ("Cache-Control", "max-age=3600")),
    ),
    *each(_expires_in, EPOCH_FORMS.items()),
    *each(_invalid, ((value,) for value in _INVALID_DATES)),
    *each(
        _any_case,
        (
            ("weekday", "THU, 01 Jan 2099 00:00:00 GMT"),
            ("month", "Thu, 01 jAN 2099 00:00:00 GMT"),
            ("zone", "Thu, 01 Jan 2099 00:00:00 gmt"),
        ),
    ),
    _expires("an Expires in the future is fresh", ("Expires", Date(HOUR))),
    _expires("an Expires of far away is fresh", ("Expires", Date(40 * 365 * DAY))),
    _expires(
        "max-age goes before an Expires in the past",
        ("Cache-Control", "max-age=3600"),
        ("Expires", Date(-HOUR)),
    ),
    _expires(
        "max-age goes before an invalid Expires",
        ("Cache-Control", "max-age=3600"),
        ("Expires", "0"),
    ),
    _expires(
        "s-maxage goes before an Expires in the past",
        ("Cache-Control", "s-maxage=3600"),
        ("Expires", Date(-HOUR)),
    ),
    _expires(
        "Expires counts beside directives without a time",
        ("Cache-Control", "public"),
        ("Expires", Date(HOUR)),
    ),
    _expired("an Expires in the past is stale", ("Expires", Date(-HOUR))),
    _expired("an Expires of now is stale", ("Expires", Date(0)), ("Date", Date(0))),
    _expired(
        "an Expires of the Date is stale, whatever the clock says",
        ("Expires", Date(-HOUR)),
        ("Date", Date(-HOUR)),
    ),
    _expired(
        "max-age=0 goes before an Expires in the future",
        ("Cache-Control", "max-age=0"),
        ("Expires", Date(HOUR)),
    ),
    _expired(
        "s-maxage=0 goes before an Expires in the future",
        ("Cache-Control", "s-maxage=0"),
        ("Expires", Date(HOUR)),
    ),
    _expired(
        "an invalid max-age goes before an Expires in the future",
        ("Cache-Control", "max-age=a"),
        ("Expires", Date(HOUR)),
    ),
    _expired(
        "a Date in the past counts as age",
        ("Cache-Control", "max-age=3600"),
        ("Date", Date(-2 * HOUR)),
    ),
    _expired(
        "Expires is counted from a Date ahead of ours",
        ("Expires", Date(2 * HOUR)),
        ("Date", Date(2 * HOUR)),
    ),
    _expired(
        "Expires with a Date in the past is fresh for their difference, less the age",
        ("Expires", Date(HOUR)),
        ("Date", Date(-3 * DAY)),
        ("Age", str(4 * DAY)),
    ),
    _expires(
        "a Date in the future makes nothing stale",
        ("Cache-Control", "max-age=3600"),
        ("Date", Date(DAY)),
    ),
    _expires("an invalid Date is none", ("Cache-Control", "max-age=3600"), ("Date", "yesterday")),
    used(
        "the stored Date is sent again",
        "9110 §6.6.1",
        max_age(HOUR, ("Date", Date(-10))),
        got={"Date": lambda date: date.endswith("GMT")},
    ),
    used(
        "a response without a Date gets one",
        "9110 §6.6.1",
        max_age(),
        got={"Date": lambda date: date.endswith("GMT")},
    ),
    used(
        "Pragma of a response means nothing",
        "9111 §5.4",
        max_age(HOUR, ("Pragma", "no-cache")),
    ),
    used(
        "Pragma of a response means nothing to heuristics",
        "9111 §5.4",
        Reply((("Last-Modified", Date(-100 * DAY)), ("Pragma", "no-cache"))),
    ),
    Case(
        "heuristic freshness ends",
        "9111 §4.2.2",
        (
            forwarded(Reply((("Last-Modified", Date(-1000)),))),
            cached(after=50),
            again(FORWARDED, after=100),
        ),
    ),
    not_used(
        "an invalid Last-Modified is no ground for heuristics",
        "9111 §4.2.2",
        Reply((("Last-Modified", "long ago"),)),
    ),
    not_used(
        "a Last-Modified in the future is none either",
        "9111 §4.2.2",
        Reply((("Last-Modified", Date(DAY)),)),
    ),
]
