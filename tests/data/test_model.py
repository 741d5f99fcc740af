"""Data against a dictionary with lifetimes and tags, in random order, with random processes."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from upstash_middleware import SyncData

if TYPE_CHECKING:
    from upstash_middleware.local import LocalUpstash

KEYS = st.sampled_from(["a", "b", "c:d"])
TAGS = st.lists(st.sampled_from(["x", "x:1", "x:1:2", "y", "z:1"]), max_size=2, unique=True)
TTLS = st.integers(1, 100).map(lambda minutes: 60 * minutes + 30)
"""Half a minute from what the model passes, so that the machine's own time makes no difference."""
VALUES = st.one_of(st.integers(-5, 5), st.none(), st.text(max_size=3), st.lists(st.booleans()))
WHO = st.sampled_from([0, 1, 2])
_numbers = count()


class Model(RuleBasedStateMachine):
    """Three processes, of which the last keeps nothing in memory, over one dictionary."""

    upstash: LocalUpstash

    def __init__(self) -> None:
        super().__init__()
        given: dict[str, Any] = {"prefix": f"m{next(_numbers)}", "deadline": 20.0}
        self.all = [SyncData(**given, cache_deadline=20.0) for _ in range(3)]
        self.now = 0
        self.stored: dict[str, tuple[Any, int, frozenset[str]]] = {}
        self.purged_by: dict[int, int] = {}

    def teardown(self) -> None:
        for data in self.all:
            data.close()

    def valid(self, key: str) -> bool:
        return key in self.stored and self.stored[key][1] > self.now

    @rule(who=WHO, key=KEYS, value=VALUES, ttl=TTLS, tags=TAGS)
    def set(self, who: int, key: str, value: Any, ttl: int, tags: list[str]) -> None:
        # What a process knows of epochs may be some seconds old: a read makes it current.
        self.all[who].get_many(["a"])
        if ttl // 60 % 2:
            self.all[who].set_many({key: value, "other": 1}, ttl=ttl, tags=tags)
        else:
            self.all[who].set(key, value, ttl=ttl, tags=tags)
        self.stored[key] = value, self.now + ttl, frozenset(tags)

    @rule(who=WHO, key=KEYS, value=VALUES, ttl=TTLS, tags=TAGS)
    def add(self, who: int, key: str, value: Any, ttl: int, tags: list[str]) -> None:
        added = self.all[who].add(key, value, ttl=ttl, tags=tags)
        assert added is not self.valid(key)
        if added:
            self.stored[key] = value, self.now + ttl, frozenset(tags)

    @rule(who=WHO, key=KEYS, ttl=TTLS, delta=st.integers(-3, 3))
    def incr(self, who: int, key: str, ttl: int, delta: int) -> None:
        if not self.valid(key):
            assert self.all[who].incr(key, delta, ttl=ttl) == delta
            self.stored[key] = delta, self.now + ttl, frozenset()
            return
        value, until, tags = self.stored[key]
        if type(value) is int and not tags:
            assert self.all[who].incr(key, delta, ttl=ttl) == value + delta
            self.stored[key] = value + delta, until, tags
        else:
            with pytest.raises(ValueError, match="incr"):
                self.all[who].incr(key, delta, ttl=ttl)

    @rule(who=WHO, key=KEYS, value=VALUES, ttl=TTLS, tags=TAGS, lock=st.booleans())
    def get_or_set(
        self, who: int, key: str, value: Any, ttl: int, tags: list[str], lock: bool
    ) -> None:
        if not self.valid(key):
            self.stored[key] = value, self.now + ttl, frozenset(tags)
        found = self.all[who].get_or_set(key, ttl, lambda: value, tags=tags, lock=lock)
        assert found == self.stored[key][0]

    @rule(who=WHO, key=KEYS)
    def delete(self, who: int, key: str) -> None:
        deleted = self.all[who].delete(key)
        assert deleted or not self.valid(key)
        self.stored.pop(key, None)

    @rule(who=WHO, key=KEYS, ttl=TTLS)
    def touch(self, who: int, key: str, ttl: int) -> None:
        assert self.all[who].touch(key, ttl=ttl) is self.valid(key)
        if self.valid(key):
            value, _, tags = self.stored[key]
            self.stored[key] = value, self.now + ttl, tags

    @rule(who=WHO, tags=TAGS)
    def purge(self, who: int, tags: list[str]) -> None:
        self.all[who].purge(tags=tags)
        for key, (_, _, of) in list(self.stored.items()):
            if any(tag == each or each.startswith(f"{tag}:") for tag in tags for each in of):
                del self.stored[key]

    @rule(who=WHO)
    def clear(self, who: int) -> None:
        self.all[who].clear()
        self.stored.clear()

    @rule(minutes=st.integers(1, 60))
    def pass_time(self, minutes: int) -> None:
        self.upstash.advance(60 * minutes)
        self.now += 60 * minutes

    @rule(who=WHO)
    def check_many(self, who: int) -> None:
        keys = ["a", "b", "c:d", "e"]
        expected = {key: self.stored[key][0] for key in keys if self.valid(key)}
        assert self.all[who].get_many(keys) == expected

    @invariant()
    def what_is_found_is_what_is_stored(self) -> None:
        for key in ("a", "b", "c:d"):
            expected = self.stored[key][0] if self.valid(key) else "missing"
            found = self.all[2].get(key, "missing")
            assert found == expected
            assert type(found) is type(expected)


def test_data_is_a_dictionary_with_lifetimes_and_tags(upstash: LocalUpstash):
    """Lifetimes end on time: the clock stands still but where the model moves it."""
    machine = type("Machine", (Model,), {"upstash": upstash})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )
