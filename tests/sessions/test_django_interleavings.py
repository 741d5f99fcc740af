"""A thousand random interleavings of requests of one session, in Django, against a model.

Each request runs in a thread of its own, and a seeded order says which of them does its next step:
read, write, delete an entry, get another key, end the session, save. In the model a session is a
dictionary, and a step takes no time. After each round, every key that there ever was is compared.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.test import override_settings

import tests.django.project  # noqa: F401 - it configures Django
from upstash_middleware.django.sessions import SessionStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from upstash_middleware.local import LocalUpstash

NAMES = ("a", "b", "c", "d")

Model = dict[str, dict[str, Any]]
"""The sessions that exist, by key."""


class Requested:
    """A request that uses the session of a key, and what the model says of it."""

    def __init__(self, key: str, model: Model, values: Iterator[int], random: Random) -> None:
        self._random = random
        self._model = model
        self._values = values
        self.session = SessionStore(key)
        self._read: dict[str, Any] = {}
        """What was there when it was last read, or saved."""
        self._is: dict[str, Any] = {}
        """What the request sees."""
        self._key: str | None = key
        self.steps = iter(["read", *random.choices(_STEPS, _WEIGHTS, k=2), "save"])

    def step(self) -> str | None:
        """Do the next step; return a new key if it has made one."""
        before = self.session.session_key
        getattr(self, next(self.steps))()
        assert dict(self.session.items()) == self._is
        now = self.session.session_key
        return now if now != before else None

    def read(self) -> None:
        self.session.get("a")
        found = self._model.get(self._key or "")
        self._key = None if found is None else self._key
        self._read, self._is = dict(found or {}), dict(found or {})

    def write(self) -> None:
        name, value = self._random.choice(NAMES), next(self._values)
        self.session[name] = self._is[name] = value

    def remove(self) -> None:
        name = self._random.choice(NAMES)
        assert self.session.pop(name, None) == self._is.pop(name, None)

    def cycle(self) -> None:
        self.session.cycle_key()
        found = self._model.pop(self._key or "", None)
        if found is None:  # only what this request has written goes on
            self._is = {name: self._is[name] for name in self._written()}
            found = {}
        self._key = self.session.session_key
        self._apply(found)

    def flush(self) -> None:
        self.session.flush()
        self._model.pop(self._key or "", None)
        self._key, self._read, self._is = None, {}, {}

    def save(self) -> None:
        if self._key is not None and self._key not in self._model:
            with pytest.raises(UpdateError):
                self.session.save()
            return
        self.session.save()
        found = {} if self._key is None else self._model[self._key]
        self._key = self.session.session_key
        self._apply(found)

    def _written(self) -> list[str]:
        return [name for name, value in self._is.items() if self._read.get(name) != value]

    def _apply(self, found: dict[str, Any]) -> None:
        """Write what has changed into a session of the model, and nothing else."""
        for name in self._written():
            found[name] = self._is[name]
        for name in set(self._read) - set(self._is):
            found.pop(name, None)
        self._read = dict(self._is)
        assert self._key is not None
        self._model[self._key] = found


_STEPS = ("write", "remove", "cycle", "flush", "save")
_WEIGHTS = (6, 3, 1, 1, 2)


def numbers() -> Iterator[int]:
    """Yield values that are all different, since a value that is written again is no change."""
    number = 0
    while True:
        number += 1
        yield number


def play(seed: int, threads: list[ThreadPoolExecutor]) -> None:
    """Play one interleaving of three requests."""
    random_ = random.Random(seed)
    values, model = numbers(), Model()
    first = SessionStore()
    first.update({"a": 0, "b": -1, "c": -2})
    first.save()
    assert first.session_key is not None
    model[first.session_key] = {"a": 0, "b": -1, "c": -2}
    keys = [first.session_key]
    requests = {thread: Requested(first.session_key, model, values, random_) for thread in threads}
    waiting = [thread for thread in threads for _ in range(4)]
    random_.shuffle(waiting)
    made = [thread.submit(requests[thread].step).result() for thread in waiting]
    keys += filter(None, made)
    for key in keys:
        session = SessionStore(key)
        assert session.load() == model.get(key, {})
        assert (session.session_key == key) == (key in model)


def test_nothing_is_lost_and_nothing_is_brought_back(upstash: LocalUpstash) -> None:
    engine, mapping = "upstash_middleware.django.sessions", {"redis": upstash}
    threads = [ThreadPoolExecutor(1) for _ in range(3)]
    try:
        with override_settings(SESSION_ENGINE=engine, UPSTASH_MIDDLEWARE=mapping):
            for seed in range(1000):
                play(seed, threads)
    finally:
        for thread in threads:
            thread.shutdown()
