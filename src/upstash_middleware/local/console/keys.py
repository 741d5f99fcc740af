"""Reading the database for the console: which keys there are, and what stands at one.

Only questions to the store may live here, and what they answer as values.  They go past the
meter, so looking costs nothing on the bill; and each is bounded, since everybody's commands wait
while one of them runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from upstash_middleware.local.resp import Failure, Reply, Status
from upstash_middleware.local.store import StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.local.store import Store

PAGE: Final = 50
MOST_MEMBERS: Final = 100
LARGEST_VALUE: Final = 24 * 1024 * 1024
"""Bytes of a string that are read in one go: more than an entry of the cache can have."""
BEGINNING: Final = 1024
_ROUNDS: Final = 60
_AT_ONCE: Final = (50, 400)
_SPECIAL: Final = re.compile(rb"([\\*?\[\]])")
_PATTERN: Final = re.compile(rb"[*?\[]")


@dataclass(frozen=True, slots=True)
class Fact:
    """A key, as a list shows it."""

    key: bytes
    type: str
    ttl_ms: int | None
    """None for a key that never expires."""
    size: int
    """Bytes in the server's memory."""
    beginning: bytes
    """Of a string's value."""


@dataclass(frozen=True, slots=True)
class Found:
    """One page of a search."""

    facts: Sequence[Fact]
    start: int
    """Where it began, in SCAN's own counting; 0 at the beginning."""
    cursor: int
    """Where the next page begins; 0 at the end."""


@dataclass(frozen=True, slots=True)
class Value:
    """What stands at a key; of a collection or a huge string, perhaps the first part only."""

    fact: Fact
    length: int
    """Bytes of a string, members of a collection."""
    data: bytes = b""
    rows: Sequence[Sequence[bytes]] = ()


def pattern_of(search: bytes) -> bytes:
    """The pattern for SCAN: what holds ``*``, ``?`` or ``[`` is one, else it is a beginning."""
    return search if _PATTERN.search(search) else _SPECIAL.sub(rb"\\\1", search) + b"*"


async def count_keys(store: Store) -> int:
    """How many keys there are.  Raises StoreUnreachable."""
    (size,) = await store.run([[b"DBSIZE"]])
    return size if isinstance(size, int) else 0


async def find_keys(store: Store, search: bytes, cursor: int) -> Found:
    """The next keys, about PAGE of them; fewer when many others had to be passed over.

    Raises StoreUnreachable.
    """
    start = cursor
    keys: dict[bytes, None] = {}  # SCAN may answer a key twice
    count, most = _AT_ONCE
    for _ in range(_ROUNDS):
        scan = [b"SCAN", b"%d" % cursor, b"MATCH", pattern_of(search), b"COUNT", b"%d" % count]
        match (await store.run([scan]))[0]:
            case [bytes() as following, list() as found]:
                keys.update((key, None) for key in found if isinstance(key, bytes))
                cursor = int(following)
            case other:
                raise _refused(other)
        if not cursor or len(keys) >= PAGE:
            break
        count = min(count * 2, most)
    return Found(await _facts(store, sorted(keys)), start, cursor)


async def _facts(store: Store, keys: Sequence[bytes]) -> list[Fact]:
    if not keys:
        return []
    replies = iter(await store.run([command for key in keys for command in _about(key)]))
    return [
        fact
        for key, *about in zip(keys, replies, replies, replies, replies, strict=True)
        if (fact := _fact(key, about)) is not None
    ]


def _about(key: bytes) -> list[list[bytes]]:
    return [
        [b"TYPE", key],
        [b"PTTL", key],
        [b"MEMORY", b"USAGE", key],
        [b"GETRANGE", key, b"0", b"%d" % (BEGINNING - 1)],
    ]


def _fact(key: bytes, about: Sequence[Reply]) -> Fact | None:
    kind, ttl, memory, beginning = about
    if not isinstance(kind, Status) or kind.text == b"none":  # gone meanwhile
        return None
    return Fact(
        key,
        kind.text.decode("latin-1"),
        ttl if isinstance(ttl, int) and ttl >= 0 else None,
        memory if isinstance(memory, int) else 0,
        beginning if isinstance(beginning, bytes) else b"",
    )


async def read_value(store: Store, key: bytes) -> Value | None:
    """What stands at a key; None when nothing does.  Raises StoreUnreachable."""
    facts = await _facts(store, [key])
    if not facts:
        return None
    fact = facts[0]
    measure, read = _READING.get(fact.type, (None, None))
    if measure is None or read is None:
        return Value(fact, 0)
    (length,) = await store.run([[measure, key]])
    length = length if isinstance(length, int) else 0
    if fact.type == "string":
        return Value(fact, length, data=await _string(store, fact, length))
    (reply,) = await store.run([[part if part != b"KEY" else key for part in read]])
    return Value(fact, length, rows=_rows(fact.type, reply))


async def _string(store: Store, fact: Fact, length: int) -> bytes:
    if length <= len(fact.beginning):
        return fact.beginning
    last = b"-1" if length <= LARGEST_VALUE else b"65535"
    (data,) = await store.run([[b"GETRANGE", fact.key, b"0", last]])
    return data if isinstance(data, bytes) else b""


async def delete_key(store: Store, key: bytes) -> bool:
    """Delete a key; whether it was there.  Raises StoreUnreachable."""
    (deleted,) = await store.run([[b"DEL", key]])
    return deleted == 1


async def read_texts(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """The strings at some keys.  Raises StoreUnreachable."""
    (values,) = await store.run([[b"MGET", *(key.encode() for key in keys)]])
    if not isinstance(values, list):
        raise _refused(values)
    return [value if isinstance(value, bytes) else None for value in values]


_MOST: Final = b"%d" % MOST_MEMBERS
_LAST: Final = b"%d" % (MOST_MEMBERS - 1)
_READING: Final[dict[str, tuple[bytes, list[bytes]]]] = {
    "string": (b"STRLEN", []),
    "list": (b"LLEN", [b"LRANGE", b"KEY", b"0", _LAST]),
    "set": (b"SCARD", [b"SSCAN", b"KEY", b"0", b"COUNT", _MOST]),
    "hash": (b"HLEN", [b"HSCAN", b"KEY", b"0", b"COUNT", _MOST]),
    "zset": (b"ZCARD", [b"ZRANGE", b"KEY", b"0", _LAST, b"WITHSCORES"]),
    "stream": (b"XLEN", [b"XREVRANGE", b"KEY", b"+", b"-", b"COUNT", _MOST]),
}
"""By type: what measures it, and what reads its first members."""


def _rows(kind: str, reply: Reply) -> list[list[bytes]]:
    match kind, reply:
        case ("list", list() as members):
            return [[b"%d" % place, *_texts([member])] for place, member in enumerate(members)]
        case ("set", [_, list() as members]):
            return [[member] for member in _texts(members)][:MOST_MEMBERS]
        case ("hash", [_, list() as members]):
            return _pairs(members)[:MOST_MEMBERS]
        case ("zset", list() as members):
            return [[score, member] for member, score in _pairs(members)]
        case ("stream", list() as entries):
            return [_stream_row(entry) for entry in entries]
        case _:
            return []


def _pairs(members: list[Reply]) -> list[list[bytes]]:
    texts = _texts(members)
    return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=False)]


def _stream_row(entry: Reply) -> list[bytes]:
    match entry:
        case [bytes() as name, list() as fields]:
            return [name, b"  ".join(b"=".join(pair) for pair in _pairs(fields))]
        case _:
            return []


def _texts(members: list[Reply]) -> list[bytes]:
    return [member if isinstance(member, bytes) else str(member).encode() for member in members]


def _refused(reply: Reply) -> StoreUnreachable:
    text = reply.text.decode("utf-8", "replace") if isinstance(reply, Failure) else repr(reply)
    return StoreUnreachable(f"the Redis server refused to tell: {text}")
