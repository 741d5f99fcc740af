"""The exceptions of this package, and the names of settings in them.

UpstashMiddlewareError
├── ConfigurationError            a setting is wrong; raised at startup
│   └── MissingCredentials        no URL or token; raised when they are first needed
├── PurgeNotPassedOn              the function in the setting on_purge raised
├── NotStorable                   a value would not be read back as an equal value
├── RateLimited                   a Limiter denied a call; it is in limiter.py
└── UpstashError                  a call to Upstash failed
    ├── NotConnected              no connection was established: the server received nothing
        ├── ConnectionLost            lost during the call: the server may have executed it
        ├── DeadlineExceeded          no response in time: the server may have executed the call
        ├── CircuitOpen               no call was made, because too many calls had failed
        ├── UnexpectedAnswer          the response is not Upstash's: HTML, truncated, not JSON
        ├── Refused                   the token was rejected, or a limit of the plan was reached
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
    """Why Upstash rejects a call or a command; a retry would be rejected too."""

    TOKEN = "token"  # noqa: S105 - a name, not a token
    """The token is wrong or missing."""
    PERMISSION = "permission"
    """The token is read-only."""
    QUOTA = "quota"
    """The plan's request or traffic quota is used up."""
    FULL = "full"
    """The database is full; reads still work."""
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
    """Return the refusal that an error text describes; None for other errors."""
    return next((kind for kind, of in _TEXTS if re.match(of, text, re.IGNORECASE)), None)


class UpstashMiddlewareError(Exception):
    """The base class of all exceptions that this package raises."""


class ConfigurationError(UpstashMiddlewareError, ValueError):
    """A setting is wrong; the message names the setting, its value and a correct value."""


class MissingCredentials(ConfigurationError):
    """Neither the settings nor the environment contain the database's URL and token."""


class PurgeNotPassedOn(UpstashMiddlewareError):
    """A purge was carried out on Redis, but then the function in ``on_purge`` raised.

    Its exception is the ``__cause__``. The CDN may still serve purged responses; purge again.
    """


class NotStorable(UpstashMiddlewareError, TypeError):
    """A value is not stored, because it would not be read back as an equal value of the same type.

    The message has the path inside the value, its type, and what to store instead.
    """


class UpstashError(UpstashMiddlewareError):
    """A call to Upstash failed.

    The middleware applies the rule's ``on_error`` policy; it does not raise this exception.
    """


class NotConnected(UpstashError):
    """No connection was established, so the server received nothing; retrying is safe."""


class ConnectionLost(UpstashError):
    """The connection was lost after the call was sent; the server may have executed it."""


class DeadlineExceeded(UpstashError):
    """The deadline of the whole call has passed; the server may have executed it."""


class CircuitOpen(UpstashError):
    """No call was made, because too many recent calls failed or were slow.

    It is raised within microseconds. From time to time one call is made as a probe.
    """


class UnexpectedAnswer(UpstashError):
    """The response is not Upstash's: HTML from a proxy, truncated, not JSON."""


class Refused(UpstashError):
    """The whole call was rejected: wrong token, no permission, or a used-up quota."""

    @property
    def kind(self) -> Refusal:
        """Why it was rejected."""
        return refusal_in(str(self)) or Refusal.TOKEN  # a response with status 401 has no text


class CommandError(UpstashError):
    """One command failed on the server, for instance ``WRONGTYPE Operation against a key …``.

    In the replies of a pipeline, it is the reply of the failed command.
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
"""Parameter names of other packages, with the corresponding names of this package."""


def unknown_name(setting: str, name: object, known: Iterable[str]) -> ConfigurationError:
    """Return the error for an unknown name, which suggests the closest known one."""
    import difflib  # noqa: PLC0415 - only for an unknown name

    names = list(known)
    usual = [own for own in [_SUGGESTED_NAMES.get(str(name), "")] if own in names]
    close = usual or difflib.get_close_matches(str(name), names, n=1, cutoff=0.7)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
    return ConfigurationError(f"{named_part(setting, str(name))}: there is no such setting; {hint}")


class RuleMeta(StructMeta):
    """The metaclass of rules: an unknown argument raises ConfigurationError, not TypeError."""

    if not TYPE_CHECKING:  # type checkers know the constructor's arguments

        def __call__(cls, *args: Any, **arguments: Any) -> Any:  # noqa: N805
            """Create a rule."""
            fields = cls.__struct_fields__
            for name in arguments:
                if name not in fields:
                    known = [field for field in fields if field != "setting"]
                    raise unknown_name(arguments.get("setting", cls.__name__), name, known)
            return super().__call__(*args, **arguments)
