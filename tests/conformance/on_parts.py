"""Ranges and partial responses: RFC 9111 §3.3 and §3.4, RFC 9110 §14."""

from __future__ import annotations

from tests.conformance.telling import (
    FORWARDED,
    HOUR,
    VALIDATED,
    Case,
    Date,
    Reply,
    Step,
    Value,
    again,
    cached,
    each,
    forwarded,
    max_age,
)

_WHOLE = b"0123456789"
_STRONG: tuple[str, Value] = ("ETag", '"a"')
_MODIFIED = "Tue, 14 Nov 2023 20:00:00 GMT"


def _part(first: int, last: int, *fields: tuple[str, Value], total: str = "10") -> Reply:
    span = ("Content-Range", f"bytes {first}-{last}/{total}")
    return max_age(HOUR, span, *fields, status=206, body=_WHOLE[first : last + 1])


def _of_whole(asked: str, body: bytes, span: str) -> Case:
    steps = (
        forwarded(max_age(HOUR, _STRONG, body=_WHOLE)),
        cached(("Range", asked), status=206, body=body, got={"Content-Range": f"bytes {span}/10"}),
        cached(body=_WHOLE),
    )
    return Case(f"Range {asked!r} is answered from a stored whole", "9111 §3.3", steps)


def _whole_for(asked: str) -> Case:
    steps = (forwarded(max_age(body=_WHOLE)), cached(("Range", asked), body=_WHOLE))
    return Case(f"Range {asked!r} may be answered whole", "9110 §14.2", steps)


def _none_of_whole(asked: str) -> Case:
    got = {"Content-Range": "bytes */10"}
    steps = (forwarded(max_age(body=_WHOLE)), cached(("Range", asked), status=416, got=got))
    return Case(f"Range {asked!r} is answered 416", "9110 §15.5.17", steps)


def _of_part(asked: str, body: bytes, span: str) -> Case:
    steps = (
        forwarded(_part(2, 9, _STRONG), ("Range", "bytes=2-")),
        cached(("Range", asked), status=206, body=body, got={"Content-Range": f"bytes {span}/10"}),
    )
    return Case(f"Range {asked!r} is answered from a stored part", "9111 §3.3", steps)


def _not_of_part(asked: str) -> Case:
    steps = (
        forwarded(_part(2, 5, _STRONG), ("Range", "bytes=2-5")),
        forwarded(_part(0, 9, _STRONG), ("Range", asked)),
    )
    return Case(f"Range {asked!r} is not answered from a part without it", "9111 §3.3", steps)


def _if_range(condition: str | Date, status: int, *stored: tuple[str, Value]) -> Case:
    body = _WHOLE if status == 200 else b"01"
    sends = (("Range", "bytes=0-1"), ("If-Range", condition))
    steps = (
        forwarded(max_age(HOUR, *stored, body=_WHOLE)),
        cached(*sends, status=status, body=body),
    )
    name = f"If-Range {condition!r} against {stored!r} is answered {status}"
    return Case(name, "9110 §13.1.5", steps)


def _together(name: str, first: Reply, second: Reply, asked: str | None, status: int) -> Case:
    sends = () if asked is None else (("Range", asked),)
    steps = (
        forwarded(first, ("Range", "bytes=0-4")),
        forwarded(second, ("Range", "bytes=5-9")),
        cached(*sends, status=status, body=_WHOLE if asked is None else b"3456"),
    )
    return Case(name, "9111 §3.4", steps)


def _apart(name: str, first: Reply, second: Reply) -> Case:
    steps = (
        forwarded(first, ("Range", "bytes=0-4")),
        forwarded(second, ("Range", "bytes=5-9")),
        forwarded(max_age(body=_WHOLE)),
    )
    return Case(name, "9111 §3.4", steps)


CASES: list[Case] = [
    *each(
        _of_whole,
        (
            ("bytes=0-0", b"0", "0-0"),
            ("bytes=2-4", b"234", "2-4"),
            ("bytes=7-", b"789", "7-9"),
            ("bytes=-3", b"789", "7-9"),
            ("bytes=0-99", _WHOLE, "0-9"),
            ("bytes=-99", _WHOLE, "0-9"),
            ("BYTES=1-1", b"1", "1-1"),
        ),
    ),
    *each(_whole_for, (("bytes=4-2",), ("bytes=a-b",), ("lines=0-1",), ("bytes=0-1,3-4",))),
    *each(_none_of_whole, (("bytes=10-",), ("bytes=99-100",))),
    *each(
        _of_part,
        (
            ("bytes=2-9", b"23456789", "2-9"),
            ("bytes=4-6", b"456", "4-6"),
            ("bytes=5-", b"56789", "5-9"),
            ("bytes=-3", b"789", "7-9"),
            ("bytes=-8", b"23456789", "2-9"),
        ),
    ),
    *each(_not_of_part, (("bytes=0-3",), ("bytes=4-8",), ("bytes=5-",), ("bytes=-2",))),
    *each(
        _if_range,
        (
            ('"a"', 206, _STRONG),
            ('"b"', 200, _STRONG),
            ('W/"a"', 200, ("ETag", 'W/"a"')),
            (_MODIFIED, 206, ("Last-Modified", _MODIFIED)),
            ("Tue, 14 Nov 2023 20:00:01 GMT", 200, ("Last-Modified", _MODIFIED)),
            ("Tue, 14 Nov 2023 19:00:00 GMT", 200, ("Last-Modified", _MODIFIED)),
            ('"a"', 200),
        ),
    ),
    Case(
        "a range of what is stale is answered from it once that is confirmed",
        "9111 §4.3.3",
        (
            forwarded(max_age(1, _STRONG, body=_WHOLE)),
            Step(
                VALIDATED,
                max_age(HOUR, _STRONG, status=304),
                (("Range", "bytes=2-4"),),
                after=5,
                status=206,
                body=b"234",
                saw={"If-None-Match": '"a"'},
            ),
            cached(body=_WHOLE),
        ),
    ),
    Case(
        "a HEAD is not answered from a part",
        "9111 §3.3",
        (
            forwarded(_part(0, 4, _STRONG), ("Range", "bytes=0-4")),
            forwarded(max_age(), method="HEAD"),
            cached(("Range", "bytes=0-4"), status=206, body=_WHOLE[:5]),
        ),
    ),
    Case(
        "If-Range is compared for a part too",
        "9110 §13.1.5",
        (
            forwarded(_part(0, 4, _STRONG), ("Range", "bytes=0-4")),
            cached(("Range", "bytes=0-1"), ("If-Range", '"a"'), status=206, body=b"01"),
            forwarded(max_age(body=_WHOLE), ("Range", "bytes=0-1"), ("If-Range", '"b"')),
        ),
    ),
    Case(
        "a part does not answer for the whole",
        "9111 §3.3",
        (
            forwarded(_part(0, 4, _STRONG), ("Range", "bytes=0-4")),
            Step(FORWARDED, max_age(HOUR, _STRONG, body=_WHOLE)),
            cached(),
        ),
    ),
    Case(
        "a part is not stored without Content-Range",
        "9111 §3.3",
        (
            forwarded(max_age(HOUR, _STRONG, status=206, body=b"01"), ("Range", "bytes=0-1")),
            again(FORWARDED, ("Range", "bytes=0-1")),
        ),
    ),
    Case(
        "a part of a whole whose length is not known answers ranges within it",
        "9111 §3.3",
        (
            forwarded(_part(2, 5, _STRONG, total="*"), ("Range", "bytes=2-5")),
            cached(
                ("Range", "bytes=3-4"),
                status=206,
                body=b"34",
                got={"Content-Range": "bytes 3-4/*"},
            ),
        ),
    ),
    Case(
        "a range that misses goes forward as it is, and its part is stored",
        "9111 §3.3",
        (
            forwarded(_part(0, 4), ("Range", "bytes=0-4"), saw={"Range": "bytes=0-4"}),
            cached(("Range", "bytes=0-4")),
        ),
    ),
    _together(
        "two parts with one strong ETag make the whole",
        _part(0, 4, _STRONG),
        _part(5, 9, _STRONG),
        None,
        200,
    ),
    _together(
        "two parts that overlap make the whole",
        _part(0, 6, _STRONG),
        _part(4, 9, _STRONG),
        None,
        200,
    ),
    _together(
        "a range across two parts is answered from both",
        _part(0, 4, _STRONG),
        _part(5, 8, _STRONG),
        "bytes=3-6",
        206,
    ),
    _apart(
        "two parts with a weak ETag make no whole",
        _part(0, 4, ("ETag", 'W/"a"')),
        _part(5, 9, ("ETag", 'W/"a"')),
    ),
    _apart(
        "two parts with different ETags make no whole",
        _part(0, 4, _STRONG),
        _part(5, 9, ("ETag", '"b"')),
    ),
    _apart("two parts without ETag make no whole", _part(0, 4), _part(5, 9)),
    _apart(
        "two parts with a gap between them make no whole",
        _part(0, 3, _STRONG),
        _part(5, 9, _STRONG),
    ),
]
