"""The cache over the real wire and a real server: what the small world plays must be so there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
import valkey

from tests.cache.world import App, FakeClock, counting_bytes, reply, request
from upstash_middleware.core.cache import Cache, CacheRule, Purge
from upstash_middleware.core.cache.redis_store import cache_script
from upstash_middleware.core.flow import Command, together
from upstash_middleware.drivers import arun, run
from upstash_middleware.messages import HTTPRequest, Response, ResponseHead
from upstash_middleware.upstash import AsyncClient, Client, Credentials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash


class Served:
    """A cache before an application, over a local Upstash; counts what each visit cost."""

    def __init__(self, upstash: LocalUpstash) -> None:
        self.upstash = upstash
        self.credentials = Credentials(upstash.url, upstash.token)
        self.client = Client(self.credentials)
        self.clock = FakeClock()
        self.app: App = lambda _: reply(cache_control="max-age=60")
        self.events: list[Event] = []
        self.cache = self.another_cache()

    def another_cache(self, **options: Any) -> Cache:
        return Cache(
            (CacheRule("/{rest:path}", tags=("all",)),),
            prefix="test",
            secret=lambda: b"secret",
            clock=self.clock,
            observe=self.events.append,
            deadline=60.0,
            randomness=counting_bytes(),
            directories=True,
            **options,
        )

    def visit(self, asked: HTTPRequest | None = None) -> tuple[bool, Response, tuple[int, int]]:
        asked = asked or request()
        self.upstash.reset_bill()
        exchange = run(self.cache.begin(asked), self.client)
        response = exchange.response
        if response is None:
            head, body = self.app(asked)
            seen = exchange.head(head)
            assert isinstance(seen, ResponseHead)
            response = Response(seen, body)
            exchange.chunk(body)
        if (flow := exchange.finish(complete=True)) is not None:
            run(flow, self.client)
        bill = self.upstash.bill()
        return exchange.response is not None, response, (bill.requests, bill.commands)

    def purge(self, what: Purge) -> tuple[int, int]:
        self.upstash.reset_bill()
        run(self.cache.purge(what), self.client)
        bill = self.upstash.bill()
        return bill.requests, bill.commands


async def warm(name: str) -> None:
    await Command(("SCRIPT", "LOAD", cache_script(name).text))


@pytest.fixture
def served(upstash: LocalUpstash) -> Iterator[Served]:
    served = Served(upstash)
    for name in ("soften", "store"):  # a server that does not know a script costs a round trip more
        run(warm(name), served.client)
    yield served
    served.client.close()


def test_a_miss_is_two_round_trips_of_one_command_and_a_hit_one_of_one(served):
    """The budgets, with a body that is no text: it travels as it is."""
    body = bytes(range(256)) * 10
    served.app = lambda _: reply(body, cache_control="max-age=60", content_type="image/png")
    assert served.visit()[2] == (2, 2)
    hit, response, bill = served.visit()
    assert (hit, response.body, bill) == (True, body, (1, 1))
    assert not [event for event in served.events if "Failed" in type(event).__name__]


def test_variants_are_two_commands_to_store_and_one_to_find(served):
    """The budgets; bodies in a pipeline travel as text."""
    served.app = lambda asked: reply(
        b"\xff" + asked.headers.get("foo").encode(), cache_control="max-age=60", vary="Foo"
    )
    assert served.visit(request(foo="1"))[2] == (2, 3)
    served.visit(request(foo="2"))
    assert [served.visit(request(foo=foo))[1].body for foo in "12"] == [b"\xff1", b"\xff2"]
    assert served.visit(request(foo="1"))[2] == (1, 1)


@pytest.mark.parametrize("soft", [False, True])
def test_purges_cost_what_they_should_and_reach_what_they_name(served, soft):
    """A URL or everything one command, a tag two; a soft one a script's read besides."""
    for what, cost in (
        (Purge(("/page",), soft=soft), 1),
        (Purge(everything=True, soft=soft), 1),
        (Purge(tags=("all",), soft=soft), 2),
    ):
        served.visit()
        assert served.visit()[0]
        assert served.purge(what) == (1, cost + (2 if soft else 0))
        hit, response, _ = served.visit()
        assert not hit
        assert ("fwd=stale" in response.head.headers.get("cache-status")) is soft
        assert served.visit()[0]


def test_the_storing_script_adds_the_epochs_of_tags_that_it_finds(served):
    """Purged before, purged softly before, and never purged."""
    served.purge(Purge(tags=("hard",)))
    served.purge(Purge(tags=("soft",), soft=True))
    served.app = lambda _: reply(cache_control="max-age=60", cache_tag="hard, soft:x, new")
    assert served.visit()[2] == (2, 4)
    assert served.visit()[0]
    served.purge(Purge(tags=("other",)))
    assert served.visit()[0]
    served.purge(Purge(tags=("soft",)))
    assert not served.visit()[0]


def test_the_storing_script_writes_nothing_after_a_tag_was_purged(served):
    """The response may be made from data older than the purge."""
    exchange = run(served.cache.begin(request()), served.client)
    head, body = reply(cache_control="max-age=60", cache_tag="t")
    exchange.head(head)
    exchange.chunk(body)
    served.purge(Purge(tags=("t",)))
    run(exchange.finish(complete=True), served.client)
    assert served.events[-1].detail == "a tag was purged meanwhile"
    assert not served.visit()[0]


def test_every_key_expires(served):
    """However it came to be there."""
    served.app = lambda _: reply(cache_control="max-age=60", vary="Foo", cache_tag="t")
    served.visit()
    served.purge(Purge(("/page",), ("t",), everything=True))
    served.purge(Purge(("/page",), ("t",), everything=True, soft=True))
    with valkey.Valkey.from_url(served.upstash.redis_url) as store:
        keys = store.keys()
        assert len(keys) == 6
        assert all(key.startswith(b"test:cache:") for key in keys)
        assert all(store.pttl(key) > 0 for key in keys)


@pytest.mark.parametrize(
    ("what", "commands"),
    [
        (Purge(tags=("all",)), 2),
        (Purge(directories=("/shop/",)), 1),
        (Purge(rules=("/{rest:path}",)), 1),
    ],
    ids=["a tag", "a directory", "a rule"],
)
def test_ten_thousand_entries_are_purged_by_a_constant_number_of_commands(served, what, commands):
    """However many there are: nothing is listed and nothing is deleted."""

    async def fill():
        client = AsyncClient(served.credentials)
        async with anyio.create_task_group() as group:
            for part in range(20):
                group.start_soon(fill_part, client, part)
        await client.aclose()

    async def fill_part(client, part):
        for start in range(0, 500, 100):
            numbers = range(part * 500 + start, part * 500 + start + 100)
            asked = [request(f"/shop/{number}") for number in numbers]
            begun = await arun(together(*map(served.cache.begin, asked)), client)
            for exchange in begun:
                exchange.head(reply(b"", cache_control="max-age=3600", vary="Foo")[0])
            await arun(together(*(one.finish(complete=True) for one in begun)), client)

    anyio.run(fill)
    found = [served.visit(request(f"/shop/{number}"))[0] for number in range(0, 10_000, 500)]
    assert all(found)
    assert served.purge(what) == (1, commands)
    found = [served.visit(request(f"/shop/{number}"))[0] for number in range(0, 10_000, 500)]
    assert not any(found)


def test_the_superseding_script_stores_only_what_no_purge_has_outdated(served):
    """The URL's epoch is replaced in any case."""
    run(warm("supersede"), served.client)
    served.cache = served.another_cache(profile="conforming")
    head, body = reply(b"new", content_location="/page", cache_control="max-age=60")
    for purged in (False, True):
        exchange = run(served.cache.begin(request(method="POST")), served.client)
        exchange.head(head)
        exchange.chunk(body)
        if purged:
            served.purge(Purge(("/page",)))
        run(exchange.finish(complete=True), served.client)
        hit, response, _ = served.visit()
        assert hit is not purged
        assert purged or response.body == b"new"
