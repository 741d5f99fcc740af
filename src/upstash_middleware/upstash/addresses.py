"""Where a host is: its addresses, and in which order, for how long, each is tried."""

from __future__ import annotations

import socket
import threading
import time
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, Final

from upstash_middleware.errors import NotConnected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Address = tuple[int, Any]
"""A socket's family, and what it connects to."""

Found = list[Address] | OSError | UnicodeError

_SHARED_SECONDS: Final = 1.0
"""For how long a lookup that is under way serves those who come later too."""


class Lookup:
    """Finds the addresses of one host and port.

    Nothing ends a lookup that hangs, so it is made in a thread of its own, which nobody has to
    wait for: neither a call whose time is up nor a process that ends.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._waiting: list[Callable[[Found], object]] = []
        self._begun = 0.0
        self._worked: Address | None = None

    def numeric(self) -> list[Address] | None:
        """Return the address that the host's name is itself, if it is one."""
        try:
            return self._found(socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return None

    def begin(self, tell: Callable[[Found], object]) -> None:
        """Have the thread that looks them up tell them, or the error."""
        with self._lock:
            now = time.monotonic()
            if self._waiting and now - self._begun < _SHARED_SECONDS:
                self._waiting.append(tell)
                return
            self._begun, self._waiting = now, [tell]
            waiting = self._waiting
        try:
            threading.Thread(
                target=self._look_up, args=(waiting,), name="upstash-middleware-dns", daemon=True
            ).start()
        except RuntimeError:  # no thread can be made any more, as the process ends
            self._look_up(waiting)

    def worked(self, address: Address) -> None:
        """Have this one tried first from now on."""
        self._worked = address

    def _look_up(self, waiting: list[Callable[[Found], object]]) -> None:
        found: Found
        try:
            found = self._found()
        except (OSError, UnicodeError) as error:
            found = error  # a UnicodeError is for what cannot be a host's name
        with self._lock:
            told = list(waiting)
            waiting.clear()
        for tell in told:
            tell(found)

    def _found(self, flags: int = 0) -> list[Address]:
        found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=flags)
        addresses = interleaved([(family, address) for family, _, _, _, address in found])
        return sorted(addresses, key=lambda address: address != self._worked)


def addresses_in(found: Found) -> list[Address]:
    """Return what a lookup has found; raises NotConnected for its error."""
    if isinstance(found, list):
        return found
    raise NotConnected(f"no connection to Upstash: its address was not found: {found}") from found


def interleaved(addresses: list[Address]) -> list[Address]:
    """Return the families in turn, so that one that leads nowhere costs one try (RFC 8305 §4)."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    return [each for each in chain(*zip_longest(*families.values())) if each is not None]


def tries(addresses: list[Address]) -> Iterator[tuple[Address, float]]:
    """Yield each with its share of the time that is then left: half of it, and the last all."""
    *others, last = addresses
    yield from ((each, 0.5) for each in others)
    yield last, 1.0
