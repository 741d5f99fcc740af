"""The purge protocol in every order of its steps, and faults that the search must find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.cache.interleaving import PAGE, Actor, Change, Edit, Passing, Post, Stale, Visit, search
from tests.cache.world import FakeClock, FakeRedis, Site, request
from upstash_middleware.core.cache import Purge
from upstash_middleware.core.flow import Flow, Pipeline

PLAIN = Visit(PAGE)
TAGGED = Visit(PAGE, (("cache_tag", "late"),))
VARIED = Visit(request("/shop/page", foo="1"), (("vary", "Foo"),))
PLAIN_FOR_FOO = Visit(request("/shop/page", foo="1"))
VARIED_AND_TAGGED = Visit(request("/shop/page", foo="1"), (("vary", "Foo"), ("cache_tag", "late")))

GROUPED = Visit(PAGE, (("cache_groups", '"late"'), ("cache_tag", "late")))
VARIED_AND_GROUPED = Visit(
    request("/shop/page", foo="1"), (("vary", "Foo"), ("cache_groups", '"late"'))
)

PURGES: dict[str, dict[str, Any]] = {
    "url": {"urls": ("/shop/page",)},
    "directory": {"directories": ("/shop/",)},
    "rule": {"rules": ("/shop/{page}",)},
    "rule-tag": {"tags": ("rule",)},
    "response-tag": {"tags": ("late",)},
    "everything": {"everything": True},
}


def edit(kind: str, *, soft: bool) -> Edit:
    return Edit(Purge(**PURGES[kind], soft=soft))


softness = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


@softness
@pytest.mark.parametrize("kind", PURGES)
@pytest.mark.parametrize("visit", [TAGGED, VARIED_AND_TAGGED], ids=["one", "variants"])
def test_no_order_of_two_renders_and_a_purge_serves_an_old_page(visit, kind, soft):
    """Whatever was read, rendered and stored before, between and after."""
    assert search([visit, visit, edit(kind, soft=soft)], last=visit) > 200


@softness
@pytest.mark.parametrize("kind", ["url", "directory", "rule", "rule-tag", "everything"])
def test_no_order_serves_an_old_page_where_all_tags_were_known_before(kind, soft):
    """The entry is stored without a script."""
    assert search([PLAIN, PLAIN, edit(kind, soft=soft)], last=PLAIN) > 100


@softness
def test_no_order_serves_an_old_page_where_some_responses_vary_and_some_do_not(soft):
    """The newest of an entry and a variant is chosen among those that live."""
    assert search([VARIED, PLAIN_FOR_FOO, edit("rule-tag", soft=soft)], last=VARIED) > 100


@pytest.mark.parametrize("first", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("second", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("url", "url"),
        ("response-tag", "response-tag"),
        ("response-tag", "rule-tag"),
        ("url", "everything"),
        ("directory", "directory"),
        ("directory", "rule"),
    ],
)
def test_no_order_of_a_render_and_two_purges_serves_an_old_page(one, other, first, second):
    """Purges that meet keep each other's effect."""
    actors: list[Actor] = [TAGGED, edit(one, soft=first), edit(other, soft=second)]
    assert search(actors, last=TAGGED) > 50


@softness
@pytest.mark.parametrize("kind", PURGES)
def test_no_order_serves_an_old_page_when_epochs_expire(kind, soft):
    """The entry has expired before them, however late it was stored."""
    actors: list[Actor] = [TAGGED, edit(kind, soft=soft), Passing((60.0, 3650.0))]
    assert search(actors, last=TAGGED) > 50


@softness
@pytest.mark.parametrize("kind", ["url", "directory", "rule", "rule-tag", "everything"])
def test_no_order_serves_an_old_page_when_a_post_stores_the_new_state(kind, soft):
    """It invalidates and stores at once, unless the URL was purged meanwhile."""
    assert search([PLAIN, Post(), edit(kind, soft=soft)], last=PLAIN) > 50


INVALIDATING = Change((("cache_group_invalidation", '"late", "other"'),))


@pytest.mark.parametrize("visit", [GROUPED, VARIED_AND_GROUPED], ids=["one", "variants"])
def test_no_order_of_two_renders_and_a_groups_invalidation_serves_an_old_page(visit):
    """RFC 9875: as of a tag that is known only with the response."""
    assert search([visit, visit, INVALIDATING], last=visit) > 200


@softness
@pytest.mark.parametrize("kind", PURGES)
def test_no_order_of_a_groups_invalidation_and_a_purge_serves_an_old_page(kind, soft):
    """They keep each other's effect."""
    assert search([GROUPED, INVALIDATING, edit(kind, soft=soft)], last=GROUPED) > 50


SEARCHING = (("no_vary_search", 'params=("x")'),)
CANONICAL = request("/shop/page", query="a=1")
SPELLED = request("/shop/page", query="x=1&a=1")


class Recorded(FakeRedis):
    """It has the record of the path already."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        until = int(clock.now + 1_000_000)
        self.set("test:cache:query:/shop/page", f"{until} {SEARCHING[0][1]}", "PX", 1_000_000_000)


@softness
@pytest.mark.parametrize("learned", [False, True], ids=["new", "learned"])
@pytest.mark.parametrize("redis", [FakeRedis, Recorded], ids=["first", "recorded"])
@pytest.mark.parametrize("last", [CANONICAL, SPELLED], ids=["canonical", "spelled"])
def test_no_order_serves_an_old_page_once_its_canonical_url_was_purged(last, redis, learned, soft):
    """No-Vary-Search: whichever of its URLs are requested, and whoever knows of the field."""
    one, other = (Visit(asked, SEARCHING, learned) for asked in (CANONICAL, SPELLED))
    actors: list[Actor] = [one, other, Edit(Purge(("/shop/page?a=1",), soft=soft))]
    assert search(actors, Visit(last, SEARCHING, learned), redis) > 100


@softness
@pytest.mark.parametrize("learned", [False, True], ids=["new", "learned"])
@pytest.mark.parametrize("redis", [FakeRedis, Recorded], ids=["first", "recorded"])
def test_no_order_serves_an_old_page_for_a_url_that_was_purged(redis, learned, soft):
    """Also if whoever purged it could not know its canonical form."""
    visit = Visit(SPELLED, SEARCHING, learned)
    actors: list[Actor] = [visit, visit, Edit(Purge(("/shop/page?x=1&a=1",), soft=soft))]
    assert search(actors, visit, redis) > 50


@softness
@pytest.mark.parametrize("learned", [False, True], ids=["new", "learned"])
def test_no_order_serves_an_old_page_for_the_canonical_form_of_a_url_that_was_purged(learned, soft):
    """Where the record of the path says what that is."""
    one, other = (Visit(asked, SEARCHING, learned) for asked in (CANONICAL, SPELLED))
    actors: list[Actor] = [one, other, Edit(Purge(("/shop/page?x=1&a=1",), soft=soft))]
    assert search(actors, one, Recorded) > 100


class Unpurgeable(FakeRedis):
    """It shows no epoch of an exact URL."""

    def get(self, key: Any) -> bytes | None:
        return None if str(key).endswith("epoch:url:/shop/page?x=1&a=1") else super().get(key)


def test_the_search_finds_a_canonical_form_that_answers_a_url_that_was_purged():
    """The epoch of the exact URL is what holds where the record was not there to be read."""
    visit = Visit(SPELLED, SEARCHING, has_learned=True)
    with pytest.raises(Stale):
        search([visit, Edit(Purge(("/shop/page?x=1&a=1",)))], visit, Unpurgeable)


class Hasty(FakeRedis):
    """Its superseding script does not look whether the URL was purged."""

    def play_supersede(self, keys: list[str], args: list[Any]) -> int:
        return super().play_supersede(keys, [(self.get(keys[0]) or b":").decode(), *args[1:]])


def test_the_search_finds_a_post_that_takes_a_purge_for_its_own():
    """That look is what holds for a purge between its lookup and its end."""
    with pytest.raises(Stale):
        search([Post(), edit("url", soft=False)], PLAIN, Hasty)


class Forgetful(FakeRedis):
    """Its store script does not look whether a tag was purged."""

    def play_store(self, keys: list[str], args: list[Any]) -> int:
        return super().play_store(keys, [(self.get(keys[0]) or b"").decode(), *args[1:]])


class Hardless(FakeRedis):
    """Its soft purge does not keep the hard part."""

    def soften(self, keys: list[str], args: list[Any]) -> int:
        for key in keys:
            self.values.pop(key, None)
        return super().soften(keys, args)


@dataclass(frozen=True)
class BackwardsEdit(Edit):
    """Its purge moves the tag's epoch before that of any tag."""

    def purging(self, site: Site) -> Flow[None]:
        return _backwards(site.cache.purge(self.what))


async def _backwards(flow: Flow[None]) -> None:
    pipeline = flow.send(None)
    assert isinstance(pipeline, Pipeline)
    await Pipeline(pipeline.commands[::-1])
    flow.close()


def test_the_search_finds_a_script_that_does_not_look_at_g():
    """That look is what holds for tags that come with the response."""
    with pytest.raises(Stale):
        search([TAGGED, edit("response-tag", soft=False)], TAGGED, Forgetful)


def test_the_search_finds_a_group_whose_purges_that_script_does_not_see():
    """A group counts as a tag there."""
    with pytest.raises(Stale):
        search([GROUPED, INVALIDATING], GROUPED, Forgetful)


def test_the_search_finds_a_soft_purge_that_forgets_a_hard_one():
    """An entry from before both would be found again, to be served stale."""
    with pytest.raises(Stale):
        search([PLAIN, edit("url", soft=False), edit("url", soft=True)], PLAIN, Hardless)


def test_the_search_finds_a_purge_in_the_other_order():
    """First G, then T: or the script takes the new epoch for the old."""
    backwards = BackwardsEdit(Purge(tags=("late",)))
    with pytest.raises(Stale):
        search([TAGGED, backwards], TAGGED)
