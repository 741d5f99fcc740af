"""Stored responses on Redis: looking up, storing, purging and locking.

The order of the reads and writes makes purges safe:

- A lookup reads an entry and its epochs in one command. The entry is invalid or stale if its
  recorded epochs differ from the current ones.
- An entry records the epochs read **before** the application was called. A response made from data
  that is older than a purge is therefore invalid, even if it is stored after the purge.
- A purge of a tag replaces ``G``, the epoch of any tag, before the tag's own epoch. If the tags of
  an entry are known only from its response, a script stores it: it reads the epochs of the tags,
  and writes only if ``G`` has not changed since the read before the application was called. If
  ``G`` was replaced last, the script could read the tag's new epoch and still find the old ``G``.
- A response with No-Vary-Search is stored under the canonical form of its URL and records the epoch
  of this form. A purge of another form replaces the epoch of that form, then reads the record of
  the path, and replaces the epoch of the canonical form. If the requested URL has an epoch of its
  own, the canonical form does not answer it, because the purge may have been earlier than the
  record.
- An entry expires before any epoch that could have been set after its own epochs were read.
  Otherwise it could become valid again when such an epoch expires.
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
"""Bytes of memory of a lookup besides its values: about 3 kB, plus header fields."""
REMEMBERED_BYTES: Final = 4 * 1024 * 1024
MAX_REMEMBERED_ENTRY_BYTES: Final = 128 * 1024
"""Bytes of remembered lookups with their opened bodies: of all together, and of one."""
_MAX_TAGS_LENGTH = 4096
"""Characters. Longer lists of tags are not remembered, because clients may have sent them."""
_VARIANT_NAME_LENGTH = 32
"""The number of characters at the end of a variant's key that identify it in the index."""
_MAX_UNLISTED = 10
"""The maximum number of variants of a resource that are missing in its index."""


class Target(Struct, frozen=True):
    """The resource that a request addresses, as known before the lookup."""

    key: str
    """``B``: the key of the resource. It includes the values by which its rule selects."""
    url: str
    """The path and query, as they occur in the key of the URL's epoch."""
    headers: Headers
    """The request's header fields, which select a variant."""
    tags: tuple[str, ...]
    """The rule's tags, with their ancestors."""
    scopes: tuple[str, ...]
    """The directories and the rule, if purging by these is enabled."""
    epochs: tuple[str, ...]
    """The keys of the epochs: of everything, the URL, the scopes, any tag, and the tags."""
    previous: str = ""
    """The key in the application's previous version, if its responses may be used."""
    private: bool = False
    """Whether the key contains a user, so that only this user gets the response."""
    selected: str = ""
    """The rule's selecting values as text, from which the keys of other URLs are made."""
    variation: Variation | None = None
    """How the path's queries select, as far as is known; None if No-Vary-Search is not used."""
    exact: Target | None = None
    """The target of the requested URL, if this target is for the URL's canonical form."""

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs whose invalidation also invalidates the target."""
        return (self.url,) if self.exact is None else (self.url, self.exact.url)

    def has_equivalent_url(self, stored: StoredResponse) -> bool:
        """Whether the URL of a stored response is equivalent to the requested URL.

        It is equivalent if the response, stored at this key, has an equal No-Vary-Search.
        """
        return self.exact is None or variation_of(stored.headers) == self.variation

    def may_share(self, other: Target, stored: StoredResponse) -> bool:
        """Whether a response for one of two targets also answers requests for the other."""
        if self.urls[-1] == other.urls[-1]:
            return True
        return self.has_equivalent_url(stored) and other.has_equivalent_url(stored)


class Lookup(Struct, frozen=True):
    """The result of a lookup."""

    entry: StoredResponse | None
    """The valid stored response that the request selects."""
    key: str
    """The key of the entry; without an entry, the key at which one would probably be stored."""
    purged_softly: bool
    """Whether a soft purge has made the entry stale."""
    index: VariantIndex | None
    """The resource's valid variant index."""
    lock: Lock | None
    """The lock of the response, if locks are enabled."""
    epochs: Epochs
    """The epochs read before the application is called; the next stored response records them."""
    wall: float
    monotonic: float
    outdated: bool = False
    """Whether the application's previous version made the entry."""
    known: bool = False
    """Whether there was any entry, even a purged one, so that a response was storable before."""
    record: str | None = None
    """The record of the path, empty if there is none; None if it was not read."""
    exact: Target | None = None
    """The target that the entry belongs to, if it is not the target that was looked up."""
    last_head: list[Any] = field(default_factory=lambda: [(None, None)])
    """A list with one pair: the last head made from the entry, after the values it depends on."""


class Purge(Struct, frozen=True):
    """The responses to purge.

    Args:
        urls: Paths with their query, or whole URLs. All variants of each are purged.
        tags: Tags. Their colon-descendants are included: ``product`` also purges ``product:7``.
        directories: Paths that end in a slash: ``/products/`` purges all URLs that begin with it.
            Needs the setting ``purge_directories``.
        rules: Paths of cache rules. All responses that the rules cover are purged. Needs the
            setting ``purge_directories``.
        everything: Whether to purge all stored responses.
        soft: Whether the responses may still be served stale if their rule allows it.
        cdn_tags: For ``on_purge`` with the setting ``cdn``: the tags that purge the same responses
            from the CDN, in the form that the CDN expects.
    """

    urls: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    everything: bool = False
    soft: bool = False
    directories: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    cdn_tags: tuple[str, ...] = ()


class Guess(Struct, frozen=True):
    """The additional keys that the next lookup of a resource reads. A wrong guess costs a read."""

    vary: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    epochs: tuple[str, ...] = ()
    """The keys of the tags' epochs."""


class Reading(Struct, frozen=True):
    """The keys that a lookup reads first, in one command."""

    target: Target
    guess: Guess
    entries: tuple[str, ...]
    """The key of the resource and, if a variant is guessed, its key."""
    keys: tuple[str, ...]
    """``entries``, the lock of the last of them, and the epochs."""
    extra_keys: tuple[str, ...]
    """More keys of the command: the path's record, and the exact URL's key and epoch."""
    pipeline: Pipeline
    wall: float
    monotonic: float


class Record(NamedTuple):
    """The record of a path: how the queries of its URLs select a response."""

    until: int
    """When the record expires, in seconds since 1970."""
    variation: Variation

    @classmethod
    def parse(cls, text: str) -> Record:
        """Parse a record. An invalid record counts as expired, with the default variation."""
        until, _, value = text.partition(" ")
        found = parse_field(value)
        if not until.isdecimal() or len(until) > 12 or isinstance(found, str):
            return cls(0, EXACT)
        return cls(int(until), found)

    def __str__(self) -> str:
        return f"{self.until} {self.variation}"


class RememberedLookup(Struct, frozen=True):
    """A lookup that found an entry, with the values read. Equal values mean an equal lookup."""

    keys: tuple[str, ...]
    values: list[bytes | None]
    lookup: Lookup


class IndexDifference(Struct, frozen=True):
    """The differences between a resource's stored variants and its index on Redis, by name."""

    added: Mapping[str, int] = field(default_factory=dict)
    """Variants that are stored, but not in the index."""
    deleted: frozenset[str] = frozenset()
    """Variants that are in the index, but were deleted."""
    evicted: tuple[str, ...] = ()
    """Variants that were removed from the index, but are still stored."""


_NO_GUESS = Guess()
_ALL_LISTED = IndexDifference()


class Store(Struct, RedisStore, frozen=True):
    """The stored responses under one prefix. Methods that call Upstash can raise UpstashError."""

    names: Names
    secret: Callable[[], bytes]
    clock: Clock
    randomness: Callable[[int], bytes]
    emit: Observer
    sealing: Sealing | None
    """Signs or encrypts entries; None if they are stored as they are."""
    deadline: float
    max_keep: float
    profile: Profile
    max_variants: int
    """The maximum number of variants of one resource."""
    locks: bool
    """Whether locks are enabled."""
    remembered: LRU[str, RememberedLookup]
    """Remembered lookups, by the last of the entries' keys; the size is in bytes."""
    l1: L1
    guesses: LRU[str, Guess]
    last_uses: LRU[str, int]
    """A number for each variant's key that increases with each use: the order of the last uses."""
    unlisted: LRU[str, IndexDifference]
    """Differences from the index, by the key of the resource."""
    use_counter: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- Lookup ---------------------------------------------------------------------------------

    def prepare(self, target: Target) -> Reading:
        """Return the first commands: they read the entry or index, a guessed variant, epochs."""
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
        """Return the last lookup again if these replies are equal to its values, else None.

        This is the case for most hits. Nothing is parsed, and no checksum is computed.
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
        """Return the lookup from these replies; read more if the guess was wrong.

        If the exact URL was purged, or has a fresh response of its own, its own lookup replaces
        that of the canonical form.
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
        """Return the lookup of the exact URL from the values read with its canonical form."""
        own = self.prepare(exact)
        if unread := [key for key in own.keys if key not in known]:
            known.update(zip(unread, await self.read(unread), strict=True))
        own = replace(own, wall=reading.wall, monotonic=reading.monotonic)
        values = [known[key] for key in own.keys]
        replies: list[Reply] = [[*values]]
        return self.receive(own, replies) or await self._complete(own, values)

    async def _complete(self, reading: Reading, values: list[bytes | None]) -> Lookup:
        """Return the lookup from the values of its keys; read more if the guess was wrong."""
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
        """Remember a lookup that found an entry, with the body opened, unless it is too large."""
        size = _LOOKUP_OVERHEAD_BYTES + sum(map(len, filter(None, values))) + entry.length
        if size > MAX_REMEMBERED_ENTRY_BYTES:
            return lookup
        try:
            lookup = replace(lookup, entry=opened(entry))
        except Damaged:
            return lookup  # the error is raised when the body is used
        remembered = RememberedLookup(reading.keys, values, lookup)
        self.remembered.put(reading.entries[-1], remembered, size)
        return lookup

    async def look_up(self, target: Target) -> Lookup:
        """Find the stored response that a request selects. One command if the guess is right."""
        reading = self.prepare(target)
        replies = await reading.pipeline
        return self.receive(reading, replies) or await self.read_on(reading, replies)

    async def look_up_previous(self, target: Target, lookup: Lookup) -> Lookup:
        """If a lookup found nothing, add the stored response of the application's previous version.

        The next stored response still records the epochs of the first lookup.
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
        """Return ``V``: the key of the variant that a request selects with these fields."""
        values = selected_values(fields, target.headers, self.profile)
        return variant_key(target.key, values, self.secret())

    def _learn_guess(self, target: Target, vary: tuple[str, ...], tags: Iterable[str]) -> None:
        """Remember the additional keys that the next lookup of a resource should read."""
        unread = tuple([tag for tag in tags if tag not in target.tags])
        if sum(map(len, unread)) > _MAX_TAGS_LENGTH:
            unread = ()
        if vary or unread:
            guess = Guess(vary, unread, tuple(map(self.names.tag, unread)))
            self.guesses.put(target.key, guess)
        else:
            self.guesses.remove(target.key)

    # --- Storing: one command, or two for a resource with variants ------------------------------

    async def put(self, target: Target, lookup: Lookup, plan: Plan) -> str | None:
        """Store a response; return why it was not stored, or None if it was."""
        milliseconds = self.time_to_live(plan.keep, lookup.wall, lookup.monotonic)
        if milliseconds <= 0:
            return "kept too long before it was stored"
        # The record comes first: a purge that does not find it is older than the entry's epochs.
        record = self._record_commands(target, lookup, plan.stored, milliseconds)
        index = lookup.index
        # All fields that Vary has named for this resource. If others have Vary, one without it is
        # stored for the values of its own request.
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
        """Return the command that records how the path's queries select; empty if it is not needed.

        The record outlives the responses that depend on it. The default is recorded only if it
        replaces another value, and only for a response with status 200.
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
        """Invalidate a URL and store a response as its new state; the result is that of ``put``."""
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
        """Return the command that adds a variant to the index, and the remaining differences.

        The command writes the index. If there are too many variants, it instead deletes those that
        this process has used least recently, because a miss must not need more than two commands to
        store. The differences from the index are then remembered, and a later store writes them.
        """
        now, before = self.clock.wall(), lookup.index
        left = self.unlisted.get(target.key) or _ALL_LISTED
        if before is None:  # the previous entries have expired or were purged
            left = IndexDifference(evicted=left.evicted)
        known = {**before.variants, **left.added} if before is not None else {}
        variants = {
            name: until for name, until in known.items() if until > now and name not in left.deleted
        }
        name = key[-_VARIANT_NAME_LENGTH:]
        variants[name] = int(now + milliseconds / 1000) + 1
        # Variants that this process has not used come first, ordered by expiry.
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

    # --- Purging: replaces epochs, in one call --------------------------------------------------

    async def purge(
        self,
        what: Purge,
        rules: Sequence[CacheRule],
        groups: tuple[str, ...] = (),
        recorded: Sequence[str] = (),
    ) -> list[Variation]:
        """Carry out a purge. After an error, it may be incomplete.

        The rules define which parts of a query belong to a resource's URL. ``groups`` are cache
        groups, as tags. Returns the records of the paths of the URLs ``recorded``. Raises
        ValueError for an invalid URL or directory, or a path without a rule.
        """
        urls = urls_to_purge(what.urls, rules)
        scopes = scopes_to_purge(what.directories, what.rules, rules)
        epochs = [self.names.everything] if what.everything else []
        epochs += map(self.names.url, urls)
        epochs += [self.names.scope(scope) for scope in scopes]
        # A tag that no response can have needs no new epoch.
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
        finally:  # even after an error, the purge may have succeeded
            self.l1.drop_purged(what, [*urls, *scopes])
        return [Record.parse(_record_text(value)).variation for value in values]

    def forget(self) -> None:
        """Clear this process's memory. Nothing on Redis is deleted."""
        for table in (self.remembered, self.l1, self.guesses, self.last_uses, self.unlisted):
            table.clear()


class _Values:
    """The values read by one lookup. Each is read and decoded only once."""

    __slots__ = ("_entries", "_store", "_tags", "_target", "values")

    def __init__(self, store: Store, target: Target, values: dict[str, bytes | None]) -> None:
        self._store = store
        self._target = target
        self._tags = target.tags
        self.values = values
        self._entries: dict[str, Entry | None] = {}

    async def epochs(self, keys: Sequence[str], tags: Sequence[str]) -> Epochs:
        """Return all epochs, including those of ``tags``; read the missing ones and ``keys``.

        The first value read is kept. An older epoch can only invalidate an entry too early.
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
        """Return the entry at a key that was read, or None; emit an event if it is damaged."""
        if key not in self._entries:
            data, sealing = self.values[key], self._store.sealing
            self._entries[key] = entry = decode(key, data, sealing)
            if entry is None and data is not None:
                sealed = "" if sealing is None else ", or sealed under none of cache_keys"
                why = f"not an entry of this version, or damaged{sealed}"
                self._store.emit(CacheEntryRefused(key, why))
        return self._entries[key]

    def lock(self, key: str) -> Lock:
        """Return the lock of the entry at the last key read."""
        value = (self.values[_lock_key(key)] or b"").decode("latin-1")
        entries = [self.entry(each) for each in {key, self._target.key}]
        done = any(entry is not None and entry.token == value for entry in entries)
        return Lock(_lock_key(key), value, done)


def _preference_rank(entry: StoredResponse) -> tuple[bool, float]:
    """Rank stored responses: those with Vary first, then the most recent (RFC 9111 §4.1).

    A response without Vary may be a default response that omits it by mistake.
    """
    return "vary" in entry.headers, entry.stored_at


def _record_text(value: Reply) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else ""


def _is_fresh(lookup: Lookup, now: float) -> bool:
    """Whether a lookup has found a fresh response."""
    stored = lookup.entry
    if stored is None or lookup.purged_softly:
        return False
    return current_age(stored, now) < stored.lifetime


def _lock_key(key: str) -> str:
    return f"{key}#lock"


def _with_recorded_epochs(
    stored: StoredResponse, epochs: Epochs
) -> tuple[StoredResponse, tuple[str, ...]]:
    """Return a response with the epochs to record, and its tags whose epochs were not read.

    These tags come last in the response, so that the script can append their epochs.
    """
    known = {tag: epochs.tags[tag] for tag in stored.tags if tag in epochs.tags}
    unread = tuple(tag for tag in stored.tags if tag not in epochs.tags)
    recorded = replace(epochs, tags=known)
    return replace(pack(stored), tags=(*known, *unread), epochs=recorded), unread


# --- L1: lookups in the memory of this process --------------------------------------------------


class L1:
    """Lookups in this process's memory, by the keys of entries, in ``room`` bytes. Thread-safe.

    For ``seconds``, a lookup is used without asking Redis. It is kept longer for the case that
    Upstash is unreachable. Only lookups fill the cache, so each entry was valid on Redis. The key
    contains all values that select the response.
    """

    __slots__ = ("_clock", "_lock", "_lookups", "_seconds", "changes")

    def __init__(self, room: int, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lookups: LRU[str, tuple[Lookup, str]] = LRU(room)
        """Lookups with their URLs."""
        self.changes: int = 0
        """The number of changes on Redis by this process; it must be read before a lookup."""
        self._lock = threading.Lock()

    def find(self, key: str) -> Lookup | None:
        """Return the last lookup of a key, whatever its age."""
        found = self._lookups.use(key)
        return None if found is None else found[0]

    def unverified_for(self, lookup: Lookup) -> float:
        """Return the seconds for which a purge may have gone unnoticed; below 0 if not yet.

        Both clocks are compared, because one may stop while a process is frozen.
        """
        wall, monotonic = self._clock.wall(), self._clock.monotonic()
        return max(wall - lookup.wall, monotonic - lookup.monotonic) - self._seconds

    def put(self, target: Target, lookup: Lookup, changes: int) -> None:
        """Remember a lookup, in place of the previous one for the same response.

        ``changes`` was read before the lookup. If it has increased, the lookup may be outdated.
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
        """Drop the lookups of keys at which this process has stored a response."""
        with self._lock:
            self.changes += 1
            self._lookups.remove(*keys)

    def drop_purged(self, what: Purge, urls_and_scopes: Collection[str]) -> None:
        """Drop the lookups that a purge by this process affects; scopes as in names of epochs."""
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
