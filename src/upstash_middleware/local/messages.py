"""HTTP as this server sees it, apart from any transport: a request, and the two kinds of answer.

Only values may live here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    `path` and `query` are as on the wire, percent signs included; the names of `headers` are in
    lower case.
    """

    method: str
    path: bytes
    query: bytes = b""
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer of server-sent events that ends when the client leaves."""

    events: AsyncIterator[bytes]
    close: Callable[[], None]
    """To be called in the end, whether or not an event was taken."""


Response: TypeAlias = Answer | Stream


def json_answer(status: int, value: object) -> Answer:
    """An answer that carries `value` as JSON."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return Answer(status, body)


def error_answer(status: int, text: str) -> Answer:
    """An answer in the shape in which Upstash tells errors: ``{"error": text}``."""
    return json_answer(status, {"error": text})
