"""Reads keys for the console, and decodes what the middleware stores at them, by the core's code.

Reading is not billed.  Every command is bounded, because all other commands wait while it runs.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from msgspec import Struct

from upstash_middleware.core import sessions as core
from upstash_middleware.core import values
from upstash_middleware.core.cache.entries import (
    Damaged,
    Epoch,
    Epochs,
    StoredResponse,
    Validity,
    VariantIndex,
    body_of,
    decode,
    is_index,
    validity,
)
from upstash_middleware.core.cache.keys import Names
from upstash_middleware.core.ratelimit.algorithms import ALGORITHMS
from upstash_middleware.core.ratelimit.algorithms.fixed_window import read_counter
from upstash_middleware.core.ratelimit.charges import limit_script
from upstash_middleware.local.console.formats import text
from upstash_middleware.local.valkey import Reply, Status, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.ratelimit.algorithms.limit import State
    from upstash_middleware.core.sessions import StoredSession
    from upstash_middleware.local.valkey import Store

_PAGE: Final = 50
_MAX_MEMBERS: Final = 100
_LARGEST_VALUE: Final = 24 * 1024 * 1024
"""The largest string that is read completely; stored responses are smaller."""
_LARGEST_STATE: Final = 64 * 1024
"""Bytes of a limit's state; a log has at most a thousand entries."""
_BEGINNING: Final = 1024
_MAX_SCANS: Final = 60
_PATTERN: Final = re.compile(rb"[*?\[]")
_SPECIAL: Final = re.compile(rb"([\\*?\[\]])")


class Key(Struct, frozen=True):
    """A key as a list shows it."""

    name: bytes
    type: str
    ttl_ms: int | None
    """None for a key that never expires."""
    size: int
    """Bytes in the server's memory."""
    beginning: bytes
    """Of a string's value."""


class Page(Struct, frozen=True):
    """One page of a search."""

    keys: Sequence[Key]
    start: int
    """SCAN's cursor at the beginning of the page; 0 for the first."""
    cursor: int
    """SCAN's cursor of the next page; 0 at the end."""


class Value(Struct, frozen=True):
    """The value at a key; of a collection or a huge string, perhaps only the beginning."""

    key: Key
    length: int
    """Bytes of a string, members of a collection."""
    data: bytes = b""
    rows: Sequence[Sequence[bytes]] = ()


async def count_keys(store: Store) -> int:
    """The number of keys.  Raises StoreUnreachable."""
    (size,) = await store.run([[b"DBSIZE"]])
    return size if isinstance(size, int) else 0


async def find_keys(store: Store, search: bytes, cursor: int) -> Page:
    """The next keys, about 50; fewer if many others do not match.  Raises StoreUnreachable.

    A search with ``*``, ``?`` or ``[`` is a pattern; any other is the beginning of a key.
    """
    pattern = search if _PATTERN.search(search) else _SPECIAL.sub(rb"\\\1", search) + b"*"
    start = cursor
    names: set[bytes] = set()  # SCAN may return a key twice
    for scans in range(_MAX_SCANS):
        count = b"%d" % min(50 << scans, 400)
        scan = [b"SCAN", b"%d" % cursor, b"MATCH", pattern, b"COUNT", count]
        match (await store.run([scan]))[0]:
            case [bytes() as following, list() as found]:
                names.update(name for name in found if isinstance(name, bytes))
                cursor = int(following)
            case other:
                raise StoreUnreachable.from_reply(other)
        if not cursor or len(names) >= _PAGE:
            break
    return Page(await _read_keys(store, sorted(names)), start, cursor)


async def _read_keys(store: Store, names: Sequence[bytes]) -> list[Key]:
    if not names:
        return []
    last = b"%d" % (_BEGINNING - 1)
    commands = [
        command
        for name in names
        for command in (
            [b"TYPE", name],
            [b"PTTL", name],
            [b"MEMORY", b"USAGE", name],
            [b"GETRANGE", name, b"0", last],
        )
    ]
    replies = iter(await store.run(commands))
    return [
        Key(
            name,
            kind.text.decode("latin-1"),
            ttl if isinstance(ttl, int) and ttl >= 0 else None,
            memory if isinstance(memory, int) else 0,
            beginning if isinstance(beginning, bytes) else b"",
        )
        for name, kind, ttl, memory, beginning in zip(
            names, replies, replies, replies, replies, strict=True
        )
        if isinstance(kind, Status) and kind.text != b"none"  # it may have expired meanwhile
    ]


async def read_value(store: Store, name: bytes) -> Value | None:
    """The value at a key; None if there is none.  Raises StoreUnreachable."""
    keys = await _read_keys(store, [name])
    if not keys:
        return None
    key = keys[0]
    if key.type not in _READING:
        return Value(key, 0)
    measure, read = _READING[key.type]
    (length,) = await store.run([[measure, name]])
    length = length if isinstance(length, int) else 0
    if key.type != "string":
        (reply,) = await store.run([[read[0], name, *read[1:]]])
        return Value(key, length, rows=_rows(key.type, reply))
    if length <= len(key.beginning):
        return Value(key, length, key.beginning)
    last = b"-1" if length <= _LARGEST_VALUE else b"65535"
    (data,) = await store.run([[b"GETRANGE", name, b"0", last]])
    return Value(key, length, data if isinstance(data, bytes) else b"")


async def delete_key(store: Store, name: bytes) -> bool:
    """Delete a key; whether it existed.  Raises StoreUnreachable."""
    (deleted,) = await store.run([[b"DEL", name]])
    return deleted == 1


_MOST: Final = b"%d" % _MAX_MEMBERS
_LAST: Final = b"%d" % (_MAX_MEMBERS - 1)
_READING: Final[dict[str, tuple[bytes, list[bytes]]]] = {
    "string": (b"STRLEN", []),
    "list": (b"LLEN", [b"LRANGE", b"0", _LAST]),
    "set": (b"SCARD", [b"SSCAN", b"0", b"COUNT", _MOST]),
    "hash": (b"HLEN", [b"HSCAN", b"0", b"COUNT", _MOST]),
    "zset": (b"ZCARD", [b"ZRANGE", b"0", _LAST, b"WITHSCORES"]),
    "stream": (b"XLEN", [b"XREVRANGE", b"+", b"-", b"COUNT", _MOST]),
}
"""By type, the command for the length, and the one that reads the first members."""


def _rows(kind: str, reply: Reply) -> list[list[bytes]]:
    match kind, reply:
        case ("list", list() as members):
            return [[b"%d" % place, *_texts([member])] for place, member in enumerate(members)]
        case ("set", [_, list() as members]):
            return [[member] for member in _texts(members)][:_MAX_MEMBERS]
        case ("hash", [_, list() as members]):
            return _pairs(members)[:_MAX_MEMBERS]
        case ("zset", list() as members):
            return [[score, member] for member, score in _pairs(members)]
        case ("stream", list() as entries):
            return [
                [name, b"  ".join(map(b"=".join, _pairs(fields)))]
                for entry in entries
                if isinstance(entry, list)
                for name, fields in [entry]
                if isinstance(name, bytes) and isinstance(fields, list)
            ]
        case _:
            return []


def _pairs(members: list[Reply]) -> list[list[bytes]]:
    texts = _texts(members)
    return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=False)]


def _texts(members: list[Reply]) -> list[bytes]:
    return [member if isinstance(member, bytes) else str(member).encode() for member in members]


def kind_of(key: Key, now_ms: int) -> tuple[str, str]:
    """What a key is and of which part: a limit, the cache, sessions; or a Redis type."""
    name = key.name.decode("utf-8", "replace")
    if key.type == "string" and (_EPOCH in name or _RECORD in name):
        return "cache epoch" if _EPOCH in name else "cache record", "cache"
    if key.type == "string" and _ENTRY in name:
        if name.endswith(_LOCK):
            return "cache lock", "cache"
        if (index := is_index(key.beginning)) is not None:
            return "cache variants" if index else "cached response", "cache"
    elif kind := _session_kind(key.type, name):
        return kind, "session"
    elif key.type == "string":
        value = key.beginning
        if len(value) == _BEGINNING:
            value = value.rpartition(b",")[0]  # of a list, only whole entries
        if limit := read_limit(name, value, now_ms, key.ttl_ms):
            return limit.title, "limit"
    return key.type, "other"


# Sessions.

_SESSION: Final = re.compile(r":session:[A-Za-z0-9_-]{43}$")
_SESSION_EPOCH: Final = re.compile(r":session-user:[A-Za-z0-9_-]+$")


def _session_kind(kind: str, name: str) -> str:
    if kind == "hash" and _SESSION.search(name):
        return "session"
    return "session epoch" if kind == "string" and _SESSION_EPOCH.search(name) else ""


class ShownSession(Struct, frozen=True):
    """A session, as far as it could be read."""

    stored: StoredSession | None
    """None if it is sealed, or damaged."""
    entries: Sequence[tuple[str, str, str]] = ()
    """Name, type and value, as Python shows them."""
    is_ended: bool = False
    """Whether it has ended with all sessions of its user."""


async def read_session(store: Store, value: Value) -> ShownSession | None:
    """The session at a key; None if its name is not that of one.  Raises StoreUnreachable."""
    name = value.key.name.decode("utf-8", "replace")
    if value.key.type != "hash" or not (found := _SESSION.search(name)):
        return None
    (head,) = await store.run([[b"HGET", value.key.name, b"."]])
    rows = [row for row in value.rows if row[0] != b"."]
    words = [b".", head, *(word for row in rows for word in row)]
    described = core.read_session(name, words)
    if described is None:
        return ShownSession(None)
    stored, entries = described
    is_ended = False
    if stored.user:
        epoch_key = f"{name[: found.start()]}:session-user:{stored.user}"
        (epoch,) = await store.run([[b"GET", epoch_key.encode()]])
        is_ended = epoch != stored.epoch.encode("latin-1")
    shown = [(name, *_read_entry(data)) for name, data in sorted(entries.items())]
    return ShownSession(stored, shown, is_ended)


def _read_entry(data: bytes) -> tuple[str, str]:
    """The type and the value of an entry."""
    try:
        value = values.decode(data)
    except ValueError:  # of a framework's own serializer
        return "", text(data)
    return type(value).__name__, repr(value)


# Rate limits.

_SDK: Final = "@upstash/ratelimit"


class LimitState(Struct, frozen=True):
    """The state of a limit: whose quota is used, by which rule, and how much of it.

    It does not contain the quota, which is in the application's rules.
    """

    prefix: str
    rule: str
    kind: str
    """The kind of identifier: ``ip``, ``user``; empty for the SDKs' limits."""
    identifier: str
    """Unescaped; ``#…`` is a hash."""
    title: str
    """What its algorithm is called."""
    state: State


def read_limit(key: str, value: bytes, now_ms: int, ttl_ms: int | None) -> LimitState | None:
    """The limit whose state is at a key, None if none is.

    The key is ``PREFIX:RULE:IDENTIFIER:STATE``, where only the prefix contains colons.
    """
    base, _, last_part = key.rpartition(":")
    if not base or len(value) > _LARGEST_STATE:
        return None
    text = value.decode("latin-1")
    is_sdk = base.startswith(f"{_SDK}:")
    for algorithm in ALGORITHMS.values():
        ttl = -1 if ttl_ms is None else ttl_ms
        if state := algorithm.read_state(last_part, text, now_ms, ttl):
            title = algorithm.title
            break
    else:
        state = read_counter(last_part, text, now_ms, None) if is_sdk else None
        title = "window"
    if state is None:
        return None
    if is_sdk:
        return LimitState(_SDK, "", "", base.removeprefix(f"{_SDK}:"), title, state)
    prefix, rule, identifier = ["", "", *base.rsplit(":", 2)][-3:]
    kind, equals, name = identifier.partition("=")
    if not equals:
        kind, name = "", identifier
    return LimitState(prefix, unquote(rule), unquote(kind), unquote(name), title, state)


# The cache.

_ENTRY: Final = ":cache:entry:"
_EPOCH: Final = ":cache:epoch:"
_RECORD: Final = ":cache:query:"
"""Of a path: how its queries select (No-Vary-Search), as text."""
_LOCK: Final = "#lock"
_GZIP_CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB: Final = 47
"""zlib's window bits for either format."""
_VARIANT: Final = re.compile(r"(?:#[0-9a-f]{32})+$")
_URL: Final = re.compile(
    r"(?:[^/]+:)?(?:\[[/#][^\]]*\])?https?://[^/#]+(/.*|#[0-9a-f]{64})", re.DOTALL
)
"""After version, the application's prefix in brackets, and origin: path and query, or a digest."""


class Cached(Struct, frozen=True):
    """What the cache stores at a key: an entry, an epoch, or a lock."""

    kind: str
    """``response``, ``variants``, ``epoch`` or ``lock``."""
    prefix: str = ""
    url: str = ""
    """Path and query; ``#…`` is the digest of a long one."""
    response: StoredResponse | None = None
    index: VariantIndex | None = None
    scope: str = ""
    """Of an epoch, what a purge of it reaches."""
    epoch: Epoch | None = None
    token: str = ""
    """Of a lock."""


def read_cached(key: str, value: bytes) -> Cached | None:
    """What the cache stores at a key, or None if it is not the cache's."""
    prefix, found, rest = key.partition(_ENTRY)
    if found and rest.endswith(_LOCK):
        if len(value) > 64:
            return None
        return Cached("lock", token=value.decode("latin-1"))
    if found:
        entry = decode(key, value)
        if isinstance(entry, VariantIndex):
            return Cached("variants", index=entry)
        url = _URL.fullmatch(_VARIANT.sub("", rest))
        return Cached("response", prefix, url[1] if url else "", entry) if entry else None
    _, found, scope = key.partition(_EPOCH)
    if found and len(value) <= 256:
        return Cached("epoch", scope=scope, epoch=Epoch.parse(value.decode("latin-1")))
    return None


def read_body(stored: StoredResponse, most: int) -> tuple[bytes | None, str]:
    """The first bytes of a body, and the content coding that was decoded.

    None if the body cannot be decompressed.
    """
    try:
        body = body_of(stored)
    except Damaged:
        return None, ""
    coding = (stored.headers.get("content-encoding") or "").lower()
    if coding in _GZIP_CODINGS:
        try:
            return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, most), coding
        except zlib.error:
            pass
    return body[:most], ""


async def read_purges(store: Store, prefix: str, url: str, stored: StoredResponse) -> Validity:
    """What purges have done to a response.  Raises StoreUnreachable."""
    scopes = tuple(stored.epochs.scopes)
    names = Names(prefix).epochs(url, scopes, stored.tags)
    (values,) = await store.run([[b"MGET", *(name.encode() for name in names)]])
    if not isinstance(values, list):
        raise StoreUnreachable.from_reply(values)
    texts = [value.decode("latin-1") if isinstance(value, bytes) else "" for value in values]
    return validity(stored.epochs, Epochs.parse(texts, stored.tags, scopes))


_ARGUMENTS, _NUMBERS = 13, 7
"""For each limit, of a limits' script call for leases and of its reply; see ``charge.lua``."""


def units_reserved(command: Sequence[bytes], reply: Reply) -> int:
    """Return the units that a limits' script call has reserved for leases; 0 for other commands."""
    words, script = command[1:], limit_script()
    if not words or words[0] not in {script.sha.encode(), script.text.encode()}:
        return 0
    if not isinstance(reply, list):
        return 0  # the script has failed, perhaps by arguments of another form
    _, mode, *limits = words[2 + int(words[1]) :]
    if mode != b"lease":
        return 0
    reserved = dict(zip(limits[8::_ARGUMENTS], reply[_NUMBERS - 1 :: _NUMBERS], strict=True))
    return sum(units for units in reserved.values() if isinstance(units, int))
