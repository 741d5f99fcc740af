"""What the middleware's cache keeps on Redis, read by its documented format.

An entry or a stub is ``MARK EPOCHS LF PAYLOAD``: the mark says whether the payload stands as it is
(``\\x01``) or in base64 (``1``); the payload is a checksum of 16 bytes over key and content, the
length of a head in JSON (4 bytes), the head, the body.  Beside them stand epochs and locks.  Only
reading may live here.
"""

from __future__ import annotations

import json
import re
import zlib
from base64 import b64decode
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHECKSUM: Final = 16
_ENTRY: Final = ":cache:entry:"
_EPOCH: Final = ":cache:epoch:"
_LOCK: Final = "#lock"
_NARROWED: Final = re.compile(r"(?:#[0-9a-f]{32})+$")
_RESOURCE: Final = re.compile(r"(?:([^/]+):)?(https?://[^/#]+)(/.*|#[0-9a-f]{64})", re.DOTALL)
_KEPT_OUT: Final = "-"


@dataclass(frozen=True, slots=True)
class Resource:
    """What a key of the cache's names."""

    prefix: str
    version: str
    origin: str
    url: str
    """Path and query; ``#…`` is the digest of a long one; all that is known where origin is not."""
    is_variant: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored response."""

    resource: Resource
    status: int
    fields: Sequence[tuple[str, str]]
    stored_at: float
    initial_age: float
    lifetime: float
    while_revalidate: float
    if_error: float
    stale_forbidden: bool
    compressed: bool
    length: int
    tags: Sequence[str]
    token: str
    packed: bytes
    epochs: Sequence[str]
    """Of everything, of the URL, of any tag, and of each tag, when it was rendered."""

    def body(self, most: int) -> bytes | None:
        """The first bytes of the body; None if it does not open."""
        if not self.compressed:
            return self.packed[:most]
        try:
            return zlib.decompressobj().decompress(self.packed, most)
        except zlib.error:
            return None

    def header(self, name: str) -> str:
        """A field's value; empty when there is none."""
        return next((value for given, value in self.fields if given.lower() == name), "")


@dataclass(frozen=True, slots=True)
class Stub:
    """What stands in a resource's place when its responses have variants."""

    resource: Resource
    vary: Sequence[str]
    tags: Sequence[str]
    variants: Mapping[str, float]
    """The ends of the variants' keys, and when each is gone, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A value that a purge replaces."""

    of: str
    hard: str
    soft: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Who renders a resource, or that its response may not be stored."""

    resource: Resource
    token: str

    @property
    def kept_out(self) -> bool:
        """Whether it only says that nobody needs to wait."""
        return self.token == _KEPT_OUT


Kept: TypeAlias = Entry | Stub | Epoch | Lock


def read_kept(key: str, value: bytes) -> Kept | None:
    """What the cache keeps at a key, or None for whatever is nothing of its."""
    prefix, found, rest = key.partition(_ENTRY)
    if found and rest.endswith(_LOCK):
        resource = resource_of(prefix, rest.removesuffix(_LOCK))
        return Lock(resource, value.decode("latin-1")) if len(value) <= 64 else None
    if found:
        return _read_frame(key, resource_of(prefix, rest), value)
    prefix, found, of = key.partition(_EPOCH)
    if found and len(value) <= 256:
        hard, _, soft = value.decode("latin-1").partition(":")
        return Epoch(of, hard, soft)
    return None


def resource_of(prefix: str, rest: str) -> Resource:
    """What is named by a key's end."""
    bare = _NARROWED.sub("", rest)
    is_variant = bare != rest
    found = _RESOURCE.fullmatch(bare)
    if found is None:
        return Resource(prefix, "", "", bare, is_variant)
    return Resource(prefix, found[1] or "", found[2], found[3], is_variant)


def epoch_keys(entry: Entry) -> list[str]:
    """The keys of the epochs that an entry has recorded, in the order of `Entry.epochs`."""
    start = entry.resource.prefix + _EPOCH
    return [
        start + "all",
        f"{start}url:{entry.resource.url}",
        start + "tags",
        *(f"{start}tag:{tag}" for tag in entry.tags),
    ]


def verdict(recorded: Sequence[str], current: Sequence[bytes | None]) -> str:
    """What purges have made of an entry: ``alive``, ``stale`` (softly purged) or ``purged``."""
    pairs = [
        (_parts(was), _parts(now.decode("latin-1") if now else ""))
        for was, now in zip(recorded, current, strict=False)
    ]
    everything, url, any_tag, *tags = pairs
    counting = [everything, url, *(tags if any_tag[0] != any_tag[1] else [])]
    if any(was[0] != now[0] for was, now in counting):
        return "purged"
    return "stale" if any(was[1] != now[1] for was, now in counting) else "alive"


def _parts(epoch: str) -> tuple[str, str]:
    hard, _, soft = epoch.partition(":")
    return hard, soft


def frame_kind(beginning: bytes) -> str:
    """What a frame holds, by its beginning: ``response``, ``stub``, or nothing that is known."""
    mark, (_, _, payload) = beginning[:1], beginning.partition(b"\n")
    try:
        if mark == b"1":
            payload = b64decode(payload[: len(payload) // 4 * 4])
    except ValueError:
        return ""
    head = payload[_CHECKSUM + 4 : _CHECKSUM + 16]
    return next(
        (kind for kind in ("response", "stub") if head.startswith(f'["{kind}"'.encode())), ""
    )


def _read_frame(key: str, resource: Resource, data: bytes) -> Entry | Stub | None:
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
        head = json.loads(content[4:end])
        return _parse(resource, head, content[end:], epochs.decode("latin-1").split("|"))
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
        return None


def _parse(resource: Resource, head: Any, body: bytes, epochs: list[str]) -> Entry | Stub | None:
    match head:
        case ["stub", list(vary), list(tags), dict(variants), str()]:
            gone = {str(end): _number(until) for end, until in variants.items()}
            return Stub(resource, _texts(vary), _texts(tags), gone)
        case [
            "response", int(status), list(fields), stored_at, initial_age, lifetime,
            [while_revalidate, if_error, forbidden], compressed, int(length), list(tags),
            str(token),
        ]:  # fmt: skip
            return Entry(
                resource,
                status,
                [(str(name), str(value)) for name, value in fields],
                _number(stored_at),
                _number(initial_age),
                _number(lifetime),
                _number(while_revalidate),
                _number(if_error),
                bool(forbidden),
                bool(compressed),
                length,
                _texts(tags),
                token,
                body,
                epochs,
            )
        case _:
            return None


def _texts(values: list[Any]) -> list[str]:
    return [str(value) for value in values]


def _number(value: Any) -> float:
    number = float(value)
    if not isfinite(number):
        raise ValueError("not a number of seconds")
    return number
