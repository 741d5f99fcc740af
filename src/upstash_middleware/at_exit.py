"""What is still sent when the interpreter exits: counts that nobody was told to send.

ASGI servers tell of their shutdown; WSGI has no such call, and neither has Django. Nothing is
closed here: the process ends.
"""

from __future__ import annotations

import atexit
from contextlib import suppress
from typing import Protocol
from weakref import WeakSet


class Sends(Protocol):
    """What may have something left to send."""

    def send_counts(self) -> None:
        """Send it within a deadline."""
        ...


_senders: WeakSet[Sends] = WeakSet()


def send_at_exit(sender: Sends) -> None:
    """Have ``send_counts`` called when the interpreter exits, if the object still lives then."""
    _senders.add(sender)


@atexit.register
def _send() -> None:
    for sender in list(_senders):
        with suppress(Exception):  # an exit is no place for tracebacks: these are counts
            sender.send_counts()
