"""Collapsing across processes: one render, under a lock that dies with its holder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cache.world import Site, reply, request
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.cache.exchanges import Answered, Miss
from upstash_middleware.core.flow import Flow, Pipeline, Sleep, Wait

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash
    from upstash_middleware.messages import HTTPRequest


@pytest.fixture
def site() -> Site:
    """A process that locks."""
    rules = (CacheRule("/{rest:path}", ttl=60),)
    return Site(rules, options={"lock": True, "background_refresh": True})


@dataclass
class Process:
    """A request in a process of its own, stepped by hand up to where it sleeps."""

    site: Site
    flow: Flow[Any]
    sleeps: float | None = None
    exchange: Any = None

    @classmethod
    def at(cls, site: Site, asked: HTTPRequest | None = None) -> Process:
        other = site.another_process()
        return cls(other, other.cache.begin(asked or request())).go_on()

    def go_on(self) -> Process:
        """Go on after its pause, if it made one."""
        value, self.sleeps = None, None
        try:
            while True:
                effect = self.flow.send(value)
                assert not isinstance(effect, Wait)
                if isinstance(effect, Sleep):
                    self.sleeps = effect.seconds
                    return self
                assert isinstance(effect, Pipeline)
                value = self.site.store.execute(effect)
        except StopIteration as end:
            self.exchange = end.value
        return self

    @property
    def forward(self) -> bool:
        return isinstance(self.exchange, Miss)

    def renders(self, body: bytes = b"page", **fields: Any) -> None:
        fields = {"cache_control": "max-age=60", "content_length": str(len(body))} | fields
        self.exchange.head(reply(**fields)[0])
        self.exchange.chunk(body)
        self.site.finish(self.exchange)


def test_one_process_renders_and_the_others_find_what_it_stored(site):
    """A miss costs one command more; who waits looks again after growing pauses."""
    first, other = Process.at(site), Process.at(site)
    assert site.store.billed == ["MGET", "SET", "MGET"]
    assert first.forward
    assert other.sleeps == 0.05
    assert other.go_on().sleeps == pytest.approx(0.075)
    first.renders()
    assert site.store.billed == ["MGET", "SET", "MGET", "MGET", "SET"]
    answer = other.go_on().exchange
    assert isinstance(answer, Answered)
    assert answer.response.body == b"page"


def test_a_hit_costs_no_more_with_locks_than_without(site):
    """The lock is read in the same command."""
    site.visit()
    assert site.visit().billed == ["MGET"]


def test_the_entry_that_was_stored_under_it_releases_the_lock(site):
    """The next miss need not wait for it to expire."""
    Process.at(site).renders()
    site.purge("/page")
    assert Process.at(site).forward
    assert Process.at(site).sleeps


def test_a_page_that_expires_before_the_lock_releases_it(site):
    """Else the next request would wait for a lock that nobody holds."""
    Process.at(site).renders(cache_control="max-age=1")
    site.clock.advance(1.01)
    assert Process.at(site).forward
    assert Process.at(site).sleeps


def test_two_processes_that_find_the_lock_done_with_do_not_both_take_it(site):
    """The script compares before it sets."""
    Process.at(site).renders(vary="Foo")
    site.purge("/page")
    one, other = site.another_process(), site.another_process()
    flows = [each.cache.begin(request()) for each in (one, other)]
    seen = [site.store.execute(flow.send(None)) for flow in flows]
    takes = [flow.send(replies) for flow, replies in zip(flows, seen, strict=True)]
    assert [site.store.execute(take) for take in takes] == [[1], [0]]


def test_what_may_not_be_stored_leaves_a_mark_and_is_not_waited_for(site):
    """For a minute."""
    first = Process.at(site)
    other = Process.at(site)
    first.renders(cache_control="no-store")
    assert other.go_on().forward
    assert Process.at(site).forward
    assert Process.at(site).forward
    site.clock.advance(61)
    assert Process.at(site).forward
    assert Process.at(site).sleeps


@pytest.mark.parametrize("when", ["before the head", "after it"])
def test_a_holder_that_was_interrupted_releases_the_lock(site, when):
    """The next one need not wait for it to expire."""
    first, other = Process.at(site), Process.at(site)
    if when == "after it":
        first.exchange.head(reply(cache_control="max-age=60")[0])
    first.site.finish(first.exchange, complete=False)
    assert other.go_on().forward


def test_a_holder_whose_entry_was_not_stored_releases_the_lock(site):
    """For instance because a tag was purged meanwhile."""
    first, other = Process.at(site), Process.at(site)
    site.purge(tags=("late",))
    first.renders(cache_tag="late")
    assert other.go_on().forward


def test_a_holder_that_died_is_replaced_by_one_of_those_who_wait(site):
    """The lock lives half as long as anybody waits."""
    Process.at(site)
    one, other = Process.at(site), Process.at(site)
    site.clock.advance(2.5)
    assert one.go_on().forward
    assert other.go_on().sleeps
    one.renders()
    assert isinstance(other.go_on().exchange, Answered)


def test_who_is_interrupted_while_waiting_for_another_process_leaves_nobody_waiting(site):
    """The next one of its process leads."""
    Process.at(site)
    waiting = Process.at(site)
    assert waiting.sleeps
    waiting.flow.close()
    next_one = Process(waiting.site, waiting.site.cache.begin(request())).go_on()
    assert next_one.sleeps, "it waits for the other process, not for the one that is gone"


def test_waiting_is_bounded_and_so_are_its_commands(site):
    """Whatever happens to the lock meanwhile: then each goes forward without it."""
    Process.at(site)
    began, before = site.clock.now, len(site.store.billed)
    other = Process.at(site)
    while other.sleeps is not None:
        site.clock.advance(other.sleeps)
        for key, (value, _) in site.store.values.items():
            site.store.values[key] = (value, site.clock.now + 2.5)  # another holder, and another
        other.go_on()
    assert other.forward
    assert site.clock.now - began == pytest.approx(5.0)
    assert len(site.store.billed) - before == 15


def test_a_lock_of_another_variant_is_not_waited_for(site):
    """Once Vary is known, each has its own."""
    Process.at(site, request(foo="1")).renders(vary="Foo")
    assert Process.at(site, request(foo="2")).forward
    assert Process.at(site, request(foo="3")).forward
    assert Process.at(site, request(foo="2")).sleeps


def test_one_process_refreshes_what_all_use_stale(site):
    """Exactly one, at one command more."""
    site.app = lambda _: reply(cache_control="max-age=2, stale-while-revalidate=60")
    site.visit()
    site.clock.advance(3)
    one, other = Process.at(site), Process.at(site)
    assert isinstance(one.exchange, Answered)
    assert one.exchange.refresh is not None
    assert isinstance(other.exchange, Answered)
    assert other.exchange.refresh is None
    refresh = one.exchange.refresh.exchange
    refresh.head(reply(cache_control="max-age=60")[0])
    refresh.chunk(b"new")
    one.site.finish(refresh)
    assert site.visit().body == b"new"


Visitors = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def visitors(upstash: LocalUpstash) -> Iterator[Visitors]:
    """Start processes that make many requests at once; see ``visiting.py``."""
    upstash.restore_time()  # to that of the processes
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.cache.visiting", upstash.url, upstash.token]
        started.append(
            subprocess.Popen(
                [*command, *arguments],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)


def test_500_concurrent_misses_in_4_processes_make_one_render(visitors):
    """And everybody gets the page."""
    processes = [visitors("125", "0.3") for _ in range(4)]
    outputs = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert sum(int(renders) for renders, _, _ in outputs) == 1
    assert sum(int(pages) for _, pages, _ in outputs) == 500


def test_when_the_holder_is_killed_half_way_one_more_renders_and_nobody_waits_too_long(visitors):
    """The bound is five seconds."""
    holder = visitors("1", "60")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "rendering\n"
    others = [visitors("50", "0.3") for _ in range(2)]
    holder.kill()
    holder.communicate(timeout=60)
    outputs = [other.communicate(timeout=120)[0].split() for other in others]
    assert sum(int(renders) for renders, _, _ in outputs) == 1
    assert sum(int(pages) for _, pages, _ in outputs) == 100
    assert max(float(slowest) for _, _, slowest in outputs) < 5 + 3
