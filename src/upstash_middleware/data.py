"""``Data`` and ``SyncData``: a cache for the application's own values.

Both are one class over the core's flows: ``Data`` runs the flows on an event loop, ``SyncData`` in
a thread. Values are in the middleware's database and use its connections, deadlines and circuit
breaker. ``purge(tags=…)`` invalidates both pages and values.
"""

from __future__ import annotations

import inspect
import os
import sys
from functools import partial, wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
)

from upstash_middleware.arguments import defaults_of, from_arguments, passing_to
from upstash_middleware.core.cache import Purge
from upstash_middleware.core.clock import seconds_in
from upstash_middleware.core.data import MISSING, Loading, with_all_ancestors
from upstash_middleware.core.values import encode
from upstash_middleware.errors import ConfigurationError, NotStorable, unknown_name
from upstash_middleware.runtime import Features, Runtime
from upstash_middleware.settings import settings_from

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
    from os import PathLike

    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.data import DataStore
    from upstash_middleware.core.flow import Flow
    from upstash_middleware.events import Observer

__all__ = ["Data", "SyncData"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")
T = TypeVar("T")

_WAIT = 5.0
"""Default number of seconds to wait for another call's loader."""
_refreshing: set[Any] = set()
"""Background tasks that reload values; this set keeps them from being garbage-collected."""


class Memoized(Protocol[P, R_co]):
    """A memoized function or method."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return a stored result, or call the function."""
        ...

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(
        self: Memoized[Concatenate[Any, Q], R], instance: object, owner: Any = None
    ) -> Callable[Q, R]: ...

    def key_of(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of the result for these arguments, for instance to delete it."""
        ...


class _Data:
    """The base class of ``Data`` and ``SyncData``."""

    @passing_to("_configure")
    def __init__(  # noqa: PLR0913 - settings
        self,
        *,
        kind: str = "data",
        config: str | PathLike[str] | None = None,
        enabled: bool = True,
        url: str | None = None,
        token: str | None = None,
        redis: Any = None,
        transport: Any = None,
        prefix: str = "upstash-middleware",
        deadline: Duration = 1.0,
        cache_deadline: Duration = 0.25,
        cache_max_keep: Duration = 7 * 24 * 3600.0,
        cache_keys: Sequence[str] = (),
        cache_encrypt: bool = False,
        data_l1_bytes: int = 0,
        data_l1_seconds: Duration = 5.0,
        breaker: bool = True,
        breaker_slow: Duration | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Create the cache; this opens no connection.

        Args:
            kind: The name of a separate set of keys, which ``clear()`` invalidates on its own.
            config: The path of a rule file: these settings in TOML.
            enabled: False: nothing is found or stored, as with UPSTASH_MIDDLEWARE_ENABLED=0.
            url: The database's REST URL; default UPSTASH_REDIS_REST_URL, then KV_REST_API_URL.
            token: The REST token; default UPSTASH_REDIS_REST_TOKEN, then KV_REST_API_TOKEN.
            redis: A client of this package or of upstash_redis, or a LocalUpstash, instead of both.
            transport: The HTTP client: ``"sockets"``, ``"httpx"``, or an httpx client object.
            prefix: The prefix of every key on Redis; use a different one for each application.
            deadline: Seconds that a call of ``purge`` may take in total; default 1.
            cache_deadline: Seconds that any other call may take in total; default 0.25.
            cache_max_keep: The longest lifetime of a value with tags, in seconds; default 7 days.
                Use the same value in every process that purges.
            cache_keys: Keys of at least 32 characters that sign values: the first key signs, and
                every key verifies. Default none.
            cache_encrypt: Whether values are encrypted with these keys instead of signed.
            data_l1_bytes: Bytes of this process's memory in which it keeps values; default 0.
            data_l1_seconds: Seconds for which it keeps them; default 5, at most 60.
            breaker: Whether a circuit breaker stops calls if half of the recent ones fail.
            breaker_slow: Duration in seconds from which the circuit breaker counts a call as
                failed; default half of ``deadline``.
            observers: Functions that are called with every event, in addition to the log.

        Raises:
            ConfigurationError: A setting is wrong.
        """

    def _configure(self, *, kind: str = "data", **settings: Any) -> None:
        known = [each for each in defaults_of(_Data.__init__) if each != "kind"]
        for name in settings:
            if name not in known:
                raise unknown_name(type(self).__name__, name, known)
        runtime = Runtime(settings_from(settings, os.environ), Features(0))
        runtime.data(kind)  # raises ConfigurationError for a kind that is not a name
        self._kind = kind
        self._find: Callable[[], Runtime] = lambda: runtime

    @classmethod
    def over(cls, find: Callable[[], Runtime], kind: str = "data") -> Self:
        """Return an object that calls ``find`` for its runtime at each call.

        Args:
            find: A function that returns the runtime of a middleware.
            kind: The name of a separate set of keys.
        """
        made = cls.__new__(cls)
        made._kind, made._find = kind, find  # noqa: SLF001 - an object of this class
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self._kind!r})"

    # Flows, and their helpers.

    @property
    def _store(self) -> DataStore:
        return self._find().data(self._kind)

    def _set(  # noqa: PLR0913 - the parameters of ``set``
        self,
        values: Mapping[str, Any],
        ttl: Duration,
        tags: Iterable[str],
        kind: Any,
        *,
        strict: bool,
        adds: bool = False,
    ) -> Flow[bool]:
        store, every = self._store, with_all_ancestors(tags)
        seconds = _seconds("ttl", ttl, store, every)
        payloads = {key: store.encode(value, kind) for key, value in values.items()}
        if len(payloads) != 1:
            return store.set_many(payloads, seconds, every, strict=strict)
        ((key, payload),) = payloads.items()
        write = store.add if adds else store.set
        return write(key, payload, seconds, every, strict=strict)

    def _loading(  # noqa: PLR0913, PLR0917 - the parameters of ``get_or_set``
        self,
        key: str,
        ttl: Duration,
        loader: Callable[[], Any],
        tags: Iterable[str],
        kind: Any,
        stale: Duration,
        early: float,
        *,
        lock: bool,
        wait: Duration,
    ) -> Loading:
        if not callable(loader):
            raise TypeError(
                f"get_or_set: {loader!r:.80} is not a function; write for instance lambda: …, or "
                "pass an async function itself and not what it returns"
            )
        store, every = self._store, with_all_ancestors(tags)
        seconds = _seconds("ttl", ttl, store, every)
        stale = _seconds("stale", stale, store, every, above=seconds) if stale else 0.0
        if not 0 <= early <= 100:
            raise ValueError(f"early={early!r} should be from 0 to 100; 1 is the optimum")
        wait = _seconds("wait", wait, store, ())
        return Loading(key, loader, seconds, every, kind, stale, early, lock, wait)

    def _memoized(
        self, function: Any, key: Any, tags: Any, options: dict[str, Any], *, is_async: bool
    ) -> Any:
        """Return a function or method whose results are stored; see ``Data.memoize``."""
        _check_function(self, function, is_async=is_async)
        find, find_tags = _key_function(function, key), from_arguments(tags, function)
        get_or_set: Any = self.get_or_set  # type: ignore[attr-defined] # of both classes

        def get(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name, every = find(args, kwargs), find_tags(args, kwargs)
            load = partial(function, *args, **kwargs)
            return get_or_set(name, loader=load, tags=every, **options)

        async def memoized_async(*args: Any, **kwargs: Any) -> Any:
            return await get(args, kwargs)

        def memoized_sync(*args: Any, **kwargs: Any) -> Any:
            return get(args, kwargs)

        memoized: Any = wraps(function)(memoized_async if is_async else memoized_sync)
        memoized.key_of = lambda *args, **kwargs: find(args, kwargs)
        return memoized

    async def _purge(self, tags: Iterable[str], *, everything: bool, soft: bool) -> None:
        if isinstance(tags, str):
            raise TypeError(f"purge: tags={tags!r} should be a sequence such as [{tags!r}]")
        if everything:
            await self._store.purge_everything(soft=soft)
        if every := tuple(tags):
            await self._find().invalidate(Purge(tags=every, soft=soft))


# ------------------------------------------------------------------------------------------------
# The two classes


class SyncData(_Data):
    """A cache for the application's own values, for threads; ``Data`` is the async class.

    This is the class of ``upstash_middleware.flask.data``, ``upstash_middleware.django.data`` and,
    in WSGI, ``environ["upstash_middleware.data"]``.
    """

    @overload
    def get(self, key: str, default: T, *, type: type[R]) -> R | T: ...
    @overload
    def get(self, key: str, *, type: type[R]) -> R | None: ...
    @overload
    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...
    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - the type, as everywhere
        """Return a value, or ``default`` if the key has no value or Upstash fails.

        Args:
            key: Text.
            default: Returned if there is no value or Upstash fails. A stored None is a value.
            type: The type to convert to: a dataclass, Struct or pydantic model, or a type made of
                these such as ``list[Product]``. A stored value that does not fit counts as missing.
        """
        return self._run(self._store.get(key, default, type), default)

    def get_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:  # noqa: A002 - the type, as everywhere
        """Return the values that exist, by key, in one command.

        Args:
            keys: The keys.
            type: The type to convert each value to, as for ``get``.
        """
        return self._run(self._store.get_many(keys, type), {})

    def set(  # noqa: PLR0913
        self,
        key: str,
        value: object,
        *,
        ttl: Duration,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        strict: bool = False,
    ) -> bool:
        """Store a value, and return whether that succeeded.

        Args:
            key: Text.
            value: A value of a type that the class lists; ``incr`` can change integers.
            ttl: Seconds until the value expires, at most 400 days; with tags at most the setting
                ``cache_max_keep``, 7 days by default.
            tags: A purge of one of these tags, or of a tag above it (``product`` for
                ``product:7``), invalidates the value.
            type: The type of the value, if the class does not list it.
            strict: Whether a failure of Upstash is raised.

        Raises:
            NotStorable: The value would not be read back as an equal value of the same type.
            ValueError: ``ttl`` or a tag is wrong.
            UpstashError: The call failed, and ``strict`` is true.
        """
        flow = self._set({key: value}, ttl, tags, type, strict=strict)
        return self._run(flow, False)

    def set_many(
        self,
        values: Mapping[str, object],
        *,
        ttl: Duration,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        strict: bool = False,
    ) -> bool:
        """Store several values in one call, one command each.

        Args:
            values: The values by key.
            ttl: Seconds until each value expires; see ``set``.
            tags: Tags of each value; see ``set``.
            type: The type of each value; see ``set``.
            strict: Whether a failure of Upstash is raised.
        """
        flow = self._set(values, ttl, tags, type, strict=strict)
        return self._run(flow, False)

    def add(  # noqa: PLR0913
        self,
        key: str,
        value: object,
        *,
        ttl: Duration,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        strict: bool = False,
    ) -> bool:
        """Store a value if the key has none, and return whether it was stored.

        Args:
            key: Text.
            value: The value; see ``set``.
            ttl: Seconds until the value expires; see ``set``.
            tags: Tags of the value; see ``set``.
            type: The type of the value; see ``set``.
            strict: Whether a failure of Upstash is raised.
        """
        flow = self._set({key: value}, ttl, tags, type, strict=strict, adds=True)
        return self._run(flow, False)

    def delete(self, *keys: str, strict: bool = False) -> bool:
        """Delete values, and return whether Redis had any of them.

        Args:
            *keys: Their keys.
            strict: Whether a failure of Upstash is raised.
        """
        return self._run(self._store.delete(*keys, strict=strict), False)

    def touch(self, key: str, *, ttl: Duration, strict: bool = False) -> bool:
        """Let a value expire ``ttl`` seconds from now, and return whether it exists.

        Args:
            key: Text.
            ttl: Seconds until the value expires; see ``set``.
            strict: Whether a failure of Upstash is raised.
        """
        store = self._store
        flow = store.touch(key, _seconds("ttl", ttl, store, ()), strict=strict)
        return self._run(flow, False)

    def incr(self, key: str, delta: int = 1, *, ttl: Duration, strict: bool = False) -> int | None:
        """Add to a counter and return the sum; None if Upstash fails.

        Args:
            key: Text.
            delta: The number to add; negative to subtract.
            ttl: Seconds until a counter that this call creates expires. An existing counter keeps
                its expiry.
            strict: Whether a failure of Upstash is raised.

        Raises:
            TypeError: ``delta`` is not an integer.
            ValueError: The value is not an integer or has tags, or the sum is beyond 2**53.
            ConfigurationError: ``cache_keys`` is set: Redis cannot add to a signed value.
        """
        store = self._store
        flow = store.incr(key, delta, _seconds("ttl", ttl, store, ()), strict=strict)
        return self._run(flow, None)

    def get_or_set(  # noqa: PLR0913
        self,
        key: str,
        ttl: Duration,
        loader: Callable[[], R],
        *,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        stale: Duration = 0,
        early: float = 0.0,
        lock: bool = True,
        wait: Duration = _WAIT,
    ) -> R:
        """Return a value; if it is missing, load and store it.

        With ``stale`` or ``early``, the call that reloads the value waits for its loader; other
        calls get the old value.

        Args:
            key: Text.
            ttl: Seconds until the value expires, as for ``set``.
            loader: A function without arguments, sync or async, that returns the value.
            tags: As for ``set``.
            type: As for ``get``.
            stale: Seconds after ``ttl`` in which the old value is returned while one call reloads
                it in the background, or while the loader fails. Default 0.
            early: How likely a call reloads the value before it expires, so that no call has to
                wait: 0 is never, about 1 is the optimum. Values that take long to load are reloaded
                earlier.
            lock: Whether other processes wait too. For a missing value, this costs one additional
                round trip and command.
            wait: Seconds to wait for another call's loader; after that, this call runs its own.

        Raises:
            NotStorable: The value would not be read back as an equal value of the same type.
            ValueError: An argument is wrong.
        """
        loading = self._loading(key, ttl, loader, tags, type, stale, early, lock=lock, wait=wait)
        runtime = self._find()
        if not runtime.enabled:
            return loader()
        value, refresh = runtime.perform(self._store.get_or_set(loading))
        if refresh is not None:
            again = runtime.perform(refresh)
            value = value if again is MISSING else again
        return cast("R", value)

    def memoize(  # noqa: PLR0913
        self,
        ttl: Duration,
        *,
        key: str | Callable[..., str] | None = None,
        tags: Iterable[str] | Callable[..., Iterable[str]] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        stale: Duration = 0,
        early: float = 0.0,
        lock: bool = True,
        wait: Duration = _WAIT,
    ) -> Callable[[Callable[P, R]], Memoized[P, R]]:
        """Store the results of a function or method.

        Args:
            ttl: Seconds until a result expires, as for ``set``.
            key: The key, or a function that computes it from some of the memoized function's
                parameters: ``key=lambda product_id: f"product:{product_id}"``. By default the key
                consists of the function's module, name and all arguments, which then have to be
                simple values such as text and numbers. A nested function, a lambda and a function
                in ``__main__`` need a key, since other functions may have the same name.
            tags: As for ``set``, or a function that computes the tags, as for ``key``.
            type: As for ``get``.
            stale: As for ``get_or_set``.
            early: As for ``get_or_set``.
            lock: As for ``get_or_set``.
            wait: As for ``get_or_set``.

        Raises:
            ConfigurationError: The function is async; or it needs ``key``, as a method and a nested
                function do; or ``key`` or a tag is a template.
            NotStorable: Raised by a call if an argument cannot be part of a key.
        """
        tags = _check_templates(key, tags)
        options = {"ttl": ttl, "type": type, "stale": stale, "early": early}
        options |= {"lock": lock, "wait": wait}
        return lambda function: self._memoized(function, key, tags, options, is_async=False)

    def purge(
        self, *, tags: Iterable[str] = (), everything: bool = False, soft: bool = False
    ) -> None:
        """Invalidate the values and pages with some tags, or all values.

        Args:
            tags: Tags of values and stored responses. ``product`` also purges ``product:7``. The
                middleware's ``purge(tags=…)`` does the same.
            everything: Whether all values of this kind are invalidated; pages are not.
            soft: Whether the values may still be used stale if ``stale`` allows it.

        Raises:
            UpstashError: The purge failed; a part of it may have been done.
        """
        self._run(self._purge(tags, everything=everything, soft=soft), None)

    def clear(self) -> None:
        """Invalidate all values: the same as ``purge(everything=True)``."""
        self.purge(everything=True)

    def close(self) -> None:
        """Close the connections. A later call opens new connections."""
        self._find().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, flow: Flow[T], otherwise: T) -> T:
        """Run a flow and return its result, or ``otherwise`` if the middleware is disabled."""
        runtime = self._find()
        if runtime.enabled:
            return runtime.perform(flow)
        flow.close()
        return otherwise


class Data(_Data):
    """A cache for the application's own values, on event loops: ``Data()``.

    Each value has a TTL and may have tags. It is read back as an equal value of the same type;
    otherwise ``set`` raises NotStorable. Supported types are None, booleans, numbers, text, bytes,
    dates and times, Decimal and UUID, and lists, tuples, sets and dictionaries of them; with
    ``type=`` also dataclasses, msgspec Structs and pydantic models.

    If Upstash fails, reads find nothing. Writes return False or None and emit the event
    UpstashFailed; with ``strict=True`` they raise UpstashError.

    This is the class of ``request.state.data`` of the ASGI middleware,
    ``upstash_middleware.django.async_data`` and FastAPI's ``Depends(data)``. ``SyncData`` is the
    same for threads. The application chooses the keys, which are text. If a value depends on the
    user, the key has to contain the user.
    """

    @overload
    async def get(self, key: str, default: T, *, type: type[R]) -> R | T: ...
    @overload
    async def get(self, key: str, *, type: type[R]) -> R | None: ...
    @overload
    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any: ...
    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - the type, as everywhere
        """Return a value with one command.

        Args:
            key: Text.
            default: Returned if there is no value or Upstash fails. A stored None is a value.
            type: The type to convert to: a dataclass, Struct or pydantic model, or a type made of
                these such as ``list[Product]``. A stored value that does not fit counts as missing.
        """
        return await self._run(self._store.get(key, default, type), default)

    async def get_many(self, keys: Iterable[str], *, type: Any = None) -> dict[str, Any]:  # noqa: A002 - the type, as everywhere
        """Return the values that exist, by key, in one command.

        Args:
            keys: The keys.
            type: The type to convert each value to, as for ``get``.
        """
        return await self._run(self._store.get_many(keys, type), {})

    async def set(  # noqa: PLR0913
        self,
        key: str,
        value: object,
        *,
        ttl: Duration,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        strict: bool = False,
    ) -> bool:
        """Store a value with one command, and return whether this succeeded.

        If another process has purged in the last ten seconds and this process has not read since,
        the new value may count as purged too. ``get_or_set`` and ``add`` always know the current
        state.

        Args:
            key: Text.
            value: A value of a type that the class lists; ``incr`` can change integers.
            ttl: Seconds until the value expires, at most 400 days; with tags at most the setting
                ``cache_max_keep``, 7 days by default.
            tags: A purge of one of these tags, or of a tag above it (``product`` for
                ``product:7``), invalidates the value.
            type: The type of the value, if the class does not list it.
            strict: Whether a failure of Upstash is raised.

        Raises:
            NotStorable: The value would not be read back as an equal value of the same type.
            ValueError: ``ttl`` or a tag is wrong.
            UpstashError: The call failed, and ``strict`` is true.
        """
        flow = self._set({key: value}, ttl, tags, type, strict=strict)
        return await self._run(flow, False)

    async def set_many(
        self,
        values: Mapping[str, object],
        *,
        ttl: Duration,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        strict: bool = False,
    ) -> bool:
        """Store several values in one call, one command each; the arguments are as for ``set``.

        Storing is not atomic: if the result is False, some values may have been stored.

        Args:
            values: The values by key.
            ttl: Seconds until each value expires; see ``set``.
            tags: Tags of each value; see ``set``.
            type: The type of each value; see ``set``.
            strict: Whether a failure of Upstash is raised.
        """
        flow = self._set(values, ttl, tags, type, strict=strict)
        return await self._run(flow, False)

    async def add(  # noqa: PLR0913
        self,
        key: str,
        value: object,
        *,
        ttl: Duration,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        strict: bool = False,
    ) -> bool:
        """Store a value if the key has none, and return whether it was stored.

        If several calls run at the same time, one returns True. If Upstash fails, all return False.

        Args:
            key: Text.
            value: The value; see ``set``.
            ttl: Seconds until the value expires; see ``set``.
            tags: Tags of the value; see ``set``.
            type: The type of the value; see ``set``.
            strict: Whether a failure of Upstash is raised.
        """
        flow = self._set({key: value}, ttl, tags, type, strict=strict, adds=True)
        return await self._run(flow, False)

    async def delete(self, *keys: str, strict: bool = False) -> bool:
        """Delete values in one command, and return whether Redis had any of them.

        A value that was invalidated by a purge counts until it expires, and so does a value that is
        being loaded, because an exact result would need another command. A value that another
        process is loading at this time is still stored afterwards; purge a tag to prevent this.

        Args:
            *keys: Their keys.
            strict: Whether a failure of Upstash is raised.
        """
        return await self._run(self._store.delete(*keys, strict=strict), False)

    async def touch(self, key: str, *, ttl: Duration, strict: bool = False) -> bool:
        """Let a value expire ``ttl`` seconds from now, and return whether it exists.

        Args:
            key: Text.
            ttl: Seconds until the value expires; see ``set``.
            strict: Whether a failure of Upstash is raised.
        """
        store = self._store
        flow = store.touch(key, _seconds("ttl", ttl, store, ()), strict=strict)
        return await self._run(flow, False)

    async def incr(
        self, key: str, delta: int = 1, *, ttl: Duration, strict: bool = False
    ) -> int | None:
        """Add to a counter atomically and return the sum; None if Upstash fails.

        Args:
            key: Text.
            delta: The number to add; negative to subtract.
            ttl: Seconds until a counter that this call creates expires. An existing counter keeps
                its expiry.
            strict: Whether a failure of Upstash is raised.

        Raises:
            TypeError: ``delta`` is not an integer.
            ValueError: The value is not an integer or has tags, or the sum is beyond 2**53.
            ConfigurationError: ``cache_keys`` is set: Redis cannot add to a signed value.
        """
        store = self._store
        flow = store.incr(key, delta, _seconds("ttl", ttl, store, ()), strict=strict)
        return await self._run(flow, None)

    @overload
    async def get_or_set(
        self,
        key: str,
        ttl: Duration,
        loader: Callable[[], Awaitable[R]],
        *,
        tags: Iterable[str] = (),
        type: Any = None,
        stale: Duration = 0,
        early: float = 0.0,
        lock: bool = True,
        wait: Duration = _WAIT,
    ) -> R: ...
    @overload
    async def get_or_set(
        self,
        key: str,
        ttl: Duration,
        loader: Callable[[], R],
        *,
        tags: Iterable[str] = (),
        type: Any = None,
        stale: Duration = 0,
        early: float = 0.0,
        lock: bool = True,
        wait: Duration = _WAIT,
    ) -> R: ...
    async def get_or_set(  # noqa: PLR0913
        self,
        key: str,
        ttl: Duration,
        loader: Callable[[], Any],
        *,
        tags: Iterable[str] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        stale: Duration = 0,
        early: float = 0.0,
        lock: bool = True,
        wait: Duration = _WAIT,
    ) -> Any:
        """Return a value; if it is missing, load and store it.

        If several calls run at the same time, in this or other processes, one of them calls its
        loader. The others wait and get a copy of the value, or the exception that the loader
        raises. A value that is being loaded during a purge of one of its tags is not used
        afterwards.

        Args:
            key: Text.
            ttl: Seconds until the value expires, as for ``set``.
            loader: A function without arguments, sync or async, that returns the value.
            tags: As for ``set``.
            type: As for ``get``.
            stale: Seconds after ``ttl`` in which the old value is returned while one call reloads
                it in the background, or while the loader fails. Default 0.
            early: How likely a call reloads the value before it expires, so that no call has to
                wait: 0 is never, about 1 is the optimum. Values that take long to load are reloaded
                earlier.
            lock: Whether other processes wait too. For a missing value, this costs one additional
                round trip and command.
            wait: Seconds to wait for another call's loader; after that, this call runs its own.

        Raises:
            NotStorable: The value would not be read back as an equal value of the same type.
            ValueError: An argument is wrong.
        """
        loading = self._loading(key, ttl, loader, tags, type, stale, early, lock=lock, wait=wait)
        runtime = self._find()
        if not runtime.enabled:
            loaded: Any = loader()
            return await loaded if inspect.isawaitable(loaded) else loaded
        value, refresh = await runtime.aperform(self._store.get_or_set(loading))
        if refresh is not None and not _run_in_background(runtime, refresh):
            again = await runtime.aperform(refresh)
            value = value if again is MISSING else again
        return value

    def memoize(  # noqa: PLR0913
        self,
        ttl: Duration,
        *,
        key: str | Callable[..., str] | None = None,
        tags: Iterable[str] | Callable[..., Iterable[str]] = (),
        type: Any = None,  # noqa: A002 - the type, as everywhere
        stale: Duration = 0,
        early: float = 0.0,
        lock: bool = True,
        wait: Duration = _WAIT,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Memoized[P, Coroutine[Any, Any, R]]]:
        """Store the results of an async function or method; for other functions, see ``SyncData``.

        The result must depend only on the key. A function that reads the current request or its
        user would return one user's data to another user, unless the key contains the user's id.

        Args:
            ttl: Seconds until a result expires, as for ``set``.
            key: The key, or a function that computes it from some of the memoized function's
                parameters: ``key=lambda product_id: f"product:{product_id}"``. By default the key
                consists of the function's module, name and all arguments, which then have to be
                simple values such as text and numbers. A nested function, a lambda and a function
                in ``__main__`` need a key, since other functions may have the same name.
            tags: As for ``set``, or a function that computes the tags, as for ``key``.
            type: As for ``get``.
            stale: As for ``get_or_set``.
            early: As for ``get_or_set``.
            lock: As for ``get_or_set``.
            wait: As for ``get_or_set``.

        Raises:
            ConfigurationError: The function is not async; or it needs ``key``, as a method and a
                nested function do; or ``key`` or a tag is a template.
            NotStorable: Raised by a call if an argument cannot be part of a key.
        """
        tags = _check_templates(key, tags)
        options = {"ttl": ttl, "type": type, "stale": stale, "early": early}
        options |= {"lock": lock, "wait": wait}
        return lambda function: self._memoized(function, key, tags, options, is_async=True)

    async def purge(
        self, *, tags: Iterable[str] = (), everything: bool = False, soft: bool = False
    ) -> None:
        """Invalidate values, and pages with the same tags, at once and for all processes.

        Args:
            tags: Tags of values and stored responses. ``product`` also purges ``product:7``. The
                middleware's ``purge(tags=…)`` does the same.
            everything: Whether all values of this kind are invalidated; pages are not.
            soft: Whether the values may still be used stale if ``stale`` allows it.

        Raises:
            UpstashError: The purge failed; a part of it may have been done.
        """
        await self._run(self._purge(tags, everything=everything, soft=soft), None)

    async def clear(self) -> None:
        """Invalidate all values: the same as ``purge(everything=True)``."""
        await self.purge(everything=True)

    async def aclose(self) -> None:
        """Close the connections. A later call opens new connections."""
        await self._find().aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T], otherwise: T) -> T:
        """Run a flow and return its result, or ``otherwise`` if the middleware is disabled."""
        runtime = self._find()
        if runtime.enabled:
            return await runtime.aperform(flow)
        flow.close()
        return otherwise


# ------------------------------------------------------------------------------------------------
# Helpers


def _run_in_background(runtime: Runtime, flow: Flow[Any]) -> bool:
    """Start a task on the event loop; return False if there is none, as under trio."""
    asyncio: Any = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()  # noqa: SLF001 - documented for frameworks
    if loop is None:
        return False
    task = loop.create_task(runtime.aperform(flow))
    _refreshing.add(task)
    task.add_done_callback(_refreshing.discard)
    return True


def _seconds(
    name: str, given: Duration, store: DataStore, tags: Sequence[str], above: float = 0.0
) -> float:
    """Return a duration in seconds. Plus ``above``, it must not exceed a value's longest lifetime.

    Raises TypeError or ValueError.
    """
    seconds = seconds_in(given)
    if seconds is None or not seconds > 0:
        raise ValueError(
            f"{name}={given!r} should be a number of seconds above 0, or text such as '5 minutes'"
        )
    longest = store.longest(tags)
    if above + seconds <= longest:
        return seconds
    if tags:
        raise ValueError(
            f"{name}={given!r}: a value with tags is kept for at most {longest:g} seconds, since "
            "purges are remembered no longer; raise the setting cache_max_keep, in every process "
            "that purges, or give less"
        )
    raise ValueError(f"{name}={given!r} should be at most 400 days")


def _check_function(data: _Data, function: Any, *, is_async: bool) -> None:
    """Raise ConfigurationError for objects that ``memoize`` cannot decorate."""
    if not callable(function) or isinstance(function, type):
        raise ConfigurationError(
            f"memoize: {function!r} is not a function; write it directly above the function, below "
            "@classmethod, @staticmethod or @property"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"memoize: {function!r} is a generator function; return a list instead"
        )
    if inspect.iscoroutinefunction(function) != is_async:
        problem = "not async; use SyncData" if is_async else "async; use Data"
        raise ConfigurationError(f"memoize of {data!r}: {function!r} is {problem}")


def _check_templates(key: Any, tags: Any) -> Any:
    """Return tags as a tuple, because an iterator can be used only once.

    Reject templates such as ``key="product:{id}"``, which would be one key for all calls.
    """
    if not callable(tags) and not isinstance(tags, str):  # ``set`` rejects a string
        tags = tuple(tags)
    for name, text in [("key", key), *(("tags", tag) for tag in (() if callable(tags) else tags))]:
        if isinstance(text, str) and "{" in text:
            inner = text[text.index("{") + 1 :].partition("}")[0].partition(".")[0] or "id"
            right = f'lambda {inner}: {"[" if name == "tags" else ""}f"{text}"'
            raise ConfigurationError(
                f"memoize: {name}: {text!r} is the same text for all calls, not a template; write "
                f"{name}={right}{']' if name == 'tags' else ''}"
            )
    return tags


def _key_function(
    function: Any, key: str | Callable[..., str] | None
) -> Callable[[tuple[Any, ...], Mapping[str, Any]], str]:
    """Return a function that computes the key from a call's arguments."""
    if key is not None:
        return from_arguments(key, function)
    signature = inspect.signature(function)
    parameters = list(signature.parameters)
    qualname = getattr(function, "__qualname__", None)
    name = f"{function.__module__}.{qualname}"
    problem = ""
    if qualname is None:
        problem = "has no name to use as its key"
    elif "<" in qualname:  # <locals> or <lambda>
        problem = "is a nested function or a lambda, so other functions may have the same name"
    elif function.__module__ == "__main__":
        problem = "is in the module __main__, and every program has a module of this name"
    if problem and parameters[:1] not in (["self"], ["cls"]):
        what, given = getattr(function, "__name__", "name"), ", ".join(parameters)
        what = what if what.isidentifier() else "name"
        fields = "".join(f":{{{parameter}}}" for parameter in parameters)
        right = f'lambda {given}: f"{what}{fields}"' if parameters else f'"{what}"'
        raise ConfigurationError(
            f"memoize: {function!r} {problem}; give a key that no other function has, such as "
            f"key={right}"
        )
    if parameters and parameters[0] in {"self", "cls"}:
        others = ", ".join(parameters[1:2])
        raise ConfigurationError(
            f"memoize: {name} is a method, and its object would be part of the key; give one, such "
            f'as key=lambda {", ".join(parameters[:2])}: f"{function.__name__}:{{self.id}}'
            f'{f":{{{others}}}" if others else ""}"'
        )

    def find(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        texts = []
        for parameter, argument in bound.arguments.items():
            try:
                texts.append(encode(argument).decode())
            except NotStorable as error:
                raise NotStorable(
                    f"memoize: the argument {parameter!r} of {name} cannot be part of a key "
                    f"({error}); give a key, such as "
                    f'key=lambda {parameter}: f"{function.__name__}:{{{parameter}.id}}"'
                ) from error
        return f"{name}({','.join(texts)})"

    return find
