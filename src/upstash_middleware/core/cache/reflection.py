"""Request fields that can change a response without selecting it.

Frameworks build links and redirects from X-Forwarded-Host and similar fields, and pages may show
the client's address. A response to a forged field must not be served to others (RFC 9111 §7.1):
what such a field says about the URL is part of the cache key, and a client's address, which is
not, is searched for in the response.
"""

from __future__ import annotations

import re
import zlib
from ipaddress import IPv6Address
from typing import TYPE_CHECKING
from urllib.parse import quote

from upstash_middleware.core.cache.keys import normal_query, url_text
from upstash_middleware.core.cache.known_fields import HOST, PAIRS, SCHEME, TARGET
from upstash_middleware.core.identify import parse_address
from upstash_middleware.messages import normal_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import Headers, HTTPRequest

MAX_REFLECTED_BYTES = 8192
MAX_ADDRESSES = 16
_LONGEST_ADDRESSES = 2048
_LARGEST_INFLATED = 8 * 1024 * 1024

# One pair of an element of Forwarded (RFC 7239 §4), and its separator. Ports and brackets are often
# sent without the quotes that they need. No part can match in two ways.
_PAIR = re.compile(
    r"""[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)=("(?:[^"\\]|\\.)*+"|[^ \t",;\\]*+)[ \t]*+([;,]|\Z)"""
)
_EMPTY_ELEMENT = re.compile(r"[ \t]*+(?:,|\Z)")
_OF_CLIENTS = frozenset({"for", "by"})
_OBFUSCATED = re.compile(r"_[A-Za-z0-9._-]{1,64}")


def reflected_fields(headers: Headers, known: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return the name, kind and lines of each field of a request that describes its URL.

    Underscores count as hyphens, as in a WSGI application inside an ASGI one.
    """
    names = headers.names()
    found = sorted(known.keys() & names)
    if "_" in "".join(names):
        found += [name for name in names if "_" in name and name.replace("_", "-") in known]
    return [(name, known[name.replace("_", "-")], "\n".join(headers.lines(name))) for name in found]


def reflected_key(
    request: HTTPRequest, rule: CacheRule, url: str, known: Mapping[str, str]
) -> tuple[str, str]:
    """Return what fields say about a request's URL that differs from the request itself.

    As text for the key, and the reason if the request has to bypass the cache because of them.
    """
    differing = []
    for name, kind, value in reflected_fields(request.headers, known):
        if len(value) > MAX_REFLECTED_BYTES:
            return "", f"{name} of more than {MAX_REFLECTED_BYTES} bytes"
        text: str | None = value
        if kind == PAIRS:
            text = forwarded_of_url(value.replace("\n", ", "))
            if text is None:
                return "", f"{name} cannot be parsed"
        elif kind == TARGET and value.startswith("/"):
            path, _, query = value.partition("?")
            text = url_text(normal_path(path), normal_query(query, rule))
        own = {HOST: request.host, SCHEME: request.scheme, TARGET: url, PAIRS: ""}.get(kind)
        if "\n" in value:  # of several lines, some frameworks read only the first
            differing.append(f"{name}:{value!r}")
        elif text != own and not ((kind == SCHEME or name == "host") and value.lower() == own):
            differing.append(f"{name}:{text}")
    return "\n".join(sorted(differing)), ""


def forwarded_of_url(value: str) -> str | None:
    """Return a Forwarded field without what it says about clients, None if it cannot be parsed.

    Elements keep their places; the text is empty if nothing is left.
    """
    elements = _elements(value)
    if elements is None:
        return None
    kept = [
        ";".join(f"{name}={text}" for name, text in pairs if name not in _OF_CLIENTS)
        for pairs in elements
    ]
    return ", ".join(text or "for=unknown" for text in kept) if any(kept) else ""


def _elements(value: str) -> list[list[tuple[str, str]]] | None:
    elements: list[list[tuple[str, str]]] = []
    pairs: list[tuple[str, str]] = []
    at = 0
    while at < len(value):
        found = _PAIR.match(value, at)
        if found is not None:
            pairs.append((found[1].lower(), found[2]))
        elif (found := _EMPTY_ELEMENT.match(value, at)) is None or pairs:
            return None
        at = found.end()
        if pairs and (found[0][-1:] == "," or at == len(value)):
            elements.append(pairs)
            pairs = []
    return None if pairs else elements


def client_addresses(
    headers: Headers, selecting: Sequence[str], known: Mapping[str, str]
) -> frozenset[str] | str:
    """Return the client addresses in a request's fields, in each form a response may show.

    Return the reason not to store a response if the fields contain anything else, or too many to
    search for. A field of ``selecting`` is part of the key, and may shape the response.
    """
    found: set[str] = set()
    for name in headers.names():
        written = known.get(name.replace("_", "-"))
        if written is None or name in selecting:
            continue
        value = headers.combined(name) or ""
        if len(value) > _LONGEST_ADDRESSES:
            return f"{written} is too long"
        if name == "forwarded":
            pairs = [pair for element in _elements(value) or () for pair in element]
            values = [text for key, text in pairs if key in _OF_CLIENTS]
        else:
            values = value.split(",")
        for text in (each.strip().strip('"').lower() for each in values):
            if not text:
                continue
            address = None if "%" in text else parse_address(text)  # a zone can be any text
            if address is not None:
                # In brackets, or with the dots and port of an IPv4 address.
                bare = text.removeprefix("[").partition("]")[0]
                found |= {str(address), address.exploded, bare, quote(bare, safe="").lower()}
                if ":" in bare:
                    found |= _ipv6_forms(bare)
            elif text == "unknown" or (name == "forwarded" and _OBFUSCATED.fullmatch(text)):
                found.add(text)
            else:
                return f"{written} holds something else than addresses"
        if len(found) > 2 * MAX_ADDRESSES:
            return f"more than {MAX_ADDRESSES} addresses of clients"
    return frozenset(found)


def _ipv6_forms(text: str) -> set[str]:
    # parse_address returns the IPv4 address of a mapped one.
    try:
        address = IPv6Address(text)
    except ValueError:
        return set()
    return {address.compressed, address.exploded}


def shows_any(texts: frozenset[str], headers: Headers, body: bytes) -> str | None:
    """Return why a response may show any of these texts and must not be stored, else None.

    A body in gzip or deflate is searched too; one in another coding is not.
    """
    if not texts:
        return None
    coding = (headers.get("content-encoding") or "").strip().lower()
    if body and coding in {"gzip", "x-gzip", "deflate"}:
        inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            body = inflating.decompress(body, _LARGEST_INFLATED)
        except zlib.error:
            return "a body that cannot be searched for the client's address"
        if inflating.unconsumed_tail:
            return "a body too large to be searched for the client's address"
    searched = b"\n".join([*(value for _, value in headers.raw), body]).lower()
    if any(text.encode("latin-1") in searched for text in texts):
        return "shows the client's address"
    return None
