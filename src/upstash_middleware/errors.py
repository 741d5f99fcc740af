"""The exceptions of this package, and how they name a setting.

UpstashMiddlewareError
├── ConfigurationError            a setting is wrong; raised at startup
│   └── MissingCredentials        no URL or token; raised when they are first needed
├── PurgeNotPassedOn              the function of the setting on_purge raised
├── NotStorable                   a value would not come back equal and of the same type
├── RateLimited                   a Limiter denied a call; it is in limiter.py
└── UpstashError                  a call to Upstash failed
    ├── NotConnected              no connection was established: the server received nothing
    ├── ConnectionLost            lost during the call: the server may have performed it
    ├── DeadlineExceeded          no response in time: the server may have performed the call
    ├── CircuitOpen               no call was made, because too many had failed
    ├── UnexpectedAnswer          the response is not Upstash's: HTML, truncated, not JSON
    ├── Refused                   the token was rejected or a limit of the plan reached
    └── CommandError              one command failed; also a value, in a pipeline's replies
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from msgspec import StructMeta

if TYPE_CHECKING:
    from collections.abc import Iterable


class Refusal(Enum):
    """Why Upstash rejects a call or a command, however often it is sent."""

    TOKEN = "token"  # noqa: S105 - a name, not one
    """The token is wrong or missing."""
    PERMISSION = "permission"
    """The token is read-only."""
    QUOTA = "quota"
    """The plan's requests or traffic are used up."""
    FULL = "full"
    """The database is full; reading still works."""
    SIZE = "size"
    """The request, record or key is larger than the plan allows."""


# The error texts of Upstash (https://upstash.com/docs/redis/troubleshooting) and of Redis.
_TEXTS: Final = (
    (Refusal.TOKEN, r"(WRONGPASS|NOAUTH|Unauthorized)\b"),
    (Refusal.PERMISSION, r"NOPERM\b"),
    (Refusal.FULL, r"OOM\b|ERR DB capacity quota exceeded|ERR max (database|data) size exceeded"),
    (Refusal.SIZE, r"ERR max (request|(single )?record|key) size exceeded"),
    (Refusal.QUOTA, r"ERR max [^\n]{0,80}\bexceeded|ERR [^\n]{0,80}\bquota exceeded"),
)


def refusal_in(text: str) -> Refusal | None:
    """Return the refusal that an error text is about; None if it is about something else."""
    return next((kind for kind, of in _TEXTS if re.match(of, text, re.IGNORECASE)), None)


class UpstashMiddlewareError(Exception):
    """Base of every exception that this package raises."""


class ConfigurationError(UpstashMiddlewareError, ValueError):
    """A setting is wrong; the message names it, its value, and a right one."""


class MissingCredentials(ConfigurationError):
    """Neither the settings nor the environment contain the database's URL and token."""


class PurgeNotPassedOn(UpstashMiddlewareError):
    """A purge was carried out on Redis, and the function of the setting ``on_purge`` then raised.

    What it raised is the ``__cause__``. The CDN may still serve what was purged; purge again.
    """


class NotStorable(UpstashMiddlewareError, TypeError):
    """A value would not come back equal and of the same type, so it is not stored.

    The message has the path inside the value, its type, and what to store in its place.
    """


class UpstashError(UpstashMiddlewareError):
    """A call to Upstash failed.

    The middleware applies the rule's ``on_error`` policy; it never raises this in the application.
    """


class NotConnected(UpstashError):
    """No connection was established, so the server received nothing; sending again is safe."""


class ConnectionLost(UpstashError):
    """The connection was lost after the call was sent; it may have been performed."""


class DeadlineExceeded(UpstashError):
    """The time for the whole call ran out; it may have been performed."""


class CircuitOpen(UpstashError):
    """No call was made, because too many of the latest calls failed or were slow.

    Raised within microseconds. From time to time one call is made as a probe.
    """


class UnexpectedAnswer(UpstashError):
    """The response is not Upstash's: HTML from a proxy, truncated, not JSON."""


class Refused(UpstashError):
    """The whole call was rejected: wrong token, no permission, used-up quota, or too large."""

    @property
    def kind(self) -> Refusal:
        """Why it was rejected."""
        return refusal_in(str(self)) or Refusal.TOKEN  # a status of 401 has no text


class CommandError(UpstashError):
    """One command failed on the server, for instance ``WRONGTYPE Operation against a key …``.

    In the replies of a pipeline it is the failed command's reply.
    """

    @property
    def code(self) -> str:
        """The first word of the message: ``ERR``, ``WRONGTYPE``, ``NOSCRIPT`` …"""
        return str(self).split(" ", 1)[0]


def named_part(setting: str, part: str) -> str:
    """Return the name of a part of a rule, for errors and logs, in the syntax of the settings."""
    if setting.endswith("]") and "['" in setting:  # in a mapping: UPSTASH_MIDDLEWARE['cache'][0]
        return f"{setting}[{part!r}]"
    return f"{setting}.{part}"


_SUGGESTED_NAMES: Final = {
    "expire": "ttl",
    "identifier": "by",
    "key": "by",
    "key_func": "by",
    "limit": "limits",
    "max_age": "ttl",
    "method": "methods",
    "rate": "limits",
    "timeout": "ttl",
}
"""Names used by other packages, with the names used here."""


def unknown_name(setting: str, name: object, known: Iterable[str]) -> ConfigurationError:
    """Return the error for an unknown name, which suggests the closest known one."""
    import difflib  # noqa: PLC0415 - for a mistake only

    names = list(known)
    usual = [own for own in [_SUGGESTED_NAMES.get(str(name), "")] if own in names]
    close = usual or difflib.get_close_matches(str(name), names, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return ConfigurationError(f"{named_part(setting, str(name))}: there is no such setting; {hint}")


class RuleMeta(StructMeta):
    """A rule's class: an unknown keyword argument raises ConfigurationError, not TypeError."""

    if not TYPE_CHECKING:  # type checkers know the constructor's arguments

        def __call__(cls, *args: Any, **arguments: Any) -> Any:  # noqa: N805
            """Create a rule."""
            fields = cls.__struct_fields__
            for name in arguments:
                if name not in fields:
                    known = [field for field in fields if field != "setting"]
                    raise unknown_name(arguments.get("setting", cls.__name__), name, known)
            return super().__call__(*args, **arguments)
