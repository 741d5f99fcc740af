"""CDN-Cache-Control: RFC 9213, as a Dictionary of RFC 8941."""

from __future__ import annotations

from tests.conformance.telling import (
    FORWARDED,
    HOUR,
    TWICE,
    Case,
    Date,
    Reply,
    again,
    cached,
    each,
    except_in_django,
    forwarded,
)

_CDN = "CDN-Cache-Control"
_OVERRIDES_TO_FRESH = (
    "max-age=3600",
    "max-age=3600, foo",
    "max-age=3600;foo=bar",
    'max-age=3600, foo="bar"',
    "max-age=3600, foo=?0",
    "max-age=3600, must-revalidate",
    "max-age=3600 \t,\tfoo",
    "max-age=0, max-age=3600",
    "s-maxage=3600",
    "s-maxage=3600, max-age=0",
    "max-age=3600, no-store=?0",
    "max-age=3600, foo=(a b);c, bar=:YQ==:",
)
_OVERRIDES_TO_STALE = (
    "no-store",
    "no-store, max-age=3600",
    "no-store;foo=1, max-age=3600",
    "private, max-age=3600",
    "no-cache, max-age=3600",
    "max-age=0",
    "max-age=-1",
    "max-age=3600, max-age=0",
    "foo",
)
_INVALID = (
    "",
    "max-age=3600,",
    ",max-age=3600",
    "max-age=3600,,foo",
    "Max-Age=3600",
    "MAX-AGE=3600",
    "max-age=3600, &",
    "max-age=3600, foo='bar'",
    "max-age =3600",
    "max-age= 3600",
    'max-age=3600, foo="bar',
    "max-age=3600; foo=",
    "max-age=1000000000000000000",
    'max-age="3600"',
    "max-age=3600.0",
    "max-age=?1",
    "max-age",
    "max-age=foo",
    "3600",
)


def _reply(targeted: str, general: str) -> Reply:
    return Reply((("Cache-Control", general), (_CDN, targeted)))


def _fresh(value: str) -> Case:
    steps = (
        forwarded(_reply(value, "no-store")),
        cached(after=10, got={"Cache-Control": "no-store"}),
    )
    return Case(f"{_CDN} {value!r} is fresh beside no-store", "9213 §2.2", steps)


def _stale(value: str) -> Case:
    steps = (forwarded(_reply(value, "max-age=3600")), again(FORWARDED))
    return Case(f"{_CDN} {value!r} is not used beside max-age", "9213 §2.2", steps)


def _ignored_beside_max_age(value: str) -> Case:
    steps = (forwarded(_reply(value, "max-age=3600")), cached())
    return Case(f"{_CDN} {value!r} is ignored beside max-age", "9213 §2.1", steps)


def _ignored_beside_no_store(value: str) -> Case:
    steps = (forwarded(_reply(value, "no-store")), again(FORWARDED))
    return Case(f"{_CDN} {value!r} is ignored beside no-store", "9213 §2.1", steps)


CASES: list[Case] = [
    *each(_fresh, ((value,) for value in _OVERRIDES_TO_FRESH)),
    *each(_stale, ((value,) for value in _OVERRIDES_TO_STALE)),
    *each(_ignored_beside_max_age, ((value,) for value in _INVALID)),
    *each(_ignored_beside_no_store, ((value,) for value in _INVALID)),
    Case(
        f"{_CDN} overrides Expires",
        "9213 §2.2",
        (
            forwarded(Reply((("Expires", Date(-HOUR)), (_CDN, "max-age=3600")))),
            cached(),
        ),
    ),
    Case(
        f"beside {_CDN} an Expires in the future counts not",
        "9213 §2.2",
        (
            forwarded(Reply((("Expires", Date(HOUR)), (_CDN, "max-age=0")))),
            again(FORWARDED),
        ),
    ),
    Case(
        f"{_CDN} is passed on",
        "9213 §3.1",
        (
            forwarded(_reply("max-age=3600", "no-store"), got={_CDN: "max-age=3600"}),
            cached(got={_CDN: "max-age=3600"}),
        ),
    ),
    Case(
        f"an Age counts against {_CDN}",
        "9213 §2.2",
        (
            forwarded(Reply((("Age", "7200"), (_CDN, "max-age=3600")))),
            again(FORWARDED),
        ),
    ),
    except_in_django(
        Case(
            f"lines of {_CDN} are one Dictionary",
            "8941 §4.2",
            (
                forwarded(
                    Reply(((_CDN, "max-age=3600"), (_CDN, "foo"), ("Cache-Control", "no-store")))
                ),
                cached(got={_CDN: ("max-age=3600", "foo")}),
            ),
        ),
        TWICE,
    ),
]
