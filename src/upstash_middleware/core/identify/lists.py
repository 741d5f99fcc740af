"""Lists of identities and networks that are let through, or turned away, by name."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from upstash_middleware.errors import ConfigurationError
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from upstash_middleware.core.identify.addresses import Network
    from upstash_middleware.core.identify.identifier import Identifier


@dataclass(frozen=True, slots=True)
class IdentityList:
    """Who is on a list."""

    networks: tuple[Network, ...] = ()
    identities: frozenset[tuple[str, str]] = frozenset()
    """Kind and value."""

    def __bool__(self) -> bool:
        return bool(self.networks or self.identities)

    def __contains__(self, identifier: Identifier) -> bool:
        if self.identities and (identifier.kind, identifier.value) in self.identities:
            return True
        if identifier.kind != "ip" or not self.networks:
            return False
        # An IPv6 client stands for a network, which must lie in the listed one as a whole.
        client = ipaddress.ip_network(identifier.value)
        return any(_within(client, network) for network in self.networks)


def identity_list(entries: Iterable[str]) -> IdentityList:
    """Parse a list.

    An entry is an address or network (``203.0.113.0/24``), an identity as ``KIND=VALUE``
    (``header.x-api-key=abc``), or what an extractor of your own answers (``alice``).
    Raises ConfigurationError.
    """
    given: object = entries
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{entries!r} should be a sequence such as ('203.0.113.0/24',)")
    networks, identities = [], set()
    for entry in given:
        if not isinstance(entry, str) or not entry:
            raise ConfigurationError(f"{entry!r} should be a network or an identity, as text")
        try:
            networks.append(ipaddress.ip_network(entry))
        except ValueError:
            identities.add(_identity(entry))
    return IdentityList(tuple(networks), frozenset(identities))


_MISTYPED = re.compile(r"[0-9]+(\.[0-9]+)+")


def _identity(entry: str) -> tuple[str, str]:
    kind, equals, value = entry.partition("=")
    if not equals:
        if "/" in entry or _MISTYPED.fullmatch(entry):
            raise ConfigurationError(f"{entry!r} is no network; write for instance '10.0.0.0/8'")
        return ("id", entry)
    return (kind, value)


def _within(client: Network, network: Network) -> bool:
    if isinstance(client, ipaddress.IPv4Network):
        return isinstance(network, ipaddress.IPv4Network) and client.subnet_of(network)
    return isinstance(network, ipaddress.IPv6Network) and client.subnet_of(network)
