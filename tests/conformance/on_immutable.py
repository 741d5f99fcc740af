"""What does not change while it is fresh: RFC 8246."""

from __future__ import annotations

from tests.conformance.telling import (
    CACHED,
    VALIDATED,
    Case,
    Reply,
    Use,
    again,
    control,
    each,
    forwarded,
)


def _reloaded(answered: str, asked: str, age: int, use: Use, section: str) -> Case:
    stored = control(answered, ("ETag", '"a"'))
    confirmed = Reply((("ETag", '"a"'),), status=304)
    answer = again(use, ("Cache-Control", asked), after=age, reply=confirmed, of=0)
    does = "is used" if use is CACHED else "is validated"
    name = f"{answered!r}, {age} s old, {does} under {asked!r}"
    return Case(name, section, (forwarded(stored), answer))


CASES: list[Case] = [
    *each(
        _reloaded,
        (
            ("max-age=60, immutable", "max-age=0", 10, CACHED, "8246 §2"),
            ("max-age=60, immutable=x, immutable", "max-age=0", 10, CACHED, "8246 §2"),
            ("max-age=60", "max-age=0", 10, VALIDATED, "9111 §5.2.1.1"),
            ("max-age=60", "max-age=0, immutable", 10, VALIDATED, "8246 §2"),
            ("max-age=60, immutable", "max-age=0", 70, VALIDATED, "8246 §2"),
            ("max-age=60, immutable", "no-cache", 10, VALIDATED, "8246 §3"),
            ("max-age=60, immutable", "max-age=0, no-cache", 10, VALIDATED, "8246 §3"),
        ),
    ),
]
