"""What belongs together and is invalidated together: RFC 9875."""

from __future__ import annotations

from tests.conformance.telling import FORWARDED as GONE
from tests.conformance.telling import HOUR, Case, Reply, again, cached, forwarded, max_age

_MANY = ", ".join(f'"{number:02}{"g" * 30}"' for number in range(32))


def _changed(groups: str, named: str, *, goes: bool, method: str = "POST", host: str = "") -> Case:
    page = max_age(HOUR, ("Cache-Groups", groups))
    change = Reply((("Cache-Group-Invalidation", named),))
    steps = (
        forwarded(page),
        forwarded(change, method=method, at="/edit", host=host or "origin.test"),
        again(GONE, reply=page) if goes else cached(of=0),
    )
    of = f" of {host}" if host else ""
    what = f"a {method}{of} that names {named[:20]!r}"
    does = "invalidates" if goes else "leaves"
    return Case(f"{what} {does} a page in {groups[:20]!r}", "9875 §3", steps)


CASES: list[Case] = [
    *(
        _changed(groups, named, goes=goes)
        for groups, named, goes in (
            ('"a"', '"a"', True),
            ('"b", "a"', '"c", "a"', True),
            ('"a";x=1', '"a";y', True),
            ('"a"', '"A"', False),
            ('"a:b"', '"a"', False),
            ('"a"', "a", False),
            ("a", '"a"', False),
            ('"a"', '"a",', False),
            (_MANY, f'"31{"g" * 30}"', True),
            (f'"31{"g" * 30}"', _MANY, True),
        )
    ),
    *(_changed('"a"', '"a"', goes=True, method=method) for method in ("PUT", "DELETE", "FOO")),
    *(_changed('"a"', '"a"', goes=False, method=method) for method in ("OPTIONS", "PROPFIND")),
    _changed('"a"', '"a"', goes=False, host="other.test"),
    Case(
        "a page that shares another group with an invalidated one stays",
        "9875 §2.2.1",
        (
            forwarded(max_age(HOUR, ("Cache-Groups", '"a", "b"'))),
            forwarded(max_age(HOUR, ("Cache-Groups", '"b", "c"')), at="/other"),
            forwarded(Reply((("Cache-Group-Invalidation", '"a"'),)), method="POST", at="/edit"),
            cached(at="/other", of=1),
            again(GONE),
        ),
    ),
]
