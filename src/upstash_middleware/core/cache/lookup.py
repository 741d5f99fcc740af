"""Looking up: one command reads an entry with its epochs; after a wrong guess, a second one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.entries import StoredResponse, Stub
from upstash_middleware.core.cache.epochs import Epochs, Life, life
from upstash_middleware.core.cache.locks import Lock, lock_key
from upstash_middleware.core.cache.memory import Learned
from upstash_middleware.values import replace, value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from upstash_middleware.core.cache.store import Store, Target


@value(frozen=True, slots=True)
class Lookup:
    """What a lookup has found."""

    entry: StoredResponse | None
    """The stored response that the request selects, if there is one that lives."""
    key: str
    """Where that stands, or would stand as far as is known."""
    purged_softly: bool
    """Whether that is to count as stale, however fresh it is."""
    stub: Stub | None
    """The resource's stub, if it has one that lives."""
    lock: Lock | None
    """Who renders it now; None where processes do not lock."""
    epochs: Epochs
    """As read before the application is called; what is stored next will record these."""
    wall: float
    monotonic: float
    outdated: bool = False
    """Whether the entry is of the application's previous version."""


async def look_up(store: Store, target: Target) -> Lookup:
    """Find the stored response that a request selects: one command when the guess is right.

    Raises UpstashError.
    """
    wall, monotonic = store.clock.wall(), store.clock.monotonic()
    learned = store.memory.recall(target.key)
    reading = _Reading(store, target)
    keys = [target.key, store.variant(target, learned.vary)] if learned.vary else [target.key]
    await reading.read(keys, learned.tags)
    stub = reading.stub()
    if stub is not None and stub.vary != learned.vary:
        keys = [target.key, store.variant(target, stub.vary)]
        if not reading.has(keys):
            await reading.read(keys, stub.tags)
    key, entry, state = reading.preferred(keys)
    if entry is not None and state is Life.UNKNOWN:
        await reading.read(keys, entry.tags)
        state = life(entry.epochs, reading.epochs())
    if stub is not None or entry is not None:
        _learn(store, target, learned, stub, entry)
    return Lookup(
        entry if state is Life.ALIVE or state is Life.STALE else None,
        key,
        state is Life.STALE,
        stub,
        reading.lock(keys[-1]) if store.locks else None,
        reading.epochs(),
        wall,
        monotonic,
    )


async def look_back(store: Store, target: Target, lookup: Lookup) -> Lookup:
    """Return a lookup that found nothing with what the previous version has stored.

    One more command, where its Vary is guessed right. What is stored next records the epochs
    that were read first. Raises UpstashError.
    """
    if lookup.entry is not None or not target.previous:
        return lookup
    before = await look_up(store, replace(target, key=target.previous))
    if before.entry is None:
        return lookup
    return replace(lookup, entry=before.entry, purged_softly=before.purged_softly, outdated=True)


def recall(store: Store, target: Target) -> Lookup | None:
    """Return what this process has found for a request before, if it is still at hand.

    It asks for the variant by what was learned last. A wrong guess finds nothing: the key of a
    variant holds the fields that select it, and their values.
    """
    if not store.l1.holds:
        return None
    vary = store.memory.recall(target.key).vary
    return store.l1.find(store.variant(target, vary) if vary else target.key)


class _Reading:
    """The values that one lookup has read so far, each key once, and decoded once."""

    __slots__ = ("_entries", "_epoch_keys", "_epochs", "_store", "_tags", "_target", "_values")

    def __init__(self, store: Store, target: Target) -> None:
        self._store = store
        self._target = target
        self._tags = target.tags
        """Those whose epochs are read."""
        self._epoch_keys = target.epochs
        """Of everything, the URL, tags at all, and each of those tags."""
        self._values: dict[str, bytes | None] = {}
        self._entries: dict[str, StoredResponse | Stub | None] = {}
        self._epochs: Epochs | None = None

    async def read(self, keys: Sequence[str], tags: Sequence[str]) -> None:
        """Read keys, the lock of the last of them, and the epochs of all that bears on them.

        Each is read once. What was read first stays: an older epoch can only make an entry die
        too soon.
        """
        store, values = self._store, self._values
        for tag in tags:
            if tag not in self._tags:
                self._tags += (tag,)
                self._epoch_keys += (store.names.tag(tag),)
        locks = (lock_key(keys[-1]),) if store.locks else ()
        unread = [*keys, *locks, *self._epoch_keys]
        if values:
            unread = [key for key in unread if key not in values]
        if unread:
            values.update(zip(unread, await store.read(unread), strict=True))
        self._epochs = None

    def has(self, keys: Iterable[str]) -> bool:
        """Whether these keys have been read."""
        return all(key in self._values for key in keys)

    def lock(self, key: str) -> Lock:
        """Return the lock of an entry, where locks are read."""
        value = (self._values[lock_key(key)] or b"").decode("latin-1")
        read = [self._entry(each) for each in {key, self._target.key}]
        done = any(entry is not None and entry.token == value for entry in read)
        return Lock(lock_key(key), value, done)

    def epochs(self) -> Epochs:
        """Return the epochs read."""
        if self._epochs is None:
            read = tuple(map(self._values.__getitem__, self._epoch_keys))
            self._epochs = Epochs.parse(read, self._tags)
        return self._epochs

    def stub(self) -> Stub | None:
        """Return the resource's stub, if it has one and was not purged."""
        stub = self._entry(self._target.key)
        if not isinstance(stub, Stub) or life(stub.epochs, self.epochs()) is Life.DEAD:
            return None
        return stub

    def preferred(self, keys: Sequence[str]) -> tuple[str, StoredResponse | None, Life]:
        """Return the stored response to use of those at these keys: where it stands, and its life.

        Of those that no epoch read so far has killed: the most recent with Vary, else the most
        recent (RFC 9111 §4.1).
        """
        epochs = self.epochs()
        chosen, best, state = keys[-1], None, Life.DEAD
        for key in keys:
            entry = self._entry(key)
            if not isinstance(entry, StoredResponse):
                continue
            lives = life(entry.epochs, epochs)
            if lives is not Life.DEAD and (best is None or _preference(entry) > _preference(best)):
                chosen, best, state = key, entry, lives
        return chosen, best, state

    def _entry(self, key: str) -> StoredResponse | Stub | None:
        if key not in self._entries:
            self._entries[key] = self._store.entry(key, self._values[key])
        return self._entries[key]


def _preference(entry: StoredResponse) -> tuple[bool, float]:
    """Rank a stored response: one without Vary may be a default that only forgot it (§4.1)."""
    return "vary" in entry.headers, entry.stored_at


def _learn(
    store: Store,
    target: Target,
    learned: Learned,
    stub: Stub | None,
    entry: StoredResponse | None,
) -> None:
    """Remember what a lookup should have asked for, where that is not what was known."""
    tags = entry.tags if entry is not None else stub.tags if stub is not None else ()
    unknown = () if tags == target.tags else tuple([tag for tag in tags if tag not in target.tags])
    vary = stub.vary if stub is not None else ()
    if vary != learned.vary or unknown != learned.tags:
        store.memory.learn(target.key, Learned(vary, unknown))
