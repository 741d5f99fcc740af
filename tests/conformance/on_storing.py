"""What may be stored: RFC 9111 §3, with statuses and methods by RFC 9110."""

from __future__ import annotations

from tests.conformance.telling import (
    CACHED,
    DAY,
    EITHER,
    FORWARDED,
    HOUR,
    Case,
    Date,
    Reply,
    again,
    cached,
    control,
    each,
    forwarded,
    max_age,
    not_used,
    used,
)

_FINAL = (
    *(200, 201, 202, 203, 204, 205, 299, 300, 301, 302, 303, 307, 308, 399),
    *(400, 401, 402, 403, 404, 405, 406, 408, 409, 410, 411, 413, 414, 415, 417, 418, 421, 422),
    *(424, 426, 451, 499, 500, 501, 502, 503, 504, 505, 507, 508, 599),
)
_HEURISTIC = (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501)
_NOT_HEURISTIC = (201, 202, 302, 303, 307, 400, 403, 409, 500, 502, 503, 504, 599)
_LONG_AGO = ("Last-Modified", Date(-100 * DAY))


def _explicitly(status: int) -> Case:
    reply = max_age(HOUR, ("X-Kept", "yes"), status=status)
    return used(f"a {status} that says for how long is stored", "9111 §3", reply, got=_KEPT)


def _by_heuristics(status: int) -> Case:
    name = f"a {status} with Last-Modified alone is used by heuristics"
    return used(name, "9111 §4.2.2", Reply((_LONG_AGO,), status=status))


def _not_by_heuristics(status: int) -> Case:
    name = f"a {status} with Last-Modified alone is not used by heuristics"
    return not_used(name, "9111 §4.2.2", Reply((_LONG_AGO,), status=status))


def _public(status: int) -> Case:
    reply = control("public", _LONG_AGO, status=status)
    return used(f"a {status} that is public may be used by heuristics", "9111 §4.2.2", reply)


def _heuristics_outweighed(name: str, *fields: tuple[str, str | Date]) -> Case:
    reply = Reply((_LONG_AGO, *fields))
    return not_used(f"there are no heuristics beside {name}", "9111 §4.2.2", reply)


def _forbidden(value: str) -> Case:
    reply = control(value, ("Expires", Date(HOUR)))
    return not_used(f"what says {value!r} is not stored", "9111 §3", reply)


def _understood(status: int) -> Case:
    reply = control("max-age=3600, no-store, must-understand", status=status)
    name = f"a {status} is stored under must-understand, in spite of no-store"
    return used(name, "9111 §5.2.2.3", reply)


def _not_understood(status: int) -> Case:
    reply = control("max-age=3600, must-understand", status=status)
    return not_used(f"a {status} is not stored under must-understand", "9111 §5.2.2.3", reply)


def _authorized(value: str) -> Case:
    reply, auth = control(value), ("Authorization", "Basic a")
    steps = (forwarded(reply, auth), cached(), cached(("Authorization", "Basic b")))
    name = f"the response to a request with Authorization is stored with {value!r}"
    return Case(name, "9111 §3.5", steps)


def _not_authorized(value: str) -> Case:
    reply, auth = control(value), ("Authorization", "Basic a")
    steps = (forwarded(reply, auth), forwarded(reply, auth))
    name = f"the response to a request with Authorization is not stored with {value!r}"
    return Case(name, "9111 §3.5", steps)


def _passes(method: str) -> Case:
    steps = (
        forwarded(max_age(), method=method),
        forwarded(max_age()),
        forwarded(max_age(), method=method),
    )
    name = f"a {method} is not answered from the store, nor answers a GET"
    return Case(name, "9111 §4", steps)


_KEPT = {"X-Kept": "yes", "Age": lambda age: age.isdecimal()}

CASES: list[Case] = [
    *each(_explicitly, ((status,) for status in _FINAL)),
    *each(_by_heuristics, ((status,) for status in _HEURISTIC)),
    *each(_not_by_heuristics, ((status,) for status in _NOT_HEURISTIC)),
    *each(_public, ((201,), (403,), (503,), (599,))),
    *each(
        _heuristics_outweighed,
        (
            ("max-age=0", ("Cache-Control", "max-age=0")),
            ("an Expires in the past", ("Expires", Date(-HOUR))),
            ("an Expires of 0", ("Expires", "0")),
            ("s-maxage=0", ("Cache-Control", "s-maxage=0")),
            ("no-cache", ("Cache-Control", "no-cache")),
        ),
    ),
    not_used("without freshness and validator nothing is used", "9111 §3", Reply()),
    *each(
        _forbidden,
        (
            ("no-store",),
            ("No-StOrE",),
            ("no-store, max-age=3600",),
            ("max-age=3600, no-store",),
            ("max-age=3600,no-store",),
            ("max-age=3600 , , no-store",),
            ("private",),
            ("PRIVATE, max-age=3600",),
            ('ext="a, b", no-store',),
            ("ext='a', no-store, max-age=3600",),
            ("no-store=1",),
        ),
    ),
    Case(
        "no-store on a second line counts",
        "9111 §5.2",
        (
            forwarded(max_age(HOUR, ("Cache-Control", "no-store"))),
            again(FORWARDED),
        ),
    ),
    used(
        "no-store within a quoted argument is none",
        "9111 §5.2",
        control('max-age=3600, ext="no-store, max-age=0"'),
    ),
    used(
        "no-store within a quoted argument with an escaped quote is none",
        "9111 §5.2",
        control('ext="a\\", no-store", max-age=3600'),
    ),
    used(
        "directives that are not known mean nothing",
        "9111 §5.2.3",
        control("foo, bar=1, max-age=3600, no-stores, x-no-store"),
    ),
    *each(_understood, ((200,), (203,), (301,), (404,), (410,), (501,))),
    *each(_not_understood, ((299,), (499,), (599,))),
    used(
        "fields named by private are not stored, and the rest is",
        "9111 §5.2.2.7",
        control('max-age=3600, private="X-Own"', ("X-Own", "a"), ("X-All", "b")),
        got={"X-Own": None, "X-All": "b"},
    ),
    used(
        "fields named by no-cache are not stored, and the rest is",
        "9111 §5.2.2.4",
        control('max-age=3600, no-cache="X-A , x-b"', ("X-A", "a"), ("X-B", "b"), ("X-C", "c")),
        got={"X-A": None, "X-B": None, "X-C": "c"},
    ),
    not_used(
        "no-cache without fields outweighs one with",
        "9111 §5.2.2.4",
        control('max-age=3600, no-cache="X-A", no-cache'),
    ),
    *each(
        _authorized, (("public, max-age=60",), ("s-maxage=60",), ("max-age=60, must-revalidate",))
    ),
    *each(
        _not_authorized, (("max-age=3600",), ("max-age=3600, immutable",), ("public, no-store",))
    ),
    Case(
        "with Authorization, Expires alone is not enough",
        "9111 §3.5",
        (
            forwarded(Reply((("Expires", Date(HOUR)),)), ("Authorization", "Basic a")),
            forwarded(max_age(), ("Authorization", "Basic a")),
        ),
    ),
    Case(
        "a request with Authorization is answered by what was stored without",
        "9111 §3.5",
        (forwarded(max_age()), cached(("Authorization", "Basic a"))),
    ),
    *each(_passes, (("POST",), ("PUT",), ("DELETE",), ("OPTIONS",), ("PATCH",), ("MKCOL",))),
    Case(
        "a HEAD is answered by a stored GET",
        "9110 §9.3.2",
        (
            forwarded(max_age(HOUR, ("X", "1"), body=b"12345")),
            cached(method="HEAD", got={"X": "1", "Content-Length": "5"}),
            cached(),
        ),
    ),
    Case(
        "the response to a HEAD does not answer a GET",
        "9110 §9.3.2",
        (forwarded(max_age(), method="HEAD"), forwarded(max_age()), cached()),
    ),
    Case(
        "a POST whose response names its own URL answers a later GET",
        "9110 §9.3.3",
        (
            forwarded(max_age(HOUR, ("Content-Location", "{base}")), method="POST"),
            cached(),
        ),
    ),
    *(
        Case(
            f"a POST that states its freshness by {name} answers a later GET",
            "9110 §9.3.3",
            (
                forwarded(Reply((stated, ("Content-Location", "{base}"))), method="POST"),
                cached(),
            ),
        )
        for name, stated in (
            ("Expires", ("Expires", Date(HOUR))),
            ("s-maxage", ("Cache-Control", "s-maxage=60")),
        )
    ),
    used(
        "a stored 204 has no Content-Length",
        "9110 §8.6",
        max_age(status=204),
        got={"Content-Length": None, "Transfer-Encoding": None},
    ),
    Case(
        "a POST whose response names another URL does not",
        "9110 §9.3.3",
        (
            forwarded(max_age(HOUR, ("Content-Location", "{base}/else")), method="POST"),
            forwarded(max_age()),
        ),
    ),
    Case(
        "a POST whose response states no freshness does not",
        "9110 §9.3.3",
        (
            forwarded(Reply((("Content-Location", "{base}"),)), method="POST"),
            forwarded(max_age()),
        ),
    ),
    Case(
        "a POST is never answered by what one before it has stored",
        "9110 §9.3.3",
        (
            forwarded(max_age(HOUR, ("Content-Location", "{base}")), method="POST"),
            forwarded(max_age(), method="POST"),
        ),
    ),
    Case(
        "a response that broke off is not used",
        "9111 §3.3",
        (
            forwarded(max_age(body=(b"half", b"never"), fault="breaks"), status=200),
            again(FORWARDED),
            cached(),
        ),
    ),
    Case(
        "a response shorter than it announced is not used",
        "9111 §3.3",
        (
            forwarded(
                max_age(HOUR, ("Content-Length", "9"), body=(b"half", b"never"), fault="breaks"),
                status=200,
            ),
            again(FORWARDED),
            cached(),
        ),
    ),
    Case(
        "a response in pieces is stored whole",
        "9111 §3.3",
        (forwarded(max_age(body=(b"a", b"", b"b", b"c"))), cached(body=b"abc")),
    ),
    Case(
        "a response with Content-Length is stored whole",
        "9111 §3.3",
        (
            forwarded(max_age(HOUR, ("Content-Length", "3"), body=(b"a", b"bc"))),
            cached(body=b"abc", got={"Content-Length": "3"}),
        ),
    ),
    Case(
        "every byte of a body is kept",
        "9111 §3",
        (forwarded(max_age(body=bytes(range(256)) * 4)), cached()),
    ),
    used("an empty body is kept", "9111 §3", max_age(body=b"")),
    Case(
        "what replaces a response that could not be stored is stored",
        "9111 §3",
        (
            forwarded(control("no-store")),
            forwarded(max_age()),
            cached(method="HEAD"),
            cached(),
        ),
    ),
    Case(
        "a response that may not be stored leaves an older one that is fresh in its place or not",
        "9111 §3",
        (
            forwarded(max_age()),
            forwarded(control("no-store"), ("Cache-Control", "no-cache")),
            again(EITHER),
        ),
    ),
    Case(
        "the response to a request with no-store is not stored",
        "9111 §5.2.1.5",
        (forwarded(max_age(), ("Cache-Control", "no-store")), again(FORWARDED), again(CACHED)),
    ),
]
