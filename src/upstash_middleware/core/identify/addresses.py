"""The client's address: from the connection, or from a header that a trusted proxy has written.

A forwarded header is read only as far as it was told to be trusted, and always from its right
end, where the nearest proxy has written; whatever stands further left may be the client's own
invention (RFC 7239 §8.1).
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from upstash_middleware.core.identify.identifier import Identifier
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.messages import Request

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([^\]]*)\](?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Platform:
    """Where a platform's own front writes the client's address."""

    header: str
    hops: int
    """Which entry counts, from the right; 1 is the last."""


PLATFORMS = {
    # Each replaces what the client sent in that header.
    "vercel": Platform("x-real-ip", 1),
    "cloudflare": Platform("cf-connecting-ip", 1),
    "fly": Platform("fly-client-ip", 1),
    "render": Platform("cf-connecting-ip", 1),  # its front is Cloudflare's
    # Each appends the address that it saw, so only the last entry is its own.
    # Not so behind an edge-optimised REST API, which appends CloudFront's address too, nor behind
    # a function URL, which may hand on the client's own entry: there the event tells the source.
    "aws": Platform("x-forwarded-for", 1),  # load balancers, HTTP APIs, regional REST APIs
    "heroku": Platform("x-forwarded-for", 1),
    "google-cloud-run": Platform("x-forwarded-for", 1),
    # Behind its external load balancer, which appends the client's address and its own.
    "google-cloud-load-balancer": Platform("x-forwarded-for", 2),
}
"""Presets of ``client_ip(platform=…)``, good where no request can go round the platform's front."""


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The extractor that ``client_ip`` makes."""

    header: str | None
    hops: int
    networks: tuple[Network, ...]
    ipv6_prefix: int

    def __call__(self, request: Request) -> Identifier | None:
        """Return the client's address as an identifier, the peer's where none is trusted."""
        if self.header is None:
            return _of_text(request.peer or "", self.ipv6_prefix)
        address = self.address(request)
        return None if address is None else of_address(address, self.ipv6_prefix)

    def address(self, request: Request) -> Address | None:
        """Return the client's address, or None if not even the peer's is one."""
        peer = parse_address(request.peer or "")
        if self.header is None:
            return peer
        chain = _chain(self.header, request)
        if self.networks:
            return _first_untrusted(chain, peer, self.networks)
        for entry in chain[-self.hops :] if len(chain) >= self.hops else ():
            if address := parse_address(entry):
                return address
        return peer


def client_ip(
    *,
    trusted_hops: int = 0,
    trusted: Iterable[str] = (),
    platform: str | None = None,
    header: str | None = None,
    ipv6_prefix: int = 64,
) -> ClientAddress:
    """Return the extractor of the client's address; by itself, the address of the connection.

    Behind proxies say one of: ``trusted_hops``, how many stand in front of the application;
    ``trusted``, their networks (``"10.0.0.0/8"``); ``platform``, a name of ``PLATFORMS``.
    ``header`` is where they write: ``x-forwarded-for`` unless it says ``forwarded`` (RFC 7239)
    or another; a list is read from its right end. An IPv6 client counts by its first
    ``ipv6_prefix`` bits, for it can choose the others. Raises ConfigurationError.
    """
    networks = tuple(_network(text) for text in trusted)
    if sum((bool(trusted_hops), bool(networks), platform is not None)) > 1:
        raise ConfigurationError(
            "client_ip: give one of trusted_hops, trusted and platform, not several"
        )
    if not 0 <= trusted_hops <= 32 or not 16 <= ipv6_prefix <= 128:
        raise ConfigurationError(
            f"client_ip: trusted_hops={trusted_hops!r} should be from 0 to 32, "
            f"ipv6_prefix={ipv6_prefix!r} from 16 to 128"
        )
    if platform is not None:
        preset = _platform(platform)
        return ClientAddress(preset.header, preset.hops, (), ipv6_prefix)
    if header is not None and not (trusted_hops or networks):
        raise ConfigurationError(
            f"client_ip: header={header!r} is trusted from nobody; say who writes it, with "
            "trusted_hops=1 or trusted=('10.0.0.0/8',)"
        )
    if not (trusted_hops or networks):
        return ClientAddress(None, 0, (), ipv6_prefix)
    return ClientAddress((header or "x-forwarded-for").lower(), trusted_hops, networks, ipv6_prefix)


def peer_address(request: Request, ipv6_prefix: int = 64) -> Identifier | None:
    """Return the other end of the connection as an identifier; None where it is not known."""
    if not request.peer:
        return None
    address = parse_address(request.peer)
    return Identifier("peer", request.peer) if address is None else of_address(address, ipv6_prefix)


def of_address(address: Address, ipv6_prefix: int) -> Identifier:
    """Return an address as an identifier: an IPv6 one stands for its whole network."""
    if address.version == 4 or ipv6_prefix == 128:
        return Identifier("ip", str(address))
    return Identifier("ip", str(ipaddress.ip_network((address, ipv6_prefix), strict=False)))


@lru_cache(maxsize=1024)
def _of_text(text: str, ipv6_prefix: int) -> Identifier | None:
    address = parse_address(text)
    return None if address is None else of_address(address, ipv6_prefix)


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """Parse an address as proxies write it: with a port, in brackets or quotes, mapped, zoned.

    Returns None for what is none: ``unknown``, an obfuscated name, anything else.
    """
    text = text.strip().strip('"')
    if len(text) > 64:
        return None
    if found := _WITH_PORT.fullmatch(text):
        text = found[1] or found[2] or ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _chain(header: str, request: Request) -> list[str]:
    value = request.headers.combined(header)
    if value is None:
        return []
    if header != "forwarded":
        return value.split(",")
    return [_forwarded_for(element) for element in _split_from_right(value, ",")]


def _forwarded_for(element: str) -> str:
    """Return who an element of Forwarded is for; it keeps its place if it does not tell."""
    for pair in _split_from_right(element, ";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value
    return "unknown"


def _split_from_right(text: str, separator: str) -> list[str]:
    """Split outside of quoted strings (RFC 9110 §5.6.4), reading them from the right.

    What a client has left open on the left then swallows nothing that a proxy has appended.
    """
    parts, end, quoted = [], len(text), False
    for index in range(len(text) - 1, -1, -1):
        if text[index] == '"' and not _is_escaped(text, index):
            quoted = not quoted
        elif text[index] == separator and not quoted:
            parts.append(text[index + 1 : end])
            end = index
    return [*parts, text[:end]][::-1]


def _is_escaped(text: str, index: int) -> bool:
    start = index
    while start and text[start - 1] == "\\":
        start -= 1
    return (index - start) % 2 == 1


def _first_untrusted(
    chain: list[str], peer: Address | None, networks: tuple[Network, ...]
) -> Address | None:
    """Walk from the peer to the left as long as each address is a trusted proxy's."""
    found = peer
    for entry in reversed(chain):
        # A peer without an address is a Unix socket: only a proxy of this machine is behind it.
        if found is not None and not any(found in network for network in networks):
            break
        address = parse_address(entry)
        if address is None:
            break
        found = address
    return found


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigurationError(
            f"client_ip: trusted network {text!r}: {error}; write for instance '10.0.0.0/8'"
        ) from None


def _platform(name: str) -> Platform:
    if name not in PLATFORMS:
        known = ", ".join(PLATFORMS)
        raise ConfigurationError(f"client_ip: no platform is called {name!r}; known: {known}")
    return PLATFORMS[name]
