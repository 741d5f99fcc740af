# ruff: noqa: ASYNC109 - the parameters are Django's
"""``UpstashCache``: Django's cache framework on Upstash.

For the setting ``CACHES``::

    CACHES = {"default": {"BACKEND": "upstash_middleware.django.cache.UpstashCache"}}

Values are stored in the database of the setting ``UPSTASH_MIDDLEWARE``, over its connections,
unless ``LOCATION`` or ``OPTIONS`` name another database. Each KEY_PREFIX has an epoch, so
``clear()`` invalidates the values of this alias and nothing else.
"""

from __future__ import annotations

import operator
import os
import re
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache
from msgspec import Struct

from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.data import MAX_TTL, MISSING, kind_of
from upstash_middleware.django.conf import runtime_for_data
from upstash_middleware.django.values import DjangoCodec, signed_pickles
from upstash_middleware.errors import ConfigurationError, NotStorable, UpstashError, unknown_name
from upstash_middleware.events import UpstashFailed
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from upstash_middleware.core.data import DataStore
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.core.values import Codec

__all__ = ["UpstashCache"]

T = TypeVar("T")

_CODECS: dict[str, Callable[[], Codec]] = {"json": DjangoCodec, "signed-pickle": signed_pickles}
_KINDS = {"json": "django", "signed-pickle": "django-pickle"}
_CONNECTION = (
    *("url", "token", "redis", "transport", "prefix", "deadline", "cache_deadline"),
    *("cache_keys", "cache_encrypt", "breaker", "breaker_slow", "observers", "enabled"),
)
"""Settings that give the alias its own connection; see ``settings.Arguments``."""
_OPTIONS = ("serializer", "strict", "forever", *_CONNECTION)
_DJANGO_OPTIONS = {"MAX_ENTRIES", "CULL_FREQUENCY"}
_MAX_ALIASES = 32


class UpstashCache(BaseCache):
    """A backend for ``CACHES``, with all methods of Django's caches, sync and async.

    ``LOCATION`` is the database's REST URL; without it, the database of ``UPSTASH_MIDDLEWARE`` is
    used. ``OPTIONS`` may contain:

    - ``serializer``: ``"json"``, the default, for JSON types, dates, tuples, bytes, safe text,
      responses and more. Each value is read back as an equal value of the same type; other values
      raise NotStorable. Or ``"signed-pickle"``, also for model instances and query sets: a pickle
      that is signed with SECRET_KEY (HMAC), and verified before it is loaded.
    - ``forever``: seconds for which ``timeout=None`` keeps a value; default and maximum 400 days.
    - ``strict``: whether writes raise UpstashError if Upstash fails. Default False: the write is
      lost and an event reports it. In either case, reads are misses.
    - ``url``, ``token``, ``redis``, ``transport``, ``prefix``, ``deadline``, ``cache_deadline``,
      ``cache_keys``, ``cache_encrypt``, ``breaker``, ``breaker_slow``, ``observers``, ``enabled``:
      as in ``UPSTASH_MIDDLEWARE``, whose settings are ignored if one of these is set.

    Aliases with the same KEY_PREFIX, database and serializer share values and ``clear()``.

    While Upstash is unreachable, ``add()`` returns False, so that no caller believes that it has a
    lock. With ``enabled: False`` the backend behaves like Django's DummyCache.

    Raises ConfigurationError if ``LOCATION`` or ``OPTIONS`` are wrong.
    """

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)
        self._alias: _Alias = _find_alias(location or "", params.get("OPTIONS") or {})
        self._kind = kind_of(_KINDS[self._alias.serializer], self.key_prefix)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key_prefix={self.key_prefix!r})"

    def get_backend_timeout(self, timeout: Any = DEFAULT_TIMEOUT) -> float:
        """Return the seconds for which a value is kept; 0 or less deletes it."""
        if timeout is DEFAULT_TIMEOUT:
            timeout = self.default_timeout
        return self._alias.forever if timeout is None else min(timeout, MAX_TTL)

    # --- Reading --------------------------------------------------------------------------------

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Return a value, or ``default`` if there is none. One command."""
        return self._run(self._get(key, default, version), default)

    async def aget(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Do the same as ``get`` on an event loop."""
        return await self._arun(self._get(key, default, version), default)

    def _get(self, key: Any, default: Any, version: int | None) -> _MakeFlow[Any]:
        name = self._name(key, version)
        return lambda store: store.get(name, default)

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Return the values that exist, by key, in one command."""
        by_name = self._names(keys, version)
        values: dict[str, Any] = self._run(_read_many(by_name), {}) if by_name else {}
        return {by_name[name]: value for name, value in values.items()}

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Do the same as ``get_many`` on an event loop."""
        by_name = self._names(keys, version)
        values: dict[str, Any] = await self._arun(_read_many(by_name), {}) if by_name else {}
        return {by_name[name]: value for name, value in values.items()}

    # --- Storing --------------------------------------------------------------------------------

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """Store a value. Raises NotStorable if it would not be read back as an equal value."""
        self._run(self._set({key: value}, timeout, version), True)

    async def aset(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """Do the same as ``set`` on an event loop."""
        await self._arun(self._set({key: value}, timeout, version), True)

    def set_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[Any]:
        """Store values in one call; return all keys if this failed, otherwise an empty list."""
        done = not data or self._run(self._set(data, timeout, version), True)
        return [] if done else list(data)

    async def aset_many(
        self,
        data: Mapping[Any, Any],
        timeout: Any = DEFAULT_TIMEOUT,
        version: int | None = None,
    ) -> list[Any]:
        """Do the same as ``set_many`` on an event loop."""
        done = not data or await self._arun(self._set(data, timeout, version), True)
        return [] if done else list(data)

    def _set(self, data: Mapping[Any, Any], timeout: Any, version: int | None) -> _MakeFlow[bool]:
        seconds, strict = self.get_backend_timeout(timeout), self._alias.strict
        values = {self._name(key, version): value for key, value in data.items()}

        def make(store: DataStore) -> Flow[bool]:
            payloads = {name: _encode(store, value) for name, value in values.items()}
            if seconds <= 0:
                return store.discard(*payloads, strict=strict)
            if len(payloads) > 1:
                return store.set_many(payloads, seconds, strict=strict)
            ((name, payload),) = payloads.items()
            return store.set(name, payload, seconds, strict=strict)

        return make

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Store a value if the key has none, and return whether it had none.

        If several calls run at the same time, one returns True. If Upstash fails, all return False.
        """
        return self._run(self._add(key, value, timeout, version), True)

    async def aadd(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Do the same as ``add`` on an event loop."""
        return await self._arun(self._add(key, value, timeout, version), True)

    def _add(self, key: Any, value: Any, timeout: Any, version: int | None) -> _MakeFlow[bool]:
        name, seconds = self._name(key, version), self.get_backend_timeout(timeout)
        strict = self._alias.strict

        def make(store: DataStore) -> Flow[bool]:
            payload = _encode(store, value)
            if seconds <= 0:
                return _is_missing(store, name)
            return store.add(name, payload, seconds, strict=strict)

        return make

    def get_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """Return a value; if it is missing, add ``default`` (called first if it is callable)."""
        value = self.get(key, MISSING, version=version)
        if value is not MISSING:
            return value
        if callable(default):
            default = default()
        if self.add(key, default, timeout=timeout, version=version):
            return default
        return self.get(key, default, version=version)

    async def aget_or_set(
        self, key: Any, default: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any:
        """Do the same as ``get_or_set`` on an event loop."""
        value = await self.aget(key, MISSING, version=version)
        if value is not MISSING:
            return value
        if callable(default):
            default = default()
        if await self.aadd(key, default, timeout=timeout, version=version):
            return default
        return await self.aget(key, default, version=version)

    # --- Changing -------------------------------------------------------------------------------

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Let a value expire ``timeout`` seconds from now, and return whether it exists."""
        return self._run(self._touch(key, timeout, version), False)

    async def atouch(
        self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Do the same as ``touch`` on an event loop."""
        return await self._arun(self._touch(key, timeout, version), False)

    def _touch(self, key: Any, timeout: Any, version: int | None) -> _MakeFlow[bool]:
        name, seconds = self._name(key, version), self.get_backend_timeout(timeout)
        strict = self._alias.strict
        if seconds <= 0:
            return lambda store: store.delete(name, strict=strict)
        return lambda store: store.touch(name, seconds, strict=strict)

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Delete a value with one command, and return whether it existed.

        A value that ``clear()`` has invalidated counts as existing until it expires.
        """
        name, strict = self._name(key, version), self._alias.strict
        return self._run(lambda store: store.delete(name, strict=strict), False)

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """Do the same as ``delete`` on an event loop."""
        name, strict = self._name(key, version), self._alias.strict
        return await self._arun(lambda store: store.delete(name, strict=strict), False)

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Delete values with one command."""
        names, strict = self._names(keys, version), self._alias.strict
        if names:
            self._run(lambda store: store.delete(*names, strict=strict), False)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Do the same as ``delete_many`` on an event loop."""
        names, strict = self._names(keys, version), self._alias.strict
        if names:
            await self._arun(lambda store: store.delete(*names, strict=strict), False)

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Add to an integer atomically and return the sum; its timeout does not change.

        Raises ValueError if there is no value, if Upstash fails, or if the sum is beyond 2**53. For
        a value that is not an integer, the error is both a TypeError and a ValueError.
        """
        return _require_counter(key, self._run(self._incr(key, delta, version), None))

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Do the same as ``incr`` on an event loop."""
        return _require_counter(key, await self._arun(self._incr(key, delta, version), None))

    def _incr(self, key: Any, delta: int, version: int | None) -> _MakeFlow[int | None]:
        name, strict = self._name(key, version), self._alias.strict
        delta = operator.index(delta)
        return lambda store: store.incr(name, delta, strict=strict)

    def clear(self) -> None:
        """Invalidate all values of this alias with one command.

        Nothing is deleted: invalidated values are no longer found, and expire. This affects
        all aliases with this database, serializer and KEY_PREFIX.
        """
        self._run(self._clear, None)

    async def aclear(self) -> None:
        """Do the same as ``clear`` on an event loop."""
        await self._arun(self._clear, None)

    async def _clear(self, store: DataStore) -> None:
        try:
            await store.purge_everything()
        except UpstashError as error:
            self._alias.runtime().observe(UpstashFailed("data write", error))
            if self._alias.strict:
                raise

    # --- Helpers --------------------------------------------------------------------------------

    def _name(self, key: Any, version: int | None) -> str:
        return str(self.make_and_validate_key(key, version=version))

    def _names(self, keys: Iterable[Any], version: int | None) -> dict[str, Any]:
        return {self._name(key, version): key for key in keys}

    def _run(self, make: _MakeFlow[T], disabled: T) -> T:
        """Run a flow in this thread and return its result; ``disabled`` if it is disabled."""
        runtime, flow = self._runtime_and_flow(make)
        if runtime.enabled:
            return runtime.perform(flow)
        flow.close()
        return disabled

    async def _arun(self, make: _MakeFlow[T], disabled: T) -> T:
        runtime, flow = self._runtime_and_flow(make)
        if runtime.enabled:
            return await runtime.aperform(flow)
        flow.close()
        return disabled

    def _runtime_and_flow(self, make: _MakeFlow[T]) -> tuple[Runtime, Flow[T]]:
        alias = self._alias
        runtime = alias.runtime()
        return runtime, make(runtime.data(self._kind, alias.codec))


if TYPE_CHECKING:
    _MakeFlow = Callable[[DataStore], Flow[T]]


def _read_many(names: Iterable[str]) -> _MakeFlow[dict[str, Any]]:
    return lambda store: store.get_many(names)


async def _is_missing(store: DataStore, name: str) -> bool:
    return await store.get(name, MISSING) is MISSING


def _encode(store: DataStore, value: object) -> bytes:
    try:
        return store.encode(value)
    except NotStorable as error:
        raise NotStorable(
            f"{error}. Or give the cache OPTIONS: {{'serializer': 'signed-pickle'}}, which stores "
            "all values that can be pickled"
        ) from None


def _require_counter(key: Any, total: int | None) -> int:
    if total is None:
        raise ValueError(f"Key '{key}' not found")
    return total


# ------------------------------------------------------------------------------------------------
# The settings of an alias of CACHES


class _Alias(Struct):
    """The checked LOCATION and OPTIONS, with the runtime that they define.

    Django creates a backend for each alias in each thread, and under ASGI for each request. All of
    them share this object.
    """

    location: str
    options: dict[str, Any]
    serializer: str
    codec: Codec
    strict: bool
    forever: float
    own: Runtime | None

    def __repr__(self) -> str:
        """Return a text without the token, for tracebacks that show local variables."""
        return f"{type(self).__name__}(serializer={self.serializer!r}, strict={self.strict!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("serializer", self.serializer), ("strict", self.strict)]

    def runtime(self) -> Runtime:
        """Return the alias's runtime, or that of UPSTASH_MIDDLEWARE. Raises ConfigurationError."""
        return self.own or runtime_for_data()


_aliases: list[_Alias] = []
_lock = threading.Lock()


def _find_alias(location: str, options: Mapping[str, Any]) -> _Alias:
    for alias in _aliases:
        if alias.location == location and alias.options == options:
            return alias
    with _lock:
        alias = _read(location, dict(options))
        _aliases.append(alias)
        if len(_aliases) > _MAX_ALIASES and (oldest := _aliases.pop(0)).own is not None:
            oldest.own.close()  # if it is used again, it opens a new connection
    return alias


def _read(location: str, options: dict[str, Any]) -> _Alias:
    for name in options:
        if name in _DJANGO_OPTIONS:
            raise ConfigurationError(
                f"OPTIONS[{name!r}]: Upstash drops no values while they are valid; leave it out"
            )
        if name not in _OPTIONS:
            raise unknown_name("OPTIONS", name, _OPTIONS)
    serializer, strict = options.get("serializer", "json"), options.get("strict", False)
    if serializer not in _CODECS:
        raise ConfigurationError(
            f"OPTIONS['serializer']: {serializer!r} should be 'json' or 'signed-pickle'"
        )
    if not isinstance(strict, bool):
        raise ConfigurationError(f"OPTIONS['strict']: {strict!r} should be True or False")
    connection = {name: options[name] for name in _CONNECTION if name in options}
    if location:
        if "url" in connection:
            raise ConfigurationError("LOCATION and OPTIONS['url']: leave out one of them")
        if not re.match("https?://", str(location)):
            scheme = re.match("[a-z]+://", str(location))
            raise ConfigurationError(
                f"LOCATION: {scheme[0] + '…' if scheme else location!r} should be the database's "
                "REST URL, https://…, with its token in OPTIONS; or left out"
            )
        connection["url"] = location
    return _Alias(
        location,
        options,
        serializer,
        _CODECS[serializer](),
        strict,
        _forever(options.get("forever", MAX_TTL)),
        Runtime(settings_from(connection, os.environ, source="OPTIONS"), Features(0))
        if connection
        else None,
    )


def _forever(given: Any) -> float:
    try:
        seconds = seconds_in(given)
    except (TypeError, ValueError):
        seconds = None
    if seconds is None or not 0 < seconds <= MAX_TTL:
        raise ConfigurationError(
            f"OPTIONS['forever']: {given!r} should be a number of seconds, or text such as "
            "'30 days', up to 400 days"
        )
    return seconds
