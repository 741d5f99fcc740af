"""Collapsing across processes: one of them renders, the others look whether it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from upstash_middleware.core.cache.collapsing import Outcome, Shared
from upstash_middleware.core.cache.entries import opened
from upstash_middleware.core.cache.exchanges import Answering
from upstash_middleware.core.cache.locks import acquire
from upstash_middleware.core.cache.lookup import look_up
from upstash_middleware.core.cache.passage import passage
from upstash_middleware.core.cache.planning import Plan
from upstash_middleware.core.cache.recording import Forwarded, Recording
from upstash_middleware.core.effects import Sleep
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import UpstashFailed
from upstash_middleware.values import replace

if TYPE_CHECKING:
    from upstash_middleware.core.cache.exchanges import Context, Passing

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5


async def agree(context: Context, exchange: Recording, asked: Forwarded) -> Passing:
    """Take the lock to go forward, or find what another process renders under it.

    Each look is a billed command; pauses grow from 50 ms to half a second. It goes forward
    without the lock after ``context.collapse`` seconds, or where nothing can be shared. A lock
    lives half as long, so that a holder that died is replaced while others still wait.
    """
    clock, pause = context.store.clock, _FIRST_PAUSE
    until = clock.monotonic() + context.collapse
    try:
        while (lock := asked.lookup.lock) is not None and not lock.marked:
            if not lock.held:
                token = await acquire(context.store, lock, context.collapse / 2)
                if token is not None:
                    exchange.hold(lock.key, token)
                    break
            if (left := until - clock.monotonic()) <= 0:
                break
            await Sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE)
            asked = replace(asked, lookup=await look_up(context.store, asked.target))
            found, _ = passage(context, asked)
            if not isinstance(found, Recording):
                _share(exchange, asked)
                return found
            found.take_over(exchange)
            exchange = found
    except UpstashError as error:
        context.observe(UpstashFailed("cache lookup", error))
    except BaseException:  # nobody will have an exchange to finish; the lock expires by itself
        exchange.land(Outcome.INTERRUPTED)
        raise
    return exchange


async def agree_on_refresh(context: Context, answering: Answering, asked: Forwarded) -> Answering:
    """Take the lock to refresh what is used stale, or leave that to who has it."""
    refresh, lock = answering.refresh, asked.lookup.lock
    if refresh is None or lock is None or lock.marked:
        return answering
    try:
        seconds = context.collapse / 2 or _LONGEST_PAUSE
        token = None if lock.held else await acquire(context.store, lock, seconds)
    except UpstashError as error:
        context.observe(UpstashFailed("cache lookup", error))
        return answering
    if token is not None:
        refresh.exchange.hold(lock.key, token)
        return answering
    refresh.exchange.land(Outcome.INTERRUPTED)
    return Answering(answering.response)


def _share(exchange: Recording, asked: Forwarded) -> None:
    """Answer those of this process who wait by what another one has stored."""
    stored, stub = asked.lookup.entry, asked.lookup.stub
    if stored is not None:
        vary = stub.vary if stub is not None else ()
        exchange.land(Shared(Plan(opened(stored), vary, 0.0), asked))
