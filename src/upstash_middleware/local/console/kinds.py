"""What a key is, in a word, and the badge that says so.  Only that may live here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.console.entries import frame_kind
from upstash_middleware.local.console.limits import WindowCounter, read_limit
from upstash_middleware.local.console.markup import Html, h

if TYPE_CHECKING:
    from upstash_middleware.local.console.keys import Fact

_BY_NAME: Final = (
    (re.compile(r":bucket\.\d+$"), "token bucket"),
    (re.compile(r":gcra\.\d+\.\d+$"), "GCRA"),
    (re.compile(r":log\.\d+$"), "sliding log"),
    (re.compile(r":slots$"), "concurrency"),
    (re.compile(r":cache:entry:.*#lock$", re.DOTALL), "cache lock"),
    (re.compile(r":cache:epoch:"), "cache epoch"),
)
_FRAMES: Final = {"response": "cached response", "stub": "cache variants"}
_LIMITS: Final = frozenset(
    {
        "fixed window",
        "sliding window",
        "window",
        "token bucket",
        "GCRA",
        "sliding log",
        "concurrency",
    }
)


def kind_of(fact: Fact, now_ms: int) -> str:
    """A key's kind: of a limit, of the cache, or Redis's type."""
    if fact.type != "string":
        return fact.type
    name = fact.key.decode("utf-8", "replace")
    for pattern, kind in _BY_NAME:
        if pattern.search(name):
            return kind
    if ":cache:entry:" in name:
        return _FRAMES.get(frame_kind(fact.beginning), fact.type)
    state = read_limit(name, fact.beginning, now_ms, -1 if fact.ttl_ms is None else fact.ttl_ms)
    return state.algorithm if isinstance(state, WindowCounter) else fact.type


def badge(kind: str) -> Html:
    """The word, in the colour of its family."""
    family = "limit" if kind in _LIMITS else "cache" if kind.startswith("cache") else "other"
    return h("span", kind, class_=f"badge {family}")
