"""What the cache's flows share when they speak to Redis: names, clocks, one way to call.

The protocol is in three modules: ``lookup``, ``keeping`` and ``purging``. The order of their reads
and writes is what makes a purge safe:

- A lookup reads the entry and its epochs in one command. An entry is dead or stale when the
  epochs that it recorded are not those of now (``epochs``).
- An entry records the epochs read **before** the application was called. So a response made
  from data older than a purge is dead on arrival, however late it is stored.
- A purge of a tag first moves ``G`` and then the tag's own epoch. An entry whose tags became
  known only with its response is stored by a script that reads their epochs and writes only if
  ``G`` has not moved since before the application was called. Were the tag's epoch moved first,
  the script could take the new one for the old.
- An entry expires before the epochs do that could have been set since its own were read, so
  that it cannot come back to life when those expire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.keys import keyed, selected_values
from upstash_middleware.core.effects import Command, Pipeline
from upstash_middleware.errors import CommandError, UnexpectedAnswer
from upstash_middleware.events import CacheEntryRefused
from upstash_middleware.values import dataclass, value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from upstash_middleware.core.cache.decoded import Decoded
    from upstash_middleware.core.cache.entries import StoredResponse, Stub
    from upstash_middleware.core.cache.keys import Names
    from upstash_middleware.core.cache.l1 import L1
    from upstash_middleware.core.cache.memory import Memory
    from upstash_middleware.core.cache.profiles import Profile
    from upstash_middleware.core.cache.sealing import Sealing
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.effects import Reply
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers

_STRING_OR_NONE = frozenset({bytes, type(None)})
MAX_TAGS = 128
"""Of one response, ancestors included: each costs a read of its epoch with every lookup."""


@value(frozen=True, slots=True)
class Target:
    """What a request is about, as the cache sees it."""

    key: str
    """``B``: the key of the resource, narrowed by what its rule selects by."""
    url: str
    """Path and query, as its epoch is named by."""
    headers: Headers
    """The request's, from which variants are selected."""
    tags: tuple[str, ...]
    """What its rule says, with ancestors."""
    epochs: tuple[str, ...]
    """The keys of the epochs that bear on it: of everything, its URL, tags at all, each tag."""
    previous: str = ""
    """The same key of the application's previous version, if its responses are to be used."""
    private: bool = False
    """Whether the key is narrowed to one user, so that nobody else gets what is stored."""


@dataclass(frozen=True, slots=True)
class Store:
    """Stored responses under one prefix."""

    names: Names
    secret: Callable[[], bytes]
    clock: Clock
    randomness: Callable[[int], bytes]
    observe: Observer
    sealing: Sealing | None
    """How entries are signed or encrypted, if they are."""
    deadline: float
    """Seconds for one call for the cache alone."""
    max_keep: float
    """Seconds that an entry lives at most, counted from when its epochs were read."""
    profile: Profile
    memory: Memory
    decoded: Decoded
    l1: L1
    max_variants: int
    """Of one resource, at a time."""
    locks: bool
    """Whether lookups read the lock as well, by which processes agree on who renders."""

    async def call(self, *commands: Command) -> list[Reply]:
        """Perform commands in one pipeline.

        Raises UpstashError, also for a single command that failed.
        """
        replies = await Pipeline(commands, deadline=self.deadline, yields=True)
        for reply in replies:
            if isinstance(reply, CommandError):
                raise reply
        return replies

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return what is at these keys, in one command. Raises UpstashError."""
        command = Command(("MGET", *keys), reads_only=True)
        (values,) = await Pipeline((command,), deadline=self.deadline, yields=True)
        if isinstance(values, CommandError):
            raise values
        if not isinstance(values, list) or len(values) != len(keys):
            raise UnexpectedAnswer(f"MGET of {len(keys)} keys did not answer as many values")
        if _STRING_OR_NONE.issuperset(map(type, values)):
            return values  # type: ignore[return-value] # as has just been seen
        return [value if isinstance(value, bytes) else None for value in values]

    def entry(self, key: str, data: bytes | None) -> StoredResponse | Stub | None:
        """Return the entry that was read from a key; what is none is told of."""
        entry = self.decoded.read(key, data, self.sealing)
        if entry is None and data is not None:
            sealed = "" if self.sealing is None else ", or sealed under none of cache_keys"
            self.observe(CacheEntryRefused(key, f"no entry of this version, or damaged{sealed}"))
        return entry

    def variant(self, target: Target, fields: Iterable[str]) -> str:
        """Return ``V``: the key of the variant that a request selects by these fields."""
        values = selected_values(fields, target.headers, self.profile)
        return keyed(target.key, values, self.secret())
