"""Batching: pipelines that arrive while calls are in flight are sent together in the next call.

As many calls may be in flight as finish within half a millisecond of each other, given the
fastest recent call, but at least two on an event loop and one among threads. Further pipelines
wait for one of them to finish, not for a timer.

The commands are billed as without it, and each pipeline keeps its own deadline, cancellation and
error, and is retried only if it may be. A large pipeline is sent by itself.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from itertools import chain, count
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

from upstash_middleware.errors import CommandError, ConnectionLost, Refused, UpstashError
from upstash_middleware.upstash.process import running_loop
from upstash_middleware.upstash.protocol import join, refuse

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from upstash_middleware.core.flow import Command, Pipeline, Reply
    from upstash_middleware.upstash.protocol import Call
    from upstash_middleware.upstash.transport import Deadline

MIN_CALLS: Final = 2
"""Calls that an event loop may always have in flight; those that hang do not count."""

MIN_CALLS_OF_THREADS: Final = 1
"""The same for threads, each of which has to wait for the interpreter's lock when woken."""

MIN_HALVED: Final = 4
"""From this many waiting pipelines on, two calls are sent if none is in flight."""

SECONDS_BETWEEN_CALLS: Final = 0.0005
"""The average time between the ends of calls: what a pipeline may wait for the next one."""

MINIMUM_DECAY: Final = 1.002
"""Decay of the minimum round-trip time with each call, in case the network has become slower.

So little, because a busy process reads nearly every response late; more calls in flight would only
add to its work.
"""

PATIENCE_SECONDS: Final = 0.01
"""How long a pipeline waits for calls that do not finish, before it is sent anyway."""

MAX_COMMANDS: Final = 256
MAX_BYTES: Final = 128 * 1024
"""Bounds of a batch; the next one takes the rest."""

MAX_REPLY_BYTES: Final = 256 * 1024
"""The same for the replies, estimated from those of recent batches."""

ALONE_BYTES: Final = 16 * 1024
"""A pipeline with more than this to send joins no batch."""


# Which pipelines share the next call, and which replies each gets ---------------------------------


class Pending(ABC):
    """A pipeline that waits to be sent in a batch and for its replies."""

    __slots__ = ("deadline", "members", "pipeline", "size")

    def __init__(self, pipeline: Pipeline, members: list[bytes], deadline: Deadline) -> None:
        self.pipeline: Pipeline = pipeline
        self.members: list[bytes] = members
        """Its commands, encoded."""
        self.size: int = sum(map(len, members))
        self.deadline: Deadline = deadline

    @abstractmethod
    def done(self) -> bool:
        """Whether its caller no longer waits: it has its replies, timed out, or was cancelled."""

    @abstractmethod
    def resolve(self, replies: list[Reply]) -> None:
        """Return the replies to the caller."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Raise an error in the caller."""


_ends_at: Final = attrgetter("deadline.at")
_members: Final = attrgetter("members")
_commands: Final = attrgetter("pipeline.commands")

P = TypeVar("P", bound=Pending)


class InFlight:
    """The calls in flight, and the limits estimated from earlier ones."""

    __slots__ = (
        "_max_calls",
        "_min_calls",
        "_min_seconds",
        "_numbers",
        "_reply_bytes",
        "_sent_at",
        "has_room",
    )

    def __init__(self, min_calls: int) -> None:
        self._min_calls = min_calls
        self._numbers = count()
        self._sent_at: dict[int, float] = {}
        """By the number of a call, when it was sent; without those that hang."""
        self._max_calls = min_calls
        self._min_seconds = 0.0
        self._reply_bytes = 0.0
        self.has_room: bool = True
        """Whether one more call may be sent."""

    def begin(self) -> int:
        """Count a call, and return its number."""
        number = next(self._numbers)
        self._sent_at[number] = time.monotonic()
        self.has_room = len(self._sent_at) < self._max_calls
        return number

    def end(self, number: int) -> None:
        """Stop counting a call, and record its round-trip time; nothing the second time."""
        sent_at = self._sent_at.pop(number, None)
        if sent_at is None:
            return
        took = time.monotonic() - sent_at
        self._min_seconds = min(took, self._min_seconds * MINIMUM_DECAY or took)
        self._max_calls = max(self._min_calls, int(self._min_seconds / SECONDS_BETWEEN_CALLS))
        self.has_room = len(self._sent_at) < self._max_calls

    def ignore_hanging(self) -> None:
        """Stop counting the calls that hang."""
        late = time.monotonic() - PATIENCE_SECONDS
        self._sent_at = {number: at for number, at in self._sent_at.items() if at > late}
        self.has_room = len(self._sent_at) < self._max_calls

    def next_batch(self, waiting: deque[P]) -> list[P]:
        """Take from the waiting pipelines those that the next call carries."""
        batch: list[P] = []
        commands = size = 0
        # With no call in flight one half is sent, so that the other half is sent while the first
        # uses its replies; otherwise all would always wait at the same time.
        most = len(waiting)
        if not self._sent_at and most >= MIN_HALVED and self._max_calls > 1:
            most = (most + 1) // 2
        if most * self._reply_bytes > MAX_REPLY_BYTES:
            most = max(1, int(MAX_REPLY_BYTES / self._reply_bytes))
        while waiting and len(batch) < most:
            pending = waiting.popleft()
            if pending.done():
                continue
            commands += len(pending.members)
            size += pending.size
            if batch and (commands > MAX_COMMANDS or size > MAX_BYTES):
                waiting.appendleft(pending)
                break
            batch.append(pending)
        return batch

    def learn_size(self, replies: Sequence[Reply], pipelines: int) -> None:
        """Update the estimated size of replies, from those with stored values: others are small."""
        size = 0
        for reply in replies:
            if type(reply) is list:
                if reply and type(reply[0]) is not int:  # numbers are a limit's reply
                    size += sum([len(each) for each in reply if type(each) is bytes])
            elif type(reply) is bytes:
                size += len(reply)
        self._reply_bytes = (self._reply_bytes + size / pipelines) / 2


def _merged(batch: Sequence[Pending]) -> tuple[Call, list[Command], Deadline]:
    """Return the call for a batch, its commands, and the latest deadline."""
    return (
        join([*chain.from_iterable(map(_members, batch))]),
        [*chain.from_iterable(map(_commands, batch))],
        max(batch, key=_ends_at).deadline,
    )


def _deliver(batch: Sequence[Pending], replies: list[Reply], secret: str) -> None:
    """Give each pipeline its own replies."""
    end = 0
    for pending in batch:
        begin, end = end, end + len(pending.members)
        own = replies[begin:end]
        if pending.done():
            continue
        if len(own) == 1 and isinstance(own[0], CommandError):
            try:
                refuse(own[0], secret)
            except Refused as error:
                pending.fail(error)
                continue
        pending.resolve(own)


def _after_loss(batch: Sequence[P], error: ConnectionLost, *, repeated: bool) -> list[P]:
    """Return the pipelines that only read, to be sent once more, and raise the error in others."""
    readers = [] if repeated else [each for each in batch if each.pipeline.reads_only]
    _fail([each for each in batch if each not in readers], error)
    return readers


def _fail(batch: Sequence[Pending], error: Exception) -> None:
    """Raise a copy of an error in each pipeline, since an exception keeps its traceback."""
    for pending in batch:
        if pending.done():
            continue
        own = error
        if isinstance(error, UpstashError):
            own = type(error)(*error.args)
            own.__cause__ = error
        pending.fail(own)


def _only_reads(batch: Sequence[Pending]) -> bool:
    return all(each.pipeline.reads_only for each in batch)


# Event loops -------------------------------------------------------------------------------------


class _AsyncPerform(Protocol):
    """Sends a call and returns the replies, within the deadline."""

    def __call__(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> Coroutine[Any, Any, list[Reply]]: ...


class _PendingTask(Pending):
    """A task that waits for its replies."""

    __slots__ = ("future", "since", "timer")

    def __init__(
        self,
        pipeline: Pipeline,
        members: list[bytes],
        deadline: Deadline,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(pipeline, members, deadline)
        self.future: asyncio.Future[list[Reply]] = loop.create_future()
        self.since: float = loop.time()
        self.timer: asyncio.TimerHandle | None = None
        """Ends the wait where this pipeline's deadline is earlier than the batch's."""

    def done(self) -> bool:
        return self.future.done()

    def resolve(self, replies: list[Reply]) -> None:
        self.future.set_result(replies)

    def fail(self, error: Exception) -> None:
        self.future.set_exception(error)

    def expire_in(self, seconds: float) -> None:
        """End the wait after so many seconds."""
        self.timer = self.future.get_loop().call_later(max(seconds, 0.0), self._expire)

    def _expire(self) -> None:
        if not self.done():
            self.fail(self.deadline.exceeded())


class AsyncBatcher:
    """Sends the pipelines of one event loop."""

    def __init__(self, perform: _AsyncPerform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._in_flight = InFlight(MIN_CALLS)
        self._waiting: deque[_PendingTask] = deque()
        self._fallback: asyncio.TimerHandle | None = None
        """The timer that sends overdue pipelines if no call finishes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._crowded = False
        """Whether pipelines were batched recently, so that more may arrive in this loop turn."""
        self._next_turn: asyncio.Handle | None = None
        """Sends those that wait for nothing but the end of this turn."""

    def execute(
        self, pipeline: Pipeline, members: list[bytes], deadline: Deadline
    ) -> Coroutine[Any, Any, list[Reply]]:
        """Perform a pipeline, whose encoded commands are ``members``, by itself or in a batch."""
        if self._in_flight.has_room and not (self._crowded or self._waiting):
            return self._send_alone(pipeline, members, deadline)
        if sum(map(len, members)) > ALONE_BYTES:
            repeat = pipeline.reads_only
            return self._perform(join(members), pipeline.commands, deadline, repeat=repeat)
        loop = running_loop()
        return self._wait(_PendingTask(pipeline, members, deadline, loop), loop)

    async def _send_alone(
        self, pipeline: Pipeline, members: list[bytes], deadline: Deadline
    ) -> list[Reply]:
        flight = self._in_flight.begin()
        try:
            return await self._perform(
                join(members), pipeline.commands, deadline, repeat=pipeline.reads_only
            )
        finally:
            self._end(flight)

    async def _wait(self, pending: _PendingTask, loop: asyncio.AbstractEventLoop) -> list[Reply]:
        self._waiting.append(pending)
        if self._next_turn is None and self._in_flight.has_room:
            self._next_turn = loop.call_soon(self._send_waiting)
        if self._fallback is None:
            self._fallback = loop.call_later(PATIENCE_SECONDS, self._send_overdue, loop)
        if pending.deadline.seconds <= PATIENCE_SECONDS:
            pending.expire_in(pending.deadline.seconds)
        try:
            return await pending.future
        except BaseException:
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # it arrived while this task was being cancelled
            raise
        finally:
            if pending.timer is not None:
                pending.timer.cancel()

    def _send_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send the pipelines that have waited too long."""
        self._fallback = None
        self._in_flight.ignore_hanging()
        waited_since = loop.time() - PATIENCE_SECONDS
        while self._waiting and self._waiting[0].since <= waited_since:
            self._send_next(loop)
        if self._waiting:
            wait = self._waiting[0].since - waited_since
            self._fallback = loop.call_later(wait, self._send_overdue, loop)

    def _end(self, flight: int) -> None:
        self._in_flight.end(flight)
        if self._waiting:
            self._send_waiting()

    def _send_waiting(self) -> None:
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        loop = running_loop()
        while self._waiting and self._in_flight.has_room:
            self._send_next(loop)

    def _send_next(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._in_flight.next_batch(self._waiting)
        self._crowded = len(batch) > 1 or bool(self._waiting)
        if batch:
            task = loop.create_task(self._send(batch, self._in_flight.begin()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[_PendingTask], flight: int) -> None:
        well_before = max(map(_ends_at, batch)) - PATIENCE_SECONDS
        if min(map(_ends_at, batch)) < well_before:
            for pending in batch:
                if pending.timer is None and pending.deadline.at < well_before:
                    pending.expire_in(pending.deadline.at - time.monotonic())
        everyone, repeated = batch, False
        try:
            while batch:
                repeat = not repeated and _only_reads(batch)
                call, commands, deadline = _merged(batch)
                try:
                    replies = await self._perform(call, commands, deadline, repeat=repeat)
                except ConnectionLost as error:
                    batch = _after_loss(batch, error, repeated=repeated or repeat)
                    repeated = True
                    continue
                self._in_flight.learn_size(replies, len(batch))
                # The next call is sent before these replies are used, which takes long.
                self._end(flight)
                _deliver(batch, replies, self._secret)
                return
        except Exception as error:  # noqa: BLE001 - it belongs to those that wait
            _fail(everyone, error)
        except BaseException:
            for pending in everyone:
                pending.future.cancel()
            raise
        finally:
            self._end(flight)


class AsyncBatchers:
    """The batchers of a client: one for each event loop that uses it."""

    def __init__(self, perform: _AsyncPerform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncBatcher] = (
            WeakKeyDictionary()
        )
        self._latest: tuple[ref[asyncio.AbstractEventLoop], AsyncBatcher] | None = None

    def here(self) -> AsyncBatcher:
        """Return this event loop's."""
        loop = running_loop()
        latest = self._latest
        if latest is not None and latest[0]() is loop:  # most processes have one
            return latest[1]
        batcher = self._by_loop.get(loop)
        if batcher is None:
            batcher = self._by_loop[loop] = AsyncBatcher(self._perform, self._secret)
        self._latest = (ref(loop), batcher)
        return batcher


# Threads -----------------------------------------------------------------------------------------


class _Perform(Protocol):
    """Sends a call and returns the replies, within the deadline."""

    def __call__(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]: ...


class _PendingThread(Pending):
    """A thread that waits for its replies, or until it has to send the next batch."""

    __slots__ = ("_done", "_error", "_replies", "_wakeup", "batch", "flight", "taken")

    def __init__(self, pipeline: Pipeline, members: list[bytes], deadline: Deadline) -> None:
        super().__init__(pipeline, members, deadline)
        self._wakeup = threading.Lock()
        self._wakeup.acquire()
        self._done = False
        self._replies: list[Reply] = []
        self._error: Exception | None = None
        self.taken: bool = False
        """Whether it is part of a batch."""
        self.batch: list[_PendingThread] | None = None
        """The batch that this thread has to send."""
        self.flight: int = 0

    def done(self) -> bool:
        return self._done

    def resolve(self, replies: list[Reply]) -> None:
        self._replies, self._done = replies, True
        self._wakeup.release()

    def fail(self, error: Exception) -> None:
        self._error, self._done = error, True
        self._wakeup.release()

    def lead(self, batch: list[_PendingThread], flight: int) -> None:
        """Wake this thread to send a batch."""
        self.batch, self.flight = batch, flight
        self._wakeup.release()

    def wait(self, seconds: float) -> bool:
        """Wait until this thread is woken, or the seconds are over; return whether it was woken."""
        return self._wakeup.acquire(timeout=max(seconds, 0.0))

    def give_up(self) -> None:
        """Stop waiting: later replies are dropped."""
        self._done = True

    def result(self) -> list[Reply]:
        """Return the replies, or raise the error."""
        if self._error is not None:
            raise self._error
        return self._replies


class ThreadBatcher:
    """Sends the pipelines of all threads of a process.

    It starts no thread: when a call has finished, the waiting thread with the latest deadline is
    woken, and sends the next batch for all of them.
    """

    def __init__(self, perform: _Perform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._in_flight = InFlight(MIN_CALLS_OF_THREADS)
        self._waiting: deque[_PendingThread] = deque()
        self._lock = threading.Lock()

    def execute(self, pipeline: Pipeline, members: list[bytes], deadline: Deadline) -> list[Reply]:
        """Perform a pipeline, whose encoded commands are ``members``, by itself or in a batch."""
        pending = _PendingThread(pipeline, members, deadline)
        if pending.size > ALONE_BYTES:
            return self._send_alone(pending)
        with self._lock:
            flight = self._in_flight.begin() if self._in_flight.has_room else None
            if flight is None:
                self._waiting.append(pending)
        if flight is None:
            return self._wait(pending)
        try:
            return self._send_alone(pending)
        finally:
            self._end(flight)

    def _send_alone(self, pending: _PendingThread) -> list[Reply]:
        pipeline = pending.pipeline
        return self._perform(
            join(pending.members),
            pipeline.commands,
            pending.deadline,
            repeat=pipeline.reads_only,
        )

    def _wait(self, pending: _PendingThread) -> list[Reply]:
        while not pending.done():
            left = pending.deadline.at - time.monotonic()
            if not pending.wait(left if pending.taken else min(left, PATIENCE_SECONDS)):
                self._send_overdue(pending)
            elif pending.batch is not None:
                batch, flight = pending.batch, pending.flight
                pending.batch = None
                try:
                    self._send(batch, flight)
                finally:
                    # Others still wait only if this thread was interrupted.
                    interrupted = "the thread that sent the call for others was interrupted"
                    _fail(batch, ConnectionLost(interrupted))
                    self._end(flight)
        return pending.result()

    def _send_overdue(self, pending: _PendingThread) -> None:
        """Send an overdue pipeline, or raise DeadlineExceeded; nothing if it was just woken."""
        with self._lock:
            if pending.done() or pending.batch is not None:
                return
            if pending.deadline.at <= time.monotonic():
                pending.give_up()
                raise pending.deadline.exceeded()
            if not pending.taken:
                self._in_flight.ignore_hanging()
                self._choose_sender()

    def _end(self, flight: int) -> None:
        with self._lock:
            self._in_flight.end(flight)
            while self._waiting and self._in_flight.has_room:
                self._choose_sender()

    def _choose_sender(self) -> None:
        """Choose the waiting thread that sends the next batch; the caller has the lock."""
        batch = self._in_flight.next_batch(self._waiting)
        for pending in batch:
            pending.taken = True
        if batch:
            # The call may last until the latest deadline, so that thread has to send it.
            max(batch, key=_ends_at).lead(batch, self._in_flight.begin())

    def _send(self, batch: list[_PendingThread], flight: int) -> None:
        everyone, repeated = batch, False
        try:
            while batch:
                repeat = not repeated and _only_reads(batch)
                call, commands, deadline = _merged(batch)
                try:
                    replies = self._perform(call, commands, deadline, repeat=repeat)
                except ConnectionLost as error:
                    batch = _after_loss(batch, error, repeated=repeated or repeat)
                    repeated = True
                    continue
                self._in_flight.learn_size(replies, len(batch))
                self._end(flight)  # so that the next is sent while these replies are used
                _deliver(batch, replies, self._secret)
                return
        except Exception as error:  # noqa: BLE001 - it belongs to those that wait
            _fail(everyone, error)
