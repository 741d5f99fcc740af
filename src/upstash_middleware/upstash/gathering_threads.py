"""Coalescing across threads: pipelines that meet while calls are under way share the next.

What ``gathering`` is on an event loop. There is no thread of its own: of those who wait, the one
with the most time left is woken when a call has ended, and makes the next for all of them.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from upstash_middleware.errors import ConnectionLost
from upstash_middleware.upstash import batches
from upstash_middleware.upstash.batches import (
    ALONE_CHARACTERS,
    Traffic,
    Waiting,
    carried,
    ends_at,
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


class _Lead(NamedTuple):
    """A call that one thread is to make, for whom, and how it is counted."""

    batch: list[_Thread]
    way: Way


class _Thread(Waiting):
    """A thread that waits, until it has its replies or is to make the next call for others too."""

    __slots__ = ("_bell", "_done", "_error", "_lead", "_replies", "taken")

    def __init__(self, pipeline: Pipeline, members: list[str], deadline: Deadline) -> None:
        characters = sum(map(len, members))
        super().__init__(pipeline, members, characters, deadline)
        self._bell = threading.Lock()
        self._bell.acquire()
        self._done = False
        self._replies: list[Reply] = []
        self._error: Exception | None = None
        self._lead: _Lead | None = None
        self.taken = False
        """Whether it is part of a call."""

    def done(self) -> bool:
        return self._done

    def resolve(self, replies: list[Reply]) -> None:
        self._replies, self._done = replies, True
        self._bell.release()

    def fail(self, error: Exception) -> None:
        self._error, self._done = error, True
        self._bell.release()

    def lead(self, lead: _Lead) -> None:
        """Wake it to make a call."""
        self._lead = lead
        self._bell.release()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, for so long at most; return whether it was."""
        return self._bell.acquire(timeout=max(seconds, 0.0))

    @property
    def leads(self) -> bool:
        """Whether it was woken to make a call, and has not begun."""
        return self._lead is not None

    def take_lead(self) -> _Lead | None:
        """Return the call that it was woken to make, if that is why."""
        lead, self._lead = self._lead, None
        return lead

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
        self._traffic = Traffic(batches.FEWEST_CALLS_OF_THREADS)
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
        while not one.done():
            left = one.deadline.at - one.deadline.clock()
            if not one.wait(left if one.taken else min(left, batches.PATIENCE_SECONDS)):
                self._lose_patience(one)
            elif (lead := one.take_lead()) is not None:
                self._carry(lead)
        return one.outcome()

    def _lose_patience(self, one: _Thread) -> None:
        """Have a call made all the same, or raise DeadlineExceeded; not if it was just woken."""
        with self._lock:
            if one.done() or one.leads:
                return
            if one.deadline.at <= one.deadline.clock():
                one.give_up()
                raise one.deadline.exceeded()
            if not one.taken:
                self._traffic.lose_patience()
                self._appoint()

    def _end_call(self, way: Way) -> None:
        with self._lock:
            self._traffic.end(way)
            while self._waiting and self._traffic.has_room:
                self._appoint()

    def _appoint(self) -> None:
        """Have one of those who wait make the next call; the lock is held.

        The call may last until the latest deadline among them, so that is the one to sit it out.
        """
        batch = self._traffic.next_batch(self._waiting)
        for one in batch:
            one.taken = True
        if batch:
            last = max(batch, key=ends_at)
            last.lead(_Lead(batch, self._traffic.begin()))

    def _carry(self, lead: _Lead) -> None:
        try:
            self._together(lead)
        finally:
            # Only where this thread was interrupted is there anybody left.
            interrupted = "the thread that made the call for others was interrupted"
            fail(lead.batch, ConnectionLost(interrupted))
            self._end_call(lead.way)

    def _together(self, lead: _Lead) -> None:
        steps = carried(lead.batch, self._secret)
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
                self._traffic.learn_size(value, shared.pipelines)
                self._end_call(lead.way)  # so that the next goes while these replies are used
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                value, step = error, steps.throw
