"""Purging: new epochs in place of the old, in one call; what is purged, and how."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.keys import urls_to_purge
from upstash_middleware.core.cache.scripts import script_call
from upstash_middleware.core.effects import Command
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.core.cache.store import Store

# Epochs outlive the entries they can kill by this much, for a store that reaches the server
# late and for clocks that run unequally fast.
_SLACK = 3600.0


@dataclass(frozen=True, slots=True)
class Purge:
    """What to make unusable; ``soft`` leaves it to be served stale where that is allowed.

    ``urls`` are paths with query or whole URLs; ``tags`` take their colon-descendants along.
    """

    urls: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    everything: bool = False
    soft: bool = False


async def purge(store: Store, what: Purge, rules: Sequence[CacheRule]) -> None:
    """Carry out a purge. Raises UpstashError if it is not certain that all of it was done.

    The rules say which parts of a query name a resource. Raises ValueError for a URL that is
    none.
    """
    names = store.names
    urls = [url for text in what.urls for url in urls_to_purge(text, rules)]
    epochs = [names.everything] if what.everything else []
    epochs += [names.url(url) for url in dict.fromkeys(urls)]
    tags = [names.tag(tag) for tag in dict.fromkeys(what.tags)]
    commands = [replaced(store, names.any_tag, fresh_part(store))] if tags else []
    epochs += tags
    if what.soft and epochs:
        lifetime = epoch_lifetime(store)
        commands.append(script_call("soften", epochs, fresh_part(store), lifetime))
    elif epochs:
        commands += [replaced(store, epoch, f"{fresh_part(store)}:") for epoch in epochs]
    try:
        if commands:
            await store.call(*commands)
    finally:  # also where it is not certain that it was carried out
        store.l1.purged(what, urls)


def replaced(store: Store, epoch: str, value: str) -> Command:
    """Return the command that puts a value in an epoch's place."""
    # Never marked as safe to send twice: a repeated SET could bring an epoch back that a later
    # purge has replaced, and with it the entries that recorded it.
    return Command(("SET", epoch, value, "PX", epoch_lifetime(store)))


def epoch_lifetime(store: Store) -> int:
    """Return milliseconds that end after any entry's that an epoch set now could kill."""
    return int((store.max_keep + _SLACK) * 1000)


def fresh_part(store: Store) -> str:
    """Return a part of an epoch that has never been."""
    return urlsafe_b64encode(store.randomness(12)).decode()
