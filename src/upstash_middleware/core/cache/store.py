"""Stored responses on Redis: looking up, storing, purging and locking.

The order of reads and writes makes purges safe:

- A lookup reads the entry and its epochs in one command. An entry is invalid or stale if the epochs
  it recorded differ from the current ones.
- An entry records the epochs read **before** the application was called. So a response made from
  data older than a purge is invalid from the start, however late it is stored.
- A purge of a tag first replaces ``G`` and then the tag's own epoch. An entry with tags that became
  known only with its response is stored by a script, which reads their epochs and writes only if
  ``G`` has not changed since before the application was called. In the other order, the script
  could read the new epoch of the tag.
- A response with No-Vary-Search is stored under the canonical form of its URL and records the epoch
  of that. A purge of another spelling replaces the epoch of that spelling, then reads the record of
  the path, and replaces the epoch of the canonical form. A spelling whose own epoch is there is not
  answered by the canonical form, in case the record was not there yet.
- An entry expires before the epochs that could have been set since its own were read, so it cannot
  become valid again when those expire.
"""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from upstash_middleware.core.cache.entries import (
    MAX_TAGS,
    Damaged,
    Epoch,
    Epochs,
    StoredResponse,
    Validity,
    VariantIndex,
    decode,
    encode,
    encode_for_script,
    epoch_text,
    opened,
    pack,
    tag_refused,
    validity,
)
from upstash_middleware.core.cache.http.no_vary_search import (
    EXACT,
    Variation,
    parse_field,
    variation_of,
)
from upstash_middleware.core.cache.http.reuse import current_age
from upstash_middleware.core.cache.http.storing import MAX_VARY_FIELDS
from upstash_middleware.core.cache.http.vary import merge_selectors, selected_values
from upstash_middleware.core.cache.keys import scopes_to_purge, urls_to_purge, variant_key
from upstash_middleware.core.cache.redis_store import (
    MAX_CALL_BYTES,
    Lock,
    RedisStore,
    script_call,
    values_of,
)
from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.core.lru import LRU
from upstash_middleware.events import CacheEntryRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from upstash_middleware.core.cache.entries import Entry, Sealing
    from upstash_middleware.core.cache.http.storing import Plan
    from upstash_middleware.core.cache.keys import Names
    from upstash_middleware.core.cache.rules import CacheRule, Profile
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Reply
    from upstash_middleware.events import Observer
    from upstash_middleware.messages import Headers

UNSHARED_SECONDS: Final = 60.0

_LOOKUP_OVERHEAD_BYTES = 4096
"""Bytes of memory for a lookup in addition to its values: about 3 kB, plus header fields."""
REMEMBERED_BYTES: Final = 4 * 1024 * 1024
MAX_REMEMBERED_ENTRY_BYTES: Final = 128 * 1024
"""Bytes of remembered lookups, as read and with their bodies opened: in total, and of one."""
_MAX_TAGS_LENGTH = 4096
"""Characters of a resource's tags up to which they are remembered: clients may have sent them."""
_VARIANT_NAME_LENGTH = 32
"""How many characters at the end of a variant's key, its digest, name it in the index."""
_MAX_UNLISTED = 10
"""Variants of a resource that may be missing in its index."""


class Target(Struct, frozen=True):
    """The resource that a request addresses, as far as it is known before anything is read."""

    key: str
    """``B``: the key of the resource, which includes the values by which its rule selects."""
    url: str
    """Path and query, as in the name of its epoch."""
    headers: Headers
    """The request's header fields, which select a variant."""
    tags: tuple[str, ...]
    """The rule's tags, with their ancestors."""
    scopes: tuple[str, ...]
    """Its directories and its rule, if these can be purged."""
    epochs: tuple[str, ...]
    """The keys of its epochs: of everything, its URL, its scopes, any tag, and its tags."""
    previous: str = ""
    """Its key in the application's previous version, if those responses may be used."""
    private: bool = False
    """Whether its key contains a user, so that only this user gets what is stored."""
    selected: str = ""
    """The rule's selecting values as text, to make another URL's key in the same way."""
    variation: Variation | None = None
    """How queries of its path select, as far as is known; None if No-Vary-Search is not used."""
    exact: Target | None = None
    """The target of the exact URL, if this target has the URL's canonical form."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs whose invalidation also invalidates it."""
        return (self.url,) if self.exact is None else (self.url, self.exact.url)

    def has_equivalent_url(self, stored: StoredResponse) -> bool:
        """Whether the URL of a stored response is equivalent to the requested one.

        It is if the response, stored at this key, has a No-Vary-Search of the same meaning.
        """
        return self.exact is None or variation_of(stored.headers) == self.variation

    def may_share(self, other: Target, stored: StoredResponse) -> bool:
        """Whether a response for one of the two targets also answers requests for the other."""
        if self.urls[-1] == other.urls[-1]:
            return True
        return self.has_equivalent_url(stored) and other.has_equivalent_url(stored)


class Lookup(Struct, frozen=True):
    """The result of a lookup."""

    entry: StoredResponse | None
    """The valid stored response that the request selects."""
    key: str
    """The key of that, or where one would be stored as far as is known."""
    purged_softly: bool
    """Whether it counts as stale, however fresh it is."""
    index: VariantIndex | None
    """The resource's valid variant index."""
    lock: Lock | None
    """The lock of the response, if processes use locks."""
    epochs: Epochs
    """Read before the application is called; the response stored next records them."""
    wall: float
    monotonic: float
    outdated: bool = False
    """Whether the entry was made by the application's previous version."""
    known: bool = False
    """Whether anything is stored, even if it was purged: so a response could be stored before."""
    record: str | None = None
    """The record of its path as it was read, empty if there is none; None if it was not read."""
    exact: Target | None = None
    """The target that was found, if it is not the one that was looked up."""
    last_head: list[Any] = field(default_factory=lambda: [(None, None)])
    """One pair: the last head made from the entry, after the values on which it depends."""


class Purge(Struct, frozen=True):
    """What to purge.

    Args:
        urls: Paths with their query, or whole URLs; each is purged with all its variants.
        tags: Tags, with their colon-descendants: ``product`` purges ``product:7``.
        directories: Paths that end in a slash: ``/products/`` includes all URLs that begin with it.
            They need the setting ``purge_directories``.
        rules: Paths of cache rules; all responses that they cover are purged. They need the
            setting ``purge_directories``.
        everything: Whether all stored responses are purged.
        soft: Whether they may still be served stale where their rule allows it.
        cdn_tags: For ``on_purge``, with the setting ``cdn``: the tags by which the CDN finds all of
            this, as they are spelled in the field that it reads.
    """

    urls: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    everything: bool = False
    soft: bool = False
    directories: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    cdn_tags: tuple[str, ...] = ()


class Guess(Struct, frozen=True):
    """What the next lookup of a resource reads besides its key. A wrong guess costs one read."""

    vary: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    epochs: tuple[str, ...] = ()
    """The keys of the epochs of these tags."""


class Reading(Struct, frozen=True):
    """What a lookup reads first, in one command."""

    target: Target
    guess: Guess
    entries: tuple[str, ...]
    """The keys of the resource and, if one is guessed, of the variant."""
    keys: tuple[str, ...]
    """All of ``entries``, the lock of the last one, and the epochs."""
    extra_keys: tuple[str, ...]
    """Keys read after ``keys``: the record of the path, and the key and epoch of the exact URL."""
    pipeline: Pipeline
    wall: float
    monotonic: float


class Record(NamedTuple):
    """The record of a path: how the queries of its URLs select a response, and until when."""

    until: int
    """When it expires, in seconds since 1970."""
    variation: Variation

    @classmethod
    def parse(cls, text: str) -> Record:
        """Parse a record; an invalid one counts as expired, with the default variation."""
        until, _, value = text.partition(" ")
        found = parse_field(value)
        if not until.isdecimal() or len(until) > 12 or isinstance(found, str):
            return cls(0, EXACT)
        return cls(int(until), found)

    def __str__(self) -> str:
        return f"{self.until} {self.variation}"


class RememberedLookup(Struct, frozen=True):
    """A lookup that found an entry, and the values read: equal values give the same lookup."""

    keys: tuple[str, ...]
    values: list[bytes | None]
    lookup: Lookup


class IndexDifference(Struct, frozen=True):
    """How the stored variants of a resource differ from its index on Redis, by name."""

    added: Mapping[str, int] = field(default_factory=dict)
    """Stored, and not in the index."""
    deleted: frozenset[str] = frozenset()
    """In the index, and deleted."""
    evicted: tuple[str, ...] = ()
    """Removed from the index, and still to be deleted."""


_NO_GUESS = Guess()
_ALL_LISTED = IndexDifference()


class Store(Struct, RedisStore, frozen=True):
    """The stored responses under one prefix. Methods that call Upstash raise UpstashError."""

    names: Names
    secret: Callable[[], bytes]
    clock: Clock
    randomness: Callable[[int], bytes]
    emit: Observer
    sealing: Sealing | None
    """Signs or encrypts entries, if set."""
    deadline: float
    max_keep: float
    profile: Profile
    max_variants: int
    """The most variants of one resource at a time."""
    locks: bool
    """Whether processes use locks."""
    remembered: LRU[str, RememberedLookup]
    """By the keys of entries, in bytes."""
    l1: L1
    guesses: LRU[str, Guess]
    last_uses: LRU[str, int]
    """When each variant was last used, as a number that grows with each use; by its key."""
    unlisted: LRU[str, IndexDifference]
    """By the keys of resources."""
    use_counter: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- Lookup ---------------------------------------------------------------------------------

    def prepare(self, target: Target) -> Reading:
        """Return what to read first: the entry or index, the guessed variant, and all epochs."""
        guess = _NO_GUESS
        if target.key in self.guesses:
            guess = self.guesses.use(target.key) or _NO_GUESS
        entries = (target.key, self.variant(target, guess.vary)) if guess.vary else (target.key,)
        locks = (_lock_key(entries[-1]),) if self.locks else ()
        keys = entries + locks + target.epochs + guess.epochs
        extra_keys: tuple[str, ...] = ()
        if target.variation is not None:
            extra_keys = (self.names.record(target.url),)
            if target.exact is not None:
                extra_keys += (target.exact.key, self.names.url(target.exact.url))
        command, clock = Command(("MGET", *keys, *extra_keys), reads_only=True), self.clock
        pipeline = Pipeline((command,), deadline=self.deadline, yields=True)
        now = clock.wall(), clock.monotonic()
        return Reading(target, guess, entries, keys, extra_keys, pipeline, *now)

    def receive(self, reading: Reading, replies: Sequence[Reply]) -> Lookup | None:
        """Return the lookup from these replies if they are the same as last time.

        Nearly all hits: nothing is parsed, and no checksum is computed. Otherwise, ``read_on``.
        """
        values, record = replies[0], None
        if reading.extra_keys:
            count, target = len(reading.keys), reading.target
            if not isinstance(values, list) or len(values) != count + len(reading.extra_keys):
                return None
            if values[count + 1 :] not in ([], [None, None]):
                return None
            record = _record_text(values[count])
            if record and Record.parse(record).variation != target.variation:
                return None
            values = values[:count]
        last = self.remembered.get(reading.entries[-1])
        if last is None or last.values != values or last.keys != reading.keys:
            return None
        entry = last.lookup.entry
        if reading.extra_keys and (entry is None or not reading.target.has_equivalent_url(entry)):
            return None
        if last.lookup.index is not None:
            self.last_uses.put(last.lookup.key, next(self.use_counter))
        return replace(last.lookup, wall=reading.wall, monotonic=reading.monotonic, record=record)

    async def read_on(self, reading: Reading, replies: Sequence[Reply]) -> Lookup:
        """Return the lookup from these replies, and read more if the guess was wrong.

        An exact URL has its own lookup in place of that of its canonical form if it was purged, or
        if a fresh response is stored for it.
        """
        target, count = reading.target, len(reading.keys)
        values = values_of(replies[0], count + len(reading.extra_keys))
        if not reading.extra_keys:
            return await self._complete(reading, values)
        record, exact = _record_text(values[count]), target.exact
        if exact is not None and (values[-2] is not None or values[-1] is not None):
            known = dict(zip((*reading.keys, *reading.extra_keys), values, strict=True))
            lookup = await self._look_up_exact(reading, exact, known)
            if values[-1] is not None or _is_fresh(lookup, self.clock.wall()):
                return replace(lookup, record=record, exact=exact)
        lookup = await self._complete(reading, values[:count])
        if lookup.entry is not None and not target.has_equivalent_url(lookup.entry):
            lookup = replace(lookup, entry=None)
        return replace(lookup, record=record)

    async def _look_up_exact(
        self, reading: Reading, exact: Target, known: dict[str, bytes | None]
    ) -> Lookup:
        """Return the lookup of the exact URL from values that were read with its canonical form."""
        own = self.prepare(exact)
        if unread := [key for key in own.keys if key not in known]:
            known.update(zip(unread, await self.read(unread), strict=True))
        own = replace(own, wall=reading.wall, monotonic=reading.monotonic)
        values = [known[key] for key in own.keys]
        replies: list[Reply] = [[*values]]
        return self.receive(own, replies) or await self._complete(own, values)

    async def _complete(self, reading: Reading, values: list[bytes | None]) -> Lookup:
        """Return the lookup from the values of its keys, and read more if the guess was wrong."""
        target, guess, keys = reading.target, reading.guess, reading.entries
        read = _Values(self, target, dict(zip(reading.keys, values, strict=True)))
        epochs = await read.epochs((), guess.tags)
        index = read.entry(target.key)
        if not (
            isinstance(index, VariantIndex)
            and validity(index.epochs, epochs) is not Validity.INVALID
        ):
            index = None
        if index is not None and index.vary != guess.vary:
            keys = (target.key, self.variant(target, index.vary))
            if keys[1] not in read.values:
                epochs = await read.epochs(keys, index.tags)
        key, entry, state = keys[-1], None, Validity.INVALID
        for each in keys:
            found = read.entry(each)
            if isinstance(found, StoredResponse) and (
                (valid := validity(found.epochs, epochs)) is not Validity.INVALID
                and (entry is None or _preference_rank(found) > _preference_rank(entry))
            ):
                key, entry, state = each, found, valid
        if entry is not None and state is Validity.UNKNOWN:
            epochs = await read.epochs(keys, entry.tags)
            state = validity(entry.epochs, epochs)
        if index is not None and entry is not None:
            self.last_uses.put(key, next(self.use_counter))
        if (of := entry or index) is not None:
            self._learn_guess(target, index.vary if index is not None else (), of.tags)
        lookup = Lookup(
            entry if state is Validity.VALID or state is Validity.STALE else None,
            key,
            state is Validity.STALE,
            index,
            read.lock(keys[-1]) if self.locks else None,
            epochs,
            reading.wall,
            reading.monotonic,
            known=of is not None or any(read.entry(each) is not None for each in keys),
        )
        if lookup.entry is None or len(read.values) > len(values):
            return lookup
        return self._remember(reading, values, lookup, lookup.entry)

    def _remember(
        self, reading: Reading, values: list[bytes | None], lookup: Lookup, entry: StoredResponse
    ) -> Lookup:
        """Remember a lookup that found an entry, with its body opened, unless that is large."""
        size = _LOOKUP_OVERHEAD_BYTES + sum(map(len, filter(None, values))) + entry.length
        if size > MAX_REMEMBERED_ENTRY_BYTES:
            return lookup
        try:
            lookup = replace(lookup, entry=opened(entry))
        except Damaged:
            return lookup  # the error is raised where its body is used
        remembered = RememberedLookup(reading.keys, values, lookup)
        self.remembered.put(reading.entries[-1], remembered, size)
        return lookup

    async def look_up(self, target: Target) -> Lookup:
        """Find the stored response that a request selects: one command if the guess is right."""
        reading = self.prepare(target)
        replies = await reading.pipeline
        return self.receive(reading, replies) or await self.read_on(reading, replies)

    async def look_up_previous(self, target: Target, lookup: Lookup) -> Lookup:
        """Complete a lookup that found nothing with the previous version's stored response.

        What is stored next records the epochs that were read first.
        """
        if lookup.entry is not None or not target.previous:
            return lookup
        before = await self.look_up(
            replace(target, key=target.previous, variation=None, exact=None)
        )
        if before.entry is None or not target.has_equivalent_url(before.entry):
            return lookup
        softly = before.purged_softly
        return replace(lookup, entry=before.entry, purged_softly=softly, outdated=True)

    def variant(self, target: Target, fields: Iterable[str]) -> str:
        """Return ``V``: the key of the variant that a request selects by these fields."""
        values = selected_values(fields, target.headers, self.profile)
        return variant_key(target.key, values, self.secret())

    def _learn_guess(self, target: Target, vary: tuple[str, ...], tags: Iterable[str]) -> None:
        """Remember what the next lookup of a resource has to read."""
        unread = tuple([tag for tag in tags if tag not in target.tags])
        if sum(map(len, unread)) > _MAX_TAGS_LENGTH:
            unread = ()
        if vary or unread:
            guess = Guess(vary, unread, tuple(map(self.names.tag, unread)))
            self.guesses.put(target.key, guess)
        else:
            self.guesses.remove(target.key)

    # --- Storing: one command, or two if the resource has variants ------------------------------

    async def put(self, target: Target, lookup: Lookup, plan: Plan) -> str | None:
        """Store a response; return why it was not stored, None if it was."""
        milliseconds = self.time_to_live(plan.keep, lookup.wall, lookup.monotonic)
        if milliseconds <= 0:
            return "kept too long before it was stored"
        # First: a purge that does not find the record is older than the entry's epochs.
        record = self._record_commands(target, lookup, plan.stored, milliseconds)
        index = lookup.index
        # All fields that the resource's responses have named. A response without Vary beside others
        # with it is stored for the values that its request had.
        fields = merge_selectors(plan.vary, index.vary if index is not None else ())
        if len(fields) > MAX_VARY_FIELDS:
            fields = tuple(sorted(plan.vary))
        tags = plan.stored.tags
        self._learn_guess(target, fields, tags)
        response, unread = _with_recorded_epochs(plan.stored, lookup.epochs)
        key = self.variant(target, fields) if fields else target.key
        listing, unlisted = None, _ALL_LISTED
        if fields:
            all_tags = (*(index.tags if index is not None else ()), *tags)
            merged = VariantIndex(
                fields,
                tuple(dict.fromkeys(all_tags))[:MAX_TAGS],
                {},
                replace(lookup.epochs, tags={}),
                response.token,
            )
            listing, unlisted = self._index_command(target, lookup, merged, key, milliseconds)
        if unread:
            start, end = encode_for_script(key, response, self.sealing)
            keys = [self.names.any_tag, key, *map(self.names.tag, unread)]
            command = script_call("store", keys, response.epochs.any_tag, start, end, milliseconds)
        else:
            raw = listing is None and not record
            entry = encode(key, response, raw=raw, sealing=self.sealing)
            command = Command(("SET", key, entry, "PX", milliseconds))
        if sum(len(word) for word in command.args if not isinstance(word, int)) > MAX_CALL_BYTES:
            return "too large for one call"
        try:
            replies = await self.call(*record, command, *([listing] if listing is not None else []))
        finally:
            self.l1.drop_replaced(target.key, key)
        if listing is not None:
            self.last_uses.put(key, next(self.use_counter))
            if unlisted == _ALL_LISTED:
                self.unlisted.remove(target.key)
            else:
                self.unlisted.put(target.key, unlisted)
        return "a tag was purged meanwhile" if unread and replies[len(record)] == 0 else None

    def _record_commands(
        self, target: Target, lookup: Lookup, stored: StoredResponse, milliseconds: int
    ) -> list[Command]:
        """Return the command that records how the path's queries select, if it is needed.

        The record outlives the responses that depend on it. It says the default only in place of
        something else, after a response that was no error and no redirect.
        """
        variation, now = variation_of(stored.headers), self.clock.wall()
        if variation == EXACT and (not lookup.record or stored.status != 200):
            return []
        before = Record.parse(lookup.record or "")
        if before.variation == variation and before.until > now + milliseconds / 1000:
            return []
        lifetime = 2 * int(self.max_keep) + 1
        text = str(Record(int(now) + lifetime, variation))
        return [Command(("SET", self.names.record(target.url), text, "PX", lifetime * 1000))]

    async def supersede(self, target: Target, lookup: Lookup, plan: Plan) -> str | None:
        """Invalidate a URL and store a response as its new state, at once; returns as ``put``."""
        milliseconds = self.time_to_live(plan.keep, lookup.wall, lookup.monotonic)
        epoch = Epoch(self.unique_text())
        response, unread = _with_recorded_epochs(plan.stored, replace(lookup.epochs, url=epoch))
        entry = encode(target.key, response, raw=False, sealing=self.sealing)
        keys = [self.names.url(target.url), target.key]
        try:
            if unread or plan.vary or milliseconds <= 0 or len(entry) > MAX_CALL_BYTES:
                await self.call(self.set_epoch(keys[0], str(epoch)))
                return "only the invalidation was possible"
            old, lifetime = str(lookup.epochs.url), self.epoch_lifetime()
            (done,) = await self.call(
                script_call("supersede", keys, old, str(epoch), lifetime, entry, milliseconds)
            )
        finally:
            self.l1.drop_purged(Purge(), [target.url])
        return None if done else "the URL was purged meanwhile"

    def _index_command(
        self, target: Target, lookup: Lookup, index: VariantIndex, key: str, milliseconds: int
    ) -> tuple[Command, IndexDifference]:
        """Return the command that adds a variant to the index, and the remaining difference.

        It writes the index, or, if there are too many variants, deletes those that were used least
        recently by this process: a miss must not cost more than two commands to store. What the
        index lacks then is remembered, and written by a later store.
        """
        now, before = self.clock.wall(), lookup.index
        left = self.unlisted.get(target.key) or _ALL_LISTED
        if before is None:  # what was stored before has expired or was purged
            left = IndexDifference(evicted=left.evicted)
        known = {**before.variants, **left.added} if before is not None else {}
        variants = {
            name: until for name, until in known.items() if until > now and name not in left.deleted
        }
        name = key[-_VARIANT_NAME_LENGTH:]
        variants[name] = int(now + milliseconds / 1000) + 1
        # Of those that this process has not used, the first to expire.
        others = [other for other in variants if other != name]
        others.sort(
            key=lambda other: (self.last_uses.get(f"{target.key}#{other}") or 0, variants[other])
        )
        evicted = others[: max(0, len(variants) - self.max_variants)]
        for other in evicted:
            del variants[other]
        to_delete = tuple(
            each
            for each in (*left.evicted, *evicted)
            if each != name and len(each) == _VARIANT_NAME_LENGTH
        )
        writes = before is None or before.vary != index.vary or len(left.added) >= _MAX_UNLISTED
        if to_delete and not writes:
            keys = [f"{target.key}#{each}" for each in to_delete]
            self.l1.drop_replaced(*keys)
            added = {each: until for each, until in left.added.items() if each in variants}
            added[name] = variants[name]
            deleted = left.deleted.union(evicted) - {name}
            return Command(("DEL", *keys)), IndexDifference(added, deleted)
        data = encode(
            target.key, replace(index, variants=variants), raw=False, sealing=self.sealing
        )
        lasting = (max(variants.values()) - int(now)) * 1000
        return Command(("SET", target.key, data, "PX", lasting)), IndexDifference(evicted=to_delete)

    # --- Purging: new epochs in place of the old, in one call -----------------------------------

    async def purge(
        self,
        what: Purge,
        rules: Sequence[CacheRule],
        groups: tuple[str, ...] = (),
        recorded: Sequence[str] = (),
    ) -> list[Variation]:
        """Carry out a purge; on an error it is not certain that all of it was done.

        The rules say which parts of a query name a resource. ``groups`` are cache groups, as tags.
        Returns what the records of the paths of the URLs ``recorded`` say. Raises ValueError for an
        invalid URL or directory, and for the path of no rule.
        """
        urls = urls_to_purge(what.urls, rules)
        scopes = scopes_to_purge(what.directories, what.rules, rules)
        epochs = [self.names.everything] if what.everything else []
        epochs += map(self.names.url, urls)
        epochs += [self.names.scope(scope) for scope in scopes]
        # A tag that no response can have needs no epoch.
        possible = (tag for tag in dict.fromkeys(what.tags) if tag_refused(tag) is None)
        what = replace(what, tags=(*possible, *groups))
        tags = list(map(self.names.tag, what.tags))
        any_tag = self.names.any_tag if tags else None
        try:
            values = await self.replace_epochs(
                [*epochs, *tags],
                any_tag,
                soft=what.soft,
                then=list(map(self.names.record, recorded)),
            )
        finally:  # also if it is not certain that it was carried out
            self.l1.drop_purged(what, [*urls, *scopes])
        return [Record.parse(_record_text(value)).variation for value in values]

    def forget(self) -> None:
        """Clear this process's memory; nothing on Redis is deleted."""
        for table in (self.remembered, self.l1, self.guesses, self.last_uses, self.unlisted):
            table.clear()


class _Values:
    """The values that one lookup has read so far, each once, and decoded once."""

    __slots__ = ("_entries", "_store", "_tags", "_target", "values")

    def __init__(self, store: Store, target: Target, values: dict[str, bytes | None]) -> None:
        self._store = store
        self._target = target
        self._tags = target.tags
        self.values = values
        self._entries: dict[str, Entry | None] = {}

    async def epochs(self, keys: Sequence[str], tags: Sequence[str]) -> Epochs:
        """Return all epochs, with those of more tags; read what is missing, and these keys.

        What was read first is kept: an older epoch can only invalidate an entry too early.
        """
        store, target = self._store, self._target
        self._tags = tuple(dict.fromkeys((*self._tags, *tags)))
        epochs = target.epochs + tuple(map(store.names.tag, self._tags[len(target.tags) :]))
        locks = (_lock_key(keys[-1]),) if store.locks and keys else ()
        if unread := [key for key in (*keys, *locks, *epochs) if key not in self.values]:
            self.values.update(zip(unread, await store.read(unread), strict=True))
        texts = [epoch_text(self.values[key]) for key in epochs]
        return Epochs.parse(texts, self._tags, target.scopes)

    def entry(self, key: str) -> Entry | None:
        """Return the entry at a key that was read, None if there is none; report a damaged one."""
        if key not in self._entries:
            data, sealing = self.values[key], self._store.sealing
            self._entries[key] = entry = decode(key, data, sealing)
            if entry is None and data is not None:
                sealed = "" if sealing is None else ", or sealed under none of cache_keys"
                why = f"not an entry of this version, or damaged{sealed}"
                self._store.emit(CacheEntryRefused(key, why))
        return self._entries[key]

    def lock(self, key: str) -> Lock:
        """Return the lock of an entry at a key that was read last."""
        value = (self.values[_lock_key(key)] or b"").decode("latin-1")
        entries = [self.entry(each) for each in {key, self._target.key}]
        done = any(entry is not None and entry.token == value for entry in entries)
        return Lock(_lock_key(key), value, done)


def _preference_rank(entry: StoredResponse) -> tuple[bool, float]:
    """Rank stored responses: first those with Vary, then the most recent (RFC 9111 §4.1).

    One without Vary may be a default response that omitted it.
    """
    return "vary" in entry.headers, entry.stored_at


def _record_text(value: Reply) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else ""


def _is_fresh(lookup: Lookup, now: float) -> bool:
    """Whether a lookup has found a response that is fresh."""
    stored = lookup.entry
    if stored is None or lookup.purged_softly:
        return False
    return current_age(stored, now) < stored.lifetime


def _lock_key(key: str) -> str:
    return f"{key}#lock"


def _with_recorded_epochs(
    stored: StoredResponse, epochs: Epochs
) -> tuple[StoredResponse, tuple[str, ...]]:
    """Return a response with the epochs to store in it, and the tags whose epochs were not read.

    The latter are its last tags, where the script adds their epochs.
    """
    known = {tag: epochs.tags[tag] for tag in stored.tags if tag in epochs.tags}
    unread = tuple(tag for tag in stored.tags if tag not in epochs.tags)
    recorded = replace(epochs, tags=known)
    return replace(pack(stored), tags=(*known, *unread), epochs=recorded), unread


# --- L1: lookups in the memory of this process --------------------------------------------------


class L1:
    """Remembered lookups by the keys of their entries, in ``room`` bytes. Safe under threads.

    For ``seconds`` a lookup counts as what Redis would answer; it is kept longer for when Upstash
    is unreachable. Only lookups fill it, so everything in it was valid on Redis. A key contains all
    that its response is selected by.
    """

    __slots__ = ("_clock", "_lock", "_lookups", "_seconds", "changes")

    def __init__(self, room: int, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lookups: LRU[str, tuple[Lookup, str]] = LRU(room)
        """Lookups, and the URLs that they are about."""
        self.changes: int = 0
        """How often this process has changed what is on Redis; to be read before a lookup."""
        self._lock = threading.Lock()

    def find(self, key: str) -> Lookup | None:
        """Return the last lookup of a key, whatever its age."""
        found = self._lookups.use(key)
        return None if found is None else found[0]

    def unverified_for(self, lookup: Lookup) -> float:
        """Return for how many seconds a purge would have gone unnoticed; below 0 if not yet.

        While a process is frozen, one of its clocks may stop.
        """
        wall, monotonic = self._clock.wall(), self._clock.monotonic()
        return max(wall - lookup.wall, monotonic - lookup.monotonic) - self._seconds

    def put(self, target: Target, lookup: Lookup, changes: int) -> None:
        """Keep a lookup, in place of the previous one for the same response.

        ``changes`` as read before it: what it read may be older than a change made since.
        """
        if not self._lookups.room:
            return
        with self._lock:
            self._lookups.remove(target.key, lookup.key)
            if lookup.entry is None or lookup.purged_softly or lookup.outdated:
                return
            if changes != self.changes:
                return
            fields = sum(len(name) + len(text) for name, text in lookup.entry.headers.raw)
            names = len(lookup.key) + sum(map(len, lookup.entry.tags))
            variants = 100 * len(lookup.index.variants) if lookup.index is not None else 0
            size = _LOOKUP_OVERHEAD_BYTES + names + fields + variants + len(lookup.entry.packed)
            self._lookups.put(lookup.key, (lookup, target.url), size)

    def drop_replaced(self, *keys: str) -> None:
        """Drop the lookups of these keys, where this process has stored a response."""
        with self._lock:
            self.changes += 1
            self._lookups.remove(*keys)

    def drop_purged(self, what: Purge, urls_and_scopes: Collection[str]) -> None:
        """Drop the lookups that this process has purged; URLs and scopes as in names of epochs."""
        tags, places = set(what.tags), set(urls_and_scopes)

        def concerns(found: tuple[Lookup, str]) -> bool:
            lookup, url = found
            of = lookup.entry.tags if lookup.entry is not None else ()
            own = (url, *lookup.epochs.scopes)
            return what.everything or not places.isdisjoint(own) or not tags.isdisjoint(of)

        with self._lock:
            self.changes += 1
            self._lookups.remove_if(concerns)

    def clear(self) -> None:
        """Drop everything."""
        self.drop_purged(Purge(everything=True), ())
