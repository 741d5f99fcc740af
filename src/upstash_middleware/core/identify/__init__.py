"""Identifiers: whose quota a request uses up. The public names of this part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from upstash_middleware.core.identify.addresses import PLATFORMS, client_ip, peer_address
from upstash_middleware.core.identify.fields import cookie, header, query
from upstash_middleware.core.identify.identifier import Extractor, Identifier, escape, key_text
from upstash_middleware.core.identify.lists import IdentityList, identity_list
from upstash_middleware.core.identify.several import (
    AnyExtractor,
    combine,
    extract,
    first_of,
    hashed,
    is_extractor,
)

if TYPE_CHECKING:
    from upstash_middleware.core.identify.claims import jwt_claim

__all__ = [
    "PLATFORMS",
    "AnyExtractor",
    "Extractor",
    "Identifier",
    "IdentityList",
    "client_ip",
    "combine",
    "cookie",
    "escape",
    "extract",
    "first_of",
    "hashed",
    "header",
    "identity_list",
    "is_extractor",
    "jwt_claim",
    "key_text",
    "peer_address",
    "query",
]


def __getattr__(name: str) -> Any:
    """Import what few applications use when it is asked for."""
    if name != "jwt_claim":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from upstash_middleware.core.identify.claims import jwt_claim  # noqa: PLC0415

    return jwt_claim
