"""Entries: stored responses and stubs as bytes on Redis, and back; the format and nothing else.

An entry is ``MARK EPOCHS LF PAYLOAD``. The payload is a checksum over the key and all that
follows, the length of a head in JSON, the head, and the body. The mark says whether the payload
stands as it is or in base64, in which an entry travels inside a pipeline or a script. The epochs
are outside of the checksum because a script on the server may have to add some of them; which
tags they belong to, and so how many there must be, the head says. Where the application has set
keys, a seal stands in the checksum's place (``sealing``).

Whatever does not parse is no entry.
"""

from __future__ import annotations

import binascii
import json
import zlib
from base64 import b64decode, b64encode
from hashlib import blake2b
from math import isfinite
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.cache.epochs import Epoch, Epochs
from upstash_middleware.core.cache.freshness import Staleness
from upstash_middleware.messages import Headers
from upstash_middleware.values import field, replace, value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from upstash_middleware.core.cache.sealing import Sealing
    from upstash_middleware.messages import ResponseHead

_RAW = b"\x01"
_TEXT = b"1"
_CHECKSUM = 16
_WORTH_COMPRESSING = 512
_PAYS = 0.9
_LARGEST = 16 * 1024 * 1024
"""Bytes of a body; settings allow less, and no more is inflated whatever an entry says."""
# Types whose bodies are compressed already: packing them again costs time and gains nothing.
_PACKED_TYPES = ("image/", "audio/", "video/", "font/woff", "application/zip", "application/gzip")


class Damaged(ValueError):
    """A stored body does not open; to be taken as if nothing had been stored."""


@value(frozen=True, slots=True)
class StoredResponse:
    """A stored response, and what of its way in is needed to use it."""

    status: int
    headers: Headers
    stored_at: float
    """When its head was received, seconds since 1970."""
    initial_age: float
    """Its corrected initial age at that time, in seconds (RFC 9111 §4.2.3)."""
    lifetime: float
    """Its freshness lifetime in seconds."""
    stale: Staleness
    """How it may be used after that."""
    packed: bytes
    """The body, perhaps compressed; ``body_of`` opens it."""
    length: int
    """The body's length in bytes when opened."""
    tags: tuple[str, ...]
    """Its tags with all their ancestors."""
    epochs: Epochs
    """As read before the application was called, those of tags in the order of ``tags``."""
    compressed: bool = False
    token: str = ""
    """Of the lock under which it was rendered."""
    fields: Headers | None = field(default=None, init=False, repr=False, compare=False)
    """What ``answers`` has worked out of its header fields; of this process, never stored."""
    told: tuple[Any, ResponseHead] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    """The head that ``passage`` has told last, after all that makes it what it is; likewise."""


@value(frozen=True, slots=True)
class Stub:
    """What stands in a resource's place when it has variants: how they are selected."""

    vary: tuple[str, ...]
    """The union of the fields that its responses' Vary have named, in lower case."""
    tags: tuple[str, ...]
    variants: Mapping[str, int]
    """The variants stored, by the ends of their keys, and when each is gone, in seconds since
    1970. Where several are stored at once, some may be missing."""
    epochs: Epochs
    token: str = ""


def pack(stored: StoredResponse) -> StoredResponse:
    """Return a stored response with its body as it is to be kept: compressed if that pays."""
    kind = (stored.headers.get("content-type") or "").lower()
    encoded = "content-encoding" in stored.headers or kind.startswith(_PACKED_TYPES)
    if encoded or stored.compressed or stored.length < _WORTH_COMPRESSING:
        return stored
    packed = zlib.compress(stored.packed, 1)
    pays = len(packed) < stored.length * _PAYS
    return replace(stored, packed=packed, compressed=True) if pays else stored


def opened(stored: StoredResponse) -> StoredResponse:
    """Return a stored response with its body as it is to be sent. Raises Damaged."""
    return replace(stored, packed=body_of(stored), compressed=False)


def body_of(stored: StoredResponse) -> bytes:
    """Return the body.

    Raises Damaged if it does not open to the length that was stored.
    """
    if not stored.compressed:
        return stored.packed
    try:
        # One byte more than there should be shows a body that is too long; no more is inflated.
        body = zlib.decompressobj().decompress(stored.packed, stored.length + 1)
    except zlib.error:
        raise Damaged from None
    if len(body) != stored.length:
        raise Damaged
    return body


def encode(
    key: str, value: StoredResponse | Stub, *, raw: bool, sealing: Sealing | None = None
) -> bytes:
    """Return an entry as bytes for this key: ``raw``, or as text for a pipeline or a script."""
    if raw:
        return _RAW + _epochs_text(value.epochs) + b"\n" + _payload(key, value, sealing)
    return b"".join(encode_for_script(key, value, sealing))


def encode_for_script(
    key: str, value: StoredResponse | Stub, sealing: Sealing | None = None
) -> tuple[bytes, bytes]:
    """Return an entry's text in two parts, between which epochs of its last tags are missing.

    What goes there is ``|`` and the epoch, for each.
    """
    return _TEXT + _epochs_text(value.epochs), b"\n" + b64encode(_payload(key, value, sealing))


def decode(
    key: str, data: bytes | None, sealing: Sealing | None = None
) -> StoredResponse | Stub | None:
    """Read an entry that stood at this key; None for whatever is none."""
    if not data or (end := data.find(b"\n")) < 0:
        return None
    payload = memoryview(data)[end + 1 :]  # of a large body there shall be no copies
    try:
        if data[:1] == _TEXT:
            payload = memoryview(b64decode(payload, validate=True))
        elif data[:1] != _RAW:
            return None
        content = _checked(key, payload) if sealing is None else sealing.open(key, payload)
        return _parse(data[1:end].decode("latin-1"), content)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, binascii.Error):
        return None


def _payload(key: str, value: StoredResponse | Stub, sealing: Sealing | None) -> bytes:
    body = value.packed if isinstance(value, StoredResponse) else b""
    head = json.dumps(_head(value), separators=(",", ":")).encode()
    content = len(head).to_bytes(4, "big") + head + body
    return _checksum(key, content) + content if sealing is None else sealing.seal(key, content)


def _checksum(key: str, content: bytes | memoryview) -> bytes:
    name = blake2b(key.encode(), digest_size=32).digest()
    return blake2b(content, digest_size=_CHECKSUM, key=name).digest()


def _head(value: StoredResponse | Stub) -> list[Any]:
    if isinstance(value, Stub):
        return ["stub", value.vary, value.tags, dict(value.variants), value.token]
    fields = [[name.decode("latin-1"), text.decode("latin-1")] for name, text in value.headers.raw]
    return [
        "response",
        value.status,
        fields,
        value.stored_at,
        value.initial_age,
        value.lifetime,
        [value.stale.while_revalidate, value.stale.if_error, value.stale.forbidden],
        value.compressed,
        value.length,
        value.tags,
        value.token,
    ]


def _checked(key: str, payload: memoryview) -> memoryview:
    """Return what follows the checksum; raises Damaged where that is another's."""
    content = payload[_CHECKSUM:]
    if payload[:_CHECKSUM] != _checksum(key, content):
        raise Damaged
    return content


def _parse(epochs: str, content: memoryview) -> StoredResponse | Stub:
    end = 4 + int.from_bytes(content[:4], "big")
    head = json.loads(str(content[4:end], "utf-8"))
    if head[0] == "stub":
        _, vary, tags, variants, token = head
        _check_texts(*vary, *tags, *variants, token)
        _check_numbers(200, 0, *variants.values())
        return Stub(tuple(vary), tuple(tags), variants, _parse_epochs(epochs, ()), token)
    _, status, fields, stored_at, initial_age, lifetime, stale, compressed, length, tags, token = (
        head
    )
    _check_texts(*tags, token)
    _check_numbers(status, length, stored_at, initial_age, lifetime, *stale)
    return StoredResponse(
        status,
        Headers([(name.encode("latin-1"), text.encode("latin-1")) for name, text in fields]),
        stored_at,
        initial_age,
        lifetime,
        Staleness(*stale),
        bytes(content[end:]),
        length,
        tuple(tags),
        _parse_epochs(epochs, tags),
        compressed,
        token,
    )


def _check_texts(*values: Any) -> None:
    """Raise TypeError for what the checksum lets pass and this package never wrote."""
    if not all(isinstance(value, str) for value in values):
        raise TypeError("not text")


def _check_numbers(status: Any, length: Any, *numbers: Any) -> None:
    """Raise TypeError likewise; ValueError for what a number cannot be here."""
    if type(status) is not int or type(length) is not int:
        raise TypeError("not whole")
    if not 100 <= status <= 999 or not 0 <= length <= _LARGEST or not all(map(isfinite, numbers)):
        raise ValueError("out of bounds")


def _epochs_text(epochs: Epochs) -> bytes:
    known = [str(epochs.everything), str(epochs.url), epochs.any_tag]
    return "|".join(known + [str(epoch) for epoch in epochs.tags.values()]).encode("latin-1")


def _parse_epochs(text: str, tags: tuple[str, ...]) -> Epochs:
    everything, url, any_tag, *values = text.split("|")
    of_tags = {tag: Epoch.of(value) for tag, value in zip(tags, values, strict=True)}
    return Epochs(Epoch.of(everything), Epoch.of(url), any_tag, of_tags)
