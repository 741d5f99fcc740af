"""The exceptions of this package, and nothing else.

UpstashMiddlewareError
├── ConfigurationError            what the application set is wrong; raised at start
│   └── MissingCredentials        no URL or token; raised when they are first needed
└── UpstashError                  what Upstash, or the way to it, did
    ├── NotConnected              no connection was made: the server has seen nothing
    ├── ConnectionLost            lost on the way: the server may have carried it out
    ├── DeadlineExceeded          the time for the whole call ran out: likewise
    ├── CircuitOpen               not asked at all, after too many calls had failed
    ├── UnexpectedAnswer          not what Upstash answers: HTML, truncated, not JSON
    ├── Refused                   the token or the quota was refused: the server did nothing
    └── CommandError              one command failed; also a value, in a pipeline's replies
"""

from __future__ import annotations

from upstash_middleware.refusals import Refusal, refusal_in


class UpstashMiddlewareError(Exception):
    """Base of every exception that this package raises."""


class ConfigurationError(UpstashMiddlewareError, ValueError):
    """A setting is wrong; the message names it, its value, and what would be right."""


class MissingCredentials(ConfigurationError):
    """Neither settings nor environment name the database's URL and token."""


class UpstashError(UpstashMiddlewareError):
    """Something between this process and the database went wrong.

    A flow that awaits a command meets it there and settles it by its rule's policy; it never
    reaches the application.
    """


class NotConnected(UpstashError):
    """No connection was made, so the server has seen nothing; sending again is safe."""


class ConnectionLost(UpstashError):
    """The connection broke after the call was sent; it may or may not have been carried out."""


class DeadlineExceeded(UpstashError):
    """The call's total time ran out; it may or may not have been carried out."""


class CircuitOpen(UpstashError):
    """Nothing was sent: too many of the latest calls had failed or were slow.

    Raised within microseconds. Now and then one call is let through to see whether Upstash has
    recovered.
    """


class UnexpectedAnswer(UpstashError):
    """The answer is not one that Upstash gives: HTML from a proxy, truncated, not JSON."""


class Refused(UpstashError):
    """The whole call was refused: a wrong token, no permission, a quota used up."""

    @property
    def kind(self) -> Refusal:
        """What stands against it."""
        return refusal_in(str(self)) or Refusal.TOKEN  # a bare status says no more than 401


class CommandError(UpstashError):
    """One command failed on the server, for instance ``WRONGTYPE Operation against a key …``.

    In the replies of a pipeline it stands as a value in the failed command's place.
    """

    @property
    def code(self) -> str:
        """The first word of the message: ``ERR``, ``WRONGTYPE``, ``NOSCRIPT`` …"""
        return str(self).split(" ", 1)[0]
