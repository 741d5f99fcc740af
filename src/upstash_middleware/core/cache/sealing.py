"""Sealing: entries signed or encrypted under keys that only the application holds; bytes alone.

A sealed payload is ``ID TAG PAYLOAD``, where it is signed, or ``ID NONCE CIPHERTEXT``, where it
is encrypted. The first key seals, each opens: so a key is changed by putting a new one before it,
and leaving the old one out once what it sealed has expired. For each entry's Redis key there is a
key of its own, HMAC(key, Redis key): what is sealed for one place opens at no other, and a random
nonce would have to meet another one of the same entry's.

Whatever does not open under one of the keys, in the way that is set, is Unsealed.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from typing import TYPE_CHECKING, Protocol

from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ID = 8
_TAG = 32
_NONCE = 12


class Unsealed(ValueError):
    """What stands at an entry's key was sealed under none of the keys, or was changed since."""


@dataclass(frozen=True, slots=True)
class Sealing:
    """Seals payloads and opens them."""

    first: _Key
    keys: Mapping[bytes, _Key]
    """Those that open, by their ids."""

    @classmethod
    def under(
        cls, keys: Sequence[str], *, encrypt: bool, randomness: Callable[[int], bytes]
    ) -> Sealing | None:
        """Make one of the application's keys, None of none.

        ``encrypt`` has payloads encrypted with AES-256-GCM, which takes the package
        ``cryptography``; otherwise they are signed with HMAC-SHA256. The two have nothing in
        common: what was signed does not open where payloads are to be encrypted.
        """
        if not keys:
            return None
        made = [_encrypting(key, randomness) if encrypt else _signing(key) for key in keys]
        return cls(made[0], {key.id: key for key in reversed(made)})

    def seal(self, name: str, payload: bytes) -> bytes:
        """Return a payload as it is to stand at this Redis key."""
        return self.first.id + self.first.seal(name.encode(), payload)

    def open(self, name: str, sealed: memoryview) -> memoryview:
        """Return the payload that was sealed for this Redis key. Raises Unsealed."""
        key = self.keys.get(bytes(sealed[:_ID]))
        if key is None:
            raise Unsealed
        return key.open(name.encode(), sealed[_ID:])


class _Key(Protocol):
    """One key in one use of it."""

    @property
    def id(self) -> bytes: ...

    def seal(self, name: bytes, payload: bytes) -> bytes: ...

    def open(self, name: bytes, sealed: memoryview) -> memoryview: ...


@dataclass(frozen=True, slots=True)
class _Signing:
    """HMAC-SHA256 over the payload, which stays readable."""

    id: bytes
    secret: bytes

    def seal(self, name: bytes, payload: bytes) -> bytes:
        return self._tag(name, payload) + payload

    def open(self, name: bytes, sealed: memoryview) -> memoryview:
        payload = sealed[_TAG:]
        if not hmac.compare_digest(sealed[:_TAG], self._tag(name, payload)):
            raise Unsealed
        return payload

    def _tag(self, name: bytes, payload: bytes | memoryview) -> bytes:
        return hmac.digest(_of_entry(self.secret, name), payload, "sha256")


@dataclass(frozen=True, slots=True)
class _Encrypting:
    """AES-256-GCM; ``cipher`` makes one of a key."""

    id: bytes
    secret: bytes
    cipher: type
    invalid: type[Exception]
    randomness: Callable[[int], bytes]

    def seal(self, name: bytes, payload: bytes) -> bytes:
        nonce = self.randomness(_NONCE)
        sealed: bytes = self.cipher(_of_entry(self.secret, name)).encrypt(nonce, payload, None)
        return nonce + sealed

    def open(self, name: bytes, sealed: memoryview) -> memoryview:
        cipher = self.cipher(_of_entry(self.secret, name))
        try:
            return memoryview(cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], None))
        except (self.invalid, ValueError):  # the latter for a nonce that is cut
            raise Unsealed from None


def _signing(key: str) -> _Key:
    return _Signing(*_derived(key, b"entries, signed"))


def _encrypting(key: str, randomness: Callable[[int], bytes]) -> _Key:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return _Encrypting(*_derived(key, b"entries, hidden"), AESGCM, InvalidTag, randomness)


def _derived(key: str, use: bytes) -> tuple[bytes, bytes]:
    """Return an id and a secret for one use of a key; neither tells of the other or of the key."""
    made = blake2b(key.encode(), digest_size=_ID + 32, person=use).digest()
    return made[:_ID], made[_ID:]


def _of_entry(secret: bytes, name: bytes) -> bytes:
    return hmac.digest(secret, name, "sha256")
