"""The exit codes, and which one an error has; with the words that help.

The table in docs/command-line.md is this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from upstash_middleware.errors import (
    CommandError,
    ConfigurationError,
    ConnectionLost,
    DeadlineExceeded,
    MissingCredentials,
    NotConnected,
    Refused,
    UpstashError,
)
from upstash_middleware.refusals import Refusal, refusal_in


class Exit(IntEnum):
    """What a script reads of a command."""

    DONE = 0
    """Carried out; or the answer is yes: allowed, a hit, no mistake found."""
    NO = 1
    """The answer is no: denied, a miss, mistakes found."""
    USAGE = 2
    """The command line itself is wrong."""
    CONFIGURATION = 3
    """The application, a setting or the credentials are missing or wrong."""
    UNREACHABLE = 4
    """Upstash could not be reached, or did not answer as it should."""
    REFUSED = 5
    """Upstash refused: the token, its permission, the quota."""


class UsageError(Exception):
    """What was asked on the command line cannot be meant; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is told."""

    code: Exit
    kind: str
    message: str
    hint: str = ""


_REMEDIES = {
    Refusal.TOKEN: "copy the REST token anew from the database's page in the Upstash console",
    Refusal.PERMISSION: "the token may only read; purging, resetting and scanning take the "
    "database's standard token",
    Refusal.QUOTA: "the plan's requests are used up; raise the plan or the budget in the console",
    Refusal.FULL: "the database is full; raise its size in the console",
    Refusal.SIZE: "this is larger than the plan takes",
}
_UNREACHABLE: dict[type[Exception], str] = {
    NotConnected: "is UPSTASH_REDIS_REST_URL right, and this machine online? "
    "`upstash-middleware local` serves a database on this machine",
    ConnectionLost: "it may or may not have been carried out",
    DeadlineExceeded: "it may or may not have been carried out; `upstash-middleware ping` tells "
    "how long calls take from here",
}


def failure_of(error: Exception) -> Failure:
    """Return how an error that a command may end with is told."""
    match error:
        case UsageError():
            return Failure(Exit.USAGE, "usage", str(error))
        case MissingCredentials():
            hint = "`upstash-middleware local` serves a database on this machine and prints both"
            return Failure(Exit.CONFIGURATION, "credentials", str(error), hint)
        case ConfigurationError():
            return Failure(Exit.CONFIGURATION, "configuration", str(error))
        case Refused():
            return Failure(Exit.REFUSED, "refused", str(error), _REMEDIES[error.kind])
        case CommandError() if refusal := refusal_in(str(error)):
            return Failure(Exit.REFUSED, "refused", str(error), _REMEDIES[refusal])
        case _:
            return Failure(
                Exit.UNREACHABLE, "upstash", str(error), _UNREACHABLE.get(type(error), "")
            )


EXPECTED = (UsageError, ConfigurationError, UpstashError)
"""What is told in words; all else is a fault of this program's and shows its traceback."""
