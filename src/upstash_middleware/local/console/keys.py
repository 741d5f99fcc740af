"""Reads keys for the console, and decodes what the middleware stores at them.

Reading is not billed.  Every command is bounded, because all other commands wait while it runs.
The formats are decoded as documented, without the middleware's code:

- A limit's key is ``PREFIX:RULE:IDENTIFIER:STATE``, where only the prefix contains colons.  STATE
  is a window's number, or ``bucket.MS``, ``gcra.MS``, ``log.MS`` or ``slots``; the value is text.
  It does not contain the quota, which is in the application's rules.
- A stored response or an index of variants is ``MARK EPOCHS LF PAYLOAD``.  The mark says whether
  the payload is plain (byte 1) or in base64 (``1``).  The payload is a checksum of 16 bytes over
  key and content, the length of a head in JSON (4 bytes), the head, and the body.
"""

from __future__ import annotations

import re
import zlib
from base64 import b64decode
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from upstash_middleware.local.valkey import Reply, Status, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.local.valkey import Store

_PAGE: Final = 50
_MAX_MEMBERS: Final = 100
_LARGEST_VALUE: Final = 24 * 1024 * 1024
"""The largest string that is read completely; stored responses are smaller."""
_BEGINNING: Final = 1024
_MAX_SCANS: Final = 60
_SCAN_COUNTS: Final = (50, 400)
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
    names: dict[bytes, None] = {}  # SCAN may return a key twice
    count, most = _SCAN_COUNTS
    for _ in range(_MAX_SCANS):
        scan = [b"SCAN", b"%d" % cursor, b"MATCH", pattern, b"COUNT", b"%d" % count]
        match (await store.run([scan]))[0]:
            case [bytes() as following, list() as found]:
                names.update((name, None) for name in found if isinstance(name, bytes))
                cursor = int(following)
            case other:
                raise StoreUnreachable.from_reply(other)
        if not cursor or len(names) >= _PAGE:
            break
        count = min(count * 2, most)
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
        (reply,) = await store.run([[part if part != b"KEY" else name for part in read]])
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
    "list": (b"LLEN", [b"LRANGE", b"KEY", b"0", _LAST]),
    "set": (b"SCARD", [b"SSCAN", b"KEY", b"0", b"COUNT", _MOST]),
    "hash": (b"HLEN", [b"HSCAN", b"KEY", b"0", b"COUNT", _MOST]),
    "zset": (b"ZCARD", [b"ZRANGE", b"KEY", b"0", _LAST, b"WITHSCORES"]),
    "stream": (b"XLEN", [b"XREVRANGE", b"KEY", b"+", b"-", b"COUNT", _MOST]),
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
            return [_stream_row(entry) for entry in entries]
        case _:
            return []


def _stream_row(entry: Reply) -> list[bytes]:
    match entry:
        case [bytes() as name, list() as fields]:
            return [name, b"  ".join(b"=".join(pair) for pair in _pairs(fields))]
        case _:
            return []


def _pairs(members: list[Reply]) -> list[list[bytes]]:
    texts = _texts(members)
    return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=False)]


def _texts(members: list[Reply]) -> list[bytes]:
    return [member if isinstance(member, bytes) else str(member).encode() for member in members]


# The kinds of keys.

_KIND_BY_NAME: Final = (
    (re.compile(r":bucket\.\d+$"), "token bucket"),
    (re.compile(r":gcra\.\d+$"), "GCRA"),
    (re.compile(r":log\.\d+$"), "sliding log"),
    (re.compile(r":slots$"), "concurrency"),
    (re.compile(r":cache:entry:.*#lock$", re.DOTALL), "cache lock"),
    (re.compile(r":cache:epoch:"), "cache epoch"),
)


def kind_of(key: Key, now_ms: int) -> str:
    """What a key is: a state of a limit, something of the cache, or a Redis type."""
    if key.type != "string":
        return key.type
    name = key.name.decode("utf-8", "replace")
    for pattern, kind in _KIND_BY_NAME:
        if pattern.search(name):
            return kind
    if _ENTRY in name:
        return frame_kind(key.beginning) or key.type
    limit = read_limit(name, key.beginning, now_ms, -1 if key.ttl_ms is None else key.ttl_ms)
    return limit.algorithm if isinstance(limit, WindowCounter) else key.type


# Rate limits.

_DAY: Final = 86_400_000
_ROUND_LENGTHS: Final = (_DAY, 3_600_000, 60_000, 1000, 1)
_LONGEST_WINDOW: Final = 400 * _DAY
_STATE: Final = re.compile(r"(?:(bucket|gcra|log)\.)?([0-9]{1,15})|(slots)")
_NUMBER: Final = re.compile(rb"-?\d{1,15}")
_PAIR: Final = re.compile(rb"(\d{1,15}):(-?\d{1,16})")
_TRIPLE: Final = re.compile(rb"(\d{1,15}):(\d{1,16}):([1-9]\d{0,14})")
_SDK: Final = "@upstash/ratelimit"


class Subject(Struct, frozen=True):
    """Whose quota is used, and by which rule."""

    prefix: str
    rule: str
    kind: str
    """The kind of identifier: ``ip``, ``user``; empty for the SDKs' limits."""
    identifier: str
    """Unescaped; ``#…`` is a hash."""


class WindowCounter(Struct, frozen=True):
    """The units used in one window of a fixed or sliding window limit."""

    subject: Subject
    used: int
    starts_ms: int
    """When the window begins, ms since 1970."""
    window_ms: int
    """Inferred: the only round length for which the window's number is about now."""
    algorithm: str
    """``fixed window`` or ``sliding window``, inferred from the TTL; else ``window``."""


class TokenBucket(Struct, frozen=True):
    """Of the tokens `used`, `refill` come back each `interval_ms`."""

    subject: Subject
    interval_ms: int
    refilled_ms: int
    used: int
    refill: int
    algorithm: str = "token bucket"


class Gcra(Struct, frozen=True):
    """GCRA as a leaky bucket: `level` is in units of `window_ms`, and drains by `limit` each ms."""

    subject: Subject
    limit: int
    window_ms: int
    at_ms: int
    level: int
    algorithm: str = "GCRA"

    def units_at(self, now_ms: int) -> float:
        """How many units are in the bucket."""
        passed = max(0, now_ms - self.at_ms)
        return max(0, self.level - passed * self.limit) / self.window_ms

    @property
    def empty_ms(self) -> int:
        """When the bucket is empty, ms since 1970."""
        return self.at_ms + -(-self.level // self.limit)


class SlidingLog(Struct, frozen=True):
    """The time (ms since 1970) and the cost of each request, oldest first."""

    subject: Subject
    window_ms: int
    entries: Sequence[tuple[int, int]]
    algorithm: str = "sliding log"

    def used_at(self, now_ms: int) -> int:
        """The units that count."""
        return sum(cost for time, cost in self.entries if time > now_ms - self.window_ms)


class Slots(Struct, frozen=True):
    """The expiry (ms since 1970) and the holder's token of each concurrent request."""

    subject: Subject
    entries: Sequence[tuple[int, int]]
    algorithm: str = "concurrency"

    def held_at(self, now_ms: int) -> int:
        """How many are held."""
        return sum(expiry > now_ms for expiry, _ in self.entries)


Limit: TypeAlias = WindowCounter | TokenBucket | Gcra | SlidingLog | Slots


def read_limit(  # noqa: PLR0911 - a table of cases
    key: str, value: bytes, now_ms: int, ttl_ms: int
) -> Limit | None:
    """The state of a limit at a key with this TTL, or None if it is not one."""
    base, _, state = key.rpartition(":")
    found = _STATE.fullmatch(state)
    if not base or found is None:
        return None
    subject, number = _subject(base), int(found[2] or 0)
    triple = _TRIPLE.fullmatch(value)
    match found[1] or found[3]:
        case "bucket" if triple and number:
            refilled, used, refill = map(int, triple.groups())
            return TokenBucket(subject, number, refilled, used, refill)
        case "gcra" if triple and number:
            at, level, limit = map(int, triple.groups())
            return Gcra(subject, limit, number, at, level)
        case "log" | "slots" as name:
            pairs = [_PAIR.fullmatch(entry) for entry in value.split(b",")] if value else []
            entries = [(int(pair[1]), int(pair[2])) for pair in pairs if pair]
            if len(entries) == len(pairs):
                if name == "log":
                    return SlidingLog(subject, number, entries)
                return Slots(subject, entries)
        case None:
            return _read_counter(subject, number, value, now_ms, ttl_ms)
    return None


def _subject(base: str) -> Subject:
    if base.startswith(f"{_SDK}:"):
        return Subject(_SDK, "", "", base.removeprefix(f"{_SDK}:"))
    prefix, rule, identifier = ["", "", *base.rsplit(":", 2)][-3:]
    kind, equals, value = identifier.partition("=")
    if not equals:
        kind, value = "", identifier
    return Subject(prefix, unquote(rule), unquote(kind), unquote(value))


def _read_counter(
    subject: Subject, number: int, value: bytes, now_ms: int, ttl_ms: int
) -> WindowCounter | None:
    if not _NUMBER.fullmatch(value) or number < 2 or ttl_ms < 0:
        return None
    # The window is the current, the previous or the next one.  So its number determines its length
    # to one part in that number, and people choose round lengths.
    least, most = now_ms / (number + 3), now_ms / (number - 1)
    for unit in _ROUND_LENGTHS:
        window = int(most // unit) * unit
        if least < window <= _LONGEST_WINDOW:
            algorithm = _counter_algorithm(number, window, now_ms + ttl_ms)
            if algorithm is None and subject.prefix == _SDK:
                algorithm = "window"
            if algorithm is not None:
                used = max(0, int(value))
                return WindowCounter(subject, used, number * window, window, algorithm)
    return None


def _counter_algorithm(number: int, window: int, expires_ms: int) -> str | None:
    """A counter is kept until it no longer counts, an eighth of the window longer, and 1 s."""
    for name, counts_until in (("fixed window", number + 1), ("sliding window", number + 2)):
        expected = counts_until * window + window // 8 + 1000
        if abs(expires_ms - expected) <= min(window / 4, 5000):
            return name
    return None


# The cache.

_CHECKSUM: Final = 16
_ENTRY: Final = ":cache:entry:"
_EPOCH: Final = ":cache:epoch:"
_LOCK: Final = "#lock"
_GZIP_CODINGS: Final = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB: Final = 47
"""zlib's window bits for either format."""
_VARIANT: Final = re.compile(r"(?:#[0-9a-f]{32})+$")
_RESOURCE: Final = re.compile(
    r"(?:([^/]+):)?(?:\[[/#][^\]]*\])?(https?://[^/#]+)(/.*|#[0-9a-f]{64})", re.DOTALL
)
"""Version, the application's prefix in brackets, origin, URL."""


class Resource(Struct, frozen=True):
    """What a key of the cache names."""

    prefix: str
    version: str
    origin: str
    url: str
    """Path and query; ``#…`` is the digest of a long one; without origin, the end of the key."""
    is_variant: bool


class _Head(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A head is a JSON array of its kind and the fields of the subclass, in their order."""


class ResponseHead(_Head, frozen=True, tag="response"):
    """The head of a stored response."""

    status: int
    fields: list[tuple[str, str]]
    stored_at: float
    initial_age: float
    lifetime: float
    stale: tuple[float, float, bool]
    """Seconds of stale-while-revalidate and of stale-if-error, and whether stale is forbidden."""
    compressed: bool
    length: int
    tags: list[str]
    token: str


class StoredResponse(Struct, frozen=True):
    """A stored response."""

    resource: Resource
    head: ResponseHead
    packed: bytes
    epochs: Sequence[str]
    """Of everything, of the URL, of any tag, and of each tag, when it was rendered."""
    kind: str = "response"

    def age_at(self, now: float) -> float:
        """The current age in seconds."""
        return max(0.0, self.head.initial_age + now - self.head.stored_at)

    def body(self, most: int) -> tuple[bytes | None, str]:
        """The first bytes of the body, and the content coding that was decoded.

        None if the body cannot be decompressed.
        """
        body = self.packed[:most]
        try:
            if self.head.compressed:
                body = zlib.decompressobj().decompress(self.packed, most)
        except zlib.error:
            return None, ""
        for name, coding in self.head.fields:
            if name.lower() == "content-encoding" and coding.lower() in _GZIP_CODINGS:
                try:
                    return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(body, most), coding.lower()
                except zlib.error:
                    return body, ""
        return body, ""

    def epoch_keys(self) -> list[str]:
        """The keys of the epochs that it has recorded, in the order of `epochs`."""
        start = self.resource.prefix + _EPOCH
        return [
            start + "all",
            f"{start}url:{self.resource.url}",
            start + "tags",
            *(f"{start}tag:{tag}" for tag in self.head.tags),
        ]


class VariantsHead(_Head, frozen=True, tag="stub"):
    """The head of an index of variants."""

    vary: list[str]
    tags: list[str]
    variants: dict[str, float]
    """The ends of the variants' keys, and when each expires, seconds since 1970."""
    token: str


class VariantIndex(Struct, frozen=True):
    """The variants of a resource, stored in the place of its response."""

    resource: Resource
    head: VariantsHead
    kind: str = "variants"


class Epoch(Struct, frozen=True):
    """A value that a purge replaces."""

    scope: str
    hard: str
    soft: str
    kind: str = "epoch"


class Lock(Struct, frozen=True):
    """Which process renders a resource, or that its response may not be stored."""

    resource: Resource
    token: str
    kind: str = "lock"

    @property
    def is_not_storable(self) -> bool:
        """Whether it says that no process needs to wait."""
        return self.token == "-"  # noqa: S105 - a mark


Cached: TypeAlias = StoredResponse | VariantIndex | Epoch | Lock


def read_cached(key: str, value: bytes) -> Cached | None:
    """What the cache stores at a key, or None if it is not the cache's."""
    prefix, found, rest = key.partition(_ENTRY)
    if found and rest.endswith(_LOCK):
        if len(value) > 64:
            return None
        return Lock(read_resource(prefix, rest.removesuffix(_LOCK)), value.decode("latin-1"))
    if found:
        return _read_frame(key, read_resource(prefix, rest), value)
    prefix, found, scope = key.partition(_EPOCH)
    if found and len(value) <= 256:
        return Epoch(scope, *_split_epoch(value.decode("latin-1")))
    return None


def read_resource(prefix: str, rest: str) -> Resource:
    """The resource that the end of a key names."""
    bare = _VARIANT.sub("", rest)
    found = _RESOURCE.fullmatch(bare)
    if found is None:
        return Resource(prefix, "", "", bare, bare != rest)
    return Resource(prefix, found[1] or "", found[2], found[3], bare != rest)


async def read_purges(store: Store, stored: StoredResponse) -> str:
    """What purges have done to a response: ``alive``, ``stale`` (softly purged) or ``purged``.

    Raises StoreUnreachable.
    """
    (values,) = await store.run([[b"MGET", *(key.encode() for key in stored.epoch_keys())]])
    if not isinstance(values, list):
        raise StoreUnreachable.from_reply(values)
    everything, url, any_tag, *tags = [
        (
            _split_epoch(recorded),
            _split_epoch(current.decode("latin-1") if isinstance(current, bytes) else ""),
        )
        for recorded, current in zip(stored.epochs, values, strict=False)
    ]
    pairs = [everything, url, *(tags if any_tag[0] != any_tag[1] else [])]
    if any(recorded[0] != current[0] for recorded, current in pairs):
        return "purged"
    return "stale" if any(recorded[1] != current[1] for recorded, current in pairs) else "alive"


def _split_epoch(epoch: str) -> tuple[str, str]:
    hard, _, soft = epoch.partition(":")
    return hard, soft


def frame_kind(beginning: bytes) -> str:
    """What a frame contains, by its beginning; empty if it is not a frame."""
    mark, (_, _, payload) = beginning[:1], beginning.partition(b"\n")
    try:
        if mark == b"1":
            payload = b64decode(payload[: len(payload) // 4 * 4])
    except ValueError:
        return ""
    head = payload[_CHECKSUM + 4 : _CHECKSUM + 16]
    if head.startswith(b'["response"'):
        return "cached response"
    return "cache variants" if head.startswith(b'["stub"') else ""


def _read_frame(key: str, resource: Resource, data: bytes) -> StoredResponse | VariantIndex | None:
    epochs, newline, payload = data[1:].partition(b"\n")
    if not newline or data[:1] not in (b"\x01", b"1"):
        return None
    try:
        if data[:1] == b"1":
            payload = b64decode(payload, validate=True)
        name = blake2b(key.encode(), digest_size=32).digest()
        content = payload[_CHECKSUM:]
        if payload[:_CHECKSUM] != blake2b(content, digest_size=_CHECKSUM, key=name).digest():
            return None
        end = 4 + int.from_bytes(content[:4], "big")
        head = _HEAD_DECODER.decode(content[4:end])
        if isinstance(head, VariantsHead):
            return VariantIndex(resource, head)
        recorded = epochs.decode("latin-1").split("|")
        return StoredResponse(resource, head, content[end:], recorded)
    except ValueError:
        return None


_HEAD_DECODER: Final = msgspec.json.Decoder(ResponseHead | VariantsHead)
