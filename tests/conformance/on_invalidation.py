"""What unsafe requests make unusable: RFC 9111 §4.4."""

from __future__ import annotations

from tests.conformance.telling import (
    FORWARDED,
    HOUR,
    Case,
    Reply,
    again,
    cached,
    each,
    forwarded,
    max_age,
)

_UNSAFE = ("POST", "PUT", "DELETE", "PATCH", "MKCOL", "M-SEARCH", "FOO")
_SAFE = ("OPTIONS", "TRACE", "PROPFIND")


def _invalidates(method: str, status: int = 200) -> Case:
    steps = (
        forwarded(max_age()),
        forwarded(Reply(status=status), method=method),
        forwarded(max_age()),
        cached(),
    )
    return Case(f"a {method} that is answered {status} invalidates", "9111 §4.4", steps)


def _leaves(method: str, status: int = 200) -> Case:
    steps = (forwarded(max_age()), forwarded(Reply(status=status), method=method), cached(of=0))
    return Case(f"a {method} that is answered {status} invalidates nothing", "9111 §4.4", steps)


def _names(field: str, value: str, other: str, method: str, *, goes: bool) -> Case:
    steps = (
        forwarded(max_age(), at=other),
        forwarded(Reply(((field, value),), status=201), method=method),
        again(FORWARDED, at=other) if goes else cached(at=other, of=0),
    )
    does = "invalidates" if goes else "does not invalidate"
    return Case(f"{field} {value} of a {method} {does} that", "9111 §4.4", steps)


CASES: list[Case] = [
    *each(_invalidates, ((method,) for method in _UNSAFE)),
    *each(_invalidates, (("POST", status) for status in (201, 204, 303))),
    *each(_leaves, ((method,) for method in _SAFE)),
    *each(_leaves, ((m, s) for m in ("POST", "PUT", "DELETE", "FOO") for s in (400, 403, 500))),
    *(
        _names(field, value, "/other", method, goes=goes)
        for field in ("Location", "Content-Location")
        for method in ("POST", "PUT", "DELETE", "FOO")
        for value, goes in (
            ("{base}/other", True),
            ("http://origin.test{base}/other", True),
            ("http://else.test{base}/other", False),
            ("https://origin.test{base}/other", False),
        )
    ),
    _names("Location", "//origin.test{base}/other?a=1", "/other?a=1", "POST", goes=True),
    _names("Location", "http://ORIGIN.test:80{base}/other", "/other", "POST", goes=True),
    Case(
        "all variants go together",
        "9111 §4.4",
        (
            forwarded(max_age(HOUR, ("Vary", "Foo")), ("Foo", "1")),
            forwarded(max_age(HOUR, ("Vary", "Foo")), ("Foo", "2")),
            forwarded(Reply(), method="POST"),
            forwarded(max_age(HOUR, ("Vary", "Foo")), ("Foo", "1")),
            forwarded(max_age(HOUR, ("Vary", "Foo")), ("Foo", "2")),
        ),
    ),
    Case(
        "another query stays",
        "9111 §4.4",
        (
            forwarded(max_age(), at="?a=1"),
            forwarded(Reply(), method="POST"),
            cached(at="?a=1", of=0),
        ),
    ),
]
