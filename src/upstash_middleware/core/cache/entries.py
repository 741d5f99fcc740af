"""Entries on Redis: stored responses and variant indexes as bytes, and the epochs they record.

An entry is ``MARK EPOCHS LF PAYLOAD``. The payload is a checksum over the key and everything after
it, the length of a head in JSON, the head, and the body. The mark says whether the payload is raw
or in base64, the form in which an entry is sent inside a pipeline or a script. The epochs are
outside the checksum because a script on the server may have to add some; the tags in the head say
how many there must be. If the application has set keys, a seal replaces the checksum.

A value that does not parse is not an entry.
"""

from __future__ import annotations

import hmac
import re
import zlib
from base64 import b64decode, b64encode
from enum import Enum, auto
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from msgspec import Meta, Struct, field, json
from msgspec.structs import replace

from upstash_middleware.core.cache.http.directives import Staleness
from upstash_middleware.messages import Headers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

# --- Epochs -------------------------------------------------------------------------------------
#
# Every stored response records the epochs that were read before the application was called; a
# purge replaces one of them by a value that was never there before. There is one of everything
# (``A``), one of each URL (``U``), one of each directory and of each rule (``S``), one that changes
# with every purge of any tag (``G``), and one of each tag (``T``).


class Epoch(NamedTuple):
    """An epoch's two parts, both empty if the key is absent.

    An absent epoch equals only an absent one. Its expiry is safe because no entry lives until an
    epoch expires that was set after the entry's epochs were read.
    """

    hard: str = ""
    soft: str = ""

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """Read an epoch from its text."""
        hard, _, soft = text.partition(":")
        return cls(hard, soft)

    def __str__(self) -> str:
        return f"{self.hard}:{self.soft}"


ABSENT = Epoch()
_EPOCH = re.compile(r"[A-Za-z0-9_:-]*")


def epoch_text(value: bytes | None) -> str:
    """Return the epoch at a key as text, empty if there is none.

    What this package has not written becomes a digest: it could be no part of an entry.
    """
    if not value:
        return ""
    text = value.decode("latin-1")
    return text if _EPOCH.fullmatch(text) else blake2b(value, digest_size=16).hexdigest()


class Epochs(Struct, frozen=True):
    """The epochs that apply to one URL, as read at some moment."""

    everything: Epoch = ABSENT
    url: Epoch = ABSENT
    any_tag: str = ""
    """``G`` has no parts: it only says whether tags have to be compared."""
    tags: Mapping[str, Epoch] = field(default_factory=dict)
    scopes: Mapping[str, Epoch] = field(default_factory=dict)
    """The epochs of the URL's directories and of its rule, by their names in keys."""

    @classmethod
    def parse(cls, texts: Sequence[str], tags: Sequence[str], scopes: Sequence[str] = ()) -> Epochs:
        """Read the epochs of everything, a URL, the scopes, any tag, and each of ``tags``."""
        everything, url, *others = texts
        of_scopes = dict(zip(scopes, map(Epoch.parse, others[: len(scopes)]), strict=True))
        any_tag, *last = others[len(scopes) :]
        of_tags = dict(zip(tags, map(Epoch.parse, last), strict=True))
        return cls(Epoch.parse(everything), Epoch.parse(url), any_tag, of_tags, of_scopes)


class Validity(Enum):
    """What the epochs say about a stored response."""

    VALID = auto()
    STALE = auto()
    """Purged softly: it may be used where a stale response may."""
    INVALID = auto()
    UNKNOWN = auto()
    """Some tag was purged, and not all epochs of its tags have been read."""


def validity(recorded: Epochs, current: Epochs) -> Validity:
    """Compare the epochs that a stored response recorded with the current ones."""
    same_tags = recorded.any_tag == current.any_tag
    if (
        same_tags
        and recorded.everything == current.everything
        and recorded.url == current.url
        and recorded.scopes == current.scopes
    ):
        return Validity.VALID  # nothing was purged: nearly always
    if recorded.scopes.keys() != current.scopes.keys():
        return Validity.INVALID  # stored under another rule, whose purges are not known
    pairs = [(recorded.everything, current.everything), (recorded.url, current.url)]
    pairs += [(epoch, current.scopes[scope]) for scope, epoch in recorded.scopes.items()]
    unread = not same_tags and not recorded.tags.keys() <= current.tags.keys()
    if not same_tags and not unread:
        pairs += [(epoch, current.tags[tag]) for tag, epoch in recorded.tags.items()]
    if any(was.hard != now.hard for was, now in pairs):
        return Validity.INVALID
    if unread:
        return Validity.UNKNOWN
    return Validity.STALE if any(was != now for was, now in pairs) else Validity.VALID


# --- Tags ---------------------------------------------------------------------------------------

MAX_TAGS = 128
"""The most tags of one response, with ancestors: every lookup reads the epoch of each."""
MAX_TAG_PARTS = 16
MAX_TAG_BYTES = 1024
_GROUP = "\x1d"
"""The first character of tags that are cache groups: the group separator of ASCII."""


def with_ancestors(tags: Collection[str]) -> tuple[str, ...] | str:
    """Return tags with their colon-ancestors: ``product:7`` counts as ``product`` too.

    Return the reason instead if a tag is invalid or a response may not have so many. A tag can
    contain what a client has sent, so it is checked before it is expanded.
    """
    if len(tags) > MAX_TAGS:
        return f"more than {MAX_TAGS} tags"
    expanded: dict[str, None] = {}
    for tag in tags:
        if (reason := tag_refused(tag)) is not None:
            return reason
        expanded[tag] = None
        colon = tag.find(":", 1)
        while colon > 0:
            expanded[tag[:colon]] = None
            colon = tag.find(":", colon + 1)
    return tuple(expanded) if len(expanded) <= MAX_TAGS else f"more than {MAX_TAGS} tags"


def tag_refused(tag: str) -> str | None:
    """Return why no response can have this tag, None if one can."""
    if tag.startswith(_GROUP):
        return "a tag that begins with a control character"
    try:
        size = len(tag) if len(tag) > MAX_TAG_BYTES else len(tag.encode())
    except UnicodeEncodeError:
        return "a tag that is not valid Unicode"
    if size > MAX_TAG_BYTES:
        return f"a tag of more than {MAX_TAG_BYTES} bytes"
    if tag.count(":") >= MAX_TAG_PARTS:
        return f"a tag of more than {MAX_TAG_PARTS} parts"
    return None


def tag_of_group(origin: str, name: str) -> str:
    """Return the tag that stands for a cache group of an origin (RFC 9875)."""
    return f"{_GROUP}{origin} {name}"


def group_of_tag(tag: str) -> tuple[str, str] | None:
    """Return the origin and name of the cache group that a tag stands for; None for other tags."""
    if not tag.startswith(_GROUP):
        return None
    origin, _, name = tag[1:].partition(" ")
    return origin, name


def split_tags_and_groups(tags: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split tags into the application's tags and the names of cache groups."""
    named, groups = [], []
    for tag in tags:
        group = group_of_tag(tag)
        if group is None:
            named.append(tag)
        else:
            groups.append(group[1])
    return tuple(named), tuple(groups)


# --- What is stored -----------------------------------------------------------------------------

_MAX_BODY_BYTES = 16 * 1024 * 1024
"""Bytes of the largest body. Settings can only lower it, and decompression stops there."""
_WORTH_COMPRESSING = 512
_WORTHWHILE_RATIO = 0.9
# Types whose bodies are compressed already.
_COMPRESSED_TYPES = (
    "image/",
    "audio/",
    "video/",
    "font/woff",
    "application/zip",
    "application/gzip",
)


class Damaged(ValueError):
    """An entry or its body is damaged; it counts as if nothing was stored."""


class StoredResponse(Struct, frozen=True):
    """A stored response, with the data needed to use it."""

    status: int
    headers: Headers
    stored_at: float
    """When its head was received, in seconds since 1970."""
    initial_age: float
    """Its corrected initial age at that time, in seconds (RFC 9111 §4.2.3)."""
    lifetime: float
    """Its freshness lifetime in seconds."""
    stale: Staleness
    packed: bytes
    """The body, compressed if ``compressed`` says so; ``body_of`` returns it as it is sent."""
    length: int
    """Bytes of the body as it is sent."""
    tags: tuple[str, ...]
    """Its tags with all their ancestors."""
    epochs: Epochs
    """Read before the application was called; those of tags in the order of ``tags``."""
    compressed: bool = False
    token: str = ""
    """The token of the lock under which it was rendered."""


class VariantIndex(Struct, frozen=True):
    """The variants of a resource and what selects among them; stored at the resource's key."""

    vary: tuple[str, ...]
    """The union of the fields named by the Vary of its responses, in lower case; Accept-Encoding
    perhaps with the codings of its responses, ``accept-encoding=br,gzip``."""
    tags: tuple[str, ...]
    variants: Mapping[str, int]
    """The ends of the stored variants' keys, and when each expires, in seconds since 1970. If
    several are stored at once, some may be missing."""
    epochs: Epochs
    token: str = ""


Entry = StoredResponse | VariantIndex


def pack(stored: StoredResponse) -> StoredResponse:
    """Return a stored response with its body compressed, if that is worthwhile."""
    kind = (stored.headers.get("content-type") or "").lower()
    encoded = "content-encoding" in stored.headers or kind.startswith(_COMPRESSED_TYPES)
    if encoded or stored.compressed or stored.length < _WORTH_COMPRESSING:
        return stored
    packed = zlib.compress(stored.packed, 1)
    if len(packed) >= stored.length * _WORTHWHILE_RATIO:
        return stored
    return replace(stored, packed=packed, compressed=True)


def opened(stored: StoredResponse) -> StoredResponse:
    """Return a stored response with its body as it is sent. Raises Damaged."""
    return replace(stored, packed=body_of(stored), compressed=False)


def body_of(stored: StoredResponse) -> bytes:
    """Return the body as it is sent.

    Raises Damaged if it does not decompress to the length that was stored.
    """
    if not stored.compressed:
        return stored.packed
    try:
        # One byte more than expected shows a body that is too long; no more is inflated.
        body = zlib.decompressobj().decompress(stored.packed, stored.length + 1)
    except zlib.error:
        raise Damaged from None
    if len(body) != stored.length:
        raise Damaged
    return body


# --- The frame ----------------------------------------------------------------------------------

_RAW = b"\x01"
_TEXT = b"1"
_CHECKSUM = 16


class _ResponseFrame(Struct, array_like=True, tag="response", forbid_unknown_fields=True):
    status: Annotated[int, Meta(ge=100, le=999)]
    fields: list[tuple[str, str]]
    stored_at: float
    initial_age: float
    lifetime: float
    stale: Staleness
    compressed: bool
    length: Annotated[int, Meta(ge=0, le=_MAX_BODY_BYTES)]
    tags: tuple[str, ...]
    token: str
    scopes: tuple[str, ...] = ()  # earlier versions had none


class _IndexFrame(Struct, array_like=True, tag="stub", forbid_unknown_fields=True):
    vary: tuple[str, ...]
    tags: tuple[str, ...]
    variants: dict[str, int]
    token: str
    scopes: tuple[str, ...] = ()


_NOT_STALE = Staleness()
"""One object for the many entries that may not be used stale."""
_encode_head = json.Encoder().encode
_decode_head = json.Decoder(_ResponseFrame | _IndexFrame).decode


def encode(key: str, entry: Entry, *, raw: bool, sealing: Sealing | None = None) -> bytes:
    """Return an entry as bytes for this key: ``raw``, or as text for a pipeline or a script."""
    if raw:
        return _RAW + _epochs_text(entry.epochs) + b"\n" + _payload(key, entry, sealing)
    return b"".join(encode_for_script(key, entry, sealing))


def encode_for_script(
    key: str, entry: Entry, sealing: Sealing | None = None
) -> tuple[bytes, bytes]:
    """Return an entry's text in two parts, between which a script inserts more epochs.

    Each is inserted as ``|`` and the epoch, in the order of the last tags.
    """
    return _TEXT + _epochs_text(entry.epochs), b"\n" + b64encode(_payload(key, entry, sealing))


def decode(key: str, data: bytes | None, sealing: Sealing | None = None) -> Entry | None:
    """Read the entry at a key; None if the bytes are not an entry."""
    if not data or (end := data.find(b"\n")) < 0:
        return None
    payload = memoryview(data)[end + 1 :]  # so that a large body is not copied
    try:
        if data[:1] == _TEXT:
            payload = memoryview(b64decode(payload, validate=True))
        elif data[:1] != _RAW:
            return None
        if sealing is not None:
            content = sealing.open(key, payload)
        else:
            content = payload[_CHECKSUM:]
            if payload[:_CHECKSUM] != _checksum(key, content):
                return None
        body_at = 4 + int.from_bytes(content[:4], "big")
        head = _decode_head(content[4:body_at])
        epochs = data[1:end].decode("latin-1").split("|")
        if isinstance(head, _IndexFrame):
            read = Epochs.parse(epochs, (), head.scopes)
            return VariantIndex(head.vary, head.tags, head.variants, read, head.token)
        return StoredResponse(
            head.status,
            Headers([(_field_name(name), text.encode("latin-1")) for name, text in head.fields]),
            head.stored_at,
            head.initial_age,
            head.lifetime,
            _NOT_STALE if head.stale == _NOT_STALE else head.stale,
            bytes(content[body_at:]),
            head.length,
            head.tags,
            Epochs.parse(epochs, head.tags, head.scopes),
            head.compressed,
            head.token,
        )
    except (ValueError, RecursionError):
        return None


def is_index(beginning: bytes) -> bool | None:
    """Whether an entry is a variant index, by its first bytes; None if it is not an entry."""
    _, _, payload = beginning.partition(b"\n")
    try:
        if beginning[:1] == _TEXT:
            payload = b64decode(payload[: len(payload) // 4 * 4])
    except ValueError:
        return None
    head = payload[_CHECKSUM + 4 :]
    if head.startswith((b'["response"', b'["stub"')):
        return head.startswith(b'["stub"')
    return None


@lru_cache(maxsize=512)
def _field_name(text: str) -> bytes:
    return text.encode("latin-1")  # one object for all entries


def _payload(key: str, entry: Entry, sealing: Sealing | None) -> bytes:
    frame: _ResponseFrame | _IndexFrame
    scopes = tuple(entry.epochs.scopes)
    if isinstance(entry, VariantIndex):
        frame = _IndexFrame(entry.vary, entry.tags, {**entry.variants}, entry.token, scopes)
        body = b""
    else:
        body = entry.packed
        frame = _ResponseFrame(
            entry.status,
            [(name.decode("latin-1"), text.decode("latin-1")) for name, text in entry.headers.raw],
            entry.stored_at,
            entry.initial_age,
            entry.lifetime,
            entry.stale,
            entry.compressed,
            entry.length,
            entry.tags,
            entry.token,
            scopes,
        )
    head = _encode_head(frame)
    content = len(head).to_bytes(4, "big") + head + body
    return _checksum(key, content) + content if sealing is None else sealing.seal(key, content)


def _checksum(key: str, content: bytes | memoryview) -> bytes:
    name = blake2b(key.encode(), digest_size=32).digest()
    return blake2b(content, digest_size=_CHECKSUM, key=name).digest()


def _epochs_text(epochs: Epochs) -> bytes:
    texts = [str(epochs.everything), str(epochs.url), *map(str, epochs.scopes.values())]
    texts += [epochs.any_tag, *map(str, epochs.tags.values())]
    return "|".join(texts).encode("latin-1")


# --- Sealing ------------------------------------------------------------------------------------
#
# A sealed payload is ``ID TAG PAYLOAD`` if it is signed, ``ID NONCE CIPHERTEXT`` if it is
# encrypted. The first key seals, and each opens: a key is rotated by putting a new one first, and
# removing the old one when everything it sealed has expired. The key of an entry is HMAC(key,
# Redis key), so an entry cannot be moved to another place, and random nonces would have to
# collide within one entry.

_ID = 8
_TAG = 32
_NONCE = 12


class Unsealed(ValueError):
    """An entry was sealed under none of the keys, or was changed since."""


class Sealing:
    """Signs payloads with HMAC-SHA256, or encrypts them with AES-256-GCM, and opens them."""

    __slots__ = ("_aes_gcm", "_invalid", "_randomness", "keys")

    def __init__(
        self, keys: Sequence[str], *, encrypt: bool, randomness: Callable[[int], bytes]
    ) -> None:
        """Derive an id and a secret from each key; encryption needs the package cryptography."""
        self._randomness = randomness
        self._aes_gcm: Any = None
        self._invalid: type[Exception] = Unsealed
        if encrypt:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

            self._aes_gcm, self._invalid = AESGCM, InvalidTag
        # One key never serves both uses, and neither part reveals the other or the key.
        use = b"entries, hidden" if encrypt else b"entries, signed"
        derived = [blake2b(key.encode(), digest_size=_ID + 32, person=use).digest() for key in keys]
        self.keys: Mapping[bytes, bytes] = {each[:_ID]: each[_ID:] for each in derived}
        """Secrets by id; the first seals."""

    def seal(self, name: str, payload: bytes) -> bytes:
        """Return a payload as it is stored at this Redis key."""
        id_, secret = next(iter(self.keys.items()))
        own = hmac.digest(secret, name.encode(), "sha256")
        if self._aes_gcm is None:
            return id_ + hmac.digest(own, payload, "sha256") + payload
        nonce = self._randomness(_NONCE)
        sealed: bytes = self._aes_gcm(own).encrypt(nonce, payload, None)
        return id_ + nonce + sealed

    def open(self, name: str, sealed: memoryview) -> memoryview:
        """Return the payload that was sealed for this Redis key. Raises Unsealed."""
        secret = self.keys.get(bytes(sealed[:_ID]))
        if secret is None:
            raise Unsealed
        own, sealed = hmac.digest(secret, name.encode(), "sha256"), sealed[_ID:]
        if self._aes_gcm is None:
            payload = sealed[_TAG:]
            if not hmac.compare_digest(sealed[:_TAG], hmac.digest(own, payload, "sha256")):
                raise Unsealed
            return payload
        try:
            opened = self._aes_gcm(own).decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
        except (self._invalid, ValueError):  # the latter for a truncated nonce
            raise Unsealed from None
        return memoryview(opened)
