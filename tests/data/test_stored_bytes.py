"""Whatever is stored in place of a value, a call finds a value or nothing, and does not raise.

Each example is what somebody has stored at the keys of a value: the value itself, the epochs, the
tag's, and the lock. ``incr`` alone may say that a value is no integer.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sessions.site import ask
from tests.sessions.test_stored_bytes import DEEP, JSON, TEXTS, VALUES

if TYPE_CHECKING:
    from tests.data.conftest import Make
    from upstash_middleware.local import LocalUpstash

TAGS = st.lists(st.sampled_from(["x", "x:y", "", ":", "é", "a" * 300]) | st.text(max_size=3))
NUMBERS = st.sampled_from([0, 1, -1, 1e308, -1e308, 4e9, 2**70])
METAS = st.one_of(
    st.just(b""),
    st.tuples(TEXTS, TAGS, NUMBERS, NUMBERS).map(lambda meta: json.dumps(meta).encode()),
    JSON.map(lambda meta: json.dumps(meta).encode()),
    DEEP,
)
EPOCHS = st.sampled_from([b":", b":||", b":|t|:", b":|t|:|:", b"x:|t|:", b"", b"|||"]) | st.binary(
    max_size=6
)
RECORDS = VALUES | st.builds(
    lambda mark, epochs, meta, payload: mark + epochs + b"\n" + meta + b"\n" + payload,
    st.sampled_from([b"~", b"~", b"!", b"?"]),
    EPOCHS,
    METAS,
    VALUES | st.just(b"[1]"),
)
OTHERS = st.none() | st.binary(max_size=6) | st.sampled_from([b"t", b":", b":x", b"a" * 20])
CALLS: dict[str, Any] = {
    "get": lambda data: data.get("a"),
    "get of a type": lambda data: data.get("a", type=list[int]),
    "get_many": lambda data: data.get_many(["a", "b"]),
    "get_or_set": lambda data: data.get_or_set("a", 60, lambda: [2], wait=0.01),
    "get_or_set with tags": lambda data: data.get_or_set(
        "a", 60, lambda: [2], tags=["x"], stale=60, early=1, wait=0.01
    ),
    "set": lambda data: data.set("a", [3], ttl=60, tags=["x"]),
    "set_many": lambda data: data.set_many({"a": 3, "b": 4}, ttl=60),
    "add": lambda data: data.add("a", [4], ttl=60),
    "touch": lambda data: data.touch("a", ttl=60),
    "delete": lambda data: data.delete("a"),
    "purge": lambda data: data.purge(tags=["x"], everything=True, soft=True),
}


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(
    RECORDS,
    st.tuples(OTHERS, OTHERS, OTHERS, OTHERS),
    st.lists(st.sampled_from([*CALLS, "incr"]), min_size=1, max_size=4),
    st.sampled_from([{}, {"data_l1_bytes": 100_000}, {"cache_keys": ["k" * 32]}]),
)
def test_no_stored_bytes_raise(
    make: Make,
    upstash: LocalUpstash,
    record: bytes,
    others: tuple[bytes | None, ...],
    calls: list[str],
    more: dict[str, Any],
) -> None:
    upstash.flush()
    data = make(prefix="p", redis=upstash, **more)
    ask(upstash, "SET", "p:data:a", record, "EX", 100)
    names = ("data#data#epoch", "cache:epoch:tags", "cache:epoch:tag:x", "data#data#lock:a")
    for name, value in zip(names, others, strict=True):
        if value is not None:
            ask(upstash, "SET", f"p:{name}", value, "EX", 100)
    for call in calls:
        if call == "incr":
            with suppress(ValueError):  # as documented: it is no integer
                data.incr("a", ttl=60)
        else:
            CALLS[call](data)
    data.delete("a")
    data.set("a", [5], ttl=60)
    assert data.get("a") == [5]
