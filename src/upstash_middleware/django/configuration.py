"""The setting ``UPSTASH_MIDDLEWARE``, the gateways made from it, and purging through them.

Only what a project sets is read here; what the settings mean is said in
``upstash_middleware.settings``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings

from upstash_middleware.django.routing import is_exempt_request
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.gateway import Gateway, Halves

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTING = "UPSTASH_MIDDLEWARE"
_NOTHING_SET: Mapping[str, Any] = {}


def mapping_set() -> Mapping[str, Any]:
    """Return the project's mapping; an empty one where it has none.

    Raises ConfigurationError for a value that is no mapping.
    """
    value = getattr(settings, SETTING, _NOTHING_SET)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{SETTING}: {value!r} should be a mapping such as {{'default_limit': '100/minute'}}"
        )
    return value


class Configured:
    """The gateway that the setting describes now, for the halves of one middleware.

    It is made anew when another mapping has been set, so that a handler that was built long ago
    follows ``override_settings``. Each handler has its own: what one remembers of denials and of
    pages is not carried from one test's Client to the next.
    """

    def __init__(self, halves: Halves, *, refreshes: bool = False) -> None:
        self._halves = halves
        self._refreshes = refreshes
        self._lock = threading.Lock()
        self._made: tuple[Mapping[str, Any], Gateway] | None = None

    def gateway(self) -> Gateway:
        """Return the gateway. Raises ConfigurationError where the setting is wrong."""
        mapping, made = mapping_set(), self._made
        if made is not None and made[0] is mapping:
            return made[1]
        with self._lock:
            made = self._made
            if made is None or made[0] is not mapping:
                self._made = (
                    mapping,
                    Gateway.of(
                        mapping,
                        self._halves,
                        source=SETTING,
                        exempts=is_exempt_request,
                        refreshes=self._refreshes,
                    ),
                )
                if made is not None:
                    made[1].close()
            return self._made[1]  # type: ignore[index]  # set above, or by another thread

    def is_current(self) -> bool:
        """Whether the setting is the one that the gateway has been made from."""
        return self._made is not None and self._made[0] is mapping_set()


_alone = Configured(Halves(0))
_for_handlers: Configured | None = None
_for_purging = _alone  # where no middleware is built: in a task, in a command


def limit_through(configured: Configured) -> None:
    """Let limits in front of views share a middleware's client."""
    global _for_handlers  # noqa: PLW0603 - one for the process, as the setting is
    _for_handlers = configured


def gateway_for_handlers() -> Gateway:
    """Return the gateway of limits in front of views: that of the middleware, where there is one.

    Raises ConfigurationError where the setting is wrong.
    """
    shared = _for_handlers
    return (shared if shared is not None and shared.is_current() else _alone).gateway()


def purge_through(configured: Configured) -> None:
    """Let ``purge`` share a middleware's client, and with it what that has read and written."""
    global _for_purging  # noqa: PLW0603 - one for the process, as the setting is
    _for_purging = configured


def gateway_for_purging() -> Gateway:
    """Return the gateway of the middleware that caches, where there is one.

    Raises ConfigurationError where the setting is wrong.
    """
    shared = _for_purging
    return (shared if shared.is_current() else _alone).gateway()


def purge(
    *urls: str, tags: Sequence[str] = (), everything: bool = False, soft: bool = False
) -> None:
    """Make stored responses unusable: of URLs with all variants, of tags, or everything.

    For a signal receiver, a view, a task or a management command; inside a transaction, leave it
    for when that has been committed::

        transaction.on_commit(partial(purge, tags=[f"product:{product.pk}"]), robust=True)

    ``urls`` are paths with their query, or whole URLs; a tag takes its colon-descendants along;
    ``soft`` leaves them to be served stale where their rule allows it. Does nothing where the
    setting says ``enabled: False``. Raises UpstashError if Upstash could not be told, and
    ConfigurationError where the setting is wrong or credentials are missing.
    """
    gateway = _for_purging.gateway()
    gateway.purge(*urls, tags=tuple(tags), everything=everything, soft=soft)


async def apurge(
    *urls: str, tags: Sequence[str] = (), everything: bool = False, soft: bool = False
) -> None:
    """Do the same as ``purge`` on an event loop."""
    gateway = _for_purging.gateway()
    await gateway.apurge(*urls, tags=tuple(tags), everything=everything, soft=soft)
