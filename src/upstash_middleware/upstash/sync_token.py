"""Read-your-writes on replicated databases: the token that orders calls. No I/O.

Upstash answers with an ``Upstash-Sync-Token``; sent back, it makes a replica wait until it has
seen what that answer's call wrote.
"""

from __future__ import annotations

import itertools
import re
from typing import Final

from upstash_middleware.upstash.process import ForkSafeLock

_SENDABLE: Final = re.compile(r"[!-~]{1,1024}")

_keeping = ForkSafeLock()


class SyncToken:
    """The token of the latest-sent call that has answered; one for all clients of a database."""

    __slots__ = ("_latest", "_numbers", "headers")

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._latest = 0
        self.headers: tuple[tuple[str, str], ...] = ()
        """What the next call is to send: nothing until a token has come."""

    def number_call(self) -> int:
        """Return this call's place in the order of sending."""
        return next(self._numbers)

    def keep(self, number: int, token: str | None) -> None:
        """Keep the token that call ``number`` was answered with, if no later one has answered.

        What could not be sent back as a header's value is no token.
        """
        if token is None or not _SENDABLE.fullmatch(token):
            return
        with _keeping:
            if number > self._latest:
                self._latest = number
                self.headers = (("Upstash-Sync-Token", token),)
