"""A request's way through the middleware: who is asked, in which order, and what may end it."""

from __future__ import annotations

from typing import Final

from documentation.pictures.svg import arrow, box, line, picture, text

_COLUMNS: Final = {"client": 70, "middleware": 270, "Upstash": 470, "application": 660}
_WIDTH, _HEIGHT, _TOP = 740, 476, 50


def drawn() -> str:
    """Return the picture."""
    x = _COLUMNS
    parts = [
        *(line((at, _TOP), (at, _HEIGHT - 16), "grid") for at in x.values()),
        *(box(at - 55, _TOP - 32, 110, 32) for at in x.values()),
        *(text(at, _TOP - 11, name, "bold", "middle") for name, at in x.items()),
        *_message(90, "client", "middleware", "a request"),
        *_message(130, "middleware", "Upstash", "one pipeline:"),
        text(
            (x["middleware"] + x["Upstash"]) / 2,
            146,
            "all limits, cache lookup",
            "small",
            "middle",
        ),
        *_message(168, "Upstash", "middleware", "one reply"),
        box(x["middleware"] - 6, 80, 12, 96, "good-area"),
        *_part(196, 96, "the application is not called"),
        *_message(238, "middleware", "client", "429 with Retry-After"),
        *_message(262, "middleware", "client", "what is stored, or 304"),
        *_part(302, 158, "otherwise"),
        *_message(340, "middleware", "application", "the request"),
        *_message(370, "application", "middleware", "head, then bytes as they come"),
        *_message(392, "middleware", "client", "the same, at once"),
        *_message(430, "middleware", "Upstash", "after the last byte:"),
        text((x["middleware"] + x["Upstash"]) / 2, 446, "store, settle costs", "small", "middle"),
    ]
    return picture(_WIDTH, _HEIGHT, "A request's way through the middleware", parts)


def _message(y: float, sender: str, receiver: str, said: str) -> list[str]:
    start, end = _COLUMNS[sender], _COLUMNS[receiver]
    side = 8 if end > start else -8
    # Across the column of Upstash, words stand beside it and not on it.
    middle = (start + end) / 2 if abs(end - start) < 300 else (_COLUMNS["Upstash"] + 660) / 2
    return [
        arrow((start + side, y), (end - side, y), "line"),
        text(middle, y - 6, said, "small", "middle"),
    ]


def _part(y: float, height: float, said: str) -> list[str]:
    left, right = 8, _WIDTH - 8
    corners = ((left, y), (right, y), (right, y + height), (left, y + height))
    edges = [
        line(a, b, "line dashed") for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    return [*edges, text(left + 10, y + 18, said, "small quiet")]
