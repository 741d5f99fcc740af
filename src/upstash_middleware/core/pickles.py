"""Values as signed pickles, for what has no form in ``values.py``, such as model instances.

Whoever can write a pickle can run code where it is loaded. So each is signed, and nothing is loaded
whose signature is not the application's. Integers stay their digits, so that Redis can count with
them.
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
    """Encodes and decodes values as pickles under an HMAC-SHA-256."""

    def __init__(self, keys: Callable[[], Sequence[bytes]]) -> None:
        """Create the codec.

        ``keys`` returns the application's current keys: the first signs, all of them verify.
        """
        super().__init__()
        self._keys = keys

    @classmethod
    def under(cls, purpose: bytes, secrets: Callable[[], Iterable[str | bytes]]) -> SignedPickles:
        """Return one whose keys are derived from the application's secrets for one purpose."""
        return cls(
            lambda: [
                sha256(
                    purpose + b"\n" + (each.encode() if isinstance(each, str) else each)
                ).digest()
                for each in secrets()
            ]
        )

    def encode(self, value: object, type: Any = None) -> bytes:  # noqa: A002, ARG002 - as in Codec
        """Return a value as bytes, which are text. Raises what pickling it raises."""
        # Not a subclass, such as bool.
        if value.__class__ is int and -_MAX_INTEGER <= value <= _MAX_INTEGER:
            return b"%d" % value
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return _MARK + b64encode(_digest(self._keys()[0], pickled) + pickled)

    def decode(self, data: bytes | memoryview, type: Any = None) -> Any:  # noqa: A002, ARG002 - as above
        """Return the value of these bytes. Raises Unreadable, also for a wrong signature."""
        data = bytes(data)
        if _INTEGER.fullmatch(data):
            return int(data)
        if not data.startswith(_MARK):
            raise Unreadable("no signed pickle")
        try:
            signed = b64decode(data[len(_MARK) :], validate=True)
        except ValueError as error:
            raise Unreadable(f"no signed pickle: {error}") from error
        digest, pickled = signed[:_DIGEST], signed[_DIGEST:]
        if not any(hmac.compare_digest(digest, _digest(key, pickled)) for key in self._keys()):
            raise Unreadable("a pickle that none of the application's keys has signed")
        try:
            return pickle.loads(pickled)  # noqa: S301 - the application's own
        except Exception as error:  # a class that is no more, or takes other arguments
            raise Unreadable(f"a pickle that cannot be loaded any more: {error}") from error


def _digest(key: bytes, pickled: bytes) -> bytes:
    return hmac.digest(key, pickled, "sha256")
