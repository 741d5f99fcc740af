# ruff: noqa: SLF001 - the part and its exchanges use private attributes of sessions
"""Sessions: each is a Redis hash with one field for each entry; the cookie contains the session id.

A request loads its session in the same pipeline as its limits and its cache lookup. If the session
has changed, it is saved before the head of the response is sent. Only changed entries are written,
so concurrent requests that change different entries do not overwrite each other's changes. If a
session is ended or gets another id, older requests can no longer save to it: a save writes only to
a session that exists, and ids are not reused.

A session is stored at the key ``PREFIX:session:HMAC``, with the HMAC of its id. The field ``.`` is
``EPOCH LF HEAD``: the head contains the times of creation and last use, and the user to which the
session is bound. The field ``=NAME`` is the entry NAME. A user's epoch is stored at
``PREFIX:session-user:HASH``. A bound session is valid while its recorded epoch equals this value.
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from datetime import datetime
from enum import Enum
from math import inf
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, cast
from uuid import UUID

from msgspec import Struct, ValidationError, json
from msgspec.structs import force_setattr

from upstash_middleware.core.clock import Duration, seconds_in
from upstash_middleware.core.engine import Part, PartExchange, Prepared
from upstash_middleware.core.flow import Command, Latch, Pipeline, Script, Wait, script
from upstash_middleware.core.patterns import PathPattern
from upstash_middleware.core.ratelimit import decision
from upstash_middleware.core.values import MAX_DEPTH, decode, encode
from upstash_middleware.errors import (
    CommandError,
    ConfigurationError,
    NotStorable,
    RuleMeta,
    UnexpectedAnswer,
    UpstashError,
    named_part,
    unknown_name,
)
from upstash_middleware.events import SessionSaved, UpstashAnswered, UpstashFailed, ignored_by
from upstash_middleware.messages import NO_HEADERS, Discreet, ResponseHead

if TYPE_CHECKING:
    from typing import Self

    from upstash_middleware.core.cache.entries import Sealing
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Argument, Flow, Reply
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers, HTTPRequest, Response

# ------------------------------------------------------------------------------------------------
# Settings

_DAY = 24 * 3600.0
_MAX_COOKIE_AGE = 400 * _DAY
"""The maximum in browsers (RFC 6265bis §5.5)."""
_DEFAULT_AGE = 14 * _DAY
_TIMES = ("max_age", "idle_timeout", "absolute_timeout")
_EPOCH_SLACK_SECONDS = 3600.0
"""Seconds for which a user's epoch is kept after the last session bound to the user has expired."""
_MAX_SESSION_BYTES = 4 * 1024 * 1024
"""Bytes of a session's entries that fit in one call of 10 MB after escaping or sealing."""
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110's token


class SessionSettings(Discreet, Struct, frozen=True, metaclass=RuleMeta):
    """The arguments of ``SessionMiddleware``, and the setting ``sessions``.

    The first seven are the same as in Starlette's SessionMiddleware.

    Args:
        secret_key: The key that hashes session ids, at least 16 characters, or several keys: the
            first hashes new ids, all are accepted. To replace a key, first give every process
            ``(old, new)``, then ``(new, old)``. The default is the setting ``secret``, or a key
            derived from the token; with the derived key, a new token logs everybody out.
        session_cookie: The cookie's name. With ``https_only`` it gets the prefix ``__Host-``, or
            ``__Secure-`` if there is a ``domain`` or another ``path`` (RFC 6265bis §4.1.3).
        max_age: Seconds for which browsers keep the cookie after the last use of the session; with
            None, the cookie is deleted when the browser is closed.
        path: The path prefix for which browsers send the cookie.
        same_site: ``"lax"``, ``"strict"`` or ``"none"``, which needs ``https_only``.
        https_only: Whether browsers send the cookie over HTTPS only.
        domain: The domain whose subdomains also get the cookie; None for this host alone.
        partitioned: Whether browsers keep a separate cookie for each site that embeds this one
            (CHIPS); needs ``https_only``.
        idle_timeout: Seconds after which an unused session ends; None means ``max_age``, or 14 days
            if that is also None. A use extends it, but not within the first twentieth of the time.
        absolute_timeout: Seconds after which a session ends even if it is used.
        paths: Patterns of the paths that use sessions; empty for all.
        max_size: The maximum size of all stored entries in bytes; above it, NotStorable is raised.
        on_error: What happens if a session cannot be saved: ``"open"`` sends the response without a
            new cookie, ``"closed"`` a 503. For a login or logout, the response is always a 503.
        read_from: The replica of a Global database from which sessions are read. The nearest may
            lack the latest changes from other regions; ``"primary"`` costs one more command.
        setting: The name of the setting in error messages.

    Raises:
        ConfigurationError: A value is invalid; the message names the field.
    """

    secret_key: str | Sequence[str] = ()
    session_cookie: str = "session"
    max_age: Duration | None = _DEFAULT_AGE
    path: str = "/"
    same_site: str = "lax"
    https_only: bool = False
    domain: str | None = None
    partitioned: bool = False
    idle_timeout: Duration | None = None
    absolute_timeout: Duration = 90 * _DAY
    paths: Sequence[str] = ()
    max_size: int = 256 * 1024
    on_error: Literal["open", "closed"] = "open"
    read_from: Literal["nearest", "primary"] = "nearest"
    setting: str = "sessions"

    def __post_init__(self) -> None:
        keys = (self.secret_key,) if isinstance(self.secret_key, str) else self.secret_key
        given = {name: getattr(self, name) for name in _TIMES}
        idle = self.idle_timeout or self.max_age or _DEFAULT_AGE
        site: Any = self.same_site
        site = site.lower() if isinstance(site, str) else site
        values = {"secret_key": keys, "idle_timeout": idle, "same_site": site}
        for name, value in values.items():
            force_setattr(self, name, value)
        for name, (is_right, should_be) in _CHECKS.items():
            value = getattr(self, name)
            if not is_right(value):
                shown = "" if name == "secret_key" else f"{value!r} "
                raise ConfigurationError(
                    f"{named_part(self.setting, name)}: {shown}should be {should_be}"
                )
        for name in _TIMES:
            force_setattr(self, name, seconds_in(getattr(self, name)))
        for name in ("secret_key", "paths"):
            force_setattr(self, name, tuple(getattr(self, name)))
        for path in self.paths:
            PathPattern.parse(path)
        for name in ("max_age", "idle_timeout"):
            is_default = given[name] is None or getattr(self, name) == _DEFAULT_AGE
            if not is_default and getattr(self, name) > self.absolute_timeout:
                raise ConfigurationError(
                    f"{named_part(self.setting, name)}: {given[name]!r} is longer than "
                    f"absolute_timeout={given['absolute_timeout']!r}, which ends the session "
                    "earlier; increase absolute_timeout, or decrease this value"
                )
        for name, value in (("same_site", "none"), ("partitioned", True)):
            if getattr(self, name) == value and not self.https_only:
                raise ConfigurationError(
                    f"{named_part(self.setting, name)}: {value!r} needs https_only=True; otherwise "
                    "browsers ignore the cookie"
                )
        _check_prefix(self)

    def __repr__(self) -> str:
        fields = [name for name in self.__struct_fields__ if name not in {"secret_key", "setting"}]
        return f"SessionSettings({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"

    @property
    def cookie_name(self) -> str:
        """The cookie's name with its prefix."""
        if not self.https_only or self.session_cookie.startswith(("__Host-", "__Secure-")):
            return self.session_cookie
        is_for_host = self.path == "/" and self.domain is None
        return f"{'__Host-' if is_for_host else '__Secure-'}{self.session_cookie}"

    def cookie_field(self, change: CookieChange) -> bytes:
        """Return the value of the Set-Cookie field that makes a change (RFC 6265bis §4.1)."""
        parts = [f"{self.cookie_name}={change.value or ''}", f"Path={self.path}"]
        if change.value is None:
            parts += ["Max-Age=0", "Expires=Thu, 01 Jan 1970 00:00:00 GMT"]
        elif self.max_age is not None:
            seconds = max(int(min(float(self.max_age), change.seconds)), 1)  # type: ignore[arg-type]
            parts.append(f"Max-Age={seconds}")
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        parts += ["HttpOnly", f"SameSite={self.same_site.capitalize()}"]
        parts += ["Secure"] if self.https_only else []
        parts += ["Partitioned"] if self.partitioned else []
        return "; ".join(parts).encode("ascii")


def _check_prefix(settings: SessionSettings) -> None:
    """Raise ConfigurationError if browsers would refuse the name's prefix (RFC 6265bis §4.1.3)."""
    name, wrong = settings.session_cookie.lower(), ""
    if name.startswith(("__host-", "__secure-")) and not settings.https_only:
        wrong = "https_only=True"
    elif name.startswith("__host-") and (settings.path != "/" or settings.domain is not None):
        wrong = "path='/' and no domain"
    if wrong:
        raise ConfigurationError(
            f"{named_part(settings.setting, 'session_cookie')}: {settings.session_cookie!r} needs "
            f"{wrong}; otherwise browsers ignore the cookie"
        )


def _is_time(value: Any) -> bool:
    seconds = seconds_in(value)
    return seconds is not None and 0 < seconds <= _MAX_COOKIE_AGE


def _is_text(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(each and isinstance(each, str) for each in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_TIME = "a number of seconds above 0, a timedelta, or text such as '14 days', at most 400 days"
_CHECKS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "secret_key": (_are_texts, "text, or a list of texts, with the new key first"),
    "session_cookie": (_is_text(_TOKEN), "a cookie's name such as 'session'"),
    "max_age": (lambda value: value is None or _is_time(value), _TIME + "; or None"),
    "path": (_is_text(r"/[!-:<-~]*"), "a path such as '/'"),
    "same_site": (("lax", "strict", "none").__contains__, "'lax', 'strict' or 'none'"),
    "https_only": (_is_flag, "True or False"),
    "domain": (
        lambda value: value is None or _is_text(r"\.?[A-Za-z0-9.-]+")(value),
        "a domain such as 'example.com', or None",
    ),
    "partitioned": (_is_flag, "True or False"),
    "idle_timeout": (_is_time, _TIME),
    "absolute_timeout": (_is_time, _TIME),
    "paths": (_are_texts, "a list of patterns such as ['/account/{rest:path}']"),
    "max_size": (
        lambda value: type(value) is int and 0 < value <= _MAX_SESSION_BYTES,
        f"a whole number of bytes, at most {_MAX_SESSION_BYTES}",
    ),
    "on_error": (("open", "closed").__contains__, "'open' or 'closed'"),
    "read_from": (("nearest", "primary").__contains__, "'nearest' or 'primary'"),
}
"""For each field, a check and the text that describes valid values in error messages."""


def session_settings(value: Any, setting: str = "sessions") -> SessionSettings | None:
    """Return the settings for True, a mapping or SessionSettings; None for None or False.

    Raises ConfigurationError.
    """
    if value is None or value is False:
        return None
    if isinstance(value, SessionSettings):
        return value
    if value is True:
        return SessionSettings(setting=setting)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{setting}: {value!r} should be True, SessionSettings, or a mapping such as "
            "{'https_only': True}"
        )
    known = [name for name in SessionSettings.__struct_fields__ if name != "setting"]
    for name in value:
        if name not in known:
            raise unknown_name(setting, name, known)
    return SessionSettings(**value, setting=setting)


class CookieChange(NamedTuple):
    """A change of the session cookie: set or delete."""

    value: str | None
    """None to delete it."""
    seconds: float = 0.0
    """Seconds until the session ends if it is not used again."""

    def __repr__(self) -> str:  # the value is a secret
        return f"CookieChange({'deleted' if self.value is None else 'set'})"


# ------------------------------------------------------------------------------------------------
# Ids


_ID = re.compile(r"[A-Za-z0-9_-]{43}(?:\.([A-Za-z0-9_-]{11}))?")


class CookieIds:
    """The format of session ids.

    An id contains 256 random bits. For a session that is bound to a user, a dot and 64 bits of the
    user's keyed hash follow.
    """

    def new(self, random: Callable[[int], bytes], user: str) -> str:
        """Return a new id, which includes the user's hash if there is one."""
        text = urlsafe_b64encode(random(32)).rstrip(b"=").decode()
        return f"{text}.{user}" if user else text

    def parse(self, text: str) -> str | None:
        """Return the user's hash in an id, empty if there is none; None if the id is malformed."""
        found = _ID.fullmatch(text)
        return None if found is None else found[1] or ""

    def user_hash(self, digest: bytes) -> str:
        """Return a user's hash from a digest of 32 bytes."""
        return urlsafe_b64encode(digest[:8]).rstrip(b"=").decode()


User = str | int | UUID
"""A user's id. Only its keyed hash is stored."""


def user_text(user: Any) -> str:
    """Return a user's id as text. Raises TypeError for other types and for empty text."""
    if isinstance(user, Enum):  # str() would return the names of the class and the member
        user = user.value
    if isinstance(user, str | int | UUID) and not isinstance(user, bool) and str(user):
        return str(user)
    hint = "; nobody is logged in, or the session is not available" if user is None else ""
    raise TypeError(
        f"{type(user).__name__} is not a user's id: give non-empty text, an integer or a UUID, "
        f"such as user.id{hint}"
    )


# ------------------------------------------------------------------------------------------------
# The mapping that handlers use


class Session(MutableMapping[str, Any]):
    """A user's session: a mapping of entries. Changed entries are saved.

    Changes inside a value, such as ``session["cart"].append(7)``, are also detected. Values can be
    JSON types, dates and times, decimals, UUIDs, bytes, tuples and sets.
    """

    accessed: bool = False
    """Whether the application has used the session: the response is then for this user only."""
    modified: bool = False
    """Whether an entry was set or deleted. Changes inside a value are detected at the save."""

    def __init__(
        self,
        stored: StoredSession | None = None,
        entries: Mapping[str, bytes] | None = None,
        *,
        load: Callable[[bytes], Any] = decode,
    ) -> None:
        """Create a session. Applications get theirs from the request.

        ``entries`` are the stored entries, as plaintext.
        """
        self._stored = stored
        self._entries: dict[str, bytes] = dict(entries or ())
        """The entries on Redis, as known to this request."""
        self._load = load
        self._values: dict[str, Any] = {}
        """The values that were read or set."""
        self._set: set[str] = set()
        """The names of the entries that this request has set, even if to an equal value."""
        self._deleted: set[str] = set()
        self._ended: list[StoredSession] = []
        """The sessions that ``clear`` has ended and that are still to be deleted on Redis."""
        self._regenerates = False
        self._user_to_bind: str | None = None
        """The user to whom the next save binds the session."""
        self._revoked: list[str] = []
        """The users whose sessions the next save ends."""
        self._is_over = False
        """Whether another request has ended the session, so that no entry may be saved."""
        self._clears = 0
        """How often the session was cleared."""
        self._saving: Latch | None = None
        """The latch that other tasks of the request wait for during a save."""
        self._is_detached = False
        """Whether the session belongs to no client, so that it is not saved and emits no events."""
        self._is_sent = False
        """Whether the response's head was sent. After that, no cookie can be set."""
        self._error: UpstashError | None = None
        """Why the session could not be loaded."""
        self._is_refused = False
        """Whether the response must be a 503, because a login or logout failed."""
        self._is_manual = False
        """Whether only ``save`` saves the session, as during a WebSocket connection."""
        self.cookie_change: CookieChange | None = None
        """The change of the cookie that the response must make."""
        self.part: Sessions | None = None
        """The part of the engine that saves the session."""
        self.performer: Performer | None = None
        """The driver that runs the flows of ``part``."""

    # --- Entries --------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        self.accessed = True
        if not self._has_entry(name):
            raise KeyError(name)
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if not isinstance(name, str):
            raise NotStorable(
                f"session[{name!r}]: the names of entries are text; write session[{str(name)!r}]"
            )
        self.accessed = self.modified = True
        self._values[name] = value
        self._set.add(name)
        self._deleted.discard(name)

    def __delitem__(self, name: str) -> None:
        self.accessed = True
        if not self._has_entry(name):
            raise KeyError(name)
        self.modified = True
        del self._values[name]
        if name in self._entries:
            self._deleted.add(name)

    def __contains__(self, name: object) -> bool:
        self.accessed = True
        return self._has_entry(name)

    def __iter__(self) -> Iterator[str]:
        self.accessed = True
        return iter(self._names())

    def __len__(self) -> int:
        self.accessed = True
        return len(self._names())

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self}

    def __ior__(self, other: Mapping[str, Any]) -> Self:
        self.update(other)
        return self

    def __repr__(self) -> str:  # without the entries, which may be secrets
        count = len({*self._entries} - self._deleted | {*self._values})
        return f"<{type(self).__name__} of {count} entries>"

    def popitem(self) -> tuple[str, Any]:
        """Remove the last entry and return its name and value. Raises KeyError if there is none."""
        names = [*self]
        if not names:
            raise KeyError("popitem: the session is empty")
        return names[-1], self.pop(names[-1])

    def copy(self) -> dict[str, Any]:
        """Return the entries as a dictionary."""
        return dict(self)

    def mark_accessed(self) -> None:
        """Mark the response as for this user alone; ``request.session`` does this."""
        self.accessed = True

    def mark_modified(self) -> None:
        """Mark the session as changed, for compatibility; changes are detected in any case."""
        self.accessed = self.modified = True

    @property
    def _stays_empty(self) -> bool:
        """Whether the session is empty, as for a client without a cookie, and will not be saved."""
        holds = self._values or self._entries or self._stored or self._error or self._clears
        saves = (
            self._is_certain
            or self._user_to_bind is not None
            or self._is_over
            or self.cookie_change
        )
        return not (holds or saves)

    def _names(self) -> list[str]:
        return [name for name in {**self._entries, **self._values} if self._has_entry(name)]

    def _has_entry(self, name: Any) -> bool:
        """Whether there is an entry. A stored entry that cannot be decoded counts as missing."""
        if name in self._values:
            return True
        if name not in self._entries or name in self._deleted:
            return False
        try:
            self._values[name] = self._load(self._entries[name])
        except Exception:  # noqa: BLE001 - the entry is damaged, or from a newer version
            del self._entries[name]
            return False
        return True

    # --- Life -----------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        """Whether the session could be loaded. If not, it is empty, and changes are dropped."""
        self.accessed = True
        return self._error is None

    @property
    def new(self) -> bool:
        """Whether this client had no stored session before this request."""
        self.accessed = True
        return self._stored is None and not self._ended

    @property
    def user_hash(self) -> str:
        """The keyed hash of the user to whom the session is bound; empty if it is not bound."""
        self.accessed = True
        return "" if self._stored is None else self._stored.user

    def clear(self) -> None:
        """End the session, for a logout. Its id is not reused.

        Later changes go into a new session. If Upstash is unreachable, the response is a 503.
        """
        self.accessed = self.modified = True
        self._clears += 1
        if self._stored is not None:
            self._ended.append(self._stored)
        self._leave_stored()
        self._user_to_bind, self._regenerates = None, False
        self._values, self._set = {}, set()
        self._is_refused = self._is_refused or not self.available

    revoke = clear

    def regenerate(self) -> None:
        """Give the session another id and keep its entries, for a login or a change of rights.

        The old id becomes invalid, so an attacker who knew it cannot use it (session fixation). If
        Upstash is unreachable, the response is a 503.
        """
        self.accessed = self.modified = True
        if self._is_over:
            self._leave_stored()
        self._regenerates = True
        self._is_refused = self._is_refused or not self.available

    def bind(self, user: User) -> None:
        """Bind the session to a user, so that ``revoke_all`` ends it. The session gets another id.

        Args:
            user: The user's id: text, an integer or a UUID. Only a keyed hash of it is stored.

        Raises:
            TypeError: The id has another type.
        """
        text = user_text(user)
        self.regenerate()
        self._user_to_bind = text

    def revoke_all(self, user: User) -> None:
        """End all sessions that are bound to a user, on all devices, such as after a new password.

        This session also ends if it is bound to the user, unless the request also calls ``bind``,
        in any order: a save revokes first and binds afterwards. If Upstash is unreachable, the
        response is a 503.

        Args:
            user: See ``bind``.
        """
        self._revoked.append(user_text(user))
        self.accessed = self.modified = True
        self._is_refused = self._is_refused or not self.available

    async def save(self) -> None:
        """Save the changes now, instead of before the response's head is sent.

        If another request has ended the session in the meantime, nothing is saved.

        Raises:
            UpstashError: The session could not be saved, or could not be loaded before.
            NotStorable: A value cannot be stored, or the session is too large.
            RuntimeError: A cookie would be needed, but the head was already sent.
        """
        part, performer = self._ready()
        await performer.aperform(part.save(self, strict=True))

    def save_sync(self) -> None:
        """Do the same as ``save``, for handlers that run in a thread (a plain ``def``)."""
        part, performer = self._ready()
        performer.perform(part.save(self, strict=True))

    def _ready(self) -> tuple[Sessions, Performer]:
        if self.part is None or self.performer is None:
            raise RuntimeError("session.save: this session does not belong to a request")
        return self.part, self.performer

    def _leave_stored(self) -> None:
        """Detach from the stored session, if there is one."""
        self._stored, self._is_over = None, False
        self._entries, self._deleted = {}, set()

    def _note_again(self, todo: _SaveTasks, *, is_cleared: bool) -> None:
        """Restore the tasks of a save that failed."""
        self._ended = todo.ended + self._ended
        self._revoked = todo.revoked + self._revoked
        if not is_cleared:
            self._user_to_bind = todo.user if self._user_to_bind is None else self._user_to_bind
            self._regenerates = self._regenerates or todo.regenerates

    @property
    def _is_certain(self) -> bool:
        """Whether the pending changes must not be lost silently."""
        return bool(self._ended or self._revoked or self._regenerates)


class Performer(Protocol):
    """A driver that runs flows; implemented by the runtime."""

    def perform(self, flow: Flow[None]) -> None:
        """Run a flow in this thread."""
        ...

    async def aperform(self, flow: Flow[None]) -> None:
        """Run a flow on the event loop."""
        ...


class StoredSession(Discreet, Struct):
    """A session on Redis, without its entries."""

    id: str
    key: str
    created: float
    """In seconds since 1970."""
    touched: float
    """When its idle timeout was last extended."""
    salt: str
    """A random value that is bound to the entries when they are sealed."""
    user: str = ""
    """The keyed hash of the user to whom the session is bound."""
    epoch: str = ""
    """The user's epoch as recorded in the session."""

    def __repr__(self) -> str:  # the id is a secret
        return f"StoredSession(created={self.created!r}, touched={self.touched!r})"


# ------------------------------------------------------------------------------------------------
# Redis


class _Head(Struct, array_like=True, forbid_unknown_fields=True):
    """The content of the field ``.`` after the epoch."""

    created: float
    touched: float
    salt: str
    user: str


_decode_head = json.Decoder(_Head).decode
_BYTES = frozenset({bytes})
_RESERVED: Final = "."
Change = Literal["created", "saved", "touched", "regenerated", "ended", "nothing"]


class SessionLookup(Discreet, Prepared, eq=False):
    """The lookup of a session."""

    id: str
    user: str
    """The user's hash in the id; empty if the id has none."""
    keys: tuple[str, ...]
    """The possible keys of the session, one for each secret."""
    headers: Headers = NO_HEADERS
    """The header fields of the request."""

    def __repr__(self) -> str:  # the id is a secret
        return "SessionLookup()"


class SessionStore(Struct, frozen=True):
    """The sessions under one prefix. Methods that call Upstash can raise UpstashError."""

    prefix: str
    secrets: Callable[[], Sequence[bytes]]
    """Returns the keys that hash ids and users, the current one first. Called at the first use."""
    clock: Clock
    randomness: Callable[[int], bytes]
    deadline: float
    """The deadline in seconds of a call that is only for a session."""
    idle: float = 14 * _DAY
    absolute: float = inf
    sealing: Sealing | None = None
    ids: CookieIds = CookieIds()
    from_primary: bool = False

    # --- Names ----------------------------------------------------------------------------------

    @property
    def key_start(self) -> str:
        """The start of all sessions' keys; the hash of the id follows."""
        return f"{self.prefix}:session:"

    def keys_of(self, id_: str) -> tuple[str, ...]:
        """Return the possible keys of a session with this id, one for each secret."""
        message, keys = b"session\n" + id_.encode(), []
        for secret in self.secrets():
            digest = urlsafe_b64encode(hmac.digest(secret, message, "sha256"))
            keys.append(self.key_start + digest.rstrip(b"=").decode())
        return tuple(keys)

    def epoch_key(self, user_hash: str) -> str:
        """Return the key of a user's epoch."""
        return f"{self.prefix}:session-user:{user_hash}"

    def user_hashes(self, user: str) -> list[str]:
        """Return a user's hash under each secret, the current one first."""
        text = b"user\n" + user.encode("utf-8", "surrogatepass")
        digests = [hmac.digest(key, text, "sha256") for key in self.secrets()]
        return [self.ids.user_hash(digest) for digest in digests]

    def is_bound_to_any(self, stored: StoredSession, users: Sequence[str]) -> bool:
        """Whether a session is bound to any of these users."""
        return any(stored.user in self.user_hashes(user) for user in users)

    # --- Loading --------------------------------------------------------------------------------

    def prepare(self, id_: str) -> SessionLookup | None:
        """Return the lookup of a session; None for a malformed id, which costs no command."""
        user = self.ids.parse(id_)
        if user is None:
            return None
        keys = self.keys_of(id_)
        commands = [self._read(key) for key in keys]
        if user:
            commands.append(Command(("GET", self.epoch_key(user)), reads_only=True))
        return SessionLookup(Pipeline(tuple(commands), self.deadline), id_, user, keys)

    def _read(self, key: str) -> Command:
        if not self.from_primary:
            return Command(("HGETALL", key), reads_only=True)
        return _call("session_read", [key], again=True)

    def receive(
        self, lookup: SessionLookup, replies: Sequence[Reply]
    ) -> tuple[StoredSession, dict[str, bytes]] | None:
        """Return a session and its decrypted entries; None if there is no valid session.

        Raises CommandError if a command failed.
        """
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
        *hashes, epoch = replies if lookup.user else (*replies, None)
        for key, fields in zip(lookup.keys, hashes, strict=True):
            if isinstance(fields, list) and fields:
                found = self.describe(key, fields)
                if found is None:
                    return None
                stored = found[0]
                if stored.user != lookup.user or not self.is_valid(stored, epoch):
                    return None
                stored.id = lookup.id
                return found
        return None

    def describe(
        self, key: str, fields: Sequence[Reply]
    ) -> tuple[StoredSession, dict[str, bytes]] | None:
        """Return a session, without its id, and its decrypted entries, whether or not it is valid.

        Args:
            key: The session's key.
            fields: The reply to HGETALL, or a part of it with at least the field ``.``.

        Returns:
            None for no session, a damaged one, another format, or one sealed with another key.
        """
        return read_session(key, fields, None if self.sealing is None else self._open)

    def is_valid(self, stored: StoredSession, epoch: Reply) -> bool:
        """Whether a session is valid; ``epoch`` is the reply to GET for the epoch of its user."""
        if stored.user and stored.epoch.encode("latin-1") != epoch:
            return False
        return stored.created + self.absolute > self.clock.wall()

    def _open(self, name: str, data: bytes) -> bytes:
        sealing = cast("Sealing", self.sealing)
        return bytes(sealing.open(name, memoryview(b64decode(data, validate=True))))

    def _seal(self, name: str, data: bytes) -> bytes:
        return data if self.sealing is None else b64encode(self.sealing.seal(name, data))

    # --- Writing --------------------------------------------------------------------------------

    def seconds_left(self, stored: StoredSession, idle: float | None = None) -> float:
        """Return the seconds until a session ends if it is used now; 0 or less if it has ended."""
        left = stored.created + self.absolute - self.clock.wall()
        return min(self.idle if idle is None else idle, left)

    async def save(  # noqa: PLR0913
        self,
        stored: StoredSession,
        entries: Mapping[str, bytes],
        deleted: Sequence[str] = (),
        *,
        touch: bool = False,
        idle: float | None = None,
        first: Sequence[Command] = (),
    ) -> bool:
        """Write entries to an existing session; return whether it still existed. A flow.

        ``touch`` says whether to record the use; the other arguments are the same as for ``start``.
        """
        fields = self._fields(stored, entries)
        if touch:
            stored.touched = self.clock.wall()
            head = self._seal(_RESERVED, self._head(stored))
            fields = [_RESERVED, stored.epoch.encode() + b"\n" + head, *fields]
        milliseconds = int(self.seconds_left(stored, idle) * 1000)
        words = milliseconds, len(fields) // 2, *fields, *(f"={name}" for name in deleted)
        # Sending this twice is safe unless another request writes between the two.
        command = _call("session_save", [stored.key], *words, again=True)
        return bool(await self._send_for_last_reply(*first, command))

    async def start(  # noqa: PLR0913
        self,
        entries: Mapping[str, bytes],
        *,
        id_: str = "",
        old: StoredSession | None = None,
        deleted: Sequence[str] = (),
        user: str | None = None,
        first: Sequence[Command] = (),
        idle: float | None = None,
        despite_revocation: bool = False,
    ) -> StoredSession | None:
        """Create a session, or give ``old`` another id; None if ``old`` no longer exists. A flow.

        Args:
            entries: The entries to write.
            id_: The new id; by default a random one.
            old: The session that gets the new id.
            deleted: The names of entries of ``old`` to delete.
            user: The user to bind the session to; None leaves the binding unchanged.
            first: Commands to send before, in the same pipeline.
            idle: The idle timeout in seconds; None for the store's default.
            despite_revocation: Whether to bind ``old`` to a user even if it was bound before and
                that user's sessions have been revoked since it was loaded.
        """
        now = self.clock.wall()
        hash_ = self.user_hashes(user)[0] if user is not None else old.user if old else ""
        id_ = id_ or self.ids.new(self.randomness, hash_)
        salt = old.salt if old else urlsafe_b64encode(self.randomness(9)).decode()
        new = StoredSession(
            id_, self.keys_of(id_)[0], old.created if old else now, now, salt, hash_
        )
        keys = [old.key if old else new.key, new.key]
        epoch, recorded = (old.epoch if old else ""), ""
        epoch_key = self.epoch_key(hash_)
        if user is not None:
            keys.append(epoch_key)
            epoch = urlsafe_b64encode(self.randomness(12)).decode()
            if old is not None:  # a login restarts the absolute timeout
                new.created = now
            if old is not None and old.user and not despite_revocation:
                keys.append(self.epoch_key(old.user))
                recorded = old.epoch
        fields = self._fields(new, entries)
        milliseconds = int(self.seconds_left(new, idle) * 1000)
        epoch_lifetime = int((min(self.absolute, _MAX_COOKIE_AGE) + _EPOCH_SLACK_SECONDS) * 1000)
        head = self._seal(_RESERVED, self._head(new))
        words = milliseconds, head, epoch, epoch_lifetime, recorded, len(fields) // 2, *fields
        # If revoke_all for the same user was sent again, it would end the session just bound.
        again = old is None or not any(epoch_key in each.args for each in first)
        names = (f"={name}" for name in deleted)
        command = _call("session_start", keys, *words, *names, again=again)
        reply = await self._send_for_last_reply(*first, command)
        if not isinstance(reply, bytes):
            return None
        new.epoch = reply.decode("latin-1")
        return new

    def delete(self, stored: StoredSession) -> Command:
        """Return the command that ends a session."""
        return Command(("DEL", stored.key), reads_only=True)

    def revoke_all(self, user: str) -> Command:
        """Return the command that ends all sessions of a user."""
        return Command(("DEL", *map(self.epoch_key, self.user_hashes(user))), reads_only=True)

    async def send(self, *commands: Command) -> list[Reply]:
        """Send commands in one pipeline; raise the error of the first that failed. A flow."""
        replies = await Pipeline(commands, deadline=self.deadline)
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
        return replies

    async def _send_for_last_reply(self, *commands: Command) -> Reply:
        return (await self.send(*commands))[-1]

    def _fields(self, stored: StoredSession, entries: Mapping[str, bytes]) -> list[Argument]:
        fields: list[Argument] = []
        for name, data in entries.items():
            fields += (f"={name}", self._seal(f"{stored.salt}:{name}", data))
        return fields

    def _head(self, stored: StoredSession) -> bytes:
        return json.encode(_Head(stored.created, stored.touched, stored.salt, stored.user))


def read_session(
    key: str, fields: Sequence[object], open_: Callable[[str, bytes], bytes] | None = None
) -> tuple[StoredSession, dict[str, bytes]] | None:
    """Return the session that a hash contains. The result is that of ``SessionStore.describe``.

    ``open_`` takes a name and decrypts the sealed value; by default, values are not sealed.
    """
    if len(fields) % 2 or not _BYTES.issuperset(map(type, fields)):
        return None
    values: dict[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=True))  # type: ignore[arg-type]
    epoch, _, sealed = values.pop(b".", b"").partition(b"\n")
    try:
        head = _decode_head(sealed if open_ is None else open_(_RESERVED, sealed))
        entries: dict[str, bytes] = {}
        for field, value in values.items():
            if field.startswith(b"="):
                name = field[1:].decode()
                entries[name] = value if open_ is None else open_(f"{head.salt}:{name}", value)
    except (ValueError, ValidationError):
        return None
    stored = StoredSession(
        "", key, head.created, head.touched, head.salt, head.user, epoch.decode("latin-1")
    )
    return stored, entries


def session_script(name: str) -> Script:
    """Return one of the session scripts in ``lua/``."""
    return script(__package__, f"lua/{name}")


def read_scripts() -> None:
    """Read the scripts' files in advance, so that no request blocks an event loop to read them."""
    for name in ("session_read", "session_save", "session_start"):
        session_script(name)


def _call(name: str, keys: Sequence[str], *arguments: Argument, again: bool) -> Command:
    chosen = session_script(name)
    return Command(
        ("EVALSHA", chosen.sha, len(keys), *keys, *arguments), reads_only=again, script=chosen
    )


# ------------------------------------------------------------------------------------------------
# The part of the engine

ENDED_MEANWHILE: Final = "the session was ended meanwhile"
"""The reason why changes were not saved: another request ended the session or changed its id."""
_UPSTASH_ANSWERED = UpstashAnswered("session load")
_UNCHANGEABLE = frozenset({str, int, float, bool, bytes, NoneType, datetime, UUID})
"""Types of values that the application cannot change in place."""


class Sessions(Part):
    """The part of the engine that loads and saves sessions."""

    def __init__(  # noqa: PLR0913
        self,
        settings: SessionSettings,
        store: SessionStore,
        *,
        observe: Observer,
        make: type[Session] = Session,
        dump: Callable[[Any], bytes] = encode,
        load: Callable[[bytes], Any] = decode,
        sets_cookie: bool = True,
        rolls: Callable[[], bool] = lambda: True,
    ) -> None:
        """``make`` is the class of sessions; ``sets_cookie`` is False if the framework sets them.

        ``rolls`` returns whether a read extends the idle timeout; otherwise only a change does.
        """
        self.settings = settings
        self.store = store
        self.observe = observe
        self.sets_cookie = sets_cookie
        self._make = make
        self._rolls = rolls
        self._dump = dump
        self._load = load
        self._ignored = ignored_by(observe)
        self._patterns = [PathPattern.parse(path) for path in settings.paths]
        self._cookie = settings.cookie_name
        idle, cookie = store.idle, settings.max_age
        span = idle if cookie is None else min(idle, float(cookie))  # type: ignore[arg-type] # seconds
        self._touched_for = span / 20
        """Seconds after which a use extends the idle timeout and the cookie's lifetime."""

    # --- One request ----------------------------------------------------------------------------

    def prepare(self, request: HTTPRequest) -> SessionExchange | SessionLookup | None:
        """Return an exchange with a new session if there is no cookie, otherwise a lookup."""
        if self._patterns and not self.covers(request.path):
            return None
        id_ = cookie_of(request.headers, self._cookie)
        lookup = None if id_ is None else self.store.prepare(id_)
        if lookup is None:
            return SessionExchange(self, self.session(), request.headers)
        lookup.headers = request.headers
        return lookup

    def covers(self, path: str) -> bool:
        """Whether requests to a path use sessions."""
        return not self._patterns or any(each.match(path) is not None for each in self._patterns)

    def receive(
        self, prepared: SessionLookup, replies: list[Reply] | UpstashError
    ) -> SessionExchange:
        """Return the exchange for the replies. An unknown id is never used (session fixation)."""
        return SessionExchange(self, self.loaded(prepared, replies), prepared.headers)

    def loaded(self, lookup: SessionLookup, replies: list[Reply] | UpstashError) -> Session:
        """Return the session in the replies, or an empty one."""
        try:
            if isinstance(replies, UpstashError):
                raise replies
            found = self.store.receive(lookup, replies)
        except UpstashError as error:
            self.observe(UpstashFailed("session load", error))
            session = self.session()
            session._error = error
            return session
        if UpstashAnswered not in self._ignored:
            self.observe(_UPSTASH_ANSWERED)
        return self.session() if found is None else self.session(*found)

    async def load(self, id_: str | None) -> Session:
        """Return the session with this id, or an empty one, in a call of its own. A flow."""
        lookup = None if id_ is None else self.store.prepare(id_)
        if lookup is None:
            return self.session()
        try:
            replies: list[Reply] | UpstashError = await lookup.pipeline
        except UpstashError as error:
            replies = error
        return self.loaded(lookup, replies)

    def session(
        self, stored: StoredSession | None = None, entries: Mapping[str, bytes] | None = None
    ) -> Session:
        """Return a session, new or stored."""
        session = self._make(stored, entries, load=self._loaded_entry)
        session.part = self
        return session

    def detached(self) -> SessionExchange:
        """Return the exchange of a request without a client, such as a background revalidation."""
        session = self.session()
        session._is_detached = True
        return SessionExchange(self, session, NO_HEADERS)

    # --- Saving ---------------------------------------------------------------------------------

    def is_due(self, session: Session) -> bool:
        """Whether a session must be saved or touched, as far as is known without encoding."""
        if session._is_detached or session._is_manual or not session.accessed:
            return False
        if session._is_over or session._is_certain:
            return session._is_certain
        stored = session._stored
        if session.modified or (stored is not None and self._is_old(stored)):
            return True
        return not _UNCHANGEABLE.issuperset(map(type, session._values.values()))

    async def save(self, session: Session, *, strict: bool = False) -> None:
        """Save the changes, and note the change of the cookie. A flow.

        Once the response's head was sent, only an existing session can be changed. With ``strict``,
        a failure raises an exception; otherwise it emits an event.

        Raises:
            UpstashError: The call failed; or the session could not be loaded, and its changes must
                not be lost silently.
            NotStorable: A value cannot be stored, or the session is too large.
            RuntimeError: The head was already sent, and a cookie would be needed.
        """
        if session._is_detached:
            return
        while session._saving is not None:  # in another task of the request
            if not await Wait(session._saving, 3 * self.store.deadline):
                break
        entries, deleted = ({}, []) if session._is_over else self._changed_entries(session)
        if session._error is not None:
            is_closed = self.settings.on_error == "closed" and bool(entries or deleted)
            if strict or is_closed:
                raise session._error
            if entries or deleted:
                self.observe(SessionSaved("saved", False, "it could not be loaded"))
            return
        todo = _SaveTasks(
            session._user_to_bind, session._regenerates, session._ended, session._revoked
        )
        starts = todo.user is not None or (
            bool(entries) if session._stored is None else todo.regenerates
        )
        if starts and session._is_sent:
            if strict:
                raise RuntimeError(
                    "session.save: the response's head has already been sent, so no cookie can be "
                    "set for this session; change the session before that, or before the "
                    "WebSocket is accepted"
                )
            self.observe(SessionSaved("saved", False, "the response's head had been sent"))
            entries, deleted, starts = {}, [], False
        clears, session._saving = session._clears, Latch()
        session._user_to_bind, session._regenerates = None, False
        session._ended, session._revoked = [], []
        try:
            written = await self._write(session, todo, entries, deleted, starts=starts)
        except BaseException:
            session._note_again(todo, is_cleared=session._clears != clears)
            raise
        finally:
            saving, session._saving = session._saving, None
            saving.open()
        self._take_over(session, written, deleted, is_cleared=session._clears != clears)

    async def _write(
        self,
        session: Session,
        todo: _SaveTasks,
        entries: Mapping[str, bytes],
        deleted: list[str],
        *,
        starts: bool,
    ) -> _SaveResult:
        """Send the changes in one pipeline."""
        store, stored = self.store, session._stored
        first = [store.delete(each) for each in todo.ended]
        first += map(store.revoke_all, todo.revoked)
        if starts:
            user, revoked = todo.user, todo.revoked
            new = await store.start(
                entries,
                old=stored,
                deleted=deleted,
                user=user,
                first=first,
                # If another request revoked the user's sessions, the revocation wins.
                despite_revocation=stored is not None and store.is_bound_to_any(stored, revoked),
            )
            is_replaced = new is None
            if new is None:  # the session has ended: keep what this request has written
                values = session._values
                set_ = {name: self._dump(values[name]) for name in session._set if name in values}
                entries = {**entries, **set_}
                if not entries and user is None:  # keep the cookie that the other request set
                    return _SaveResult("regenerated", None, None, entries, is_replaced=True)
                new = await store.start(entries, user=user)
            if new is None:
                raise UnexpectedAnswer("a new session was not created")
            cookie = CookieChange(new.id, store.seconds_left(new))
            change: Change = "created" if stored is None or is_replaced else "regenerated"
            return _SaveResult(change, new, cookie, entries, is_replaced=is_replaced)
        changes = bool(entries or deleted)
        is_timely = not (session._is_sent or session._is_over) and (changes or self._rolls())
        touch = stored is not None and is_timely and self._is_old(stored)
        if stored is None or not (changes or touch):
            if first:
                await store.send(*first)
            gone = CookieChange(None) if todo.ended else None
            return _SaveResult("ended" if first else "nothing", stored, gone, entries)
        saved = await store.save(stored, entries, deleted, touch=touch, first=first)
        rolled = CookieChange(stored.id, store.seconds_left(stored)) if touch and saved else None
        change = "saved" if changes else "touched"
        return _SaveResult(change, stored, rolled, entries, is_over=not saved)

    def _take_over(
        self, session: Session, written: _SaveResult, deleted: list[str], *, is_cleared: bool
    ) -> None:
        """Apply the result of a save to a session that may have changed during the save."""
        entries = written.entries
        if written.is_over:
            self.observe(SessionSaved(written.change, False, ENDED_MEANWHILE))
            session.cookie_change = None  # its id is no longer valid
            if not is_cleared:
                session._is_over = True
                session._entries, session._values, session._deleted = {}, {}, set()
            return
        if written.is_replaced and written.stored is None:
            self.observe(SessionSaved(written.change, False, ENDED_MEANWHILE))
            session.cookie_change = None
        elif written.change != "nothing":
            self.observe(SessionSaved(written.change, True))
        if is_cleared:
            if written.stored is not None and written.stored not in session._ended:
                session._ended.append(written.stored)
            session.cookie_change = written.cookie or session.cookie_change
            return
        session._stored = written.stored
        session.cookie_change = written.cookie or session.cookie_change
        if written.is_replaced:  # the values read before belong to the session that has ended
            session._entries = {}
            kept = [name for name in entries if name in session._values]
            session._values = {name: session._values[name] for name in kept}
        for name in deleted:
            session._entries.pop(name, None)
        session._deleted.difference_update(deleted)
        session._entries.update(entries)
        session._deleted.update(name for name in entries if name not in session._values)

    def _is_old(self, stored: StoredSession) -> bool:
        """Whether a use extends the timeout now: at most once in a twentieth of the timeout."""
        return self.store.clock.wall() - stored.touched >= self._touched_for

    def _loaded_entry(self, data: bytes) -> Any:
        """Decode an entry. Raises an exception if the value could not be encoded again."""
        value = self._load(data)
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH:  # the nesting may be too deep
            self._dump(value)
        return value

    def _changed_entries(self, session: Session) -> tuple[dict[str, bytes], list[str]]:
        """Return the changed entries, encoded, and the names of the deleted ones."""
        changed: dict[str, bytes] = {}
        known = session._entries
        for name, value in list(session._values.items()):
            before = known.get(name)
            try:
                data = self._dump(value)
                name.encode()
            except Exception as error:
                raise NotStorable(f"session[{name!r}]: {error}") from error
            # Another version or program may have encoded an equal value differently.
            if data != before and (before is None or not self._is_same(before, data)):
                changed[name] = data
        if changed:
            check_size({**known, **changed}, self.settings.max_size)
        return changed, [name for name in session._deleted if name in known]

    def _is_same(self, before: bytes, data: bytes) -> bool:
        try:
            return self._dump(self._loaded_entry(before)) == data
        except Exception:  # noqa: BLE001 - as when entries are read
            return False


class _SaveTasks(NamedTuple):
    """What a save does besides writing entries."""

    user: Any
    """The user to bind the session to; None leaves the binding unchanged."""
    regenerates: bool
    ended: list[StoredSession]
    revoked: list[str]


class _SaveResult(NamedTuple):
    """The result of a save."""

    change: Change
    stored: StoredSession | None
    """The session after the save."""
    cookie: CookieChange | None
    entries: Mapping[str, bytes]
    is_over: bool = False
    """Whether another request had ended the session."""
    is_replaced: bool = False
    """Whether another request had ended the session. ``stored`` is then the new session, or None if
    nothing was written."""


class SessionExchange(PartExchange):
    """One request and its session."""

    __slots__ = ("_headers", "_part", "session")

    saves = True

    def __init__(self, part: Sessions, session: Session, headers: Headers) -> None:
        """``headers`` are the header fields of the request."""
        self._headers = headers
        self._part = part
        self.session: Session = session

    @property
    def uses_session(self) -> bool:
        """Whether the application has read or written the session, so far."""
        return self.session.accessed

    @property
    def changes_cookie(self) -> bool:
        """Whether the response sets the cookie."""
        return self.session.cookie_change is not None

    @property
    def absent_cookie(self) -> str:
        """The cookie's name if the session is empty and will not be saved; otherwise empty."""
        return self._part.settings.cookie_name if self.session._stays_empty else ""

    def detach(self) -> None:
        """Replace the session by an empty one that belongs to no client and is not saved."""
        self.session = self._part.detached().session

    def save(self) -> Flow[None] | None:
        """Return the flow that saves the session before the head is sent; None if nothing changed.

        The flow can raise NotStorable. Failures of Upstash raise nothing.
        """
        return self._save() if self._part.is_due(self.session) else None

    async def _save(self) -> None:
        session = self.session
        if session._is_refused:
            return
        certain = session._is_certain
        try:
            await self._part.save(session)
        except NotStorable:  # the application's error page may pass through this method again
            session._is_manual = True
            raise
        except UpstashError as error:
            if error is not session._error:
                self._part.observe(UpstashFailed("session save", error))
            session._is_refused = certain or self._part.settings.on_error == "closed"
            session._is_over = True
            session.cookie_change = None

    def head(self, head: ResponseHead) -> ResponseHead | Response:
        """Add the cookie, and Vary: Cookie if the response depends on the session."""
        session = self.session
        session._is_sent = True
        if session._is_refused and not session._is_detached:
            return unavailable(self._headers)
        if not session.accessed:
            return head
        headers = varying_by_cookie(head.headers)
        if self._part.sets_cookie and session.cookie_change is not None:
            field = self._part.settings.cookie_field(session.cookie_change)
            shared = [
                (name, COOKIE_NOT_SHARED.encode())
                for name, value in headers.raw
                if may_be_shared(name.decode("latin-1"), value.decode("latin-1"))
            ]
            headers = headers.adding((b"Set-Cookie", field), *shared)
        return head if headers is head.headers else ResponseHead(head.status, headers)

    def finish(self, *, complete: bool) -> Flow[None] | None:  # noqa: ARG002
        """Return the flow that saves changes made while the body was produced."""
        session = self.session
        if not session._is_sent or session._is_refused or not self._part.is_due(session):
            return None
        if session._stored is None and not session._is_certain:
            is_lost = session._values and session._error is None  # `save` has reported an error
            return self._drop_late() if is_lost else None
        return self._finish()

    async def _finish(self) -> None:
        try:
            await self._part.save(self.session)
        except UpstashError as error:
            self._part.observe(UpstashFailed("session save", error))

    def leave_to_handler(self) -> None:
        """Leave saving to the handler, after a WebSocket was accepted."""
        self.session._is_manual = True

    async def _drop_late(self) -> None:
        self._part.observe(SessionSaved("saved", False, "the response's head had been sent"))


def unavailable(headers: Headers) -> Response:
    """Return the 503 for a failed login or logout; ``headers`` are the request's."""
    return decision.unavailable(headers, "The session cannot be changed at the moment.")


def check_size(entries: Mapping[str, bytes], max_size: int) -> None:
    """Raise NotStorable if the entries of a session are too large together."""
    size = sum(len(name) + len(data) for name, data in entries.items())
    if size > max_size:
        largest = max(entries, key=lambda name: len(entries[name]))
        raise NotStorable(
            f"the session has {size} bytes, and max_size is {max_size}; the largest entry is "
            f"{largest!r}: store its data elsewhere, for instance with "
            "data.set(key, value, ttl=…), and only its key in the session"
        )


COOKIE_NOT_SHARED: Final = 'no-cache="Set-Cookie"'
"""The directive that prevents caches from reusing a stored Set-Cookie (RFC 9111 §5.2.2.4)."""


def may_be_shared(name: str, value: str) -> bool:
    """Whether a field such as ``Cache-Control: public`` allows shared caches to store a response.

    Fields for CDNs count as well; they override Cache-Control (RFC 9213). Vary: Cookie is not
    enough, because all clients without a cookie would get the session of one of them.
    """
    if not name.lower().endswith("cache-control"):
        return False
    directives = {each.partition("=")[0].strip().lower() for each in value.split(",")}
    return not directives & {"private", "no-store", "no-cache"}


def varying_by_cookie(headers: Headers) -> Headers:
    """Return header fields with Cookie in Vary."""
    named = {name.strip().lower() for line in headers.lines("vary") for name in line.split(",")}
    return headers if {"cookie", "*"} & named else headers.adding((b"Vary", b"Cookie"))


def cookie_of(headers: Headers, name: str) -> str | None:
    """Return the value of the first cookie with this name; None if there is none."""
    for line in headers.lines("cookie"):
        for pair in line.split(";"):
            key, equals, value = pair.partition("=")
            if equals and key.strip(" \t") == name:
                return value.strip(' \t"')
    return None
