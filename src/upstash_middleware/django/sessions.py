# ruff: noqa: SLF001 - the middleware and the store of a session belong together
"""Django's sessions on Upstash: ``SESSION_ENGINE = "upstash_middleware.django.sessions"``.

A session is stored as one Redis hash with a field for each entry; see ``core.sessions``. Only
changed entries are written, so two concurrent requests that change different entries both keep
their changes. Django's own settings apply; ids and users are hashed with ``SECRET_KEY``.

With ``upstash_middleware.django.SessionMiddleware`` in place of Django's, the session is read in
the first pipeline of the middleware above it. The engine also works with Django's middleware, and
without requests: ``SessionStore(session_key)``.
"""

from __future__ import annotations

import os
import re
import time
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangosSessionMiddleware
from django.core.exceptions import ImproperlyConfigured
from django.core.signing import JSONSerializer, Signer
from django.utils.cache import patch_vary_headers
from django.utils.http import http_date
from django.utils.module_loading import import_string
from msgspec.structs import replace

from upstash_middleware.core.engine import Part, PartExchange
from upstash_middleware.core.flow import Command
from upstash_middleware.core.sessions import (
    COOKIE_NOT_SHARED,
    ENDED_MEANWHILE,
    CookieIds,
    SessionSettings,
    StoredSession,
    User,
    check_size,
    may_be_shared,
    unavailable,
    user_text,
)
from upstash_middleware.django.conf import (
    SETTING,
    is_upstash_engine,
    mapping_set,
    runtime_for_data,
)
from upstash_middleware.django.middleware import at_end, exchanges_of, guarded
from upstash_middleware.django.requests import replacement
from upstash_middleware.errors import ConfigurationError, NotStorable, UpstashError, named_part
from upstash_middleware.events import (
    SessionSaved,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    hears,
)
from upstash_middleware.messages import Headers
from upstash_middleware.runtime import BACKGROUND_REQUEST
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.http import HttpRequest
    from django.http.response import HttpResponseBase

    from upstash_middleware.core.flow import Flow, Reply
    from upstash_middleware.core.sessions import SessionLookup, Sessions
    from upstash_middleware.messages import HTTPRequest
    from upstash_middleware.runtime import Runtime

__all__ = ["SessionStore"]

T = TypeVar("T")
_MAX_BOUND_SECONDS: Final = 400 * 24 * 3600.0
"""Seconds after which a session that is bound to a user ends, even if it is used."""
_MAX_TTL: Final = 100 * 365 * 24 * 3600.0
"""Seconds; Redis does not support much longer times to live."""

_EXPIRY: Final = "_session_expiry"
"""The entry in which Django stores the session's own timeout."""
_LEVELS: Final = 200
"""The deepest nesting of an entry's containers."""

# ------------------------------------------------------------------------------------------------
# Settings

_OWN_SETTINGS = {"max_size", "on_error", "read_from", "setting"}
_DJANGO_SETTINGS = {
    "secret_key": "SECRET_KEY and SECRET_KEY_FALLBACKS",
    "session_cookie": "SESSION_COOKIE_NAME",
    "max_age": "SESSION_COOKIE_AGE",
    "idle_timeout": "SESSION_COOKIE_AGE",
    "path": "SESSION_COOKIE_PATH",
    "same_site": "SESSION_COOKIE_SAMESITE",
    "https_only": "SESSION_COOKIE_SECURE",
    "domain": "SESSION_COOKIE_DOMAIN",
}


def check_settings(found: SessionSettings | None) -> SessionSettings:
    """Return the session settings, after checking that Django has no setting for any of them.

    Raises ConfigurationError.
    """
    default = SessionSettings(setting=f"{SETTING}['sessions']")
    found = default if found is None else found
    for name in found.__struct_fields__:
        if name not in _OWN_SETTINGS and getattr(found, name) != getattr(default, name):
            place = named_part(found.setting, name)
            if name in _DJANGO_SETTINGS:
                raise ConfigurationError(
                    f"{place}: in Django, set {_DJANGO_SETTINGS[name]} instead"
                )
            raise ConfigurationError(f"{place}: this setting has no effect in Django; remove it")
    return found


def sessions_of(runtime: Runtime) -> Sessions:
    """Return the Sessions of a runtime, with the secret keys of Django's current settings."""
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    keys = tuple(key.decode() if isinstance(key, bytes) else key for key in secrets)
    found = runtime.sessions
    if found is None or found.settings.secret_key != keys:
        of_django = replace(check_settings(runtime.settings.sessions), secret_key=keys)
        # Each call passes the idle timeout, since each session may have its own.
        found = runtime.create_sessions(
            of_django, absolute=inf, ids=DjangoIds(), load=_decode_for_display
        )
        runtime.sessions = found
    return found


def _decode_for_display(data: bytes) -> Any:
    """Return an entry's value for the command line. Raises ValueError."""
    serializer = import_string(settings.SESSION_SERIALIZER)
    if not issubclass(serializer, JSONSerializer):
        raise ValueError("the value is signed, and decoding it may run code")  # noqa: TRY004
    return serializer().loads(data)


# ------------------------------------------------------------------------------------------------
# Session keys

_BASE_36_DIGITS = "abcdefghijklmnopqrstuvwxyz0123456789"
_KEY = re.compile(r"[a-z][a-z0-9]{31}|0[a-z0-9]{19}([a-z0-9]{12})")


class DjangoIds(CookieIds):
    """Session keys of Django's 32 letters and digits.

    A key begins with a letter and has 160 random bits. The key of a bound session begins with 0,
    and has 98 random bits and 62 bits of the user's keyed hash.
    """

    def new(self, random: Callable[[int], bytes], user: str) -> str:
        """See CookieIds."""
        number = int.from_bytes(random(32))
        if user:
            return f"0{_base_36(number, 19)}{user}"
        number, first = divmod(number, 26)
        return _BASE_36_DIGITS[first] + _base_36(number, 31)

    def parse(self, text: str) -> str | None:
        """See CookieIds."""
        found = _KEY.fullmatch(text)
        return None if found is None else found[1] or ""

    def user_hash(self, digest: bytes) -> str:
        """See CookieIds."""
        return _base_36(int.from_bytes(digest[:16]), 12)


def _base_36(number: int, count: int) -> str:
    """Return the last digits of a number in base 36."""
    text = ""
    for _ in range(count):
        number, digit = divmod(number, 36)
        text += _BASE_36_DIGITS[digit]
    return text


# ------------------------------------------------------------------------------------------------
# The engine


class SessionStore(SessionBase):
    """A Django session on Upstash: ``request.session``.

    In addition to Django's interface it has ``bind``, ``regenerate``, ``revoke`` and
    ``revoke_all``, each also as an async method. If Upstash is unreachable, the session is empty,
    keeps its key, and ``available`` is False; changes are lost, and an event reports this.

    Args:
        session_key: The key of the session; None for a new one.
    """

    accessed: bool
    modified: bool

    def __init__(self, session_key: str | None = None) -> None:
        """Begin with a session key, or without one for a new session; nothing is read yet."""
        super().__init__(session_key)
        self._stored: StoredSession | None = None
        """The session on Redis, once it has been read or created."""
        self._set: set[Any] = set()
        """The names of the entries that this object has set, also to the same value."""
        self._known: dict[str, bytes] = {}
        """The session's entries on Redis, as far as this object knows."""
        self._runtime: Runtime | None = None
        """The runtime for calls; None for the process's runtime."""
        self._read: tuple[SessionLookup, list[Reply] | UpstashError] | None = None
        """A key, and the result of reading it in the request's first pipeline."""
        self._error: UpstashError | None = None
        """The error if the session could not be read or created."""
        self._is_refused = False
        """Whether a change of the key failed, so that no response may confirm the change."""
        self._is_served = False
        """Whether this module's middleware can respond to a failed change."""
        self._is_cleared = False
        self._has_ended = False
        self._is_over = False
        """Whether another request has ended this login or changed its key."""
        self._revoked: list[str] = []
        """The users whose sessions this object has revoked, perhaps its own, before ``bind``."""
        self._is_written = False
        """Whether the session has been saved since its key was last changed or created."""

    # --- This package's methods -----------------------------------------------------------------

    @property
    def available(self) -> bool:
        """Whether the session could be read and created so far. If not, changes are lost."""
        self.accessed = True
        failed = self._read is not None and isinstance(self._read[1], UpstashError)
        return not (self._error is not None or self._is_refused or failed)

    def bind(self, user: User) -> None:
        """Bind the session to a user, under another key, so that ``revoke_all`` ends it.

        A bound session ends after 400 days at the latest. Call this method after ``login``, or in a
        receiver of ``user_logged_in``.

        Args:
            user: The user's id: text, an integer or a UUID. Only a keyed hash of it is stored.

        Raises:
            TypeError: The id has another type.
            UpstashError: Upstash is unreachable, and this package's SessionMiddleware is not
                installed, which would send a 503.
        """
        self._perform(self._cycle(user_text(user)))
        self._raise_unless_served()

    async def abind(self, user: User) -> None:
        """Do the same as ``bind`` on an event loop.

        Args:
            user: As for ``bind``.
        """
        await self._aperform(self._cycle(user_text(user)))
        self._raise_unless_served()

    def regenerate(self) -> None:
        """Change the session's key and keep its entries, as ``cycle_key`` does.

        Raises:
            UpstashError: As for ``bind``.
        """
        self._perform(self._cycle())
        self._raise_unless_served()

    async def aregenerate(self) -> None:
        """Do the same as ``regenerate`` on an event loop."""
        await self._aperform(self._cycle())
        self._raise_unless_served()

    def revoke(self) -> None:
        """End the session, as ``flush`` does. Its key is never used again.

        Raises:
            UpstashError: As for ``bind``.
        """
        self._perform(self._flush())
        self._raise_unless_served()

    async def arevoke(self) -> None:
        """Do the same as ``revoke`` on an event loop."""
        await self._aperform(self._flush())
        self._raise_unless_served()

    def revoke_all(self, user: User) -> None:
        """End all sessions that are bound to a user, for instance after a password change.

        This also ends the current session if it is bound to the user, unless ``bind`` follows.

        Args:
            user: As for ``bind``.

        Raises:
            TypeError: As for ``bind``.
            UpstashError: As for ``bind``.
        """
        self._perform(self._revoke_all(user_text(user)))
        self._raise_unless_served()

    async def arevoke_all(self, user: User) -> None:
        """Do the same as ``revoke_all`` on an event loop.

        Args:
            user: As for ``bind``.
        """
        await self._aperform(self._revoke_all(user_text(user)))
        self._raise_unless_served()

    # --- Django's interface ---------------------------------------------------------------------

    @property
    def session_key(self) -> str | None:
        """The key. A response that reads it depends on the session and is not shared."""
        self.accessed = True
        return self._session_key

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._set.add(key)

    async def aset(self, key: str, value: Any) -> None:
        """Do the same as ``session[key] = value`` on an event loop."""
        await super().aset(key, value)
        self._set.add(key)

    def update(self, dict_: Any) -> None:  # type: ignore[override] # as Django
        """Set entries, like ``dict.update``."""
        entries = dict(dict_)
        super().update(entries)
        self._set.update(entries)

    async def aupdate(self, dict_: Any) -> None:
        """Do the same as ``update`` on an event loop."""
        entries = dict(dict_)
        await super().aupdate(entries)
        self._set.update(entries)

    def load(self) -> dict[str, Any]:
        """Read the session and return its entries; an empty dictionary if there is no session."""
        return self._perform(self._load())

    async def aload(self) -> dict[str, Any]:
        """Do the same as ``load`` on an event loop."""
        return await self._aperform(self._load())

    def exists(self, session_key: str | None = None) -> bool:
        """Whether a session with this key exists; False if Upstash is unreachable."""
        return self._perform(self._exists(session_key))

    async def aexists(self, session_key: str | None = None) -> bool:
        """Do the same as ``exists`` on an event loop."""
        return await self._aperform(self._exists(session_key))

    def create(self) -> None:
        """Create a session on Redis under a new key, with the entries of this object."""
        self._perform(self._create())

    async def acreate(self) -> None:
        """Do the same as ``create`` on an event loop."""
        await self._aperform(self._create())

    def save(self, must_create: bool = False) -> None:
        """Write the changed entries, and extend the timeout.

        Args:
            must_create: Whether to create a session under a new key.

        Raises:
            UpdateError: The session no longer exists; or ``cycle_key`` or ``flush`` has failed, so
                that Django's SessionMiddleware sends a 400 instead of a confirmation.
            NotStorable: The session is too large, or the name of an entry is not text.
            TypeError: ``SESSION_SERIALIZER`` cannot serialize a value.
        """
        self._perform(self._save(must_create=must_create))

    async def asave(self, must_create: bool = False) -> None:
        """Do the same as ``save`` on an event loop."""
        await self._aperform(self._save(must_create=must_create))

    def delete(self, session_key: str | None = None) -> None:
        """Delete this session, or the session with another key, at once.

        Raises:
            UpstashError: Upstash is unreachable, and ``session_key`` is another session's.
        """
        self._perform(self._delete(session_key))

    async def adelete(self, session_key: str | None = None) -> None:
        """Do the same as ``delete`` on an event loop."""
        await self._aperform(self._delete(session_key))

    def clear(self) -> None:
        """Empty the session. Its key is not used again: the next save creates a new session."""
        super().clear()
        self._set = set()
        self._is_cleared = True

    def flush(self) -> None:
        """End the session at once, as a logout does."""
        self._perform(self._flush())

    async def aflush(self) -> None:
        """Do the same as ``flush`` on an event loop."""
        await self._aperform(self._flush())

    def cycle_key(self) -> None:
        """Change the session's key at once and keep its entries, as a login does."""
        self._perform(self._cycle())

    async def acycle_key(self) -> None:
        """Do the same as ``cycle_key`` on an event loop."""
        await self._aperform(self._cycle())

    @classmethod
    def clear_expired(cls) -> None:
        """Do nothing: Redis deletes expired sessions."""

    @classmethod
    async def aclear_expired(cls) -> None:
        """Do nothing: Redis deletes expired sessions."""

    def _get_new_session_key(self) -> str:
        return DjangoIds().new(os.urandom, "")

    async def _aget_new_session_key(self) -> str:
        return self._get_new_session_key()

    # --- Flows ----------------------------------------------------------------------------------

    def _get_runtime(self) -> Runtime:
        return self._runtime or runtime_for_data()

    def _perform(self, flow: Flow[T]) -> T:
        return self._get_runtime().perform(flow)

    async def _aperform(self, flow: Flow[T]) -> T:
        return await self._get_runtime().aperform(flow)

    @property
    def _sessions(self) -> Sessions:
        return sessions_of(self._get_runtime())

    async def _load(self) -> dict[str, Any]:
        sessions, key = self._sessions, self._session_key
        read, self._read = self._read, None
        self._stored, self._known, self._error = None, {}, None
        if read is not None and read[0].id != key:
            read = None
        lookup = read[0] if read else sessions.store.prepare(key) if key is not None else None
        found = None
        if lookup is not None:
            try:
                replies = await lookup.pipeline if read is None else read[1]
                if isinstance(replies, UpstashError):
                    raise replies
                found = sessions.store.receive(lookup, replies)
            except UpstashError as error:
                sessions.observe(UpstashFailed("session load", error))
                self._error = error
                return {}
            if hears(sessions.observe, UpstashAnswered):
                sessions.observe(UpstashAnswered("session load"))
        if found is None or (found[0].user and self._seconds_left(found[0]) <= 0):
            self._session_key = None
            return {}
        self._stored, entries = found
        values = {}
        for name, data in entries.items():
            try:
                value = self._deserialize(name, data)
                self._check_read(name, value, data)
            except Exception:  # noqa: BLE001, S112 - as Django does for an invalid signature
                continue
            values[name] = value
            self._known[name] = data
        return values

    def _check_read(self, name: str, value: Any, data: bytes) -> None:
        """Raise an exception for an entry that could not be saved again."""
        _entry_name(name)
        if name == _EXPIRY:
            http_date(time.time() + float(self.get_expiry_age(expiry=value)))
        _check_depth(value, data)

    async def _values(self) -> dict[str, Any]:
        """Return the entries, after reading them if necessary."""
        self.accessed = True
        if not hasattr(self, "_session_cache"):
            self._session_cache = {} if self._session_key is None else await self._load()
        return self._session_cache

    async def _exists(self, key: str | None) -> bool:
        sessions = self._sessions
        lookup = sessions.store.prepare(key) if key else None
        if lookup is None:
            return False
        try:
            found = sessions.store.receive(lookup, await lookup.pipeline)
        except UpstashError as error:
            sessions.observe(UpstashFailed("session load", error))
            return False
        return found is not None

    async def _create(self) -> None:
        self.modified = True
        if self._is_refused:
            return
        if not hasattr(self, "_session_cache"):
            self._session_cache = {}
        self._session_key, self._stored, self._known, self._error = None, None, {}, None
        await self._save(must_create=True)

    async def _save(self, *, must_create: bool = False) -> bool:
        """Save the changes; return whether they are on Redis."""
        if self._is_refused:
            return self._false_or_update_error()
        if must_create and not hasattr(self, "_session_cache"):
            self._session_cache = {}
        values = await self._values()
        sessions = self._sessions
        if self._error is not None:
            sessions.observe(SessionSaved("saved", False, "the session could not be loaded"))
            return False
        if must_create or self._session_key is None or self._is_cleared:
            return await self._start(sessions)
        if self._is_over:
            changed, deleted = self._changed_entries()
            if deleted or changed.keys() - {HASH_SESSION_KEY}:
                raise UpdateError
            return False
        return await self._update(sessions, values)

    async def _update(self, sessions: Sessions, values: dict[str, Any]) -> bool:
        """Write the changes to an existing session."""
        stored = self._stored
        if stored is None or stored.id != self._session_key:  # another key was assigned
            await self._load()
            self._session_cache, stored = values, self._stored
            if stored is None and self.available:
                raise UpdateError
            if stored is None:
                return False
        entries, deleted = self._changed_entries()
        store = sessions.store
        touch = self._is_old()
        try:
            idle = self._seconds_left(stored)
            saved = await store.save(stored, entries, deleted, touch=touch, idle=idle)
        except UpstashError as error:
            sessions.observe(UpstashFailed("session save", error))
            self._is_refused = sessions.settings.on_error == "closed"
            return self._false_or_update_error()
        change = "saved" if entries or deleted else "touched"
        if not saved and idle > 0:
            sessions.observe(SessionSaved(change, False, ENDED_MEANWHILE))
            raise UpdateError
        self._known.update(entries)
        for name in deleted:
            del self._known[name]
        self._is_written = True
        sessions.observe(SessionSaved(change, True))
        return True

    def _false_or_update_error(self) -> bool:
        """Return False if nothing was saved; raise UpdateError after a failed change of the key."""
        if self._is_refused and not self._is_served:
            raise UpdateError
        return False

    async def _start(self, sessions: Sessions) -> bool:
        """Create a session with all entries, which replaces a cleared one."""
        old = self._session_key if self._is_cleared else None
        self._known, self._stored = {}, None
        entries, _ = self._changed_entries()
        first = [] if old is None else _delete_commands(sessions, old)
        try:
            new = await sessions.store.start(entries, first=first, idle=self._seconds_left())
        except UpstashError as error:
            sessions.observe(UpstashFailed("session save", error))
            self._error = error
            self._is_refused = bool(first) or sessions.settings.on_error == "closed"
            if self._session_key is None:  # code may need a key; nothing is ever stored under it
                self._session_key = self._get_new_session_key()
            return self._false_or_update_error()
        self._adopt(cast("StoredSession", new), entries)
        sessions.observe(SessionSaved("created", True))
        return True

    async def _cycle(self, user: str | None = None) -> None:
        values = await self._values()
        sessions, store = self._sessions, self._sessions.store
        self.modified = True
        if self._error is not None:
            self._is_refused = True
            return
        old = None if self._is_cleared else self._stored
        first = [] if not self._is_cleared else _delete_commands(sessions, self._session_key)
        if old is None:
            self._known = {}
        entries, deleted = self._changed_entries()
        idle = min(self._seconds_left(old), _MAX_BOUND_SECONDS) if user else self._seconds_left(old)
        try:
            new = await store.start(
                entries,
                old=old,
                deleted=deleted,
                user=user,
                first=first,
                idle=idle,
                despite_revocation=old is not None and store.is_bound_to_any(old, self._revoked),
            )
            if new is None and user is None and self._is_login_read(values):
                # The client keeps the cookie of the request that ended the session, for instance
                # if two requests renew a login after SECRET_KEY has changed.
                sessions.observe(SessionSaved("regenerated", False, ENDED_MEANWHILE))
                self._is_over = True
                return
            if new is None:  # another request ended it: continue with this request's entries
                self._session_cache = {
                    key: value
                    for key, value in values.items()
                    if key in self._set or _entry_name(key) in entries
                }
                self._known, old = {}, None
                entries, _ = self._changed_entries()
                new = await store.start(entries, user=user, idle=self._seconds_left())
        except UpstashError as error:
            self._refuse(error)
            return
        for name in deleted:
            self._known.pop(name, None)
        self._adopt(cast("StoredSession", new), {**self._known, **entries})
        sessions.observe(SessionSaved("created" if old is None else "regenerated", True))

    def _is_login_read(self, values: dict[str, Any]) -> bool:
        """Whether the session belongs to a user who logged in before this request."""
        return SESSION_KEY in values and SESSION_KEY not in self._set

    async def _flush(self) -> None:
        self.clear()
        await self._delete(None)
        if self._is_refused:
            return
        self._session_key, self._stored, self._known, self._error = None, None, {}, None
        self._is_cleared = self._is_written = False

    async def _delete(self, session_key: str | None) -> None:
        key = session_key or self._session_key
        is_own = key == self._session_key
        sessions = self._sessions
        if commands := _delete_commands(sessions, key):
            try:
                await sessions.store.send(*commands)
            except UpstashError as error:
                if is_own:
                    self._refuse(error)
                    return
                sessions.observe(UpstashFailed("session save", error))
                raise
            sessions.observe(SessionSaved("ended", True))
        if is_own:
            self._has_ended, self._is_written = True, False

    async def _revoke_all(self, user: str) -> None:
        sessions = self._sessions
        self.accessed = True
        try:
            await sessions.store.send(sessions.store.revoke_all(user))
        except UpstashError as error:
            self._refuse(error)
            return
        self._revoked.append(user)
        sessions.observe(SessionSaved("ended", True))

    def _adopt(self, new: StoredSession, entries: Mapping[str, bytes]) -> None:
        """Continue with a session that was just created or has a new key."""
        self._stored, self._known = new, dict(entries)
        self._session_key = new.id
        self._is_cleared = self._has_ended = self._is_over = False
        self._is_written = self.modified = True

    def _refuse(self, error: UpstashError) -> None:
        """Report a failed change, so that no response confirms it."""
        self._sessions.observe(UpstashFailed("session save", error))
        self._error, self._is_refused = error, True
        self.modified = True

    def _raise_unless_served(self) -> None:
        """Raise the error of a failed change, unless the middleware responds to it."""
        if self._is_refused and self._error is not None and not self._is_served:
            raise self._error

    # --- Entries and timeouts -------------------------------------------------------------------

    def _changed_entries(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the changed entries, serialized, and the names of the deleted entries."""
        changed: dict[str, bytes] = {}
        names = set()
        for key, value in self._session_cache.items():
            name = _entry_name(key)
            names.add(name)
            data = self._serialize(name, value)
            if data != (known := self._known.get(name)) and (
                known is None or self._is_json or not self._is_same(name, known, data)
            ):
                changed[name] = data
        if changed:
            check_size({**self._known, **changed}, self._sessions.settings.max_size)
        return changed, [name for name in self._known if name not in names]

    def _has_changed(self) -> bool:
        """Whether an entry has changed without ``modified``, for instance within a list."""
        values = getattr(self, "_session_cache", {}).values()
        if all(isinstance(value, str | int | float | None) for value in values):
            return False
        try:
            return any(self._changed_entries())
        except Exception:  # noqa: BLE001 - Django would not have serialized the entries
            return False

    def _is_saved(self) -> bool:
        """Whether this object has saved the session, and nothing has changed since then."""
        return self._is_written and not self._is_cleared and not any(self._changed_entries())

    @property
    def _is_json(self) -> bool:
        return issubclass(self.serializer, JSONSerializer)

    def _serialize(self, name: str, value: Any) -> bytes:
        """Return an entry in its stored form: JSON, or the signed output of another serializer.

        It is signed because serializers such as pickle can run code, and it is in Base64.
        """
        try:
            if self._is_json:
                data: bytes = self.serializer().dumps(value)
                _check_depth(value, data)
                return data
            return self._signer(name).sign_object(value, serializer=self.serializer).encode()
        except Exception as error:
            error.add_note(f"It is the value of request.session[{name!r}].")
            raise

    def _deserialize(self, name: str, data: bytes) -> Any:
        if self._is_json:
            return self.serializer().loads(data)
        return self._signer(name).unsign_object(data.decode(), serializer=self.serializer)

    def _signer(self, name: str) -> Signer:
        return Signer(salt=f"{self.key_salt}:{name}")

    def _is_same(self, name: str, known: bytes, data: bytes) -> bool:
        """Whether two serialized values are equal although their bytes differ, as with pickle."""
        return self._serialize(name, self._deserialize(name, known)) == data

    def _age(self) -> float:
        """Return the idle timeout in seconds."""
        expiry = getattr(self, "_session_cache", {}).get(_EXPIRY)
        return min(float(self.get_expiry_age(expiry=expiry)), _MAX_TTL)

    def _seconds_left(self, stored: StoredSession | None = None) -> float:
        """Return the seconds until a session that is used now expires."""
        age = self._age()
        if stored is None or not stored.user:
            return age
        return min(age, stored.created + _MAX_BOUND_SECONDS - self._sessions.store.clock.wall())

    def _is_old(self) -> bool:
        """Whether at least a twentieth of the timeout has passed since its last extension."""
        stored = self._stored
        now = self._sessions.store.clock.wall()
        return stored is not None and now - stored.touched >= self._age() / 20


def _check_depth(value: Any, data: bytes) -> None:
    """Raise NotStorable for nesting so deep that serializing could raise RecursionError."""
    if data.count(b"[") + data.count(b"{") <= _LEVELS:
        return
    inside = [value]
    for _ in range(_LEVELS + 1):
        items = [each.values() if isinstance(each, dict) else each for each in inside]
        inside = [item for each in items for item in each if isinstance(item, dict | list | tuple)]
        if not inside:
            return
    raise NotStorable(f"it is nested more than {_LEVELS} levels deep; store a flatter value")


def _entry_name(key: Any) -> str:
    """Return the name of an entry; a whole number becomes text, as in JSON."""
    if type(key) is int:
        return str(key)
    try:
        if isinstance(key, str) and key.encode():
            return key
    except UnicodeEncodeError:
        pass
    raise NotStorable(
        f"request.session[{key!r}]: the names of entries are text; write for instance "
        "request.session['cart']"
    )


def _delete_commands(sessions: Sessions, key: str | None) -> list[Command]:
    """Return the commands that delete the session with a key; none if the text is no key."""
    if key is None or sessions.store.ids.parse(key) is None:
        return []
    return [Command(("DEL", *sessions.store.keys_of(key)), reads_only=True)]


# ------------------------------------------------------------------------------------------------
# Reading the session in the first pipeline of the middleware above


class SessionUse(PartExchange):
    """The session from the view of a request's exchanges: does the response depend on it?"""

    __slots__ = ("read", "runtime", "session", "sets_cookie")

    saves = True

    def __init__(
        self,
        runtime: Runtime | None = None,
        read: tuple[SessionLookup, list[Reply] | UpstashError] | None = None,
    ) -> None:
        self.runtime: Runtime | None = runtime
        self.read: tuple[SessionLookup, list[Reply] | UpstashError] | None = read
        """The session to read, and the result of reading it."""
        self.session: SessionStore | None = None
        self.sets_cookie: bool = False

    @property
    def uses_session(self) -> bool:
        """Whether the application has read or written the session so far."""
        return self.sets_cookie or (self.session is not None and self.session.accessed)

    @property
    def changes_cookie(self) -> bool:
        """Whether the response sets the cookie."""
        return self.sets_cookie

    @property
    def absent_cookie(self) -> str:
        """The cookie's name if the session is empty and will not be saved."""
        session = self.session
        if self.sets_cookie or session is None or session.modified or not session.is_empty():
            return ""
        return str(settings.SESSION_COOKIE_NAME)


class _Reader(Part):
    """Reads a request's session in the first pipeline, for SessionMiddleware."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def prepare(self, request: HTTPRequest) -> SessionLookup | None:
        key = request.native.COOKIES.get(settings.SESSION_COOKIE_NAME)
        if not (key and is_upstash_engine(settings.SESSION_ENGINE)):
            return None
        return sessions_of(self._runtime).store.prepare(key)

    def receive(self, prepared: SessionLookup, replies: list[Reply] | UpstashError) -> SessionUse:
        return SessionUse(self._runtime, (prepared, replies))


def join(runtime: Runtime) -> None:
    """Make a runtime's engine read sessions, inside its limits and its cache."""
    runtime.engine.parts = (*runtime.engine.parts, _Reader(runtime))


# ------------------------------------------------------------------------------------------------
# The middleware


class SessionMiddleware(DjangosSessionMiddleware):
    """Django's SessionMiddleware with one round trip less, and safe when Upstash is unreachable.

    The session is read in the first pipeline of ``UpstashMiddleware``, or of the other middleware
    classes of this package, above it. The cache does not share a response whose view has used the
    session. While Upstash is unreachable, no cookie is set or deleted, and a view whose ``login``
    or ``logout`` failed gets a 503. A view that requires a login, as the admin does, sees an
    anonymous user and redirects to the form. With ``SESSION_SAVE_EVERY_REQUEST`` the timeout is
    extended only after a twentieth of it has passed.

    With another SESSION_ENGINE it does the same as Django's.
    """

    reads_session = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        """Create the middleware; Django calls this for its entry in ``MIDDLEWARE``.

        Args:
            get_response: The next middleware or view, from Django.

        Raises:
            ImproperlyConfigured: The setting UPSTASH_MIDDLEWARE is wrong.
        """
        super().__init__(get_response)
        try:
            if is_upstash_engine(settings.SESSION_ENGINE):
                check_settings(settings_from(mapping_set(), os.environ, source=SETTING).sessions)
        except ConfigurationError as error:
            raise ImproperlyConfigured(str(error)) from error

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Do the same as Django's method, without a thread for each request."""
        self.process_request(request)
        response: HttpResponseBase = await cast("Any", self.get_response(request))
        session = getattr(request, "session", None)
        if not isinstance(session, SessionStore):
            respond: Any = sync_to_async(self.process_response)
            return cast("HttpResponseBase", await respond(request, response))
        return await session._aperform(_respond(request, session, response))

    def process_request(self, request: HttpRequest) -> None:
        """Set the request's session, using the data that the middleware above has read."""
        super().process_request(request)
        if isinstance(session := request.session, SessionStore):
            use = SessionUse()
            exchanges = exchanges_of(request)
            for exchange in exchanges:
                if isinstance(exchange.session, SessionUse):
                    use = exchange.session
            for exchange in exchanges:
                exchange.session = use
            use.session = session
            session._runtime, session._read, session._is_served = use.runtime, use.read, True
            vars(request)[_USE] = use

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> Any:
        """Save the session if it has changed, and set or delete its cookie.

        Raises:
            SessionInterrupted: Another request ended the session.
        """
        session = getattr(request, "session", None)
        if not isinstance(session, SessionStore):
            return super().process_response(request, cast("Any", response))
        return session._perform(_respond(request, session, response))


_USE = "_upstash_middleware_session"
"""The attribute of a request that contains its SessionUse."""


async def _respond(
    request: HttpRequest, session: SessionStore, response: HttpResponseBase
) -> HttpResponseBase:
    """Do what Django's ``process_response`` does; see SessionMiddleware. A flow."""
    use: SessionUse = vars(request).pop(_USE, None) or SessionUse()
    name, accessed = settings.SESSION_COOKIE_NAME, session.accessed
    if BACKGROUND_REQUEST in request.META or BACKGROUND_REQUEST in getattr(request, "scope", ()):
        pass  # a background revalidation has no client: its session is not saved
    elif refused := _response_if_refused(request, session, response):
        return refused
    elif session.is_empty():
        if name in request.COOKIES and session._has_ended:
            use.sets_cookie = True
            response.delete_cookie(
                name,
                path=settings.SESSION_COOKIE_PATH,
                domain=settings.SESSION_COOKIE_DOMAIN,
                samesite=settings.SESSION_COOKIE_SAMESITE,
            )
    elif await _is_due(session) and response.status_code < 500:
        try:
            saved = session._is_saved() or await session._save()
        except UpdateError:
            raise SessionInterrupted(
                "The request's session was deleted before the request completed. The user may have "
                "logged out in a concurrent request, for example."
            ) from None
        if refused := _response_if_refused(request, session, response):
            return refused
        if saved:
            use.sets_cookie = True
            _set_cookie(session, response)
    if response.streaming:
        at_end(request, partial(_save_late, session))
        response = guarded(request, response)
    if accessed or use.sets_cookie:
        patch_vary_headers(response, ("Cookie",))
        _forbid_shared_caching(response)
    return response


def _response_if_refused(
    request: HttpRequest, session: SessionStore, response: HttpResponseBase
) -> HttpResponseBase | None:
    """Return a 503 if a change of the session failed that the response might confirm."""
    if not session._is_refused:
        return None
    accept = request.META.get("HTTP_ACCEPT", "").encode("latin-1", "replace")
    answer = unavailable(Headers(((b"Accept", accept),)))
    return replacement(answer, response, without_body=request.method == "HEAD")


def _forbid_shared_caching(response: HttpResponseBase) -> None:
    """Prevent shared caches from storing a response with a session cookie."""
    if settings.SESSION_COOKIE_NAME not in response.cookies:
        return
    for field, value in list(response.items()):
        if may_be_shared(field, value):
            response[field] = f"{value}, {COOKIE_NOT_SHARED}"


async def _is_due(session: SessionStore) -> bool:
    """Whether a session must be saved. A flow."""
    if session.modified or (session.accessed and session._has_changed()):
        return True
    if not settings.SESSION_SAVE_EVERY_REQUEST:
        return False
    accessed = session.accessed
    await session._values()
    session.accessed = accessed
    return session._is_old()


def _set_cookie(session: SessionStore, response: HttpResponseBase) -> None:
    max_age = expires = None
    if not session.get_expire_at_browser_close():
        max_age = session.get_expiry_age()
        expires = http_date(time.time() + max_age)
    response.set_cookie(
        settings.SESSION_COOKIE_NAME,
        cast("str", session._session_key),
        max_age=max_age,
        expires=expires,
        domain=settings.SESSION_COOKIE_DOMAIN,
        path=settings.SESSION_COOKIE_PATH,
        secure=settings.SESSION_COOKIE_SECURE or False,
        httponly=settings.SESSION_COOKIE_HTTPONLY or False,
        samesite=settings.SESSION_COOKIE_SAMESITE,
    )


def _save_late(session: SessionStore) -> None:
    """Save changes made while the body was produced, if the session exists."""
    observe = session._sessions.observe
    try:
        if session._stored is None or session._is_cleared or session._error is not None:
            if session.accessed and session._session_key is None and session._session_cache:
                detail = "the response's head had been sent"
                observe(SessionSaved("saved", False, detail))
        elif not session._is_refused and any(session._changed_entries()):
            session.save()
    except UpdateError:
        pass  # an event has reported it
    except Exception as error:  # noqa: BLE001 - the response has been sent
        observe(UserCodeFailed("the session", error))
