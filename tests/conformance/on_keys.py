"""What names a stored response: the URL (RFC 9111 §2) and Vary (§4.1)."""

from __future__ import annotations

from tests.conformance.telling import (
    CACHED,
    FORWARDED,
    HOUR,
    TWICE,
    Case,
    Fields,
    Value,
    again,
    cached,
    control,
    each,
    except_in_django,
    forwarded,
    max_age,
)

WSGI_DECODES = "WSGI tells paths decoded, so that one spelling is another's"


def _apart(name: str, one: str, other: str, *, host: str = "origin.test") -> Case:
    steps = (
        forwarded(max_age(), at=one),
        forwarded(max_age(), at=other, host=host),
        cached(at=one, of=0),
        cached(at=other, host=host, of=1),
    )
    return Case(f"{name} are stored apart", "9111 §2", steps)


def _one(name: str, one: str, other: str, *, host: str = "origin.test") -> Case:
    return Case(
        f"{name} are one",
        "9110 §4.2.3",
        (forwarded(max_age(), at=one), cached(at=other, host=host)),
    )


def _matching(name: str, vary: str, first: Fields, second: Fields) -> Case:
    steps = (forwarded(max_age(HOUR, ("Vary", vary)), *first), cached(*second))
    return Case(f"under Vary {vary!r} {name} is the same", "9111 §4.1", steps)


def _differing(name: str, vary: str, first: Fields, second: Fields) -> Case:
    reply = max_age(HOUR, ("Vary", vary))
    steps = (
        forwarded(reply, *first),
        forwarded(reply, *second),
        cached(*first, of=0),
        cached(*second, of=1),
    )
    return Case(f"under Vary {vary!r} {name} is told apart", "9111 §4.1", steps)


def _never(vary: str) -> Case:
    reply = max_age(HOUR, ("Vary", vary))
    steps = (forwarded(reply, _A), forwarded(reply, _A))
    return Case(f"what has Vary {vary!r} matches nothing", "9111 §4.1", steps)


def _one_of(*fields: tuple[str, Value]) -> Fields:
    return fields


_A: tuple[str, Value] = ("Foo", "a")
_B: tuple[str, Value] = ("Foo", "b")
_X: tuple[str, Value] = ("Bar", "x")
_Y: tuple[str, Value] = ("Bar", "y")

CASES: list[Case] = [
    _apart("a query and none", "?a=1", ""),
    _apart("two queries", "?a=1", "?a=2"),
    _apart("two orders of parameters", "?a=1&b=2", "?b=2&a=1"),
    _apart("two cases of a path", "/Tea", "/tea"),
    _apart("a path and one with a slash at its end", "/tea", "/tea/"),
    _apart("two cases of a query", "?A=1", "?a=1"),
    _apart("a parameter without a value and one with an empty one", "?a", "?a="),
    _apart("two hosts", "", "", host="else.test"),
    _apart("two ports", "", "", host="origin.test:81"),
    _apart("a query with a plus and one with an escaped blank", "?a=1+2", "?a=1%202"),
    _one("two cases of a host", "", "", host="ORIGIN.test"),
    _one("a host with and without the scheme's port", "", "", host="origin.test:80"),
    _one("a letter and its escape in a path", "/%7euser", "/~user"),
    _one("two cases of an escape in a path", "/%c3%a4", "/%C3%A4"),
    _apart("two long URLs", f"/{'a' * 2000}1", f"/{'a' * 2000}2"),
    _apart("two long queries", f"?a={'a' * 2000}1", f"?a={'a' * 2000}2"),
    _differing("a byte beyond ASCII", "Foo", (("Foo", b"\xe9"),), (("Foo", b"\xe8"),)),
    _matching("the same byte beyond ASCII", "Foo", (("Foo", b"a\xff"),), (("Foo", b"a\xff"),)),
    _differing("another value", "Foo", (_A,), (_B,)),
    _differing("an absent field and a present one", "Foo", (), (_A,)),
    _differing("an absent field and an empty one", "Foo", (), (("Foo", ""),)),
    _differing("a value's case", "Foo", (_A,), (("Foo", "A"),)),
    _differing("one of two fields", "Foo, Bar", (_A, _X), (_A, _Y)),
    _differing("the other of two fields", "Foo, Bar", (_A, _X), (_B, _X)),
    _differing("a third field", "Foo, Bar, Baz", (_A, _X, ("Baz", "1")), (_A, _X, ("Baz", "2"))),
    _differing("one of two fields being absent", "Foo, Bar", (_A, _X), (_A,)),
    _differing("an order that means something", "Foo", (("Foo", "1, 2"),), (("Foo", "2, 1"),)),
    _differing("a value with more members", "Foo", (_A,), (("Foo", "a, b"),)),
    _matching("the same value", "Foo", (_A,), (_A,)),
    _matching("a field that it does not name", "Foo", (_A, _X), (_A, _Y)),
    _matching("a field that both leave out", "Foo", (_X,), (_Y,)),
    _matching("a name's case", "fOO", (_A,), (("foo", "a"),)),
    _differing("a comma at the end", "Foo", (_A,), (("Foo", "a,"),)),
    _differing("a comma twice", "Foo", (("Foo", "1, 2"),), (("Foo", "1,, 2"),)),
    _differing("a blank after a comma", "Foo", (("Foo", "1, 2"),), (("Foo", "1,2"),)),
    _matching(
        "a list on two lines",
        "Accept",
        (("Accept", "text/html, */*"),),
        (("Accept", "text/html"), ("Accept", "*/*")),
    ),
    _matching(
        "a list with empty members",
        "Accept-Language",
        (("Accept-Language", "en, de"),),
        (("Accept-Language", ", en,, de"),),
    ),
    _matching("an empty Vary's every request", "", (_A,), (_B,)),
    _matching("a Vary of commas' every request", ", ,", (_A,), (_B,)),
    _matching(
        "a list of languages in another case",
        "Accept-Language",
        (("Accept-Language", "en, de"),),
        (("Accept-Language", "eN, De"),),
    ),
    _matching(
        "a list of languages in another order",
        "Accept-Language",
        (("Accept-Language", "en, de"),),
        (("Accept-Language", "de, en"),),
    ),
    _matching(
        "a list of languages with blanks",
        "Accept-Language",
        (("Accept-Language", "en, de;q=0.5"),),
        (("Accept-Language", " en ,de ; q=0.5"),),
    ),
    _differing(
        "another language",
        "Accept-Language",
        (("Accept-Language", "en"),),
        (("Accept-Language", "de"),),
    ),
    _matching(
        "a list of codings in another case and order",
        "Accept-Encoding",
        (("Accept-Encoding", "gzip, br"),),
        (("Accept-Encoding", "BR,GZIP"),),
    ),
    *each(_never, (("*",), ("*, Foo",), ("Foo, *",), (", *",), ("Foo,*,Bar",))),
    Case(
        "a star on a second line counts",
        "9111 §4.1",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo"), ("Vary", "*")), _A),
            forwarded(max_age(HOUR, ("Vary", "Foo"), ("Vary", "*")), _A),
        ),
    ),
    Case(
        "lines of Vary count together",
        "9111 §4.1",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo"), ("Vary", "Bar")), _A, _X),
            forwarded(max_age(HOUR, ("Vary", "Foo"), ("Vary", "Bar")), _A, _Y),
            cached(_A, _X, of=0),
            cached(_A, _Y, of=1),
        ),
    ),
    Case(
        "three variants stand beside one another",
        "9111 §4.1",
        (
            *(
                forwarded(max_age(HOUR, ("Vary", "Foo")), ("Foo", value))
                for value in ("1", "2", "3")
            ),
            *(cached(("Foo", value), of=n) for n, value in enumerate(("1", "2", "3"))),
        ),
    ),
    Case(
        "of several that match the newest is used",
        "9111 §4",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo")), _A, _X),
            forwarded(max_age(HOUR, ("Vary", "Foo, Bar")), ("Cache-Control", "no-cache"), _A, _Y),
            cached(_A, _Y, of=1),
        ),
    ),
    Case(
        "a response without Vary stands beside one with",
        "9111 §4.1",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo")), _A),
            forwarded(max_age()),
            cached(_A, of=0),
            cached(of=1),
        ),
    ),
    Case(
        "a response to another value replaces none",
        "9111 §4.1",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo")), _A),
            forwarded(control("no-store", ("Vary", "Foo")), _B),
            cached(_A, of=0),
            again(FORWARDED, _B),
        ),
    ),
    Case(
        "Vary is sent as it came",
        "9111 §4.1",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo,  bar")), _A),
            again(CACHED, _A, got={"Vary": "Foo,  bar"}),
        ),
    ),
    except_in_django(
        Case(
            "lines of Vary are sent as they came",
            "9111 §3.1",
            (
                forwarded(max_age(HOUR, ("Vary", "Foo"), ("Vary", "Bar")), _A),
                again(CACHED, _A, got={"Vary": ("Foo", "Bar")}),
            ),
        ),
        TWICE,
    ),
]
