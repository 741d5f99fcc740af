"""Explanations of what the cache would do with a request, and of the stored response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from upstash_middleware.core.cache.entries import (
    Epochs,
    StoredResponse,
    Validity,
    VariantIndex,
    decode,
    epoch_text,
    split_tags_and_groups,
    validity,
)
from upstash_middleware.core.cache.http.no_vary_search import parse_field
from upstash_middleware.core.cache.http.reuse import Use, current_age, use

if TYPE_CHECKING:
    from upstash_middleware.core.cache.store import Store, Target


class CacheExplanation(Struct, frozen=True):
    """What the cache would do with a request, and the stored response."""

    outcome: str
    """``hit``, or why the request would be forwarded, as the ``fwd`` parameter of RFC 9211."""
    why: str
    """The reason as text."""
    rule: str | None = None
    """The rule that covers the request, such as ``cache[0]``."""
    url: str = ""
    """The path and query, as they are used in purges."""
    key: str = ""
    """The resource's key on Redis, of its stored response or its variant index."""
    vary: tuple[str, ...] = ()
    """The fields that select a variant."""
    variant: str | None = None
    """The key of the variant that this request selects."""
    tags: tuple[str, ...] = ()
    """The response's tags with their ancestors; if nothing is stored, the rule's tags."""
    status: int | None = None
    age: float | None = None
    """The current age in seconds (RFC 9111 §4.2.3)."""
    lifetime: float | None = None
    """The freshness lifetime in seconds."""
    while_revalidate: float = 0.0
    """The seconds of staleness in which the response may be used while it is revalidated."""
    if_error: float = 0.0
    """The seconds of staleness in which the response may be used instead of an error."""
    length: int | None = None
    """The length of the body in bytes."""
    groups: tuple[str, ...] = ()
    """The response's cache groups (RFC 9875)."""
    cdn_tags: tuple[str, ...] = ()
    """The tags that purge the response from the CDN, with the setting ``cdn``."""
    no_vary_search: str = ""
    """The differences between queries that are ignored, or why No-Vary-Search is invalid."""
    advice: str = ""
    """The setting that would change the outcome, or where to find more information."""


NOTHING_STORED = "nothing is stored for this URL"
_USES = {
    Use.FRESH: ("hit", "it is fresh"),
    Use.STALE: ("hit", "it is stale, and the client accepts it"),
    Use.STALE_WHILE_REVALIDATE: ("hit", "it is stale, and may be used while it is revalidated"),
    Use.FORWARD_STALE: ("stale", "it is stale, and has to be validated first"),
    Use.FORWARD_REQUESTED: ("request", "it is fresh, but the client asks for a fresher one"),
}


async def explain(store: Store, target: Target, *, can_refresh: bool) -> CacheExplanation:
    """Explain the stored response of a target. A flow of up to three reads."""
    (data,) = await store.read([target.key])
    entry = decode(target.key, data, store.sealing)
    index = entry if isinstance(entry, VariantIndex) else None
    variant = None
    if index is not None:
        variant = store.variant(target, index.vary)
        (data,) = await store.read([variant])
        entry = decode(variant, data, store.sealing)
    stored = entry if isinstance(entry, StoredResponse) else None
    of_entry = stored.tags if stored is not None else target.tags
    all_tags = tuple(sorted({*of_entry, *(index.tags if index is not None else ())}))
    tags, groups = split_tags_and_groups(of_entry)
    values = await store.read(store.names.epochs(target.url, target.scopes, all_tags))
    current = Epochs.parse(list(map(epoch_text, values)), all_tags, target.scopes)
    vary = index.vary if index is not None else ()
    # The index shows that there are variants, even after a purge of tags.
    outcome, why = "uri-miss", NOTHING_STORED
    if index is not None and validity(index.epochs, current) is not Validity.INVALID:
        outcome = "vary-miss"
        why = f"it is stored for other values of {', '.join(vary)} than this request's"
    elif index is not None:
        why = f"{_invalidation_text(index.epochs, current)} since"
    if stored is None:
        if data is not None:
            why = (
                "the value of its key is not an entry of this version, is damaged, or was sealed "
                "under other cache_keys"
            )
        return CacheExplanation(
            outcome, why, url=target.url, key=target.key, vary=vary, variant=variant, tags=tags
        )
    state, age = validity(stored.epochs, current), current_age(stored, store.clock.wall())
    if state is Validity.INVALID:
        why = f"{_invalidation_text(stored.epochs, current)} since it was stored"
    else:
        softly = state is Validity.STALE
        outcome, why = _USES[use(stored, age, purged_softly=softly, can_refresh=can_refresh)]
        if softly:
            why = f"{_invalidation_text(stored.epochs, current)} softly; {why}"
    variation = parse_field(stored.headers.combined("no-vary-search") or "")
    if isinstance(variation, str):
        variation = f"not valid, so only the exact URL is answered: {variation}"
    return CacheExplanation(
        outcome,
        why,
        None,
        target.url,
        target.key,
        vary,
        variant,
        tags,
        stored.status,
        age,
        stored.lifetime,
        stored.stale.while_revalidate,
        stored.stale.if_error,
        stored.length,
        groups,
        no_vary_search=str(variation),
    )


def _invalidation_text(recorded: Epochs, current: Epochs) -> str:
    """Return a text that says what invalidated a stored response or made it stale."""
    if recorded.everything != current.everything:
        return "everything has been purged"
    if recorded.url != current.url:
        return "this URL has been purged"
    if recorded.scopes.keys() != current.scopes.keys():
        return "the rule that covers this URL, or purge_directories, has changed"
    for scope, epoch in recorded.scopes.items():
        if current.scopes[scope] != epoch:
            kind, _, path = scope.partition(":")
            name = "the directory" if kind == "under" else "the rule"
            return f"{name} {path!r} has been purged"
    changed = [tag for tag, epoch in recorded.tags.items() if current.tags[tag] != epoch]
    tags, groups = split_tags_and_groups(changed)
    named = [("the tag", tags)] if tags else []
    named += [("the cache group", groups)] if groups else []
    purged = [f"{kind} {', '.join(map(repr, names))}" for kind, names in named]
    return f"{' and '.join(purged)} has been purged"
