"""Which passage a request takes, once it is known what is stored for it (RFC 9111 §4)."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING

from upstash_middleware.core.cache.answers import (
    answer,
    answers,
    current_age,
    head_of,
    only_if_cached,
)
from upstash_middleware.core.cache.directives import client_control
from upstash_middleware.core.cache.entries import Damaged
from upstash_middleware.core.cache.exchanges import Answering, Passing, Refresh, for_downstream
from upstash_middleware.core.cache.fields import NO_DIRECTIVES
from upstash_middleware.core.cache.recording import Forwarded, Recording
from upstash_middleware.core.cache.refreshing import Refreshing
from upstash_middleware.core.cache.reuse import Use, usable_unheard, use
from upstash_middleware.core.cache.status import CacheStatus
from upstash_middleware.core.cache.storing import vary_fields
from upstash_middleware.events import CacheEntryRefused
from upstash_middleware.messages import Headers
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.entries import StoredResponse
    from upstash_middleware.core.cache.exchanges import Context
    from upstash_middleware.core.cache.fields import Directives
    from upstash_middleware.messages import Request, Response

_FWD = {Use.FORWARD_STALE: "stale", Use.FORWARD_ASKED: "request"}
# What a background refresh may carry of the request that found the response stale: what
# selects it, and nothing of the person who asked or of what they already have.
_OF_A_PERSON = (
    "authorization",
    "cache-control",
    "cookie",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "pragma",
    "proxy-authorization",
    "range",
)


def passage(context: Context, asked: Forwarded) -> tuple[Passing, str]:
    """Return the passage that a request takes, and in a word which one it is."""
    wants = _wants(context, asked.request)
    stored = asked.lookup.entry
    if stored is not None and not answers(asked.request, stored):
        part = None if asked.lookup.outdated else stored
        lookup = replace(asked.lookup, entry=None)
        asked, stored = replace(asked, fwd="partial", part=part, lookup=lookup), None
    if stored is None:
        return _forward(context, asked, wants)
    age = current_age(stored, context.store.clock.wall())
    softly, outdated = asked.lookup.purged_softly, asked.lookup.outdated
    chosen = use(stored, age, wants, purged_softly=softly, outdated=outdated)
    if chosen is not Use.FRESH:
        if _refreshable(context, asked, stored):
            chosen = use(
                stored, age, wants, purged_softly=softly, outdated=outdated, can_refresh=True
            )
        if chosen in _FWD:
            return _forward(context, replace(asked, fwd=_FWD[chosen]), wants)
    try:
        detail = "of the previous version" if outdated else ""
        response = _answer(context, asked, stored, age, detail)
    except Damaged:
        _tell_damaged(context, asked)
        return _forward(context, replace(asked, lookup=replace(asked.lookup, entry=None)), wants)
    refresh = _refresh(context, asked, stored) if chosen is Use.STALE_WHILE_REVALIDATE else None
    return Answering(response, refresh), "hit"


def at_hand(context: Context, asked: Forwarded) -> Answering | None:
    """Return the answer of what this process holds, if it is fresh and the store need not be asked.

    None for all that is to be validated, refreshed or forwarded: that takes today's epochs.
    """
    stored = asked.lookup.entry
    if stored is None or context.store.l1.unheard(asked.lookup) >= 0:
        return None
    age = current_age(stored, context.store.clock.wall())
    fresh = use(stored, age, _wants(context, asked.request)) is Use.FRESH
    return _answering(context, asked, stored, age) if fresh else None


def instead_of_store(context: Context, asked: Forwarded) -> Answering | None:
    """Return the answer of what this process holds, if it may stand in for a store that failed."""
    stored, now = asked.lookup.entry, context.store.clock.wall()
    unheard, wants = context.store.l1.unheard(asked.lookup), _wants(context, asked.request)
    if stored is None or not usable_unheard(stored, now, unheard, wants):
        return None
    age = current_age(stored, now)
    return _answering(context, asked, stored, age, "the store did not answer")


def _answering(
    context: Context, asked: Forwarded, stored: StoredResponse, age: float, detail: str = ""
) -> Answering | None:
    if not answers(asked.request, stored):
        return None
    try:
        return Answering(_answer(context, asked, stored, age, detail))
    except Damaged:
        _tell_damaged(context, asked)
        return None


def _tell_damaged(context: Context, asked: Forwarded) -> None:
    context.observe(CacheEntryRefused(asked.lookup.key, "its body does not open"))


def _wants(context: Context, request: Request) -> Directives:
    return client_control(request.headers) if context.store.profile.obeys_clients else NO_DIRECTIVES


def _forward(context: Context, asked: Forwarded, wants: Directives) -> tuple[Passing, str]:
    if "only-if-cached" in wants:
        return Answering(only_if_cached()), asked.fwd
    try:
        if asked.lookup.entry is not None:
            return Refreshing(context, asked, asked.lookup.entry), asked.fwd
    except Damaged:
        _tell_damaged(context, asked)
    return Recording(context, asked), asked.fwd


def _answer(
    context: Context, asked: Forwarded, stored: StoredResponse, age: float, detail: str = ""
) -> Response:
    left, key = stored.lifetime - age, context.told_key(asked.lookup)
    # Age and Cache-Status tell whole seconds: what is asked for much has the same head many times.
    makes = floor(age), floor(left), key, detail, asked.rule.downstream
    told = stored.told
    if told is None or told[0] != makes:
        status = CacheStatus(hit=True, ttl=left, key=key, detail=detail)
        head = head_of(stored, age, context.store.profile, status)
        told = makes, for_downstream(head, asked.rule)
        object.__setattr__(stored, "told", told)
    return answer(asked.request, stored, told[1])


def _refreshable(context: Context, asked: Forwarded, stored: StoredResponse) -> bool:
    """Whether nobody's request would be answered the same (RFC 5861 §3).

    Where cookies or credentials select the response, only their bearer can fetch it anew.
    """
    varying = asked.lookup.stub.vary if asked.lookup.stub is not None else ()
    of_a_person = asked.target.private or bool(asked.rule.vary_cookies)
    selecting = {*varying, *vary_fields(stored.headers), *asked.rule.vary_headers}
    return context.can_refresh and not of_a_person and not selecting & {"authorization", "cookie"}


def _refresh(context: Context, asked: Forwarded, stored: StoredResponse) -> Refresh | None:
    headers = asked.request.headers.without(*_OF_A_PERSON)
    request = replace(asked.request, method="GET", headers=Headers(headers.raw))
    exchange = Refreshing(context, replace(asked, request=request, fwd="stale"), stored)
    flight, leads = context.flights.board(asked.lookup.key)
    if flight is not None and not leads:
        return None  # somebody of this process is about it already
    if flight is not None:
        exchange.lead(flight)
    return Refresh(exchange.request_to_forward(request), exchange)
