"""Constructing responses from caches (RFC 9111 §4): whether a stored one may be used; no I/O."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.answers import current_age
from upstash_middleware.core.cache.fields import NO_DIRECTIVES

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.fields import Directives


class Use(Enum):
    """What becomes of a request for which there is a stored response."""

    FRESH = auto()
    STALE = auto()
    """The client accepts it stale."""
    STALE_WHILE_REVALIDATE = auto()
    FORWARD_STALE = auto()
    """It has to be validated or replaced first."""
    FORWARD_ASKED = auto()
    """It is fresh, but the client asks for more than that."""


def use(  # noqa: PLR0913 - all that it depends on
    stored: StoredResponse,
    age: float,
    asked: Directives = NO_DIRECTIVES,
    *,
    purged_softly: bool = False,
    outdated: bool = False,
    can_refresh: bool = False,
) -> Use:
    """Return what becomes of a request that selects this stored response, at its current age.

    ``asked`` are the request's directives that are obeyed. The response is ``outdated`` if it is
    the application's previous version's; with ``can_refresh`` somebody is there to refresh what
    is used stale.
    """
    left = stored.lifetime - age
    if purged_softly:
        left = min(left, 0.0)
    if left > 0 and outdated:
        wanted = can_refresh and not _unwanted(asked, age, left)
        return Use.STALE_WHILE_REVALIDATE if wanted else Use.FORWARD_STALE
    if left > 0:
        return Use.FORWARD_ASKED if _unwanted(asked, age, left) else Use.FRESH
    if stored.stale.forbidden or "no-cache" in asked:
        return Use.FORWARD_STALE
    if _accepted_stale(asked, -left):
        return Use.STALE
    if not can_refresh or _unwanted(asked, age, left):
        return Use.FORWARD_STALE
    in_time = -left < stored.stale.while_revalidate
    return Use.STALE_WHILE_REVALIDATE if in_time else Use.FORWARD_STALE


def usable_unheard(stored: StoredResponse, now: float, unheard: float, asked: Directives) -> bool:
    """Whether a response of this process may be used while the store cannot be asked.

    ``unheard`` are the seconds since when nobody knows whether it was purged or replaced. They
    count as stale, however fresh it is, and stale-if-error (RFC 5861 §4) says how many may be.
    """
    age = current_age(stored, now)
    left = min(stored.lifetime - age, -unheard)
    if _unwanted(asked, age, left):
        return False
    return left > 0 or (not stored.stale.forbidden and -left < stored.stale.if_error)


def usable_for_error(stored: StoredResponse, now: float) -> bool:
    """Whether a stale response may stand in for an error (RFC 5861 §4)."""
    staleness = current_age(stored, now) - stored.lifetime
    return not stored.stale.forbidden and staleness < stored.stale.if_error


def _unwanted(asked: Directives, age: float, left: float) -> bool:
    """Whether the client asks for a younger response than this (§5.2.1.1, .3, .4)."""
    if asked is NO_DIRECTIVES:
        return False
    max_age, min_fresh = asked.seconds("max-age"), asked.seconds("min-fresh")
    return (
        "no-cache" in asked
        or (max_age is not None and age > max_age)
        or (min_fresh is not None and left < min_fresh)
    )


def _accepted_stale(asked: Directives, staleness: float) -> bool:
    """Whether the client accepts a response that is stale by so much (§5.2.1.2)."""
    if "max-stale" not in asked:
        return False
    return asked.arguments["max-stale"] is None or staleness <= (asked.seconds("max-stale") or 0)
