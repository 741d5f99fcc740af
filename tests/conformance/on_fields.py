"""Which header fields are stored, and which come back: RFC 9111 §3.1, RFC 9110 §5 and §7.6.1."""

from __future__ import annotations

from tests.conformance.telling import (
    HOUR,
    TWICE,
    Case,
    Date,
    Value,
    cached,
    each,
    except_in_django,
    forwarded,
    max_age,
    used,
)

_KEPT: tuple[tuple[str, Value], ...] = (
    ("Test", "a"),
    ("X-Test", "a"),
    ("x-lower", "a"),
    ("X-SHOUTED", "a"),
    ("Content-Foo", "a"),
    ("X-Content-Foo", "a"),
    ("Content-Type", "text/x; charset=utf-8"),
    ("Content-Language", "de"),
    ("Content-Location", "/elsewhere"),
    ("Content-MD5", "rL0Y20zC+Fzt72VPzMSk2A=="),
    ("Content-Security-Policy", "default-src 'self'"),
    ("Content-Disposition", 'attachment; filename="a, b"'),
    ("ETag", '"a"'),
    ("Last-Modified", "Tue, 14 Nov 2023 20:00:00 GMT"),
    ("Expires", "Tue, 14 Nov 2099 20:00:00 GMT"),
    ("Link", "</a>; rel=preload"),
    ("Location", "/there"),
    ("Retry-After", "120"),
    ("Server", "origin"),
    ("Set-Cookie", "a=b"),
    ("Set-Cookie2", "a=b"),
    ("Strict-Transport-Security", "max-age=1"),
    ("Trailer", "X-End"),
    ("Via", "1.1 behind"),
    ("Warning", '110 - "stale"'),
    ("WWW-Authenticate", 'Basic realm="a", Digest realm="b"'),
    ("Authentication-Info", "a=b"),
    ("X-Frame-Options", "deny"),
    ("X-XSS-Protection", "1"),
    ("Access-Control-Allow-Origin", "*"),
    ("Clear-Site-Data", "cookies"),
    ("Public-Key-Pins", "max-age=1"),
    ("Alt-Svc", 'h2="a"'),
    ("Pragma", "foo"),
    ("Surrogate-Control", "max-age=1"),
    ("NEL", "{}"),
    ("DNT", "1"),
    ("Empty", ""),
    ("Latin", b"caf\xe9 \xff"),
    ("Many-Bytes", "a" * 4000),
)
_OF_THE_CONNECTION: tuple[tuple[str, str], ...] = (
    ("Keep-Alive", "timeout=5"),
    ("Proxy-Connection", "close"),
    ("Proxy-Authenticate", "Basic"),
    ("Proxy-Authentication-Info", "a=b"),
    ("Proxy-Authorization", "Basic a"),
    ("TE", "trailers"),
    ("Upgrade", "h2c"),
)


def _kept(name: str, value: Value) -> Case:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    reply, got = max_age(HOUR, (name, value)), {name: text}
    case = used(f"{name} {text[:20]!r} is stored and sent", "9111 §3.1", reply, got=got)
    is_cookie = name == "Set-Cookie"
    return except_in_django(case, "Django writes cookies itself") if is_cookie else case


def _dropped(name: str, value: str) -> Case:
    reply = max_age(HOUR, (name, value), ("X-Kept", "a"))
    got = {name: None, "X-Kept": "a"}
    return used(f"{name} is not stored", "9110 §7.6.1", reply, got=got)


def _named(connection: str) -> Case:
    reply = max_age(HOUR, ("Connection", connection), ("A", "1"), ("B", "2"), ("C", "3"))
    got = {"A": None, "B": None, "C": "3"}
    return used(f"what Connection {connection!r} names is not stored", "9111 §3.1", reply, got=got)


CASES: list[Case] = [
    *each(_kept, _KEPT),
    *each(_dropped, _OF_THE_CONNECTION),
    *each(_named, (("a, b",), ("A,B",), ("b ,, a",), ("close, a, b",))),
    except_in_django(
        used(
            "lines of Connection count together",
            "9111 §3.1",
            max_age(HOUR, ("Connection", "a"), ("Connection", "b"), ("A", "1"), ("B", "2")),
            got={"A": None, "B": None},
        ),
        TWICE,
    ),
    except_in_django(
        used(
            "lines of one field come back as they were, in order",
            "9110 §5.3",
            max_age(HOUR, ("X", "1"), ("Y", "0"), ("x", "2"), ("X", "3, 4")),
            got={"X": ("1", "2", "3, 4")},
        ),
        TWICE,
    ),
    used(
        "lines of Set-Cookie come back each",
        "9110 §5.3",
        max_age(HOUR, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")),
        got={"Set-Cookie": ("a=1", "b=2")},
    ),
    used(
        "a field's inner blanks stay",
        "9110 §5.5",
        max_age(HOUR, ("X", "a  b\tc")),
        got={"X": "a  b\tc"},
    ),
    Case(
        "Cache-Control comes back as it was",
        "9111 §5.2",
        (
            forwarded(max_age(HOUR, ("X", "1"))),
            cached(got={"Cache-Control": "max-age=3600"}),
        ),
    ),
    Case(
        "a stored response says how long its body is",
        "9110 §8.6",
        (
            forwarded(max_age(HOUR, body=(b"12", b"345"))),
            cached(got={"Content-Length": "5", "Transfer-Encoding": None}),
        ),
    ),
    Case(
        "a field that a 304 has comes with each use thereafter",
        "9111 §3.2",
        (
            forwarded(max_age(1, ("ETag", '"a"'), ("X", "1"), ("Date", Date(0)))),
            cached(got={"X": "1"}),
        ),
    ),
]
