"""Every order in which processes can act on one Redis: actors made of the real flows, and a search.

A flow is stepped by hand. What it awaits is performed one command at a time, so that the
commands of a pipeline, which Redis does not run as one, are parted by others' too. The search
goes through all orders of steps; orders that lead to the same state are followed once.

What must hold: a lookup that begins after a purge has completed is answered as fresh by nothing
that was rendered from data older than that purge; after a hard one it does not even find such a
response to be refreshed or served stale.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tests.cache.world import FakeClock, FakeRedis, Site, reply, request
from upstash_middleware.core.cache import CacheRule, Purge
from upstash_middleware.core.cache.exchanges import Miss
from upstash_middleware.core.flow import Flow, Pipeline

if TYPE_CHECKING:
    from upstash_middleware.core.engine import PartExchange
    from upstash_middleware.messages import HTTPRequest

T = TypeVar("T")

RULES = (CacheRule("/shop/{page}", tags=("rule",)),)
FOREVER = "max-age=1000000"
KEEP = 100


class Stale(AssertionError):
    """The search has found an order in which an old page is served as fresh."""


class World:
    """What actors share: a Redis, and the data that pages are made from."""

    def __init__(self, make_redis: Callable[[FakeClock], FakeRedis]) -> None:
        self.clock = FakeClock()
        self.redis = make_redis(self.clock)
        self.version = 0
        self.purged = 0
        """The version that every page must have that is served to who asks from now on."""
        self.purged_hard = 0
        """The version that it must have even to be found stale."""
        self._processes = 0

    def process(self, profile: str = "safe") -> Site:
        """Start a process that knows nothing; its random values are its own."""
        self._processes += 1
        number, calls = self._processes, iter(range(1, 1000))
        return Site(
            RULES,
            self.clock,
            self.redis,
            randomness=lambda size: bytes([number]) + next(calls).to_bytes(size - 1, "big"),
            options={"max_keep": KEEP, "grace": 0.0, "profile": profile},
        )


Steps = Iterator[Any]
"""An actor: each step is something that others can see; what it yields is what it has seen."""

Actor = Callable[[World], Steps]


def perform(world: World, flow: Flow[T], begun: Any = None) -> Generator[Any, None, T]:
    """Step a flow, each of its commands a step of its own; answers its result.

    ``begun`` is what its actor knows from before.
    """
    value: Any = None
    while True:
        try:
            effect = flow.send(value)
        except StopIteration as end:
            return cast("T", end.value)
        assert isinstance(effect, Pipeline)
        value = []
        for command in effect.commands:
            value.append(world.redis.perform(command))
            yield begun, repr(value)


@dataclass(frozen=True)
class Visit:
    """A process that visits a page, renders and stores it if it has to."""

    asked: HTTPRequest
    fields: tuple[tuple[str, str], ...] = ()
    has_learned: bool = False
    """Whether its process has seen these fields before, in the response of another page."""

    def __call__(self, world: World) -> Steps:
        site, purged, purged_hard = world.process(), world.purged, world.purged_hard
        if self.has_learned:
            known: dict[str, Any] = dict(self.fields)
            site.app = lambda _: reply(cache_control=FOREVER, **known)
            site.visit(request("/shop/other"))
        begun = site.cache.begin(self.asked)
        exchange = yield from perform(world, begun, (purged, purged_hard))
        if exchange.response is not None:
            check(exchange.response.body, purged)
            return
        check_stale(exchange, purged_hard)
        body = str(world.version).encode()
        yield body
        fields: dict[str, Any] = dict(self.fields)
        head, _ = reply(cache_control=FOREVER, **fields)
        exchange.head(head)
        exchange.chunk(body)
        if (flow := exchange.finish(complete=True)) is not None:
            yield from perform(world, flow)


@dataclass(frozen=True)
class Edit:
    """A process that changes the data and then purges."""

    what: Purge

    def __call__(self, world: World) -> Steps:
        world.version += 1
        version = world.version
        yield version
        yield from perform(world, self.purging(world.process()))
        world.purged = max(world.purged, version)
        if not self.what.soft:
            world.purged_hard = max(world.purged_hard, version)

    def purging(self, site: Site) -> Flow[None]:
        """Return the purge's flow."""
        return site.cache.purge(self.what)


@dataclass(frozen=True)
class Post:
    """A process that changes the data by a POST, whose response shows the new state."""

    def __call__(self, world: World) -> Steps:
        site = world.process("conforming")
        exchange = yield from perform(world, site.cache.begin(request("/shop/page", method="POST")))
        world.version += 1
        version = world.version
        yield version
        exchange.head(reply(cache_control=FOREVER, content_location="/shop/page")[0])
        exchange.chunk(str(version).encode())
        if (flow := exchange.finish(complete=True)) is not None:
            yield from perform(world, flow)
        world.purged = max(world.purged, version)
        world.purged_hard = max(world.purged_hard, version)


@dataclass(frozen=True)
class Change:
    """A process that changes the data by a POST to another URL, whose response has these fields."""

    fields: tuple[tuple[str, str], ...]

    def __call__(self, world: World) -> Steps:
        site = world.process()
        exchange = yield from perform(world, site.cache.begin(request("/edit", "POST")))
        world.version += 1
        version = world.version
        yield version
        fields: dict[str, Any] = dict(self.fields)
        exchange.head(reply(**fields)[0])
        if (flow := exchange.finish(complete=True)) is not None:
            yield from perform(world, flow)
        world.purged = max(world.purged, version)
        world.purged_hard = max(world.purged_hard, version)


@dataclass(frozen=True)
class Passing:
    """Time that passes."""

    seconds: tuple[float, ...]

    def __call__(self, world: World) -> Steps:
        for seconds in self.seconds:
            world.clock.advance(seconds)
            yield seconds


def check(body: bytes, purged: int) -> None:
    """Say so if a page is older than a purge that was complete when it was asked for."""
    if int(body) < purged:
        raise Stale(f"version {int(body)} was served after version {purged} was purged")


def check_stale(exchange: PartExchange, purged: int) -> None:
    """Do the same for what was found and not served."""
    assert isinstance(exchange, Miss)
    if (entry := exchange.found.lookup.entry) is not None:
        check(entry.packed, purged)


class Run:
    """One order of steps, played from the beginning."""

    def __init__(self, actors: Sequence[Actor], make_redis: Callable[[FakeClock], FakeRedis]):
        self.world = World(make_redis)
        # An actor does nothing before its first step: a generator starts when it is asked to.
        self._actors = [actor(self.world) for actor in actors]
        self._equal = [actors.index(actor) for actor in actors]
        self._seen: list[list[Any] | None] = [[] for _ in actors]

    def step(self, number: int) -> None:
        """Let an actor take a step."""
        seen = self._seen[number]
        assert seen is not None
        try:
            seen.append(next(self._actors[number]))
        except StopIteration:
            self._seen[number] = None

    def ready(self) -> list[int]:
        """Return the actors that can still act; equal actors begin in their order.

        They are interchangeable, so an order in which they begin otherwise has nothing new.
        """
        waiting = {self._equal[number]: number for number in self._not_begun()[::-1]}
        return [
            number
            for number, seen in enumerate(self._seen)
            if seen or (seen is not None and waiting[self._equal[number]] == number)
        ]

    def _not_begun(self) -> list[int]:
        return [number for number, seen in enumerate(self._seen) if seen == []]

    def state(self) -> Any:
        """Return all on which the rest of the run depends."""
        world = self.world
        return (
            tuple(sorted(world.redis.values.items())),
            repr(self._seen),
            (world.version, world.purged, world.purged_hard, world.clock.now),
        )


def search(
    actors: Sequence[Actor],
    last: Actor,
    make_redis: Callable[[FakeClock], FakeRedis] = FakeRedis,
) -> int:
    """Go through every order of the actors' steps, ``last`` after each.

    Returns how many states there are to meet in all orders. Raises Stale.
    """
    known: set[Any] = set()
    orders: list[tuple[int, ...]] = [()]
    while orders:
        order = orders.pop()
        run = Run(actors, make_redis)
        for number in order:
            run.step(number)
        while (state := run.state()) not in known:
            known.add(state)
            if not (ready := run.ready()):
                for _ in last(run.world):
                    pass
                break
            following, *others = ready
            orders += [(*order, number) for number in others]
            order = (*order, following)
            run.step(following)
    return len(known)


PAGE = request("/shop/page")
