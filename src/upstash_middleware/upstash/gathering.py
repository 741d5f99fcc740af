"""Coalescing on an event loop: pipelines that meet while calls are under way share the next.

For asyncio. A pipeline that meets fewer calls than ``batches`` allows goes at once; others wait
for one of those calls to end, not for a timer, and then travel together. The commands are billed
alike, and a pipeline keeps what is its own: its deadline, its cancellation, its error, and
whether it may be sent again. One with much to send goes by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary, ref

from upstash_middleware.upstash import batches
from upstash_middleware.upstash.batches import (
    ALONE_CHARACTERS,
    Traffic,
    Waiting,
    carried,
    ends_at,
)
from upstash_middleware.upstash.protocol import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from upstash_middleware.core.effects import Command, Pipeline, Reply
    from upstash_middleware.upstash.batches import SharedCall, Way
    from upstash_middleware.upstash.calls import Deadline
    from upstash_middleware.upstash.protocol import Call


class Perform(Protocol):
    """What sends a call and reads its answer."""

    def __call__(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> Coroutine[Any, Any, list[Reply]]:
        """See ``calls.calls_for``."""
        ...


class _Task(Waiting):
    """A task that waits."""

    __slots__ = ("replies", "since", "timer")

    def __init__(
        self,
        pipeline: Pipeline,
        members: list[str],
        characters: int,
        deadline: Deadline,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.replies: asyncio.Future[list[Reply]] = loop.create_future()
        self.since = loop.time()
        self.timer: asyncio.TimerHandle | None = None
        """Ends its wait where its own time is up before the call's is."""
        super().__init__(pipeline, members, characters, deadline)

    def done(self) -> bool:
        return self.replies.done()

    def resolve(self, replies: list[Reply]) -> None:
        self.replies.set_result(replies)

    def fail(self, error: Exception) -> None:
        self.replies.set_exception(error)

    def expire_in(self, seconds: float) -> None:
        """Have its wait end after so many seconds."""
        loop = self.replies.get_loop()
        self.timer = loop.call_later(max(seconds, 0.0), self._expire)

    def _expire(self) -> None:
        if not self.done():
            self.fail(self.deadline.exceeded())


class Gathering:
    """The pipelines of one event loop."""

    def __init__(self, perform: Perform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._traffic = Traffic(batches.FEWEST_CALLS)
        self._waiting: deque[_Task] = deque()
        self._watch: asyncio.TimerHandle | None = None
        """Looks after the first of those who wait."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._met = False
        """Whether pipelines have met of late: then more may come before the loop's next turn."""
        self._due: asyncio.Handle | None = None
        """Sends those who wait for nothing but that turn."""

    def execute(
        self, pipeline: Pipeline, members: list[str], deadline: Deadline
    ) -> Coroutine[Any, Any, list[Reply]]:
        """Perform a pipeline, whose commands ``members`` are, in a call of its own or a shared one.

        Raises what ``calls.calls_for`` raises.
        """
        characters = sum(map(len, members))
        if characters > ALONE_CHARACTERS:
            return self._by_itself(pipeline, members, deadline)
        if self._traffic.has_room and not (self._met or self._waiting):
            return self._first(pipeline, members, deadline)
        loop = asyncio.get_running_loop()
        return self._shared(_Task(pipeline, members, characters, deadline, loop), loop)

    def _by_itself(
        self, pipeline: Pipeline, members: list[str], deadline: Deadline
    ) -> Coroutine[Any, Any, list[Reply]]:
        repeat = pipeline.reads_only
        return self._perform(joined(members), pipeline.commands, deadline, repeat=repeat)

    async def _first(
        self, pipeline: Pipeline, members: list[str], deadline: Deadline
    ) -> list[Reply]:
        way = self._traffic.begin()
        try:
            return await self._by_itself(pipeline, members, deadline)
        finally:
            self._end_call(way)

    async def _shared(self, one: _Task, loop: asyncio.AbstractEventLoop) -> list[Reply]:
        left = one.deadline.seconds
        self._waiting.append(one)
        if self._due is None and self._traffic.has_room:
            self._due = loop.call_soon(self._send_due)
        if self._watch is None:
            self._watch = loop.call_later(batches.PATIENCE_SECONDS, self._lose_patience, loop)
        if left <= batches.PATIENCE_SECONDS:
            one.expire_in(left)
        try:
            return await one.replies
        except asyncio.CancelledError:
            if one.replies.done() and not one.replies.cancelled():
                one.replies.exception()  # it has come when this task was being cancelled
            raise
        finally:
            if one.timer is not None:
                one.timer.cancel()

    def _lose_patience(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what has waited long enough."""
        self._watch = None
        self._traffic.lose_patience()
        patient_since = loop.time() - batches.PATIENCE_SECONDS
        while self._waiting and self._waiting[0].since <= patient_since:
            self._share_next_call()
        if self._waiting:
            wait = self._waiting[0].since - patient_since
            self._watch = loop.call_later(wait, self._lose_patience, loop)

    def _end_call(self, way: Way) -> None:
        self._traffic.end(way)
        self._send_due()

    def _send_due(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        while self._waiting and self._traffic.has_room:
            self._share_next_call()

    def _share_next_call(self) -> None:
        batch = self._traffic.next_batch(self._waiting)
        self._met = len(batch) > 1 or bool(self._waiting)
        if batch:
            way = self._traffic.begin()
            task = asyncio.get_running_loop().create_task(self._carry(batch, way))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, batch: list[_Task], way: Way) -> None:
        well_before = max(map(ends_at, batch)) - batches.PATIENCE_SECONDS
        if min(map(ends_at, batch)) < well_before:
            for one in batch:
                if one.timer is None and one.deadline.at < well_before:
                    one.expire_in(one.deadline.at - one.deadline.clock())
        try:
            await self._together(batch, way)
        except asyncio.CancelledError:
            for one in batch:
                one.replies.cancel()
            raise
        finally:
            self._end_call(way)

    async def _together(self, batch: list[_Task], way: Way) -> None:
        steps = carried(batch, self._secret)
        step: Callable[[Any], SharedCall] = steps.send
        value: Any = None
        while True:
            try:
                shared = step(value)
            except StopIteration:
                return
            try:
                value = await self._perform(
                    shared.call, shared.commands, shared.deadline, repeat=shared.repeat
                )
                step = steps.send
                self._traffic.learn_size(value, shared.pipelines)
                # The next call goes before these replies are made responses of, which takes long.
                self._end_call(way)
            except Exception as error:  # noqa: BLE001 - it belongs to those who wait
                value, step = error, steps.throw


class Gatherings:
    """Those of each event loop that uses a client."""

    def __init__(self, perform: Perform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Gathering] = (
            WeakKeyDictionary()
        )
        self._latest: tuple[ref[asyncio.AbstractEventLoop], Gathering] | None = None

    def here(self) -> Gathering:
        """Return this event loop's."""
        loop = asyncio.get_running_loop()
        latest = self._latest
        if latest is not None and latest[0]() is loop:  # most processes have one
            return latest[1]
        gathering = self._of_loops.get(loop)
        if gathering is None:
            gathering = self._of_loops[loop] = Gathering(self._perform, self._secret)
        self._latest = (ref(loop), gathering)
        return gathering
