"""Signed pickles, for values that ``values.py`` cannot encode, such as model instances.

Loading a pickle can run any code, so an attacker who can write to Redis must not be able to create
one. Pickles are therefore signed, and only those with a valid signature are loaded. Integers are
stored as digits, so that Redis can increment them.
"""

from __future__ import annotations

import hmac
import pickle
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.values import Codec, Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_MARK = b"$pickle."
_DIGEST = 32
_MAX_INTEGER = 1 << 53
_INTEGER = re.compile(rb"-?[0-9]{1,16}")


class SignedPickles(Codec):
    """Encodes and decodes values as pickles with an HMAC-SHA-256."""

    def __init__(self, keys: Callable[[], Sequence[bytes]]) -> None:
        """Create the codec.

        ``keys`` returns the application's current keys. The first signs, all of them verify.
        """
        super().__init__()
        self._keys = keys

    @classmethod
    def under(cls, purpose: bytes, secrets: Callable[[], Iterable[str | bytes]]) -> SignedPickles:
        """Return a codec whose keys are derived from the application's secrets for one purpose."""
        return cls(
            lambda: [
                sha256(
                    purpose + b"\n" + (each.encode() if isinstance(each, str) else each)
                ).digest()
                for each in secrets()
            ]
        )

    def encode(self, value: object, type: Any = None) -> bytes:  # noqa: A002, ARG002 - as in Codec
        """Encode a value; the result is ASCII. Raises the exceptions of pickling."""
        # Not for subclasses, such as bool.
        if value.__class__ is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:
            return b"%d" % value
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return _MARK + b64encode(_digest(self._keys()[0], pickled) + pickled)

    def decode(self, data: bytes | memoryview, type: Any = None) -> Any:  # noqa: A002, ARG002 - as above
        """Decode a value. Raises Unreadable, also for an invalid signature."""
        data = bytes(data)
        if _INTEGER.fullmatch(data):
            return int(data)
        if not data.startswith(_MARK):
            raise Unreadable("the value is not a signed pickle")
        try:
            signed = b64decode(data[len(_MARK) :], validate=True)
        except ValueError as error:
            raise Unreadable(f"the value is not a signed pickle: {error}") from error
        digest, pickled = signed[:_DIGEST], signed[_DIGEST:]
        if not any(hmac.compare_digest(digest, _digest(key, pickled)) for key in self._keys()):
            raise Unreadable("the pickle was not signed with any of the application's keys")
        try:
            return pickle.loads(pickled)  # noqa: S301 - the application's own
        except Exception as error:  # the class was removed, or its arguments have changed
            raise Unreadable(f"the pickle can no longer be loaded: {error}") from error


def _digest(key: bytes, pickled: bytes) -> bytes:
    return hmac.digest(key, pickled, "sha256")
