"""Entries on Redis: the format of stored responses and variant indexes, and the epochs they record.

An entry is ``MARK EPOCHS LF PAYLOAD``. The payload consists of a checksum of the key and of
everything after the checksum, the length of a head in JSON, the head, and the body. The mark says
whether the payload is raw or in base64, which is needed in a pipeline or a script. The epochs are
not part of the checksum, because a script may add some; the tags in the head determine their
number. If cache_keys is set, a seal replaces the checksum.

A value that cannot be parsed counts as no entry.
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
# Every stored response records the epochs that were read before the application was called. A purge
# replaces an epoch by a new, unique value. There is one epoch of everything (``A``), one for each
# URL (``U``), one for each directory and each rule (``S``), one that every purge of any tag
# replaces (``G``), and one for each tag (``T``).


class Epoch(NamedTuple):
    """The two parts of an epoch; both are empty if the key is absent.

    An absent epoch equals only another absent one. Epochs can expire, because an entry expires
    before any epoch that was set after the entry's own epochs were read.
    """

    hard: str = ""
    soft: str = ""

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """Parse an epoch."""
        hard, _, soft = text.partition(":")
        return cls(hard, soft)

    def __str__(self) -> str:
        return f"{self.hard}:{self.soft}"


ABSENT = Epoch()
_EPOCH = re.compile(r"[A-Za-z0-9_:-]*")


def epoch_text(value: bytes | None) -> str:
    """Return the epoch at a key as text; empty if there is none.

    A value that this package has not written is hashed, because it could break an entry's format.
    """
    if not value:
        return ""
    text = value.decode("latin-1")
    return text if _EPOCH.fullmatch(text) else blake2b(value, digest_size=16).hexdigest()


class Epochs(Struct, frozen=True):
    """The epochs that apply to a URL, as read at one time."""

    everything: Epoch = ABSENT
    url: Epoch = ABSENT
    any_tag: str = ""
    """``G``, which has no parts. If it is unchanged, the epochs of tags need not be compared."""
    tags: Mapping[str, Epoch] = field(default_factory=dict)
    scopes: Mapping[str, Epoch] = field(default_factory=dict)
    """The epochs of the URL's directories and its rule, by their names in keys."""

    @classmethod
    def parse(cls, texts: Sequence[str], tags: Sequence[str], scopes: Sequence[str] = ()) -> Epochs:
        """Parse the epochs of everything, a URL, the scopes, any tag, and each of ``tags``."""
        everything, url, *others = texts
        of_scopes = dict(zip(scopes, map(Epoch.parse, others[: len(scopes)]), strict=True))
        any_tag, *last = others[len(scopes) :]
        of_tags = dict(zip(tags, map(Epoch.parse, last), strict=True))
        return cls(Epoch.parse(everything), Epoch.parse(url), any_tag, of_tags, of_scopes)


class Validity(Enum):
    """The result of comparing the epochs of a stored response."""

    VALID = auto()
    STALE = auto()
    """Purged softly: it may be used where a stale response may be used."""
    INVALID = auto()
    UNKNOWN = auto()
    """A tag was purged, and not all epochs of the response's tags were read."""


def validity(recorded: Epochs, current: Epochs) -> Validity:
    """Compare the epochs that a stored response recorded with the current ones."""
    same_tags = recorded.any_tag == current.any_tag
    if (
        same_tags
        and recorded.everything == current.everything
        and recorded.url == current.url
        and recorded.scopes == current.scopes
    ):
        return Validity.VALID  # nothing was purged: the usual case
    if recorded.scopes.keys() != current.scopes.keys():
        return Validity.INVALID  # stored under another rule, whose purges were not read
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
"""The maximum number of a response's tags with their ancestors. A lookup reads all epochs."""
MAX_TAG_PARTS = 16
MAX_TAG_BYTES = 1024
_GROUP = "\x1d"
"""The first character of the tags for cache groups: ASCII's group separator."""


def with_ancestors(tags: Collection[str]) -> tuple[str, ...] | str:
    """Return tags and their parent tags: ``product:7`` also has the tag ``product``.

    If a tag is invalid or there are too many, return the reason instead. Tags can contain data
    from clients, so they are checked before they are expanded.
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
    """Return why a response cannot have this tag; None if it can."""
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
    """Return the tag for a cache group of an origin (RFC 9875)."""
    return f"{_GROUP}{origin} {name}"


def group_of_tag(tag: str) -> tuple[str, str] | None:
    """Return the origin and name of a tag's cache group; None for other tags."""
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


# --- Stored responses and variant indexes -------------------------------------------------------

_MAX_BODY_BYTES = 16 * 1024 * 1024
"""The maximum size of a body in bytes. Settings can only lower it. Decompression stops there."""
_WORTH_COMPRESSING = 512
_WORTHWHILE_RATIO = 0.9
# Content types whose bodies are already compressed.
_COMPRESSED_TYPES = (
    "image/",
    "audio/",
    "video/",
    "font/woff",
    "application/zip",
    "application/gzip",
)


class Damaged(ValueError):
    """An entry or its body is damaged. It is treated as a miss."""


class StoredResponse(Struct, frozen=True):
    """A stored response with its metadata."""

    status: int
    headers: Headers
    stored_at: float
    """When the head was received, in seconds since 1970."""
    initial_age: float
    """The corrected initial age at that time, in seconds (RFC 9111 §4.2.3)."""
    lifetime: float
    """The freshness lifetime in seconds."""
    stale: Staleness
    packed: bytes
    """The body, compressed if ``compressed`` is True; see ``body_of``."""
    length: int
    """The length of the uncompressed body in bytes."""
    tags: tuple[str, ...]
    """The tags with all their ancestors."""
    epochs: Epochs
    """The epochs read before the application was called; those of tags in the order of ``tags``."""
    compressed: bool = False
    token: str = ""
    """The token of the lock that was held when the response was made."""


class VariantIndex(Struct, frozen=True):
    """The variants of a resource and the fields that select them; stored at the resource's key."""

    vary: tuple[str, ...]
    """All fields named by the Vary of the resource's responses, in lower case. Accept-Encoding may
    include the codings of the responses: ``accept-encoding=br,gzip``."""
    tags: tuple[str, ...]
    variants: Mapping[str, int]
    """The ends of the stored variants' keys, with their expiry in seconds since 1970. After
    concurrent stores, some may be missing."""
    epochs: Epochs
    token: str = ""


Entry = StoredResponse | VariantIndex


def pack(stored: StoredResponse) -> StoredResponse:
    """Return a stored response with its body compressed, if that saves enough."""
    kind = (stored.headers.get("content-type") or "").lower()
    encoded = "content-encoding" in stored.headers or kind.startswith(_COMPRESSED_TYPES)
    if encoded or stored.compressed or stored.length < _WORTH_COMPRESSING:
        return stored
    packed = zlib.compress(stored.packed, 1)
    if len(packed) >= stored.length * _WORTHWHILE_RATIO:
        return stored
    return replace(stored, packed=packed, compressed=True)


def opened(stored: StoredResponse) -> StoredResponse:
    """Return a stored response with its body uncompressed. Raises Damaged."""
    return replace(stored, packed=body_of(stored), compressed=False)


def body_of(stored: StoredResponse) -> bytes:
    """Return the uncompressed body.

    Raises Damaged if its length differs from the stored length, or if it cannot be decompressed.
    """
    if not stored.compressed:
        return stored.packed
    try:
        # One more byte than expected is enough to detect a body that is too long.
        body = zlib.decompressobj().decompress(stored.packed, stored.length + 1)
    except zlib.error:
        raise Damaged from None
    if len(body) != stored.length:
        raise Damaged
    return body


# --- The format of entries ----------------------------------------------------------------------

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
    scopes: tuple[str, ...] = ()  # missing in earlier versions


class _IndexFrame(Struct, array_like=True, tag="stub", forbid_unknown_fields=True):
    vary: tuple[str, ...]
    tags: tuple[str, ...]
    variants: dict[str, int]
    token: str
    scopes: tuple[str, ...] = ()


_NOT_STALE = Staleness()
"""One shared object, because many entries may not be used stale."""
_encode_head = json.Encoder().encode
_decode_head = json.Decoder(_ResponseFrame | _IndexFrame).decode


def encode(key: str, entry: Entry, *, raw: bool, sealing: Sealing | None = None) -> bytes:
    """Return the bytes of an entry: ``raw``, or as text for a pipeline or a script."""
    if raw:
        return _RAW + _epochs_text(entry.epochs) + b"\n" + _payload(key, entry, sealing)
    return b"".join(encode_for_script(key, entry, sealing))


def encode_for_script(
    key: str, entry: Entry, sealing: Sealing | None = None
) -> tuple[bytes, bytes]:
    """Return an entry's text in two parts, between which a script inserts epochs.

    The script inserts ``|`` and the epoch for each of the last tags, in their order.
    """
    return _TEXT + _epochs_text(entry.epochs), b"\n" + b64encode(_payload(key, entry, sealing))


def decode(key: str, data: bytes | None, sealing: Sealing | None = None) -> Entry | None:
    """Parse the entry at a key; None if the bytes are not an entry."""
    if not data or (end := data.find(b"\n")) < 0:
        return None
    payload = memoryview(data)[end + 1 :]  # does not copy a large body
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
    """Whether an entry is a variant index, judging by its first bytes; None if it is no entry."""
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
    return text.encode("latin-1")  # cached, so that entries share one object


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
# A sealed payload is ``ID TAG PAYLOAD`` if it is signed, and ``ID NONCE CIPHERTEXT`` if it is
# encrypted. The first key seals, all keys open. To rotate keys, put a new one first, and remove the
# old one when all its entries have expired. An entry's own key is HMAC(key, Redis key). An entry
# can therefore not be moved to another Redis key, and random nonces can only collide within one
# Redis key.

_ID = 8
_TAG = 32
_NONCE = 12


class Unsealed(ValueError):
    """An entry was not sealed with any of the keys, or was changed afterwards."""


class Sealing:
    """Signs payloads with HMAC-SHA256 or encrypts them with AES-256-GCM, and opens them."""

    __slots__ = ("_aes_gcm", "_invalid", "_randomness", "keys")

    def __init__(
        self, keys: Sequence[str], *, encrypt: bool, randomness: Callable[[int], bytes]
    ) -> None:
        """Derive an id and a secret from each key. Encryption needs the package cryptography."""
        self._randomness = randomness
        self._aes_gcm: Any = None
        self._invalid: type[Exception] = Unsealed
        if encrypt:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an optional package
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

            self._aes_gcm, self._invalid = AESGCM, InvalidTag
        # Each use has its own derived key. The id reveals neither the secret nor the key.
        use = b"entries, hidden" if encrypt else b"entries, signed"
        derived = [blake2b(key.encode(), digest_size=_ID + 32, person=use).digest() for key in keys]
        self.keys: Mapping[bytes, bytes] = {each[:_ID]: each[_ID:] for each in derived}
        """Secrets by id. The first one seals."""

    def seal(self, name: str, payload: bytes) -> bytes:
        """Sign or encrypt a payload for this Redis key."""
        id_, secret = next(iter(self.keys.items()))
        own = hmac.digest(secret, name.encode(), "sha256")
        if self._aes_gcm is None:
            return id_ + hmac.digest(own, payload, "sha256") + payload
        nonce = self._randomness(_NONCE)
        sealed: bytes = self._aes_gcm(own).encrypt(nonce, payload, None)
        return id_ + nonce + sealed

    def open(self, name: str, sealed: memoryview) -> memoryview:
        """Open a payload that was sealed for this Redis key. Raises Unsealed."""
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
        except (self._invalid, ValueError):  # ValueError for a truncated nonce
            raise Unsealed from None
        return memoryview(opened)
