"""Telling what the cache has for a request, and why it would not answer: reads only, no decisions.

For people who ask why a page missed. What is told is what a lookup at this moment would find;
nothing is learned, served or stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.answers import current_age
from upstash_middleware.core.cache.entries import StoredResponse, Stub, decode
from upstash_middleware.core.cache.epochs import Epochs, Life, life
from upstash_middleware.core.cache.reuse import Use, use
from upstash_middleware.values import dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from upstash_middleware.core.cache.store import Store, Target


@dataclass(frozen=True, slots=True)
class CacheExplanation:
    """What the cache would do with a request, and what is stored for it."""

    outcome: str
    """``hit``, or why the request would go forward: an RFC 9211 ``fwd`` reason."""
    why: str
    """The same in words."""
    rule: str | None = None
    """The rule that covers the request, ``cache[0]``."""
    url: str = ""
    """Path and query as a purge names them."""
    key: str = ""
    """Where the resource stands on Redis: its stored response, or what tells its variants."""
    vary: tuple[str, ...] = ()
    """The fields that select among its variants."""
    variant: str | None = None
    """Where the variant stands that this request selects."""
    tags: tuple[str, ...] = ()
    """What it is purged by, with ancestors; those of its rule where nothing is stored."""
    status: int | None = None
    age: float | None = None
    """Current age in seconds (RFC 9111 §4.2.3)."""
    lifetime: float | None = None
    """Freshness lifetime in seconds; what is left of it is this less the age."""
    while_revalidate: float = 0.0
    """Seconds of staleness for which it may be used while a fresh one is fetched."""
    if_error: float = 0.0
    """Seconds of staleness for which it may stand in for an error."""
    length: int | None = None
    """Bytes of its body."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What stands at a resource's key and at the variant's, and the epochs of now."""

    stub: Stub | None
    entry: StoredResponse | None
    damaged: bool
    epochs: Epochs


async def explain(store: Store, target: Target, *, can_refresh: bool) -> CacheExplanation:
    """Tell what is stored for a target. A flow of up to three reads. Raises UpstashError."""
    (whole,) = await store.read([target.key])
    stub = stub if isinstance(stub := decode(target.key, whole, store.sealing), Stub) else None
    variant = store.variant(target, stub.vary) if stub is not None else None
    if variant is not None:
        (whole,) = await store.read([variant])
    entry = decode(variant or target.key, whole, store.sealing)
    response = entry if isinstance(entry, StoredResponse) else None
    tags = response.tags if response is not None else target.tags
    seen = _Seen(
        stub,
        response,
        whole is not None and response is None,
        await _epochs(store, target, {*tags, *(stub.tags if stub is not None else ())}),
    )
    about = CacheExplanation(
        "",
        "",
        url=target.url,
        key=target.key,
        vary=stub.vary if stub is not None else (),
        variant=variant,
        tags=tags,
    )
    if response is None:
        outcome, why = _missing(seen)
        return replace(about, outcome=outcome, why=why)
    return _stored(about, seen, response, store.clock.wall(), can_refresh=can_refresh)


async def _epochs(store: Store, target: Target, tags: Iterable[str]) -> Epochs:
    names, tags = store.names, tuple(sorted(tags))
    return Epochs.parse(tuple(await store.read(names.epochs(target.url, tags))), tags)


def _missing(seen: _Seen) -> tuple[str, str]:
    outcome, stub = _miss(seen), seen.stub
    if seen.damaged:
        damage = "is no entry of this version, is damaged, or was sealed under other cache_keys"
        return outcome, f"what stands at its key {damage}"
    if stub is None:
        return outcome, "nothing is stored for this URL"
    if outcome == "uri-miss":
        return outcome, f"{_purged(stub.epochs, seen.epochs)} has been purged since"
    return outcome, f"it is stored for other values of {', '.join(stub.vary)} than this request's"


def _miss(seen: _Seen) -> str:
    """Return which miss it is: a purge of tags leaves it known that there are variants."""
    lives = seen.stub is not None and life(seen.stub.epochs, seen.epochs) is not Life.DEAD
    return "vary-miss" if lives else "uri-miss"


def _stored(
    about: CacheExplanation, seen: _Seen, entry: StoredResponse, now: float, *, can_refresh: bool
) -> CacheExplanation:
    state = life(entry.epochs, seen.epochs)
    age = current_age(entry, now)
    about = replace(
        about,
        status=entry.status,
        age=age,
        lifetime=entry.lifetime,
        while_revalidate=entry.stale.while_revalidate,
        if_error=entry.stale.if_error,
        length=entry.length,
    )
    if state is Life.DEAD:
        why = f"{_purged(entry.epochs, seen.epochs)} has been purged since it was stored"
        return replace(about, outcome=_miss(seen), why=why)
    softly = state is Life.STALE
    chosen = use(entry, age, purged_softly=softly, can_refresh=can_refresh)
    outcome, why = _USES[chosen]
    if softly:
        why = f"{_purged(entry.epochs, seen.epochs)} has been purged softly; {why}"
    return replace(about, outcome=outcome, why=why)


_USES = {
    Use.FRESH: ("hit", "it is fresh"),
    Use.STALE: ("hit", "it is stale, and the client takes it so"),
    Use.STALE_WHILE_REVALIDATE: ("hit", "it is stale, and may be used while it is fetched anew"),
    Use.FORWARD_STALE: ("stale", "it is stale; the application is asked whether it still holds"),
    Use.FORWARD_ASKED: ("request", "it is fresh, but the client asks for a younger one"),
}


def _purged(recorded: Epochs, current: Epochs) -> str:
    """Return in words what was purged of that which a stored response depends on."""
    if recorded.everything != current.everything:
        return "everything"
    if recorded.url != current.url:
        return "this URL"
    tags = [tag for tag, epoch in recorded.tags.items() if current.tags[tag] != epoch]
    return "the tag " + ", ".join(map(repr, tags))
