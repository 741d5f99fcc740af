"""Collapsing in a process: one render for all who ask at once, for each variant."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.flow import Flow, Pipeline, Wait
from upstash_middleware.drivers import arun, run
from upstash_middleware.messages import HTTPRequest, Response, ResponseHead

if TYPE_CHECKING:
    from upstash_middleware.core.cache.exchanges import CacheExchange


@pytest.fixture
def site() -> Site:
    """A site all of whose pages can be expected to be stored: their rule has a TTL."""
    return site_of_pages()


def site_of_pages(**options: Any) -> Site:
    return Site((CacheRule("/{rest:path}", ttl=60),), options=options)


@dataclass
class Visitor:
    """A request whose flow is stepped by hand, up to where it waits."""

    site: Site
    flow: Flow[Any]
    waits: Wait | None = None
    exchange: CacheExchange | None = None

    @classmethod
    def at(cls, site: Site, asked: HTTPRequest | None = None) -> Visitor:
        visitor = cls(site, site.cache.begin(asked or request()))
        return visitor.go_on(None)

    def go_on(self, value: Any) -> Visitor:
        self.waits = None
        try:
            while True:
                effect = self.flow.send(value)
                if isinstance(effect, Wait):
                    self.waits = effect
                    return self
                assert isinstance(effect, Pipeline)
                value = self.site.store.execute(effect)
        except StopIteration as end:
            self.exchange = end.value
        return self

    def woken(self) -> Visitor:
        """Go on after what it waited for has happened."""
        assert self.waits is not None
        assert self.waits.latch.opened
        return self.go_on(True)

    def head(self, **fields: Any) -> None:
        assert self.exchange is not None
        fields = {"cache_control": "max-age=60", "content_length": "4"} | fields
        self.exchange.head(ResponseHead(200, reply(**fields)[0].headers))

    def renders(self, body: bytes = b"page", **fields: Any) -> None:
        """Answer as the application, to the last byte."""
        assert self.exchange is not None
        self.head(**{"content_length": str(len(body))} | fields)
        self.exchange.chunk(body)
        self.site.finish(self.exchange)

    @property
    def answer(self) -> Response | None:
        assert self.exchange is not None
        return self.exchange.response

    @property
    def leads(self) -> bool:
        """Whether others wait for it."""
        return self.waits is None and self.answer is None


def test_one_goes_forward_and_the_others_are_answered_by_its_response(site):
    """RFC 9111 §4; for no command beyond their lookup."""
    leader, *others = (Visitor.at(site) for _ in range(5))
    assert leader.leads
    assert all(other.waits for other in others)
    leader.renders(b"page")
    before = len(site.store.billed)
    for other in others:
        answer = other.woken().answer
        assert answer is not None
        assert answer.body == b"page"
        assert answer.head.headers.get("cache-status") == (
            "upstash-middleware; fwd=uri-miss; ttl=60; collapsed"
        )
    assert len(site.store.billed) == before


def test_who_waits_is_answered_at_the_last_byte_whatever_the_leaders_client_does(site):
    """It need not have read it."""
    leader, other = Visitor.at(site), Visitor.at(site)
    leader.head()
    assert leader.exchange is not None
    assert other.waits is not None
    assert not other.waits.latch.opened
    leader.exchange.chunk(b"page")
    assert other.woken().answer is not None


def test_a_response_whose_length_is_not_known_is_not_waited_for_longer_than_its_head(site):
    """It streams, and may never end."""
    leader, other = Visitor.at(site), Visitor.at(site)
    assert leader.exchange is not None
    leader.exchange.head(reply(b"")[0])
    assert other.woken().leads


def test_a_response_that_comes_in_pieces_is_not_waited_for_longer_than_the_first(site):
    """The leader's client decides when the next one comes."""
    leader, other = Visitor.at(site), Visitor.at(site)
    leader.head()
    assert leader.exchange is not None
    leader.exchange.chunk(b"pa")
    assert other.woken().leads
    leader.exchange.chunk(b"ge")
    site.finish(leader.exchange)
    assert site.visit().hit


def test_without_a_ttl_nobody_waits_before_a_response_was_seen_that_could_be_stored():
    """Whoever waits then cannot know that there will be one."""
    site = Site()
    first, second = Visitor.at(site), Visitor.at(site)
    assert first.leads
    assert second.leads
    first.renders()
    site.clock.advance(10_000)
    assert Visitor.at(site).leads
    assert Visitor.at(site).waits


def test_without_a_ttl_what_is_stored_by_another_process_is_waited_for_once_it_is_purged():
    """Something stands in its place, which shows that it can be stored."""
    site = Site()
    site.another_process().visit()
    site.purge("/page")
    assert Visitor.at(site).leads
    assert Visitor.at(site).waits


def test_a_response_that_took_longer_than_anybody_waits_is_not_waited_for_again(site):
    """It would be in vain."""
    leader = Visitor.at(site)
    site.clock.advance(6)
    leader.renders()
    site.purge("/page")
    assert Visitor.at(site).leads
    assert Visitor.at(site).leads


def test_who_asks_for_another_resource_does_not_wait(site):
    """Each has a leader of its own."""
    assert Visitor.at(site).leads
    assert Visitor.at(site, request("/other")).leads
    assert Visitor.at(site, request(host="other.test")).leads


def test_once_vary_is_known_those_who_wait_elect_again_for_each_variant(site):
    """One render for each."""
    one, same, other, others_same = (
        Visitor.at(site, request(foo=foo)) for foo in ("1", "1", "2", "2")
    )
    one.renders(b"one", vary="Foo")
    answer = same.woken().answer
    assert answer is not None
    assert answer.body == b"one"
    assert other.woken().leads
    assert others_same.woken().waits
    other.renders(b"two", vary="Foo")
    answer = others_same.woken().answer
    assert answer is not None
    assert answer.body == b"two"


@pytest.mark.parametrize("control", ["no-store", "private", "max-age=0", "no-cache"])
def test_what_may_not_be_shared_is_not_waited_for_longer_than_its_head(site, control):
    """And nobody waits for the next one, until one was seen that could be stored."""
    leader, other = Visitor.at(site), Visitor.at(site)
    leader.head(cache_control=control)
    assert other.woken().leads
    site.clock.advance(10_000)
    assert Visitor.at(site).leads
    last = Visitor.at(site)
    assert last.leads
    last.renders()
    site.purge("/page")
    assert Visitor.at(site).leads
    assert Visitor.at(site).waits


def test_what_turns_out_too_large_is_not_waited_for():
    """As soon as that is known."""
    site = site_of_pages(max_body=3)
    leader, other = Visitor.at(site), Visitor.at(site)
    leader.head(content_length="3")
    assert leader.exchange is not None
    leader.exchange.chunk(b"page")
    assert other.woken().leads


@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "after it"])
def test_when_the_leader_is_interrupted_another_one_leads(site, begun):
    """Not all at once."""
    leader, other, third = (Visitor.at(site) for _ in range(3))
    if begun:
        leader.head()
    assert leader.exchange is not None
    leader.exchange.finish(complete=False)
    assert other.woken().leads
    assert third.woken().waits


def test_waiting_is_bounded_and_a_slow_leader_is_not_waited_for_again(site):
    """Who waited in vain goes forward."""
    leader, other = Visitor.at(site), Visitor.at(site)
    assert other.waits is not None
    assert other.waits.timeout == 5.0
    site.clock.advance(5)
    other.go_on(False)
    assert other.leads
    assert Visitor.at(site).leads
    assert Visitor.at(site).waits
    leader.renders()


def test_a_leader_that_was_dropped_is_replaced(site):
    """Whoever should have finished it did not."""
    Visitor.at(site)
    site.clock.advance(61)
    assert Visitor.at(site).leads


def test_who_asks_before_a_response_is_stored_is_answered_by_it_all_the_same(site):
    """A client may ask again as soon as it has the last byte."""
    leader = Visitor.at(site)
    leader.head()
    assert leader.exchange is not None
    leader.exchange.chunk(b"page")
    storing = leader.exchange.finish(complete=True)
    answer = Visitor.at(site).woken().answer
    assert answer is not None
    assert answer.body == b"page"
    assert storing is not None
    run(storing, site.store)
    assert Visitor.at(site).answer is not None
    assert site.visit().cache_status == "upstash-middleware; hit; ttl=60"


@pytest.mark.parametrize("vary", [None, "Foo"])
def test_a_response_from_before_a_purge_that_is_being_stored_answers_nobody_after_it(site, vary):
    """And one that asks then goes forward, for all who follow."""
    fields = {"vary": vary} if vary else {}
    for _ in range(2):  # the second time with what the process has learned
        leader = Visitor.at(site, request(foo="1"))
        leader.head(content_length="3", **fields)
        assert leader.exchange is not None
        leader.exchange.chunk(b"old")
        storing = leader.exchange.finish(complete=True)
        site.purge("/page")
        after = Visitor.at(site, request(foo="1")).woken()
        assert after.leads
        follower = Visitor.at(site, request(foo="1"))
        while follower.waits and follower.waits.latch.opened:
            follower.woken()
        assert follower.waits
        after.renders(b"new", **fields)
        answer = follower.woken().answer
        assert answer is not None
        assert answer.body == b"new"
        assert storing is not None
        run(storing, site.store)
        site.purge("/page")


@pytest.mark.parametrize("what", [{"urls": True}, {"everything": True}, {"tags": ("late",)}])
@pytest.mark.parametrize("soft", [False, True])
def test_who_asked_after_a_purge_is_not_answered_by_a_render_from_before_it(site, what, soft):
    """Their own lookup has read the newer epochs."""
    leader = Visitor.at(site)
    before = Visitor.at(site)
    what = dict(what)
    site.purge(*(["/page"] if what.pop("urls", False) else []), soft=soft, **what)
    after, later = Visitor.at(site), Visitor.at(site)
    leader.renders(b"old", cache_tag="late")
    assert before.woken().answer is not None
    assert after.woken().leads
    assert later.woken().waits
    after.renders(b"new", cache_tag="late")
    answer = later.woken().answer
    assert answer is not None
    assert answer.body == b"new"


def test_the_purge_of_another_tag_does_not_part_them_where_their_tags_were_read():
    """The rule's tags are."""
    site = Site((CacheRule("/page", ttl=60, tags=("t",)),))
    leader = Visitor.at(site)
    site.purge(tags=("u",))
    other = Visitor.at(site)
    leader.renders()
    assert other.woken().answer is not None


def test_a_confirmed_response_answers_all_who_wait(site):
    """One validation with the application."""
    Visitor.at(site).renders(b"stored", cache_control="max-age=2", etag='"a"')
    site.clock.advance(3)
    leader, other = Visitor.at(site), Visitor.at(site)
    assert leader.exchange is not None
    head = reply(b"", 304, etag='"a"', cache_control="max-age=60")[0]
    assert isinstance(leader.exchange.head(head), Response)
    answer = other.woken().answer
    assert answer is not None
    assert answer.body == b"stored"


@pytest.mark.parametrize(
    "asked",
    [
        request(authorization="x"),
        request(cookie="s=1"),
        request(method="HEAD"),
        request(cache_control="no-store"),
    ],
)
def test_what_could_not_be_stored_anyway_is_not_waited_for(site, asked):
    """Neither leads nor follows."""
    assert Visitor.at(site).leads
    assert Visitor.at(site, asked).leads
    site = site_of_pages()
    assert Visitor.at(site, asked).leads
    assert Visitor.at(site).leads


@pytest.mark.parametrize("field", ["if_none_match", "if_modified_since"])
def test_a_conditional_request_leads_others(site, field):
    """The application is asked for the whole response, and the condition is evaluated here."""
    leader = Visitor.at(site, request(**{field: "x"}))
    assert leader.leads
    other = Visitor.at(site)
    leader.renders(b"page")
    answer = other.woken().answer
    assert answer is not None
    assert (answer.head.status, answer.body) == (200, b"page")


def test_a_request_for_a_part_may_follow_and_not_lead(site):
    """A part would serve nobody else."""
    first = Visitor.at(site, request(range="x"))
    assert first.leads
    leader = Visitor.at(site)
    assert leader.leads
    part = Visitor.at(site, request(range="bytes=0-1"))
    leader.renders(b"page")
    answer = part.woken().answer
    assert answer is not None
    assert (answer.head.status, answer.body) == (206, b"pa")


def test_collapsing_can_be_switched_off():
    """Then nobody waits."""
    site = site_of_pages(collapse=0)
    assert Visitor.at(site).leads
    assert Visitor.at(site).leads


def test_threads_collapse(site):
    """Twenty at once make one render."""
    rendering, renders = threading.Event(), []

    def visit() -> None:
        exchange = run(site.cache.begin(request()), site.store)
        if exchange.response is None:
            renders.append(threading.get_ident())
            rendering.wait(5)
            exchange.head(reply(content_length="4")[0])
            exchange.chunk(b"page")
        site.finish(exchange)

    threads = [threading.Thread(target=visit) for _ in range(20)]
    for thread in threads:
        thread.start()
    rendering.set()
    for thread in threads:
        thread.join(10)
    assert len(renders) == 1


@pytest.mark.anyio
async def test_tasks_collapse(site, anyio_backend):
    """Twenty at once make one render."""
    renders = []

    class Client:
        async def execute(self, pipeline):
            await anyio.lowlevel.checkpoint()
            return site.store.execute(pipeline)

    async def visit() -> None:
        exchange = await arun(site.cache.begin(request()), Client())
        if exchange.response is None:
            renders.append(1)
            await anyio.sleep(0.02)
            exchange.head(reply(content_length="4")[0])
            exchange.chunk(b"page")
        if (flow := exchange.finish(complete=True)) is not None:
            await arun(flow, Client())

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(visit)
    assert len(renders) == 1
