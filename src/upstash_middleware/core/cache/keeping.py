"""Storing: one command, or two where the resource has variants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.entries import Stub, encode, encode_for_script, pack
from upstash_middleware.core.cache.epochs import Epoch, with_ancestors
from upstash_middleware.core.cache.memory import Learned
from upstash_middleware.core.cache.purging import Purge, epoch_lifetime, fresh_part, replaced
from upstash_middleware.core.cache.scripts import script_call
from upstash_middleware.core.cache.store import MAX_TAGS
from upstash_middleware.core.cache.storing import MAX_VARY_FIELDS
from upstash_middleware.core.effects import Command
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.epochs import Epochs
    from upstash_middleware.core.cache.lookup import Lookup
    from upstash_middleware.core.cache.planning import Plan
    from upstash_middleware.core.cache.store import Store, Target

# Of a variant's key, how much of its end names it in a stub.
_NAME = 8
# Upstash refuses requests of more than 10 MB, the words around the entry included.
_LARGEST_CALL = 9_900_000


async def keep(store: Store, target: Target, lookup: Lookup, plan: Plan) -> str | None:
    """Store a response; return in words why it was not stored, None if it was.

    Raises UpstashError.
    """
    tags = with_ancestors((*target.tags, *plan.stored.tags))
    milliseconds = _time_to_live(store, lookup, plan.keep)
    if len(tags) > MAX_TAGS:
        return "too many tags"
    if milliseconds <= 0:
        return "kept too long before it was stored"
    fields = _selecting_fields(lookup.stub, plan.vary)
    beyond = tuple(tag for tag in tags if tag not in target.tags)
    store.memory.learn(target.key, Learned(fields, beyond))
    response, unread = _recording_epochs(pack(plan.stored), tags, lookup.epochs)
    key = store.variant(target, fields) if fields else target.key
    commands = []
    if fields:
        stub = _stub(store, lookup, fields, key, milliseconds)
        if len(stub.variants) > store.max_variants:
            return "too many variants"
        stub = replace(stub, tags=_union(lookup.stub, tags), token=response.token)
        lasting = max(stub.variants.values()) - int(store.clock.wall())
        commands.append(
            _set(
                target.key,
                encode(target.key, stub, raw=False, sealing=store.sealing),
                lasting * 1000,
            )
        )
    if unread:
        entry = _store_call(store, key, response, unread, milliseconds)
    else:
        entry = _set(
            key, encode(key, response, raw=not commands, sealing=store.sealing), milliseconds
        )
    if _size(entry) > _LARGEST_CALL:
        return "too large for one call"
    try:
        replies = await store.call(entry, *commands)
    finally:
        store.l1.replaced(target.key, key)
    return "a tag was purged meanwhile" if unread and replies[0] == 0 else None


async def supersede(store: Store, target: Target, lookup: Lookup, plan: Plan) -> str | None:
    """Invalidate a URL and store a response as its new state, at once; answers as ``keep``.

    Raises UpstashError.
    """
    tags = with_ancestors((*target.tags, *plan.stored.tags))
    milliseconds = _time_to_live(store, lookup, plan.keep)
    epoch = Epoch(fresh_part(store))
    response, unread = _recording_epochs(pack(plan.stored), tags, replace(lookup.epochs, url=epoch))
    key, old, lifetime = target.key, str(lookup.epochs.url), epoch_lifetime(store)
    entry = encode(key, response, raw=False, sealing=store.sealing)
    keys = [store.names.url(target.url), key]
    only_invalidates = unread or plan.vary or milliseconds <= 0 or len(entry) > _LARGEST_CALL
    try:
        if only_invalidates:
            await store.call(replaced(store, keys[0], str(epoch)))
            return "only the invalidation was possible"
        (done,) = await store.call(
            script_call("supersede", keys, old, str(epoch), lifetime, entry, milliseconds)
        )
    finally:
        store.l1.purged(Purge(), [target.url])
    return None if done else "the URL was purged meanwhile"


def _recording_epochs(
    response: StoredResponse, tags: tuple[str, ...], epochs: Epochs
) -> tuple[StoredResponse, tuple[str, ...]]:
    """Return a response with the epochs it records, and those of its tags that were not read.

    The latter come last, where the script adds their epochs.
    """
    known = {tag: epochs.tags[tag] for tag in tags if tag in epochs.tags}
    unread = tuple(tag for tag in tags if tag not in epochs.tags)
    return replace(response, tags=(*known, *unread), epochs=replace(epochs, tags=known)), unread


def _time_to_live(store: Store, lookup: Lookup, seconds: float) -> int:
    """Return milliseconds that end before any epoch does that was set since the lookup.

    A frozen process may not have seen the time pass on one of its clocks.
    """
    wall, monotonic = store.clock.wall() - lookup.wall, store.clock.monotonic() - lookup.monotonic
    elapsed = max(wall, monotonic, 0.0)
    return int(min(seconds, store.max_keep - elapsed) * 1000)


def _stub(
    store: Store, lookup: Lookup, fields: tuple[str, ...], key: str, milliseconds: int
) -> Stub:
    """Return the resource's stub with one more variant; those that are gone are left out."""
    now = store.clock.wall()
    before = lookup.stub.variants if lookup.stub is not None else {}
    variants = {name: until for name, until in before.items() if until > now}
    variants[key[-_NAME:]] = int(now + milliseconds / 1000) + 1
    return Stub(fields, (), variants, replace(lookup.epochs, tags={}))


def _union(stub: Stub | None, tags: tuple[str, ...]) -> tuple[str, ...]:
    return with_ancestors((*(stub.tags if stub is not None else ()), *tags))[:MAX_TAGS]


def _selecting_fields(stub: Stub | None, vary: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fields to select by: all that the resource's responses have named.

    A response without Vary beside such with one is kept for the values that its request had.
    """
    union = {*vary, *(stub.vary if stub else ())}
    return tuple(sorted(union if len(union) <= MAX_VARY_FIELDS else vary))


def _store_call(
    store: Store, key: str, response: StoredResponse, unread: tuple[str, ...], milliseconds: int
) -> Command:
    start, end = encode_for_script(key, response, store.sealing)
    keys = [store.names.any_tag, key, *(store.names.tag(tag) for tag in unread)]
    return script_call("store", keys, response.epochs.any_tag, start, end, milliseconds)


def _size(command: Command) -> int:
    return sum(len(word) for word in command.args if isinstance(word, bytes | str))


def _set(key: str, value: bytes, milliseconds: int) -> Command:
    return Command(("SET", key, value, "PX", milliseconds))
