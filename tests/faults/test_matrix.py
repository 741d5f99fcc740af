"""Every fault, during every operation, in every framework, under every policy.

The tables are in ``matrix``; here is what makes a fault happen and sees what comes of it.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.clocks import use_clock
from tests.contract.neutral import Reply, Seen
from tests.faults.matrix import (
    FAULTS,
    POLICIES,
    QUOTA,
    SHORT,
    Change,
    Fault,
    Operation,
    Outcome,
    document,
    expected,
    fails,
)
from tests.upstash.support import pipeline
from upstash_middleware import runtime
from upstash_middleware.clock import SystemClock
from upstash_middleware.core.cache import CacheRule
from upstash_middleware.core.ratelimit import RateLimitRule
from upstash_middleware.errors import UpstashError
from upstash_middleware.events import CacheLookedUp
from upstash_middleware.local import faults
from upstash_middleware.logs import LogObserver
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Served
    from upstash_middleware.core.flow import Argument
    from upstash_middleware.core.flow import Reply as RedisReply
    from upstash_middleware.events import Event
    from upstash_middleware.local import LocalUpstash

GENEROUS = 30
"""Times the deadline: a machine under load is slow, but it is not for ever."""
PATIENCE = 20.0
_numbers = itertools.count()


class SettableClock:
    """The machine's clocks; the wall clock can be set."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.monotonic = SystemClock.monotonic
        self._wall = SystemClock.wall

    def wall(self) -> float:
        return self._wall() + self.ahead


class World:
    """A local Upstash to which things happen."""

    def __init__(
        self, upstash: LocalUpstash, clock: SettableClock, patch: pytest.MonkeyPatch
    ) -> None:
        self.upstash = upstash
        self.clock = clock
        self.prefix = f"matrix{next(_numbers)}"
        self.log_time = 0.0
        """Seconds, as the log's clock counts them."""
        self._patch = patch
        self._client = Client(Credentials(upstash.url, upstash.token), deadline=PATIENCE)

    def happens(self, fault: Fault) -> None:
        """Make it happen, and stay as long as it does."""
        if fault.instead is not None:
            effect = faults.Effect("another answer", instead=fault.instead)
            self._patch.setitem(faults.EFFECTS, faults.Fault.BAD_GATEWAY, effect)
        match fault.change:
            case None:
                self.upstash.set_faults(**fault.simulated)
            case Change.FLUSH:
                self.upstash.flush()
            case Change.WRONG_TYPE:
                self._make_hashes()
            case Change.CLOCK_AHEAD:
                self.clock.ahead = 120.0
            case Change.CLOCK_BACK:
                self.clock.ahead = -120.0

    def clears(self, fault: Fault) -> None:
        """Let the sun shine, once what comes late has come."""
        self.upstash.set_faults()
        if fault.late:
            time.sleep(fault.late + 0.3)
            before = -1
            while before != (run := self.upstash.bill().commands):
                before = run
                time.sleep(0.3)

    def ask(self, *command: Argument) -> RedisReply:
        """Ask Redis."""
        return self._client.execute(pipeline(command))[0]

    def all_keys(self) -> list[bytes]:
        """Return all keys."""
        found = self.ask("KEYS", "*")
        assert isinstance(found, list)
        return [key for key in found if isinstance(key, bytes)]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _make_hashes(self) -> None:
        for key in self.all_keys():
            self.ask("DEL", key)
            self.ask("HSET", key, "a", "b")
            self.ask("PEXPIRE", key, 60_000)


@pytest.fixture
def world(upstash: LocalUpstash, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    clock = SettableClock()
    use_clock(clock, monkeypatch)
    world = World(upstash, clock, monkeypatch)
    monkeypatch.setattr(runtime, "LogObserver", lambda: LogObserver(lambda: world.log_time))
    yield world
    upstash.set_faults()
    world.close()


class Site:
    """An application with a limit of each policy, a cached page under each, and a purge."""

    def __init__(self, serve: Serve, world: World, **settings: Any) -> None:
        self.during: Callable[[], None] = lambda: None
        """What happens while the handler runs."""
        self.looked_up: Callable[[], None] = lambda: None
        """What happens between the cache's lookup and what it asks next."""
        rules = [
            RateLimitRule(f"/{policy}/{{rest:path}}", f"{QUOTA}/day", name=policy, on_error=policy)
            for policy in POLICIES
        ]
        self._served: Served = serve(
            self._handle,
            (
                "UpstashMiddleware",
                {
                    "rate_limits": rules,
                    "default_limit": None,
                    "cache": [CacheRule("/{policy}/page", ttl=600)],
                    "deadline": PATIENCE,
                    "cache_deadline": PATIENCE,
                    "prefix": world.prefix,
                    "observers": [self._observe],
                    **settings,
                },
            ),
        )

    def get(self, policy: str, what: str) -> Answer:
        return self._served.request("GET", f"/{policy}/{what}")

    def get_while(
        self, happening: Callable[[], None], method: str, target: str
    ) -> tuple[Answer, float]:
        """Send a request in whose handler something happens; return how long it took from then."""
        began = 0.0

        def during() -> None:
            nonlocal began
            happening()
            began = time.monotonic()

        self.during = during
        answer = self._served.request(method, target)
        self.during = lambda: None
        return answer, time.monotonic() - began

    def get_while_locking(
        self, happening: Callable[[], None], clearing: Callable[[], None], target: str
    ) -> tuple[Answer, float]:
        """Send a request for whose lock something happens, until the handler is called.

        Return how long that took, too.
        """
        began = ended = 0.0

        def happens() -> None:
            nonlocal began
            happening()
            began = time.monotonic()

        def clears() -> None:
            nonlocal ended
            ended = time.monotonic()
            clearing()

        self.looked_up, self.during = happens, clears
        answer = self._served.request("GET", target)
        self.looked_up = self.during = lambda: None
        return answer, ended - began

    def _observe(self, event: Event) -> None:
        if isinstance(event, CacheLookedUp):
            self.looked_up()

    def _handle(self, seen: Seen) -> Reply:
        self.during()
        if seen.method != "POST":
            return Reply(b"from the application")
        assert seen.purge is not None
        try:
            seen.purge(seen.path.replace("purge", "page"))
        except UpstashError:
            return Reply(b"not purged")
        return Reply(b"purged")


@contextmanager
def log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Collect what the package says in a block."""
    lines: list[str] = []
    caplog.clear()
    with caplog.at_level(logging.INFO, "upstash_middleware"):
        yield lines
    lines += [one.getMessage() for one in caplog.records if one.name == "upstash_middleware"]


def seen_of(answer: Answer, **more: Any) -> Outcome:
    """Return what an answer shows, with what else was seen."""
    assert (answer.header("retry-after") is not None) == (answer.status == 503)
    if answer.status == 503:
        assert answer.header("cache-control") == "no-store"
        assert b"temporary-reduced-capacity" in answer.body
    return Outcome(
        status=answer.status,
        from_cache=hit(answer),
        remaining=remaining(answer),
        retry_after=answer.header("retry-after") is not None,
        **more,
    )


def hit(answer: Answer) -> bool:
    return "; hit" in (answer.header("cache-status") or "")


def remaining(answer: Answer) -> int | None:
    told = answer.header("x-ratelimit-remaining")
    return None if told is None else int(told)


def check_log(lines: list[str], fault: Fault, operation: Operation) -> None:
    """One line tells of a failure, by its name; of all else there is none."""
    if not fails(fault, operation):
        assert lines == []
        return
    (line,) = lines
    assert any(name in line for name in fault.errors or ("WRONGTYPE",))


def check_time(seconds: float, fault: Fault) -> None:
    assert seconds < SHORT * GENEROUS
    assert seconds > SHORT * 0.9 or not fault.costs_deadline


def check_redis(world: World) -> None:
    """Nothing stands there for ever, or under a name that is not ours."""
    for key in world.all_keys():
        assert key.startswith(world.prefix.encode())
        lives = world.ask("PTTL", key)
        assert isinstance(lives, int)
        assert lives > 0


@pytest.mark.parametrize("operation", [Operation.LIMIT, Operation.LOOKUP], ids=lambda op: op.name)
@pytest.mark.parametrize("name", FAULTS)
def test_before_the_application_is_called(
    serve: Serve,
    world: World,
    caplog: pytest.LogCaptureFixture,
    name: str,
    operation: Operation,
) -> None:
    """The policy decides, within the deadline; one line tells of it."""
    fault = FAULTS[name]
    patient = Site(serve, world)
    site = Site(serve, world, deadline=SHORT) if fault.costs_deadline else patient
    what = "page" if operation is Operation.LOOKUP else "plain"
    for policy in POLICIES:
        answer = patient.get(policy, what)
        assert answer.header("x-ratelimit-remaining") == str(QUOTA - 1)
    with log_lines(caplog) as lines, ThreadPoolExecutor(len(POLICIES)) as threads:
        world.happens(fault)
        began = time.monotonic()
        answers = list(threads.map(lambda policy: site.get(policy, what), POLICIES))
        took = time.monotonic() - began
    check_log(lines, fault, operation)
    check_time(took, fault)
    world.clears(fault)
    for policy, answer in zip(POLICIES, answers, strict=True):
        got = seen_of(
            answer,
            lines=len(lines),
            remaining_after=remaining(patient.get(policy, "plain")),
            cached_after=hit(patient.get(policy, "page"))
            if operation is Operation.LOOKUP
            else None,
        )
        assert got == expected(name, operation, policy), policy
    check_redis(world)


def deadline_of_the_cache(fault: Fault) -> float:
    """Return a deadline for locks, stores and purges; the lookup has that of the limits."""
    return SHORT if fault.costs_deadline else PATIENCE


def tried(fault: Fault) -> tuple[str, ...]:
    """Return the policies to try where none should matter; one where each costs a deadline."""
    return POLICIES[:1] if fault.costs_deadline else POLICIES


@pytest.mark.parametrize("name", FAULTS)
def test_while_the_lock_of_a_page_is_taken(
    serve: Serve, world: World, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Who does not get it renders all the same, and stores; nobody waits for a lost lock."""
    fault = FAULTS[name]
    site = Site(serve, world, cache_deadline=deadline_of_the_cache(fault), cache_lock=True)
    for policy in tried(fault):
        world.log_time += 60  # what was said is news again
        with log_lines(caplog) as lines:
            answer, took = site.get_while_locking(
                lambda: world.happens(fault), lambda: world.clears(fault), f"/{policy}/page"
            )
        lines = [line for line in lines if line != "Upstash is reachable again"]
        check_log(lines, fault, Operation.LOCK)
        check_time(took, fault)
        assert answer.body == b"from the application"
        after = site.get(policy, "page")
        got = seen_of(answer, lines=len(lines), cached_after=hit(after))
        assert got == expected(name, Operation.LOCK, policy)
    check_redis(world)


@pytest.mark.parametrize("name", FAULTS)
def test_while_a_response_is_stored(
    serve: Serve, world: World, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The response goes out as it is; Redis holds the whole page afterwards, or nothing."""
    fault = FAULTS[name]
    site = Site(serve, world, cache_deadline=deadline_of_the_cache(fault))
    for policy in tried(fault):
        world.log_time += 60  # what was said is news again
        with log_lines(caplog) as lines:
            answer, took = site.get_while(lambda: world.happens(fault), "GET", f"/{policy}/page")
        world.clears(fault)
        check_log(lines, fault, Operation.STORE)
        check_time(took, fault)
        after = site.get(policy, "page")
        assert answer.body == b"from the application"
        assert after.body == b"from the application" or after.status == 503
        got = seen_of(answer, lines=len(lines), cached_after=hit(after))
        assert got == expected(name, Operation.STORE, policy)
    check_redis(world)


@pytest.mark.parametrize("name", FAULTS)
def test_while_a_handler_purges(
    serve: Serve, world: World, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The handler is told of a purge that may not have been carried out."""
    fault = FAULTS[name]
    site = Site(serve, world, cache_deadline=deadline_of_the_cache(fault))
    for policy in tried(fault):
        site.get(policy, "page")
        with log_lines(caplog) as lines:
            answer, took = site.get_while(lambda: world.happens(fault), "POST", f"/{policy}/purge")
        world.clears(fault)
        assert lines == []  # the handler knows
        check_time(took, fault)
        after = site.get(policy, "page")
        got = seen_of(answer, purged=answer.body == b"purged", cached_after=hit(after))
        assert got == expected(name, Operation.PURGE, policy)
    check_redis(world)


DOCUMENT = Path(__file__).parents[2] / "docs" / "fault-matrix.md"


def test_the_documentation_shows_this_matrix() -> None:
    """``make docs-tables`` writes it."""
    if os.environ.get("WRITE_DOCS_TABLES"):
        DOCUMENT.write_text(document())
    assert DOCUMENT.read_text() == document()
