"""The setting ``UPSTASH_MIDDLEWARE``, the runtimes made from it, and ``purge``."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.module_loading import import_string

from upstash_middleware.django.requests import is_exempt_request, localized
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.runtime import Features, LazyProxy, Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTING = "UPSTASH_MIDDLEWARE"
DENIED_VIEW = "UPSTASH_MIDDLEWARE_DENIED_VIEW"
"""The setting that names a view ``(request, decision) -> HttpResponse``, sync or async."""
_UNSET: Mapping[str, Any] = {}


def mapping_set() -> Mapping[str, Any]:
    """Return the project's mapping; an empty one if it is not set.

    Raises ConfigurationError for a value that is not a mapping.
    """
    value = getattr(settings, SETTING, _UNSET)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{SETTING}: {value!r} should be a mapping such as {{'default_limit': '100/minute'}}"
        )
    return value


@lru_cache(maxsize=8)
def is_upstash_engine(name: str) -> bool:
    """Whether a SESSION_ENGINE is this package's engine, or a subclass of it."""
    try:
        store = import_string(f"{name}.SessionStore")
    except Exception:  # noqa: BLE001 - Django reports the error at the first request
        return False
    names = {f"{base.__module__}.{base.__qualname__}" for base in inspect.getmro(store)}
    return "upstash_middleware.django.sessions.SessionStore" in names


class Configured:
    """The runtime for the current value of the setting, and for one middleware's features.

    A new runtime is created if the setting has a new mapping, so that existing handlers follow
    ``override_settings``. Each handler has its own runtime, so that denials and stored responses
    are not carried from one test's Client to the next.
    """

    def __init__(
        self, features: Features, *, refreshes: bool = False, joins_sessions: bool = False
    ) -> None:
        self._features = features
        self._refreshes = refreshes
        self._joins_sessions = joins_sessions
        self._lock = threading.Lock()
        self._made: tuple[Mapping[str, Any], Runtime] | None = None

    def runtime(self) -> Runtime:
        """Return the runtime. Raises ConfigurationError if the setting is wrong."""
        made = self._made
        if made is not None and made[0] is getattr(settings, SETTING, _UNSET):
            return made[1]
        mapping = mapping_set()
        with self._lock:
            before = self._made
            if before is not None and before[0] is mapping:
                return before[1]
            runtime = Runtime.of(
                mapping,
                self._features,
                source=SETTING,
                exempts=is_exempt_request,
                refreshes=self._refreshes,
                selects=localized,
                keeps_sessions=False,
                kept_cookies=kept_cookies(),
            )
            if self._joins_sessions:
                from upstash_middleware.django.sessions import join  # noqa: PLC0415 - if any

                join(runtime)
            self._made = mapping, runtime
            if before is not None:
                before[1].close()
            return runtime

    def is_current(self) -> bool:
        """Whether the runtime was made from the current setting."""
        return self._made is not None and self._made[0] is mapping_set()


def kept_cookies() -> dict[str, str]:
    """Return the cookies that no cache rule may ignore, each with the setting that names it."""
    names = "SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME", "LANGUAGE_COOKIE_NAME"
    return {getattr(settings, name): name for name in names}


_alone = Configured(Features(0))
"""For processes without middleware, such as task workers and management commands."""
_for_handlers = _for_purging = _alone


def share(configured: Configured, features: Features) -> None:
    """Let view decorators and ``purge`` use a middleware's runtime."""
    global _for_handlers, _for_purging  # noqa: PLW0603 - one per process, like the setting
    if Features.RATE_LIMIT in features:
        _for_handlers = configured
    if Features.CACHE in features:
        _for_purging = configured


def runtime_for_handlers() -> Runtime:
    """Return the runtime for the view decorators: the middleware's, if there is one.

    Raises ConfigurationError if the setting is wrong.
    """
    return (_for_handlers if _for_handlers.is_current() else _alone).runtime()


def runtime_for_purging() -> Runtime:
    """Return the runtime of the middleware with a cache, if there is one.

    Raises ConfigurationError if the setting is wrong.
    """
    return (_for_purging if _for_purging.is_current() else _alone).runtime()


def purge(
    *urls: str,
    tags: Sequence[str] = (),
    directories: Sequence[str] = (),
    rules: Sequence[str] = (),
    everything: bool = False,
    soft: bool = False,
) -> None:
    """Invalidate stored responses: of URLs with all variants, of tags, or all of them.

    Call it in a signal receiver, a view, a task or a management command. In a transaction, purge
    after the commit::

        transaction.on_commit(partial(purge, tags=[f"product:{product.pk}"]), robust=True)

    It does nothing with ``enabled: False``.

    Args:
        *urls: Paths with their query, or whole URLs; each is purged with all its variants.
        tags: Tags. A tag includes all tags below it: ``product`` also purges ``product:7``.
        directories: Paths that end in a slash: ``/products/`` includes all URLs that begin with it.
            Requires the setting ``purge_directories``.
        rules: Paths of cache rules; all responses that they cover are purged. They need the
            setting ``purge_directories``.
        everything: Whether all stored responses are purged.
        soft: Whether these responses may still be served stale if their rule allows it.

    Raises:
        UpstashError: The purge failed, for instance because Upstash is unreachable. A part of it
            may have been done; repeat it.
        PurgeNotPassedOn: The purge was done, but the function in ``on_purge`` raised.
        ValueError: A URL is invalid, a directory does not end in a slash, or no cache rule has one
            of the paths in ``rules``.
        TypeError: An argument is a string and not a sequence, such as ``tags="product:7"``.
        ConfigurationError: Directories or rules without the setting ``purge_directories``; the
            setting is wrong, or credentials are missing.
    """
    _for_purging.runtime().purge(
        *urls,
        tags=tags,
        directories=directories,
        rules=rules,
        everything=everything,
        soft=soft,
    )


async def apurge(
    *urls: str,
    tags: Sequence[str] = (),
    directories: Sequence[str] = (),
    rules: Sequence[str] = (),
    everything: bool = False,
    soft: bool = False,
) -> None:
    """Do the same as ``purge`` on an event loop.

    Args:
        *urls: Paths with their query, or whole URLs; each is purged with all its variants.
        tags: Tags. A tag includes all tags below it: ``product`` also purges ``product:7``.
        directories: Paths that end in a slash: ``/products/`` includes all URLs that begin with it.
            Requires the setting ``purge_directories``.
        rules: Paths of cache rules; all responses that they cover are purged. They need the
            setting ``purge_directories``.
        everything: Whether all stored responses are purged.
        soft: Whether these responses may still be served stale if their rule allows it.

    Raises:
        UpstashError: As for ``purge``, which raises the same exceptions.
    """
    await _for_purging.runtime().apurge(
        *urls,
        tags=tags,
        directories=directories,
        rules=rules,
        everything=everything,
        soft=soft,
    )


def runtime_for_data() -> Runtime:
    """Return the runtime for the project's values and sessions: a middleware's, if there is one.

    Raises ConfigurationError if the setting is wrong.
    """
    return _for_purging.runtime() if _for_purging.is_current() else runtime_for_handlers()


redis: Any = LazyProxy(lambda: runtime_for_handlers().redis())
"""Redis commands for the application's own data, over the middleware's connections."""
aredis: Any = LazyProxy(lambda: runtime_for_handlers().async_redis())
"""The same client, for event loops."""
