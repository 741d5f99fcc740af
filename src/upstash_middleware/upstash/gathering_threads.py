"""Coalescing across threads: pipelines that meet while calls are under way share the next.

What ``gathering`` is on an event loop. There is no thread of its own: of those who wait, the
first is woken when a call has ended, and makes the next for all of them.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from upstash_middleware.errors import ConnectionLost
from upstash_middleware.upstash import batches
from upstash_middleware.upstash.batches import (
    ALONE_CHARACTERS,
    Traffic,
    Waiting,
    carried,
    fail,
)
from upstash_middleware.upstash.protocol import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from upstash_middleware.core.effects import Command, Pipeline, Reply
    from upstash_middleware.upstash.batches import SharedCall, Way
    from upstash_middleware.upstash.calls import Deadline
    from upstash_middleware.upstash.protocol import Call


class Perform(Protocol):
    """What sends a call and reads its answer."""

    def __call__(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        """See ``calls.calls_for``."""
        ...


class _Thread(Waiting):
    """A thread that waits, until it has its replies or is to make the next call for others too."""

    __slots__ = ("_bell", "_done", "_error", "_replies", "batch", "taken", "way")

    def __init__(self, pipeline: Pipeline, members: list[str], deadline: Deadline) -> None:
        super().__init__(pipeline, members, deadline)
        self._bell = threading.Lock()
        self._bell.acquire()
        self._done = False
        self._replies: list[Reply] = []
        self._error: Exception | None = None
        self.taken = False
        """Whether it is part of a call."""
        self.batch: list[_Thread] = []
        self.way: Way | None = None
        """For whom it is to make a call, and how that is counted."""

    @property
    def done(self) -> bool:
        return self._done

    def resolve(self, replies: list[Reply]) -> None:
        self._replies, self._done = replies, True
        self._bell.release()

    def fail(self, error: Exception) -> None:
        self._error, self._done = error, True
        self._bell.release()

    def wake(self) -> None:
        """Have it make a call."""
        self._bell.release()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, for so long at most; return whether it was."""
        return self._bell.acquire(timeout=max(seconds, 0.0))

    def give_up(self) -> None:
        """Take no replies any more."""
        self._done = True

    def outcome(self) -> list[Reply]:
        """Return the replies, or raise what came in their place."""
        if self._error is not None:
            raise self._error
        return self._replies


class ThreadGathering:
    """The pipelines of all threads of a process."""

    def __init__(self, perform: Perform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._traffic = Traffic()
        self._waiting: deque[_Thread] = deque()
        self._lock = threading.Lock()

    def execute(self, pipeline: Pipeline, members: list[str], deadline: Deadline) -> list[Reply]:
        """Perform a pipeline, whose commands ``members`` are, in a call of its own or a shared one.

        Raises what ``calls.calls_for`` raises.
        """
        one = _Thread(pipeline, members, deadline)
        if one.characters > ALONE_CHARACTERS:
            return self._by_itself(one)
        with self._lock:
            way = self._traffic.begin() if self._traffic.has_room else None
            if way is None:
                self._waiting.append(one)
        if way is None:
            return self._shared(one)
        try:
            return self._by_itself(one)
        finally:
            self._end_call(way)

    def _by_itself(self, one: _Thread) -> list[Reply]:
        commands, repeat = one.pipeline.commands, one.pipeline.reads_only
        return self._perform(joined(one.members), commands, one.deadline, repeat=repeat)

    def _shared(self, one: _Thread) -> list[Reply]:
        while not one.done:
            left = one.deadline.at - one.deadline.clock()
            woken = one.wait(left if one.taken else min(left, batches.PATIENCE_SECONDS))
            if not woken:
                self._lose_patience(one)
            if one.batch and one.way is not None:
                batch, one.batch = one.batch, []
                self._carry(batch, one.way)
        return one.outcome()

    def _lose_patience(self, one: _Thread) -> None:
        """Go all the same, or raise DeadlineExceeded; unless it was woken just now."""
        with self._lock:
            if one.done or one.batch:
                return
            if one.deadline.at <= one.deadline.clock():
                one.give_up()
                raise one.deadline.exceeded()
            if not one.taken:
                self._traffic.lose_patience()
                self._appoint(one)

    def _end_call(self, way: Way) -> None:
        with self._lock:
            self._traffic.end(way)
            while self._waiting and self._traffic.has_room:
                if (leader := self._appoint(None)) is not None:
                    leader.wake()

    def _appoint(self, leader: _Thread | None) -> _Thread | None:
        """Give the next batch to one that is to make a call for it: the first, if nobody else."""
        batch = self._traffic.next_batch(self._waiting)
        if not batch:
            return None
        for one in batch:
            one.taken = True
        leader = leader or batch[0]
        leader.batch, leader.way = batch, self._traffic.begin()
        return leader

    def _carry(self, batch: list[_Thread], way: Way) -> None:
        try:
            self._together(batch)
        finally:
            # Only where this thread was interrupted is there anybody left.
            fail(batch, ConnectionLost("the thread that made the call for others was interrupted"))
            self._end_call(way)

    def _together(self, batch: list[_Thread]) -> None:
        steps = carried(batch, self._traffic, self._secret)
        step: Callable[[Any], SharedCall] = steps.send
        value: Any = None
        while True:
            try:
                shared = step(value)
            except StopIteration:
                return
            try:
                value = self._perform(
                    shared.call, shared.commands, shared.deadline, repeat=shared.repeat
                )
                step = steps.send
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                value, step = error, steps.throw
