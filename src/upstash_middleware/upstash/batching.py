"""Batching: pipelines that arrive while calls are in flight share the next call.

A pipeline is sent at once if few calls are in flight: at most four for each millisecond of the
fastest recent round trip (but always two on an event loop, and one for threads). Otherwise it waits
until a call ends; then all waiting pipelines share the next call.

Batching does not change the billed commands. Each pipeline keeps its own deadline, cancellation and
error, and is retried only if this is safe. A large pipeline is sent by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import chain, count
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from msgspec import Struct, field

from upstash_middleware.errors import (
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    Refused,
    UpstashError,
)
from upstash_middleware.upstash.protocol import refuse
from upstash_middleware.upstash.transport import completed, exceeded

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from upstash_middleware.core.flow import Command, Reply

MIN_CALLS: Final = 2
"""Calls that an event loop may always have in flight; hanging calls do not count."""

MIN_CALLS_OF_THREADS: Final = 1
"""The same for threads, each of which needs the interpreter lock when woken."""

MIN_HALVED: Final = 4
"""If this many pipelines wait and no call is in flight, they are split into two calls."""

SECONDS_BETWEEN_CALLS: Final = 0.00025
"""The average time between the ends of calls: how long a pipeline may wait for the next one."""

MINIMUM_DECAY: Final = 1.002
"""Decay of the minimum round-trip time with each call, in case the network has become slower.

It is small because a busy process reads nearly every response late; more calls in flight would only
add work.
"""

PATIENCE_SECONDS: Final = 0.01
"""How long a pipeline waits for a call to end before it is sent anyway."""

MAX_COMMANDS: Final = 256
MAX_BYTES: Final = 128 * 1024
"""Limits of a batch; the next batch gets the rest."""

MAX_REPLY_BYTES: Final = 256 * 1024
"""The limit for a batch's replies, estimated from recent batches."""

ALONE_BYTES: Final = 16 * 1024
"""A pipeline with more bytes than this is not batched."""


class Pending(Struct, eq=False):
    """A pipeline that waits to be sent in a batch, and then for its replies."""

    commands: Sequence[Command]
    members: bytes
    """The encoded commands."""
    seconds: float
    until: float
    future: Any
    """Gets the replies or the error: an asyncio.Future, or a _Seat."""
    timer: asyncio.TimerHandle | None = None
    """Ends the wait if this pipeline's deadline is earlier than the batch's."""

    def expire_in(self, seconds: float) -> None:
        """End a task's wait after this many seconds."""
        self.timer = self.future.get_loop().call_later(max(seconds, 0.0), self._expire)

    def _expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(exceeded(self.seconds))

    async def replies(self) -> list[Reply]:
        """Return the replies to a task, or raise the error."""
        try:
            return await self.future  # type: ignore[no-any-return]
        except BaseException:
            if self.timer is not None:
                self.timer.cancel()
            if self.future.done() and not self.future.cancelled():
                self.future.exception()  # the error arrived while the task was being cancelled
            raise


_until: Final = attrgetter("until")


class _Batcher:
    """The waiting pipelines, the calls in flight, and limits estimated from earlier calls."""

    def __init__(
        self, min_calls: int, perform: Callable[..., Coroutine[Any, Any, list[Reply]]], secret: str
    ) -> None:
        self._perform = perform
        self._secret = secret
        self._waiting: deque[Pending] = deque()
        self._numbers = count(1)
        self._sent_at: dict[int, float] = {}
        """The time at which each call in flight was sent, by its number."""
        self._hanging: dict[int, float] = {}
        """The same for calls that have been in flight for too long, which are no longer counted."""
        self._min_calls = min_calls
        self._min_seconds = 0.0
        self._reply_bytes = 0.0

    @property
    def waiting(self) -> int:
        """The number of waiting pipelines."""
        return len(self._waiting)

    def end(self, number: int) -> None:
        """Stop counting a call, and send the pipelines that wait for its end."""
        raise NotImplementedError

    def _has_room(self, calls: int = 1) -> bool:
        """Whether this many more calls may be sent."""
        calls += len(self._sent_at)
        return calls <= self._min_calls or calls * SECONDS_BETWEEN_CALLS <= self._min_seconds

    def _count(self, now: float) -> int:
        """Count a call that is being sent, and return its number."""
        number = next(self._numbers)
        self._sent_at[number] = now
        return number

    def _discount(self, number: int) -> None:
        """Stop counting a call, and record its round-trip time; a second time does nothing."""
        sent_at = self._sent_at.pop(number, None) or self._hanging.pop(number, None)
        if sent_at is None:
            return
        took, least = time.monotonic() - sent_at, self._min_seconds * MINIMUM_DECAY
        self._min_seconds = least if 0.0 < least < took else took

    def _ignore_hanging(self) -> None:
        """Stop counting calls that seem to hang; if they end, their round trip is recorded."""
        late = time.monotonic() - PATIENCE_SECONDS
        for number, sent_at in [*self._sent_at.items()]:
            if sent_at <= late:
                self._hanging[number] = self._sent_at.pop(number)

    def _next_batch(self) -> list[Pending]:
        """Remove the pipelines for the next call from the waiting ones, and return them."""
        batch: list[Pending] = []
        waiting = self._waiting
        commands = size = 0
        # If no call is in flight, send one half, so that the other half is sent while the first
        # processes its replies; otherwise all pipelines would always wait at the same time.
        most = len(waiting)
        if not self._sent_at and most >= MIN_HALVED and self._has_room(2):
            most = (most + 1) // 2
        if most * self._reply_bytes > MAX_REPLY_BYTES:
            most = max(1, int(MAX_REPLY_BYTES / self._reply_bytes))
        while waiting and len(batch) < most:
            pending = waiting.popleft()
            if pending.future.done():
                continue
            commands += len(pending.commands)
            size += len(pending.members)
            if batch and (commands > MAX_COMMANDS or size > MAX_BYTES):
                waiting.appendleft(pending)
                break
            batch.append(pending)
        return batch

    async def _send(self, batch: list[Pending], number: int) -> None:
        """Send a batch as this call, and give each pipeline its replies or the error."""
        remaining, repeated = batch, False
        try:
            while remaining:
                try:
                    replies = await self._perform(*_merge(remaining), may_repeat=not repeated)
                except ConnectionLost as error:
                    remaining = _after_loss(remaining, error, repeated=repeated)
                    repeated = True
                    continue
                self._learn_size(replies, len(remaining))
                # The next call is sent before the replies are processed, which takes long.
                self.end(number)
                self._deliver(remaining, replies)
                return
        except Exception as error:  # noqa: BLE001 - raised in the waiting pipelines
            _fail(batch, error)

    def _deliver(self, batch: Sequence[Pending], replies: list[Reply]) -> None:
        """Give each pipeline its own replies."""
        end = 0
        for pending in batch:
            begin, end = end, end + len(pending.commands)
            if pending.future.done():
                continue
            own = replies[begin:end]
            if type(own[0]) is CommandError and len(own) == 1:
                try:
                    refuse(own[0], self._secret)
                except Refused as error:
                    pending.future.set_exception(error)
                    continue
            pending.future.set_result(own)
            if pending.timer is not None:
                pending.timer.cancel()

    def _learn_size(self, replies: Sequence[Reply], pipelines: int) -> None:
        """Update the estimated reply size from replies with stored values; others are small."""
        size = 0
        for reply in replies:
            if type(reply) is bytes:
                size += len(reply)
            elif type(reply) is list and reply and type(reply[0]) is not int:  # not a limit's reply
                size += sum([len(each) for each in reply if type(each) is bytes])
        self._reply_bytes = (self._reply_bytes + size / pipelines) / 2


def _merge(batch: Sequence[Pending]) -> tuple[bytes, list[Command], float, float]:
    """Return the members of a batch's call, the commands, and the latest deadline."""
    last = max(batch, key=_until)
    members = b",".join([each.members for each in batch])
    commands = [*chain.from_iterable([each.commands for each in batch])]
    return members, commands, last.seconds, last.until


def _after_loss(
    batch: Sequence[Pending], error: ConnectionLost, *, repeated: bool
) -> list[Pending]:
    """Return the read-only pipelines, to be sent again, and raise the error in the others.

    A batch of only such pipelines has already been sent twice.
    """
    readers = [each for each in batch if _only_reads(each)]
    if repeated or len(readers) == len(batch):
        readers = []
    _fail([each for each in batch if each not in readers], error)
    return readers


def _only_reads(pending: Pending) -> bool:
    return all(command.reads_only for command in pending.commands)


def _fail(batch: Sequence[Pending], error: Exception) -> None:
    """Raise a copy of an error in each pipeline, because an exception keeps its traceback."""
    for pending in batch:
        if pending.future.done():
            continue
        own = error
        if isinstance(error, DeadlineExceeded):
            own = exceeded(pending.seconds)
        elif isinstance(error, UpstashError):
            own = type(error)(*error.args)
            own.__cause__ = error
        pending.future.set_exception(own)


# Event loops -------------------------------------------------------------------------------------


class AsyncBatcher(_Batcher):
    """Batches the pipelines of one event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        perform: Callable[..., Coroutine[Any, Any, list[Reply]]],
        secret: str,
    ) -> None:
        super().__init__(MIN_CALLS, perform, secret)
        self.loop: ref[asyncio.AbstractEventLoop] = ref(loop)
        self._fallback: asyncio.TimerHandle | None = None
        """The timer that sends overdue pipelines if no call ends."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._crowded = False
        """Whether pipelines were batched recently, so that more may arrive in this loop turn."""
        self._next_turn: asyncio.Handle | None = None
        """Sends the pipelines that only wait for the end of this loop turn."""

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended; a remaining timer may still refer to it."""
        loop = self.loop()
        return loop is None or loop.is_closed()

    def enter(
        self, commands: Sequence[Command], members: bytes, seconds: float, until: float, now: float
    ) -> Pending | int | None:
        """Add a pipeline with the encoded commands ``members`` to a batch if it must wait.

        If it need not wait, return a number for the call that the caller then makes. Return None
        for a large pipeline while others wait: the caller then makes a call that is not counted.
        """
        if not (self._crowded or self._waiting) and self._has_room():
            return self._count(now)
        if len(members) > ALONE_BYTES:
            return None
        loop = self._loop()
        pending = Pending(commands, members, seconds, until, loop.create_future())
        self._waiting.append(pending)
        if self._next_turn is None and self._has_room():
            self._next_turn = loop.call_soon(self._send_waiting)
        if self._fallback is None:
            self._fallback = loop.call_later(PATIENCE_SECONDS, self._send_overdue)
        if seconds <= PATIENCE_SECONDS:
            pending.expire_in(seconds)
        return pending

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self.loop()
        assert loop is not None, "it runs"  # noqa: S101
        return loop

    def _send_overdue(self) -> None:
        """Send the pipelines that have waited too long."""
        self._fallback = None
        self._ignore_hanging()
        waited_since = time.monotonic() - PATIENCE_SECONDS
        while self._waiting:
            wait = self._waiting[0].until - self._waiting[0].seconds - waited_since
            if wait <= 0:
                self._send_next()
                continue
            self._fallback = self._loop().call_later(wait, self._send_overdue)
            break

    def _send_waiting(self) -> None:
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        while self._waiting and self._has_room():
            self._send_next()

    def _send_next(self) -> None:
        batch = self._next_batch()
        self._crowded = len(batch) > 1 or bool(self._waiting)
        if batch:
            sending = self._send(batch, self._count(time.monotonic()))
            task = self._loop().create_task(sending)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[Pending], number: int) -> None:
        well_before = max([pending.until for pending in batch]) - PATIENCE_SECONDS
        for pending in batch:
            if pending.until < well_before and pending.timer is None:
                pending.expire_in(pending.until - time.monotonic())
        try:
            await super()._send(batch, number)
        except BaseException:
            for pending in batch:
                pending.future.cancel()
            raise
        finally:
            self.end(number)

    def end(self, number: int) -> None:
        """See _Batcher."""
        self._discount(number)
        if self._waiting:
            self._send_waiting()


# Threads -----------------------------------------------------------------------------------------


def _new_locked_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


class _Seat(Struct, eq=False):
    """The future of a waiting thread, which may also be chosen to send the next batch."""

    outcome: list[Reply] | Exception | None = None
    taken: bool = False
    """Whether the pipeline is part of a batch."""
    batch: list[Pending] | None = None
    """The batch that this thread has to send."""
    number: int = 0
    wakeup: threading.Lock = field(default_factory=_new_locked_lock)
    """Locked while this thread waits."""

    def done(self) -> bool:
        return self.outcome is not None

    def set_result(self, replies: list[Reply]) -> None:
        self.outcome = replies
        self.wakeup.release()

    def set_exception(self, error: Exception) -> None:
        self.outcome = error
        self.wakeup.release()


class ThreadBatcher(_Batcher):
    """Batches the pipelines of all threads of a process.

    It starts no thread. When a call ends, it wakes the waiting thread with the latest deadline,
    which sends the next batch for all of them.
    """

    def __init__(
        self, perform: Callable[..., Coroutine[Any, Any, list[Reply]]], secret: str
    ) -> None:
        super().__init__(MIN_CALLS_OF_THREADS, perform, secret)
        self._lock = threading.Lock()

    def enter(
        self, commands: Sequence[Command], members: bytes, seconds: float, until: float, now: float
    ) -> list[Reply] | int | None:
        """Send a pipeline in a batch if it must wait; return its replies, or raise its error.

        While waiting, this thread sends the batches that it is chosen for. If the pipeline need not
        wait, return a number for the caller's own call; for a large pipeline, whose call is not
        counted, return None.
        """
        if len(members) > ALONE_BYTES:
            return None
        with self._lock:
            if self._has_room():
                return self._count(now)
            seat = _Seat()
            pending = Pending(commands, members, seconds, until, seat)
            self._waiting.append(pending)
        while seat.outcome is None:
            left = until - time.monotonic()
            patience = left if seat.taken else min(left, PATIENCE_SECONDS)
            if not seat.wakeup.acquire(timeout=max(patience, 0.0)):
                self._send_overdue(pending)
            elif seat.batch is not None:
                batch, seat.batch = seat.batch, None
                try:
                    completed(self._send(batch, seat.number))
                finally:
                    # Others still wait only if this thread was interrupted.
                    interrupted = "the thread that sent the call for others was interrupted"
                    _fail(batch, ConnectionLost(interrupted))
                    self.end(seat.number)
        if isinstance(seat.outcome, Exception):
            raise seat.outcome
        return seat.outcome

    def _send_overdue(self, pending: Pending) -> None:
        """Send an overdue pipeline, or raise DeadlineExceeded; do nothing if it was just woken."""
        seat = pending.future
        with self._lock:
            if seat.done() or seat.batch is not None:
                return
            if pending.until <= time.monotonic():
                seat.outcome = error = exceeded(pending.seconds)
                raise error
            if not seat.taken:
                self._ignore_hanging()
                self._choose_sender()

    def end(self, number: int) -> None:
        """See _Batcher."""
        with self._lock:
            self._discount(number)
            while self._waiting and self._has_room():
                self._choose_sender()

    def _choose_sender(self) -> None:
        """Choose the waiting thread that sends the next batch; the caller holds the lock."""
        batch = self._next_batch()
        for pending in batch:
            pending.future.taken = True
        if batch:
            # The call may last until the latest deadline, so the thread with it sends it.
            sender = max(batch, key=_until).future
            sender.batch, sender.number = batch, self._count(time.monotonic())
            sender.wakeup.release()
