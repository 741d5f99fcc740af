"""Reads keys for the console, and decodes the middleware's data with the core's code.

Reading is not billed. Every command is bounded, because it blocks all other commands.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from msgspec import Struct
from msgspec.structs import replace

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
    epoch_text,
    is_index,
    validity,
)
from upstash_middleware.core.cache.http.reuse import current_age
from upstash_middleware.core.cache.keys import Names
from upstash_middleware.core.data import Record, unpack
from upstash_middleware.core.lru import LRU
from upstash_middleware.core.ratelimit.algorithms import ALGORITHMS, GCRA, Concurrency, Limit
from upstash_middleware.core.ratelimit.algorithms.fixed_window import read_counter
from upstash_middleware.core.ratelimit.charges import (
    Charge,
    Verdict,
    charge_command,
    limit_script,
    read_verdicts,
)
from upstash_middleware.errors import UnexpectedAnswer
from upstash_middleware.local.console.formats import MAX_SHOWN, shorten, text
from upstash_middleware.local.valkey import Reply, Status, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upstash_middleware.core.ratelimit.algorithms.limit import State
    from upstash_middleware.core.sessions import StoredSession
    from upstash_middleware.local.service import Service
    from upstash_middleware.local.valkey import Store

PAGE: Final = 50
"""The number of keys on one page of a list."""
MAX_SORTED: Final = 2000
"""The most keys that are read to sort a list by something other than the name."""
_MAX_NAMES: Final = 20_000
_MAX_SCANS: Final = 400
_SCAN_COUNT: Final = b"1000"
_DELETE_BATCH: Final = 500
_MAX_CHILDREN: Final = 100
_MAX_LEVELS: Final = 50
"""Nesting levels of namespaces; deeper ones appear only in the list of keys."""
_MAX_MEMBERS: Final = 100
_LARGEST_VALUE: Final = 24 * 1024 * 1024
"""The largest string that is read completely; stored responses are smaller."""
_LARGEST_STATE: Final = 64 * 1024
"""The largest state of a limit, in bytes; a log has at most a thousand entries."""
_BEGINNING: Final = 1024
_PATTERN: Final = re.compile(rb"[*?\[]")
_SPECIAL: Final = re.compile(rb"([\\*?\[\]])")


class Key(Struct, frozen=True):
    """A key in a list."""

    name: bytes
    type: str
    ttl_ms: int | None
    """None for a key that never expires."""
    size: int
    """Bytes in the server's memory."""
    beginning: bytes
    """The beginning of a string's value."""


class Namespace(Struct):
    """The keys with the same prefix, up to a colon."""

    path: bytes
    """The prefix, including the colon."""
    name: bytes
    """The last part of the path."""
    count: int
    children: Sequence[Namespace] = ()
    more: int = 0
    """The number of namespaces below this one that are not in `children`."""


class Value(Struct, frozen=True):
    """The value of a key; for a collection or a huge string, perhaps only the beginning."""

    key: Key
    length: int
    """The bytes of a string, or the members of a collection."""
    data: bytes = b""
    rows: Sequence[Sequence[bytes]] = ()


async def count_keys(store: Store) -> int:
    """The number of keys.  Raises StoreUnreachable."""
    (size,) = await store.run([[b"DBSIZE"]])
    return size if isinstance(size, int) else 0


async def find_names(store: Store, search: bytes) -> tuple[list[bytes], bool]:
    """The sorted names that match a search, and whether they are all. Raises StoreUnreachable.

    A search with ``*``, ``?`` or ``[`` is a pattern for whole names; other text is part of a name.
    """
    pattern = search if _PATTERN.search(search) else b"*" + _SPECIAL.sub(rb"\\\1", search) + b"*"
    names: set[bytes] = set()  # SCAN may return a key twice
    cursor = b"0"
    for _ in range(_MAX_SCANS):
        scan = [b"SCAN", cursor, b"MATCH", pattern, b"COUNT", _SCAN_COUNT]
        match (await store.run([scan]))[0]:
            case [bytes() as cursor, list() as found]:
                names.update(name for name in found if isinstance(name, bytes))
            case other:
                raise StoreUnreachable.from_reply(other)
        if cursor == b"0" or len(names) >= _MAX_NAMES:
            break
    return sorted(names)[:_MAX_NAMES], cursor == b"0"


def tree_of(names: Sequence[bytes], path: bytes) -> list[Namespace]:
    """The namespaces of the first level, and those below the namespaces in `path`."""
    counts: Counter[bytes] = Counter()
    ends = islice((end for end, byte in enumerate(path) if byte == _COLON), _MAX_LEVELS)
    open_paths = {path[: end + 1] for end in ends} | {b""}
    for name in names:
        end = -1
        while name[: end + 1] in open_paths and (end := name.find(b":", end + 1)) >= 0:
            counts[name[: end + 1]] += 1
    levels: dict[bytes, list[Namespace]] = {}
    for child in sorted(counts, reverse=True):  # a namespace follows those below it
        parent = child[: child.rfind(b":", 0, -1) + 1]
        below = levels.pop(child, [])[::-1]
        kept, more = below[:_MAX_CHILDREN], max(0, len(below) - _MAX_CHILDREN)
        here = Namespace(child, child[len(parent) : -1], counts[child], kept, more)
        levels.setdefault(parent, []).append(here)
    return levels.get(b"", [])[::-1]


_COLON: Final = ord(":")


async def read_keys(store: Store, names: Sequence[bytes]) -> list[Key]:
    """These keys, without the ones that no longer exist. Raises StoreUnreachable."""
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
        if isinstance(kind, Status) and kind.text != b"none"  # it may have just expired
    ]


async def read_value(store: Store, name: bytes) -> Value | None:
    """The value of a key; None if the key does not exist. Raises StoreUnreachable."""
    keys = await read_keys(store, [name])
    if not keys:
        return None
    key = keys[0]
    if key.type not in TYPES:
        return Value(key, 0)
    kind = TYPES[key.type]
    (length,) = await store.run([[kind.length, name]])
    length = length if isinstance(length, int) else 0
    if kind.first:
        (reply,) = await store.run([[kind.first[0], name, *kind.first[1:]]])
        return Value(key, length, rows=_rows(key.type, reply))
    if length <= len(key.beginning):
        return Value(key, length, key.beginning)
    last = b"-1" if length <= _LARGEST_VALUE else b"65535"
    (data,) = await store.run([[b"GETRANGE", name, b"0", last]])
    return Value(key, length, data if isinstance(data, bytes) else b"")


async def delete_keys(store: Store, names: Sequence[bytes]) -> int:
    """Delete keys; return the number of deleted keys. Raises StoreUnreachable."""
    deleted = 0
    for begin in range(0, len(names), _DELETE_BATCH):
        (reply,) = await store.run([[b"UNLINK", *names[begin : begin + _DELETE_BATCH]]])
        deleted += reply if isinstance(reply, int) else 0
    return deleted


class RedisType(Struct, frozen=True):
    """How to read and set values of a Redis type."""

    columns: Sequence[str]
    """The columns of a row; also the arguments of `set` after the key."""
    length: bytes
    """The command for the length."""
    first: Sequence[bytes] = ()
    """The command that reads the first members, without the key."""
    set: bytes = b""
    """The command that sets a value or a member; empty if there is none."""


_MOST: Final = b"%d" % _MAX_MEMBERS
_LAST: Final = b"%d" % (_MAX_MEMBERS - 1)
TYPES: Final = {
    "string": RedisType(["Value"], b"STRLEN", set=b"SET"),
    "list": RedisType(["Place", "Member"], b"LLEN", [b"LRANGE", b"0", _LAST], b"LSET"),
    "set": RedisType(["Member"], b"SCARD", [b"SSCAN", b"0", b"COUNT", _MOST], b"SADD"),
    "hash": RedisType(["Field", "Value"], b"HLEN", [b"HSCAN", b"0", b"COUNT", _MOST], b"HSET"),
    "zset": RedisType(
        ["Score", "Member"], b"ZCARD", [b"ZRANGE", b"0", _LAST, b"WITHSCORES"], b"ZADD"
    ),
    "stream": RedisType(["Entry", "Fields"], b"XLEN", [b"XREVRANGE", b"+", b"-", b"COUNT", _MOST]),
}


def editable(value: Value) -> str | None:
    """A string that a form can show and send back unchanged; None if this is impossible."""
    if value.key.type != "string" or value.length > MAX_SHOWN:
        return None
    try:
        text = value.data.decode()
    except UnicodeDecodeError:
        return None
    return text if all(each in "\n\t" or each.isprintable() for each in text) else None


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
    """A key's kind and the part that it belongs to: limit, cache, sessions; or a Redis type."""
    name, value = key.name.decode("utf-8", "replace"), key.beginning
    kind = kind_by_name(key.name)
    if kind == "session" and key.type == "hash":
        return kind, "session"
    if not kind or key.type != "string":
        if len(value) == _BEGINNING:
            value = value.rpartition(b",")[0]  # only whole entries of the list
        if key.type == "string" and (limit := read_limit(name, value, now_ms, key.ttl_ms)):
            return limit.title, "limit"
        return key.type, "other"
    if kind == "cached response":
        if (index := is_index(value)) is None:
            return key.type, "other"
        kind = "cache variants" if index else kind
    return kind, "session" if kind.startswith("session") else "cache"


def kind_by_name(name: bytes) -> str:
    """A key's kind according to its name; empty for limits and for other programs' keys."""
    text = name.decode("utf-8", "replace")
    return next((kind for pattern, kind in _KINDS if pattern.search(text)), "")


_KINDS: Final = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (r":session:[A-Za-z0-9_-]{43}$", "session"),
        (r":session-user:[A-Za-z0-9_-]+$", "session epoch"),
        (r":cache:epoch:", "cache epoch"),
        (r":cache:query:", "cache record"),
        (r":cache:entry:.*#lock$", "cache lock"),
        (r":cache:entry:", "cached response"),
        (r":data#[A-Za-z0-9_.-]{1,64}#epoch$", "data epoch"),
        (r":data#[A-Za-z0-9_.-]{1,64}#lock:", "data lock"),
        (r":data(#[A-Za-z0-9_.-]{1,64})?:", "data"),
    )
)
"""Kinds of keys by name patterns; the first matching pattern applies."""


async def describe(store: Store, name: bytes) -> str:
    """A short description of a session or a value of the application. Raises StoreUnreachable."""
    value = await read_value(store, name)
    if value is None:
        return ""
    if session := await read_session(store, value):
        if session.stored is None:
            return "sealed"
        user = f"user {session.stored.user}" if session.stored.user else "no user"
        state = "ended, " if session.is_ended else ""
        return f"{state}{user}, {value.length - 1} entries"
    if data := read_data(name.decode("utf-8", "replace"), value.data):
        shown = f"{data.type} {data.value}".strip() if data.record else "sealed"
        return shorten(shown.encode(), 120)
    return ""


# Sessions.

_SESSION: Final = re.compile(r":session:[A-Za-z0-9_-]{43}$")


class ShownSession(Struct, frozen=True):
    """A session, as far as it could be read."""

    stored: StoredSession | None
    """None if the session is sealed or damaged."""
    entries: Sequence[tuple[str, str, str]] = ()
    """Name, type and value of each entry, as Python's repr."""
    is_ended: bool = False
    """Whether the session was ended together with all sessions of its user."""


async def read_session(store: Store, value: Value) -> ShownSession | None:
    """The session of a key; None if the key is not a session's. Raises StoreUnreachable."""
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
    except ValueError:  # written by a framework's own serializer
        return "", text(data)
    return type(value).__name__, repr(value)


# Rate limits.

_SDK: Final = "@upstash/ratelimit"


class LimitState(Struct, frozen=True):
    """The state of a limit: the identifier, the rule, and the used quota.

    It does not contain the quota itself, which is in the application's rules.
    """

    prefix: str
    rule: str
    kind: str
    """The kind of identifier: ``ip``, ``user``; empty for the SDKs' limits."""
    identifier: str
    """Unescaped; ``#…`` is a hash."""
    title: str
    """The name of the algorithm."""
    state: State


def read_limit(key: str, value: bytes, now_ms: int, ttl_ms: int | None) -> LimitState | None:
    """The limit whose state a key contains; None for other keys.

    The key is ``PREFIX:RULE:IDENTIFIER:STATE``, where only the prefix contains colons.
    """
    base, _, last_part = key.rpartition(":")
    if not base or len(value) > _LARGEST_STATE:
        return None
    text = value.decode("latin-1")
    for algorithm in ALGORITHMS.values():
        ttl = -1 if ttl_ms is None else ttl_ms
        if state := algorithm.read_state(last_part, text, now_ms, ttl):
            return LimitState(*_owner(base), algorithm.title, state)
    state = read_counter(last_part, text, now_ms, None) if base.startswith(f"{_SDK}:") else None
    return None if state is None else LimitState(*_owner(base), "window", state)


def _owner(base: str) -> tuple[str, str, str, str]:
    """Prefix, rule, kind of identifier and identifier of a limit's keys."""
    if base.startswith(f"{_SDK}:"):
        return _SDK, "", "", base.removeprefix(f"{_SDK}:")
    prefix, rule, identifier = ["", "", *base.rsplit(":", 2)][-3:]
    kind, equals, name = identifier.partition("=")
    if not equals:
        kind, name = "", identifier
    return prefix, unquote(rule), unquote(kind), unquote(name)


class ChargedLimit(Struct, frozen=True):
    """One limit in a call of the limits' script, and the script's decision about it."""

    base: str
    """The start of its keys: ``PREFIX:RULE:IDENTIFIER``."""
    keys: Sequence[str]
    """The keys of its state."""
    limit: Limit
    changed_at: str | None
    """The key of a quota that overrides the limit's, if the rule is dynamic."""
    verdict: Verdict
    returned: int
    """Units of an earlier lease that were returned."""

    @property
    def owner(self) -> tuple[str, str, str, str]:
        """Prefix, rule, kind of identifier and identifier."""
        return _owner(self.base)

    @property
    def text(self) -> str:
        """The limit in the notation of rules, or of code."""
        if isinstance(self.limit, Concurrency):
            return f"{self.limit.limit} at once"
        if self.limit.word is None:
            return repr(self.limit)
        span = self.limit.milliseconds
        unit, length = next(each for each in _UNITS if span % each[1] == 0)
        count = "" if span == length else span // length
        burst = f" burst {self.limit.quota}" if isinstance(self.limit, GCRA) else ""
        return f"{self.limit.word} {self.limit.limit}/{count}{unit}{burst}"  # type: ignore[attr-defined]


_UNITS: Final = (("day", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1))


def read_charges(command: Sequence[bytes], reply: Reply) -> list[ChargedLimit]:
    """The decisions of a call of the limits' script; empty for other and for failed calls.

    ``charge.lua`` describes the script's arguments and reply.
    """
    script = limit_script()
    if len(command) < 2 or command[1] not in (script.sha.encode(), script.text.encode()):
        return []
    try:
        count = int(command[2])
        names = [name.decode() for name in command[3 : 3 + count]]
        _, mode, *words = command[3 + count :]
        if mode == b"peek":
            return []
        leases = mode == b"lease"
        step = 13 if leases else 8
        verdicts = read_verdicts(reply, len(words) // step, leases=leases)  # type: ignore[arg-type]
        charges, at = [], 0
        for place, verdict in enumerate(verdicts):
            _, name, _, a, b, c, _, changes, *lease = words[place * step : (place + 1) * step]
            limit = _limit(name.decode(), int(a), int(b), 0 if name == b"slots" else int(c))
            end = at + len(limit.keys("", 0))
            changed_at = names[end] if changes == b"1" else None
            base, returned = names[at].rpartition(":")[0], int(lease[3]) if lease else 0
            charges.append(ChargedLimit(base, names[at:end], limit, changed_at, verdict, returned))
            at = end + (changed_at is not None)
    except (ValueError, IndexError, StopIteration, OverflowError, UnexpectedAnswer):
        return []  # a call by hand, or by another version
    return charges


@lru_cache(maxsize=256)
def _limit(name: str, a: int, b: int, c: int) -> Limit:
    algorithm = next(each for each in ALGORITHMS.values() if each.name == name)
    return algorithm.from_script(a, b, c)


async def read_quota(service: Service, charged: ChargedLimit, now_ms: int) -> Verdict | None:
    """The decision of the limits' script about another request of cost 1, without charging it.

    Raises StoreUnreachable.
    """
    charge = Charge(charged.base, charged.limit, 1, changed_at=charged.changed_at)
    _, _, *words = charge_command([charge], now_ms, peek=True).args
    text = limit_script().text.encode()
    reply = await service.run_unbilled([b"EVAL", text, *(str(word).encode() for word in words)])
    try:
        (verdict,) = read_verdicts(reply, 1)  # type: ignore[arg-type]
    except UnexpectedAnswer:
        return None
    total = charged.limit.quota if charged.changed_at is None else verdict.quota
    return replace(verdict, quota=total, remaining=min(verdict.remaining, total))


# The cache.

_ENTRY: Final = ":cache:entry:"
_EPOCH: Final = ":cache:epoch:"
_RECORD: Final = ":cache:query:"
"""Keys that record, for a path, how its queries select responses (No-Vary-Search)."""
_LOCK: Final = "#lock"
_GZIP_CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB: Final = 47
"""zlib's window bits that accept both formats."""
_VARIANT: Final = re.compile(r"(?:#[0-9a-f]{32})+$")
_URL: Final = re.compile(
    r"(?:[^/]+:)?(?:\[[/#][^\]]*\])?https?://[^/#]+(/.*|#[0-9a-f]{64})", re.DOTALL
)
"""After version, application prefix in brackets, and origin: path and query, or a digest."""


class Cached(Struct, frozen=True):
    """The cache's data of a key: an entry, an epoch, or a lock."""

    kind: str
    """``response``, ``variants``, ``epoch`` or ``lock``."""
    prefix: str = ""
    url: str = ""
    """Path and query; ``#…`` is the digest of a long one."""
    response: StoredResponse | None = None
    index: VariantIndex | None = None
    scope: str = ""
    """The responses that an epoch covers, which a purge of it invalidates."""
    epoch: Epoch | None = None
    token: str = ""
    """The token of a lock."""


def read_cached(key: str, value: bytes) -> Cached | None:
    """The cache's data of a key; None if the key is not the cache's."""
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
    """The effect of purges on a response. Raises StoreUnreachable."""
    names = Names(prefix)
    keys = names.epochs(url, tuple(stored.epochs.scopes), stored.tags)
    (values,) = await store.run([[b"MGET", *(key.encode() for key in keys)]])
    if not isinstance(values, list):
        raise StoreUnreachable.from_reply(values)
    return _validity(stored, names, url, dict(zip(keys, values, strict=True)))


def read_lookup(names: Sequence[bytes], values: Reply, now: float) -> str | None:
    """The result of a cache lookup: ``fresh``, ``stale`` or ``missing``.

    None if it is unknown: for sealed entries, and if the variant has not been read yet.
    """
    if not isinstance(values, list) or len(values) != len(names):
        return None
    read = dict(zip((name.decode("utf-8", "replace") for name in names), values, strict=True))
    entries = [name for name in read if _ENTRY in name and not name.endswith(_LOCK)]
    index_found = False
    for name in entries:
        value = read[name]
        cached = _read_again(name, value) if isinstance(value, bytes) else None
        if value is not None and cached is None:
            return None
        index_found = index_found or (cached is not None and cached.index is not None)
        if cached is not None and (stored := cached.response) is not None:
            state = _validity(stored, Names(cached.prefix), cached.url, read)
            if state is not Validity.INVALID:
                is_fresh = current_age(stored, now) < stored.lifetime
                return "fresh" if is_fresh and state is not Validity.STALE else "stale"
    return None if index_found and len(entries) == 1 else "missing"


_DECODED: Final[LRU[str, tuple[bytes, Cached | None]]] = LRU(16 * 1024 * 1024)
"""The latest entries that lookups have found, decoded, by key."""


def _read_again(key: str, value: bytes) -> Cached | None:
    """Do the same as `read_cached`, but faster for the value that the last lookup found."""
    known = _DECODED.use(key)
    if known is None or known[0] != value:
        known = value, read_cached(key, value)
        _DECODED.put(key, known, len(value) * 2)
    return known[1]


def _validity(
    stored: StoredResponse, names: Names, url: str, read: Mapping[str, Reply]
) -> Validity:
    """The validity of a response according to the epochs that were read."""

    def text_at(name: str) -> str:
        return epoch_text(value if isinstance(value := read.get(name), bytes) else None)

    tags = [tag for tag in stored.tags if names.tag(tag) in read]
    scopes = tuple(stored.epochs.scopes)
    texts = [text_at(name) for name in names.epochs(url, scopes, tags)]
    return validity(stored.epochs, Epochs.parse(texts, tags, scopes))


# Values of the application.


class ShownData(Struct, frozen=True):
    """A value of the application, as far as it could be read."""

    record: Record | None
    """None if the value is sealed or damaged."""
    type: str = ""
    value: str = ""
    """Python's repr; empty if another serializer has written the value."""


def read_data(key: str, data: bytes) -> ShownData | None:
    """The application's value of a key; None if the key is not such a value's."""
    if kind_by_name(key.encode("utf-8", "surrogateescape")) != "data":
        return None
    record = unpack(key, data)
    if record is None:
        return ShownData(None)
    return ShownData(record, *_read_entry(record.payload))
