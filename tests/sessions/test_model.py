"""The sessions of one browser's overlapping requests, interleaved at every call, against a model.

The requests are flows over the local Upstash. Before each of their calls another one may go on; the
model does what they do one call after the other.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upstash_middleware.clock import SystemClock
from upstash_middleware.core.flow import Pipeline
from upstash_middleware.core.sessions import (
    Session,
    SessionExchange,
    Sessions,
    SessionSettings,
    SessionStore,
    read_scripts,
)
from upstash_middleware.messages import NO_HEADERS, Headers, ResponseHead
from upstash_middleware.upstash import Client, Credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from upstash_middleware.core.flow import Flow
    from upstash_middleware.local import LocalUpstash

NAMES = st.sampled_from("abc")
USERS = st.sampled_from(["ada", "eve"])
STEPS = st.one_of(
    st.tuples(st.just("set"), NAMES),
    st.tuples(st.just("append"), NAMES),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("clear")),
    st.tuples(st.just("regenerate")),
    st.tuples(st.just("bind"), USERS),
    st.tuples(st.just("revoke_all"), USERS),
)
_numbers = itertools.count()


class Kept:
    """A session in the model."""

    def __init__(self) -> None:
        self.entries: dict[str, list[int]] = {}
        self.user: tuple[str, int] | None = None
        """Whom it is bound to, and in which epoch."""
        self.id: str | None = None
        """Which id it has; None once it is ended."""


class Model:
    """All sessions, as a sequence of calls leaves them."""

    def __init__(self) -> None:
        self.by_id: dict[str, Kept] = {}
        self.epochs: dict[str, int] = {}

    def find(self, id_: str | None) -> Kept | None:
        """Return a valid session."""
        kept = self.by_id.get(id_ or "")
        if kept is None or kept.id != id_ or not self.is_valid(kept):
            return None
        return kept

    def is_valid(self, kept: Kept) -> bool:
        return kept.user is None or self.epochs.get(kept.user[0]) == kept.user[1]


class Request:
    """One request: what it has read, and what it does."""

    def __init__(self, model: Model, id_: str | None) -> None:
        self.model = model
        self.kept = model.find(id_)
        self.id = id_
        self.read = dict(self.kept.entries) if self.kept else {}
        self.now = {name: list(value) for name, value in self.read.items()}
        self.ended: list[tuple[Kept, str | None]] = []
        self.revoked: list[str] = []
        self.regenerates = False
        self.user: str | None = None

    def act(self, step: Sequence[str], session: Session) -> None:
        """Do the same in the model and in the session."""
        kind, word = step[0], step[-1]
        match kind:
            case "set":
                value = next(_numbers)
                self.now[word] = [value]
                session[word] = [value]
            case "append":
                value = next(_numbers)
                assert (word in session) == (word in self.now)
                if word in session:
                    session[word].append(value)
                    self.now[word].append(value)
            case "delete":
                assert session.pop(word, None) == self.now.pop(word, None)
            case "clear":
                session.clear()
                if self.kept is not None:
                    self.ended.append((self.kept, self.id))
                self.kept, self.read, self.now = None, {}, {}
                self.regenerates, self.user = False, None
            case "regenerate":
                session.regenerate()
                self.regenerates = True
            case "bind":
                session.bind(word)
                self.regenerates, self.user = True, word
            case "revoke_all":
                session.revoke_all(word)
                self.revoked.append(word)

    @property
    def sets(self) -> dict[str, list[int]]:
        return {name: value for name, value in self.now.items() if self.read.get(name) != value}

    def commit(self) -> Kept | bool | None:
        """Carry out the first call; return the session that gets a new id, if one does.

        True if nothing is left of the old one, so that a second call creates one, for what this
        request has written.
        """
        for old, id_ in self.ended:
            if old.id == id_:
                old.id = None
        for user in self.revoked:
            self.model.epochs.pop(user, None)
        kept: Kept | None = self.kept
        if kept is None:
            return self.create() if self.sets or self.user else None
        if kept.id != self.id:  # it has ended meanwhile
            return True if self.regenerates and (self.sets or self.user) else None
        if self.user and not self.revoked and not self.model.is_valid(kept):
            return True
        for name in self.read.keys() - self.now.keys():
            kept.entries.pop(name, None)
        kept.entries.update(self.sets)
        if self.user:
            self.bind(kept)
        return kept if self.regenerates else None

    def create(self) -> Kept:
        """Return a new session with what this request has written."""
        kept = Kept()
        kept.entries = self.sets
        if self.user:
            self.bind(kept)
        return kept

    def bind(self, kept: Kept) -> None:
        assert self.user
        kept.user = self.user, self.model.epochs.setdefault(self.user, next(_numbers))


class World:
    """The sessions on Redis, the model, and the browser's cookie."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.model = Model()
        self.cookie: str | None = None
        self.requests = 0
        store = SessionStore(
            f"model{next(_numbers)}",
            lambda: (b"key",),
            SystemClock,
            lambda count: next(_numbers).to_bytes(count, "big"),
            20.0,
            3600.0,
            7200.0,
        )
        self.sessions = Sessions(SessionSettings(), store, observe=lambda _event: None)

    def calls(
        self, flow: Flow[Any] | None, then: Callable[[int], None] = lambda _number: None
    ) -> Generator[None, None, Any]:
        """Run a flow; stop before each of its calls, and do something after it."""
        value: Any = None
        number = 0
        while flow is not None:
            try:
                effect = flow.send(value)
            except StopIteration as end:
                return end.value
            assert isinstance(effect, Pipeline)
            yield
            value = self.client.execute(effect)
            then(number)
            number += 1

    def request(self, steps: Sequence[Sequence[str]]) -> Generator[None, None, None]:
        """Serve one request; it begins with the cookie that the browser has then."""
        id_, begun = self.cookie, None

        def begin(_number: int = 0) -> None:
            nonlocal begun
            begun = Request(self.model, id_)

        session: Session = yield from self.calls(self.sessions.load(id_), begin)
        if begun is None:
            begin()
        request = begun
        assert request is not None
        assert dict(session) == request.now
        for step in steps:
            request.act(step, session)
        assert dict(session) == request.now
        exchange = SessionExchange(self.sessions, session, NO_HEADERS)
        given: Kept | bool | None = None

        def commit(number: int) -> None:
            nonlocal given
            if number == 0:
                given = request.commit()
            else:
                assert given is True
                given = request.create()

        yield from self.calls(exchange.save(), commit)
        exchange.head(ResponseHead(200, Headers()))
        change = session.cookie_change
        if isinstance(given, Kept):
            assert change is not None
            assert change.value
            given.id = change.value
            self.model.by_id[change.value] = given
        else:
            assert given is None
            assert change is None or change.value is None
        if change is not None:
            self.cookie = change.value

    def check(self) -> None:
        """All ids that were ever given out open what the model says; old ones leave no key."""
        for id_, latest in self.model.by_id.items():
            kept = self.model.find(id_)
            assert self.read(id_) == (kept.entries if kept else {})
            if latest.id != id_:
                lookup = self.sessions.store.prepare(id_)
                assert lookup is not None
                assert self.client.execute(lookup.pipeline)[0] == []

    def read(self, id_: str) -> dict[str, Any]:
        calls = self.calls(self.sessions.load(id_))
        while True:
            try:
                next(calls)
            except StopIteration as end:
                return dict(end.value)


@pytest.fixture
def client(upstash: LocalUpstash) -> Iterator[Client]:
    read_scripts()
    client = Client(Credentials(upstash.url, upstash.token), deadline=20.0)
    yield client
    client.close()


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    before=st.lists(STEPS, max_size=4),
    requests=st.lists(st.lists(STEPS, min_size=1, max_size=4), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 2), max_size=12),
)
def test_overlapping_requests_do_what_the_model_does(
    client: Client,
    before: list[tuple[str, ...]],
    requests: list[list[tuple[str, ...]]],
    order: list[int],
) -> None:
    """Nothing is lost, and nothing is brought back."""
    world = World(client)
    for _ in world.request([("set", "a"), ("set", "b"), *before]):
        pass
    running = [world.request(steps) for steps in requests]
    # All of them are under way before the first one ends, as far as the order allows.
    for choice in [*order, *([0] * 100)]:
        if not running:
            break
        one = running[choice % len(running)]
        try:
            next(one)
        except StopIteration:
            running.remove(one)
    world.check()
