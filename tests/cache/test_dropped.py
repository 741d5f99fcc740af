"""What the cache has begun for a request that gets another response is left to the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.engine import Engine, Exchange, Part, PartExchange, Prepared
from upstash_middleware.core.flow import Command, Pipeline, Wait
from upstash_middleware.drivers import run
from upstash_middleware.messages import NO_HEADERS, Response, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.core.flow import Flow


class Denial(PartExchange):
    response = Response(ResponseHead(429, NO_HEADERS))


class Denying(Part):
    """A limit that is used up, which Redis says."""

    def prepare(self, request: object) -> Prepared:
        return Prepared(Pipeline((Command(("MGET", "limit"), True),)))

    def receive(self, prepared: object, replies: object) -> PartExchange:
        return Denial()


def stale(**options: Any) -> Site:
    """Return a site whose page is stale, and to be revalidated in the background."""
    site = Site(options={"background_refresh": True, **options})
    site.app = lambda _: reply(b"stored", cache_control="max-age=2, stale-while-revalidate=60")
    site.visit()
    site.clock.advance(12)
    return site


def begun(site: Site, *engines: Engine) -> Exchange:
    return run(engines[0].begin(request(), *engines[1:]), site.store)


def denied(site: Site, *, apart: bool) -> Exchange:
    """Begin a request that is denied, by a limit that is joined with the cache inside."""

    def engine(*parts: Part) -> Engine:
        return Engine(parts, observe=site.events.append)

    engines = (engine(Denying()), engine(site.cache)) if apart else (engine(Denying(), site.cache),)
    return begun(site, *engines)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("lock", [False, True])
def test_a_denied_request_prevents_no_revalidation(lock: bool, apart: bool):
    site = stale(lock=lock)
    exchange = denied(site, apart=apart)
    assert exchange.response is not None
    assert exchange.response.head.status == 429
    assert exchange.refresh is None
    answered = site.begin(request())
    assert answered.response is not None
    assert answered.refresh is not None, "also before the 429 is sent"
    if (flow := exchange.finish(complete=True)) is not None:
        run(flow, site.store)
    assert site.begin(request()).refresh is None, "one at a time, as ever"


@pytest.mark.parametrize("apart", [False, True])
def test_nobody_waits_for_a_request_that_is_denied(apart: bool):
    site = stale()
    site.purge("/page")
    exchange = denied(site, apart=apart)
    assert exchange.response is not None
    flow: Flow[Any] = site.cache.begin(request())
    assert not any(isinstance(effect, Wait) for effect in effects(site, flow))


def effects(site: Site, flow: Flow[Any]) -> Iterator[Any]:
    """Return what a flow asks for, each of which reads from the site's store."""
    replies: Any = None
    while True:
        try:
            effect: Any = flow.send(replies)
        except StopIteration:
            return
        yield effect
        replies = site.store.execute(effect)


@pytest.mark.parametrize("lock", [False, True])
def test_a_revalidation_that_nobody_carries_out_has_not_failed(lock: bool):
    site = stale(lock=lock)
    exchange = begun(site, Engine([site.cache], observe=site.events.append))
    assert exchange.refresh is not None
    flow = exchange.finish(complete=True)
    if flow is not None:
        run(flow, site.store)
    assert site.begin(request()).refresh is not None


def test_a_request_that_is_interrupted_while_it_acquires_the_lock_prevents_no_revalidation():
    site = stale(lock=True)
    flow: Flow[Any] = site.cache.begin(request())
    effect: Any = flow.send(None)
    while effect.commands[0].args[0] != "SET":
        effect = flow.send(site.store.execute(effect))
    with pytest.raises(KeyboardInterrupt):
        run(_interrupted(flow), site.store)
    assert site.begin(request()).refresh is not None


async def _interrupted(flow: Any) -> None:
    """Interrupt a flow, and do what it has left to do."""
    try:
        effect = flow.throw(KeyboardInterrupt())
        while True:
            effect = flow.send(await effect)
    except StopIteration:
        pass
