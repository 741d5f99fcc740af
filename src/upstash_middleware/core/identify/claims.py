"""Identifiers from JSON Web Tokens, of which only verified ones count.

Verifying is the application's: it knows the keys, and has a library for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from upstash_middleware.core.effects import call
from upstash_middleware.core.identify.identifier import Finder, Identifier
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.messages import Request

Verify = Callable[[str], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class JwtClaim(Finder):
    """A claim of a verified token; made by ``jwt_claim``."""

    claim: str
    verify: Verify
    header: str

    async def find(self, request: Request) -> Identifier | None:
        """Return the claim as a secret identifier; None without a token that verifies."""
        token = _token(request.headers.get(self.header))
        if token is None:
            return None
        try:
            claims = await call(self.verify, token)
        except Exception:  # noqa: BLE001 - every library raises its own for a token that is false
            return None
        value = claims.get(self.claim)
        return None if value in {None, ""} else Identifier(f"jwt.{self.claim}", str(value), True)


def jwt_claim(claim: str, verify: Verify, *, header: str = "Authorization") -> JwtClaim:
    """Identify by a claim, ``"sub"`` for instance, of the bearer token in a header field.

    ``verify`` takes the token, verifies it, and answers its claims or raises; sync or async:
    ``lambda token: jwt.decode(token, key, algorithms=["RS256"])`` with PyJWT. A request whose
    token does not verify has no such identity. Raises ConfigurationError.
    """
    given: object = verify
    if not callable(given) or not claim:
        raise ConfigurationError(
            f"jwt_claim({claim!r}, {verify!r}): give the name of a claim, and a function that "
            "verifies a token and answers its claims"
        )
    return JwtClaim(claim, verify, header.lower())


def _token(value: str | None) -> str | None:
    """Return the token of ``Bearer TOKEN`` (RFC 6750 §2.1), or of a field that holds it bare."""
    scheme, _, token = (value or "").strip().rpartition(" ")
    return token if token and scheme.strip().lower() in {"", "bearer"} else None
