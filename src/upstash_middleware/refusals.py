"""Why Upstash refuses what is asked of it: the kinds, and the texts by which they are known.

The texts are Upstash's own (https://upstash.com/docs/redis/troubleshooting) and Redis's. What is
done about a kind is the business of others.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final


class Refusal(Enum):
    """What stands against a call or a command, however often it is sent."""

    TOKEN = "token"  # noqa: S105 - a name, not one
    """The token is wrong, or none came."""
    PERMISSION = "permission"
    """The token is for reading only."""
    QUOTA = "quota"
    """The plan's requests, or its traffic, are used up."""
    FULL = "full"
    """The database holds as much as the plan allows; reading goes on."""
    SIZE = "size"
    """This one request, record or key is larger than the plan allows."""


_TEXTS: Final = (
    (Refusal.TOKEN, r"(WRONGPASS|NOAUTH|Unauthorized)\b"),
    (Refusal.PERMISSION, r"NOPERM\b"),
    (Refusal.FULL, r"OOM\b|ERR DB capacity quota exceeded|ERR max (database|data) size exceeded"),
    (Refusal.SIZE, r"ERR max (request|(single )?record|key) size exceeded"),
    (Refusal.QUOTA, r"ERR max [^\n]{0,80}\bexceeded|ERR [^\n]{0,80}\bquota exceeded"),
)


def refusal_in(text: str) -> Refusal | None:
    """Return why an error text refuses; None if it is about something else."""
    # Compiled when it comes to that, and then remembered by ``re``.
    return next((kind for kind, of in _TEXTS if re.match(of, text, re.IGNORECASE)), None)
