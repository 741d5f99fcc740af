"""Identifiers: whose quota a request uses up. The public names of this part."""

from upstash_middleware.core.identify.addresses import PLATFORMS, client_ip, peer_address
from upstash_middleware.core.identify.claims import jwt_claim
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
