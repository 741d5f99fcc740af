"""The deny list that the JavaScript SDK keeps on Redis: the set ``PREFIX:denyList:all``.

It is asked about along with the limits. Members are identifiers, addresses and user agents, bare.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from upstash_middleware.core.effects import Command
from upstash_middleware.core.identify import client_ip
from upstash_middleware.core.identify.addresses import ClientAddress
from upstash_middleware.core.identify.several import parts_of
from upstash_middleware.core.ratelimit.compiled import bare_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.core.effects import Reply
    from upstash_middleware.core.identify import AnyExtractor
    from upstash_middleware.core.ratelimit.asking import Ask, Settled
    from upstash_middleware.core.ratelimit.server_clock import ServerClock
    from upstash_middleware.messages import Request

REMEMBERED_FOR = 60.0
"""Seconds for which this process knows who was on the list."""
MOST = 1000
_LONGEST = 512
"""Characters of a member; no longer one is asked about."""


class DenyList:
    """Knows who was on the list a short while ago; safe under threads.

    ``address`` finds a client's address, where it is not the identifier.
    """

    def __init__(self, prefix: str, time: ServerClock, address: ClientAddress) -> None:
        self._key = f"{prefix}:denyList:all"
        self._time = time
        self._address = address
        self._denied: OrderedDict[str, float] = OrderedDict()
        self._failed = False
        self._lock = threading.Lock()

    def is_first_failure(self) -> bool:
        """Whether the list could be read until now; to be said once."""
        first, self._failed = not self._failed, True
        return first

    def members(self, asks: Sequence[Ask | Settled], request: Request) -> list[str]:
        """Return what the list may hold of a request: identifiers, address and user agent."""
        members = [bare_value(ask.identifier) for ask in asks]
        if (address := self._address.address(request)) is not None:
            members.append(str(address))
        if agent := request.headers.get("user-agent"):
            members.append(agent)
        return [member for member in dict.fromkeys(members) if 0 < len(member) <= _LONGEST]

    def known(self, members: Sequence[str]) -> bool:
        """Whether one of these is known to be on the list."""
        now = self._time.monotonic()
        return any(self._denied.get(member, 0.0) > now for member in members)

    def command(self, members: Sequence[str]) -> Command:
        """Return what asks which of these are on the list."""
        return Command(("SMISMEMBER", self._key, *members), reads_only=True)

    def learn(self, members: Sequence[str], reply: Reply) -> bool:
        """Take the answer; return whether one of them is on the list."""
        flags = reply if isinstance(reply, list) else []
        listed = [member for member, flag in zip(members, flags, strict=False) if flag == 1]
        until = self._time.monotonic() + REMEMBERED_FOR
        with self._lock:
            for member in listed:
                self._denied[member] = until
                self._denied.move_to_end(member)
            while len(self._denied) > MOST:
                self._denied.popitem(last=False)
        return bool(listed)


def address_for(extractors: Iterable[AnyExtractor]) -> ClientAddress:
    """Return what finds the clients' addresses in an application whose rules identify by these.

    The first that knows which proxies stand in front, for they do so for all rules; if none
    does, the connection tells.
    """
    for part in (part for extractor in extractors for part in parts_of(extractor)):
        if isinstance(part, ClientAddress) and part.header is not None:
            return part
    return client_ip()
