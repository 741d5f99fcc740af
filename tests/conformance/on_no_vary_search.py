"""Which queries are one: No-Vary-Search (draft-ietf-httpbis-no-vary-search-10)."""

from __future__ import annotations

from tests.conformance.telling import HOUR, Case, Reply, cached, each, forwarded, max_age

_VARIED = max_age(HOUR, ("No-Vary-Search", "except=()"), ("Vary", "Foo"))


def _page(field: str) -> Reply:
    return max_age(HOUR, ("No-Vary-Search", field))


def _one(field: str, first: str, second: str) -> Case:
    steps = (forwarded(_page(field), at=first), cached(at=second, of=0))
    return Case(f"under {field!r} {first!r} and {second!r} are one", "no-vary-search §6", steps)


def _apart(field: str, first: str, second: str, section: str = "6") -> Case:
    steps = (
        forwarded(_page(field), at=first),
        forwarded(_page(field), at=second),
        cached(at=first, of=0),
        cached(at=second, of=1),
    )
    name = f"under {field!r} {first!r} and {second!r} are two"
    return Case(name, f"no-vary-search §{section}", steps)


CASES: list[Case] = [
    *each(
        _one,
        (
            ('params=("u")', "?u=1", "?u=2"),
            ('params=("u")', "?u=1", ""),
            ('params=("u")', "", "?u=1"),
            ('params=("u")', "?a=1&u=1", "?u=2&a=1"),
            ('except=("a")', "?a=1&u=1", "?v=2&a=1"),
            ("except=()", "?a=1", "?b=1"),
            ("key-order", "?a=1&b=2", "?b=2&a=1"),
            ("key-order", "?a=x", "?%61=%78"),
            ("key-order", "?a=x&&&", "?a=x"),
            ("key-order", "?a", "?a="),
            ("key-order", "?a=%20", "?a=+"),
            ('key-order;x=1, params=("u";y), other', "?b=1&a=1&u=1", "?a=1&b=1"),
            ('params=("%C3%A9+%E6%B0%97")', "?%C3%A9%20%E6%B0%97=1", ""),
        ),
    ),
    *each(
        _apart,
        (
            ('params=("u")', "?a=1", "?a=2"),
            ('params=("u")', "?a=1&b=2", "?b=2&a=1"),
            ("key-order", "?a=1&a=2", "?a=2&a=1"),
            ('except=("a")', "?a=1", "?a=2"),
            ("key-order", "?a=%C3%A9", "?a=e%CC%81"),
            ('params, except=("a")', "?u=1", "?u=2", "5.1"),
            ("params", "?u=1", "?u=2", "5.1"),
            ("params=?1", "?u=1", "?u=2", "5.1"),
            ('params=("u"), except=("a")', "?u=1", "?u=2", "5.1"),
            ("params=(u)", "?u=1", "?u=2", "5.1"),
            ('params="u"', "?u=1", "?u=2", "5.1"),
            ("except=?1", "?u=1", "?u=2", "5.1"),
            ('key-order="x"', "?u=1&a", "?a&u=1", "5.1"),
            ("params=()", "?a=x", "?%61=x", "5.1"),
            ('params=("u"', "?u=1", "?u=2", "5.1"),
        ),
    ),
    Case(
        "an unsafe request invalidates the canonical form of its URL",
        "no-vary-search §7",
        (
            forwarded(_page('params=("u")'), at="?u=1"),
            forwarded(method="POST", at="?u=2"),
            forwarded(_page('params=("u")')),
            cached(at="?u=3", of=2),
        ),
    ),
    Case(
        "Vary selects besides",
        "no-vary-search §7",
        (
            forwarded(_VARIED, ("Foo", "1"), at="?a"),
            forwarded(_VARIED, ("Foo", "2"), at="?b"),
            cached(("Foo", "1"), at="?c", of=0),
            cached(("Foo", "2"), at="?d", of=1),
        ),
    ),
]
