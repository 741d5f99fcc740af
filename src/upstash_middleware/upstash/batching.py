"""Batching: pipelines that arrive while calls are in flight are sent together in the next call.

A pipeline is sent at once while few calls are in flight: at most four for each millisecond of the
fastest recent round trip (but always two on an event loop, and one among threads). Otherwise it
waits until one of them finishes; then all waiting pipelines share the next call.

Batching does not change which commands are billed. Each pipeline keeps its own deadline,
cancellation and error, and is retried only if it may be. A large pipeline is sent by itself.
"""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from itertools import chain, count
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar
from weakref import ref

from upstash_middleware.errors import CommandError, ConnectionLost, Refused, UpstashError
from upstash_middleware.upstash.protocol import join_members, refuse
from upstash_middleware.upstash.transport import exceeded

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from upstash_middleware.core.flow import Command, Reply
    from upstash_middleware.upstash.protocol import Call

MIN_CALLS: Final = 2
"""Calls that an event loop may always have in flight; those that hang do not count."""

MIN_CALLS_OF_THREADS: Final = 1
"""The same for threads, each of which has to wait for the interpreter's lock when woken."""

MIN_HALVED: Final = 4
"""From this many waiting pipelines on, two calls are sent if none is in flight."""

SECONDS_BETWEEN_CALLS: Final = 0.00025
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


class Pending(ABC):
    """A pipeline that waits to be sent in a batch and for its replies."""

    __slots__ = ("commands", "members", "seconds", "size", "until")

    def __init__(
        self, commands: Sequence[Command], members: list[bytes], seconds: float, until: float
    ) -> None:
        self.commands: Sequence[Command] = commands
        self.members: list[bytes] = members
        """The commands, encoded."""
        self.size: int = sum(map(len, members))
        self.seconds: float = seconds
        self.until: float = until

    @abstractmethod
    def done(self) -> bool:
        """Whether its caller no longer waits: it has its replies, timed out, or was cancelled."""

    @abstractmethod
    def resolve(self, replies: list[Reply]) -> None:
        """Return the replies to the caller."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Raise an error in the caller."""


P = TypeVar("P", bound=Pending)
_until: Final = attrgetter("until")


class _Batcher(Generic[P]):
    """The pipelines that wait, the calls in flight, and the limits estimated from earlier ones."""

    def __init__(self, min_calls: int, secret: str) -> None:
        self._secret = secret
        self._waiting: deque[P] = deque()
        self._numbers = count()
        self._sent_at: dict[int, float] = {}
        """By the number of a call in flight, when it was sent."""
        self._hanging: dict[int, float] = {}
        """The same for calls that have been in flight for so long that they are not counted."""
        self._min_calls = min_calls
        self._max_calls = min_calls
        self._min_seconds = 0.0
        self._reply_bytes = 0.0
        self._has_room = True
        """Whether one more call may be sent."""

    @property
    def waiting(self) -> int:
        """How many pipelines wait."""
        return len(self._waiting)

    def _count(self) -> int:
        """Count a call that is sent now, and return its number."""
        number = next(self._numbers)
        self._sent_at[number] = time.monotonic()
        self._has_room = len(self._sent_at) < self._max_calls
        return number

    def _discount(self, number: int) -> None:
        """Stop counting a call, and record its round-trip time; nothing the second time."""
        sent_at = self._sent_at.pop(number, None) or self._hanging.pop(number, None)
        if sent_at is None:
            return
        took = time.monotonic() - sent_at
        self._min_seconds = min(took, self._min_seconds * MINIMUM_DECAY or took)
        self._max_calls = max(self._min_calls, int(self._min_seconds / SECONDS_BETWEEN_CALLS))
        self._has_room = len(self._sent_at) < self._max_calls

    def _ignore_hanging(self) -> None:
        """Stop counting the calls that seem to hang; if they end, that is how long the way is."""
        late = time.monotonic() - PATIENCE_SECONDS
        for number, sent_at in [*self._sent_at.items()]:
            if sent_at <= late:
                self._hanging[number] = self._sent_at.pop(number)
        self._has_room = len(self._sent_at) < self._max_calls

    def _next_batch(self) -> list[P]:
        """Take from the waiting pipelines those that the next call carries."""
        batch: list[P] = []
        waiting = self._waiting
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

    def _deliver(self, batch: Sequence[P], replies: list[Reply]) -> None:
        """Give each pipeline its own replies."""
        end = 0
        for pending in batch:
            begin, end = end, end + len(pending.members)
            if pending.done():
                continue
            own = replies[begin:end]
            if len(own) == 1 and isinstance(own[0], CommandError):
                try:
                    refuse(own[0], self._secret)
                except Refused as error:
                    pending.fail(error)
                    continue
            pending.resolve(own)

    def _learn_size(self, replies: Sequence[Reply], pipelines: int) -> None:
        """Update the estimated size of replies, from those with stored values: others are small."""
        size = 0
        for reply in replies:
            if type(reply) is list:
                if reply and type(reply[0]) is not int:  # numbers are a limit's reply
                    size += sum([len(each) for each in reply if type(each) is bytes])
            elif type(reply) is bytes:
                size += len(reply)
        self._reply_bytes = (self._reply_bytes + size / pipelines) / 2


def _merged(batch: Sequence[Pending]) -> tuple[Call, list[Command], float, float]:
    """Return the call for a batch, its commands, and the latest deadline."""
    last = max(batch, key=_until)
    members = [*chain.from_iterable([each.members for each in batch])]
    commands = [*chain.from_iterable([each.commands for each in batch])]
    return join_members(members), commands, last.seconds, last.until


def _after_loss(batch: Sequence[P], error: ConnectionLost, *, repeated: bool) -> list[P]:
    """Return the pipelines that only read, to be sent once more, and raise the error in others.

    A batch of them alone has been sent twice already.
    """
    readers = [each for each in batch if _only_reads(each)]
    if repeated or len(readers) == len(batch):
        readers = []
    _fail([each for each in batch if each not in readers], error)
    return readers


def _only_reads(pending: Pending) -> bool:
    return all(command.reads_only for command in pending.commands)


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


# Event loops -------------------------------------------------------------------------------------


class _AsyncPerform(Protocol):
    """Sends a call and returns the replies, within the deadline."""

    def __call__(
        self,
        call: Call,
        commands: Sequence[Command],
        seconds: float,
        until: float,
        *,
        may_repeat: bool = True,
    ) -> Coroutine[Any, Any, list[Reply]]: ...


class _PendingTask(Pending):
    """A task that waits for its replies."""

    __slots__ = ("future", "since", "timer")

    def __init__(
        self,
        commands: Sequence[Command],
        members: list[bytes],
        seconds: float,
        until: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(commands, members, seconds, until)
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
            self.fail(exceeded(self.seconds))


class AsyncBatcher(_Batcher[_PendingTask]):
    """Sends the pipelines of one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, perform: _AsyncPerform, secret: str
    ) -> None:
        super().__init__(MIN_CALLS, secret)
        self.loop: ref[asyncio.AbstractEventLoop] = ref(loop)
        self._perform = perform
        self._fallback: asyncio.TimerHandle | None = None
        """The timer that sends overdue pipelines if no call finishes."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._crowded = False
        """Whether pipelines were batched recently, so that more may arrive in this loop turn."""
        self._next_turn: asyncio.Handle | None = None
        """Sends those that wait for nothing but the end of this turn."""

    async def execute(
        self, commands: Sequence[Command], members: list[bytes], seconds: float, until: float
    ) -> list[Reply]:
        """Perform a pipeline, whose encoded commands are ``members``, by itself or in a batch."""
        if self._has_room and not self._crowded and not self._waiting:
            number = self._count()
            try:
                return await self._perform(join_members(members), commands, seconds, until)
            finally:
                self._discount(number)
                if self._waiting:
                    self._send_waiting()
        if sum(map(len, members)) > ALONE_BYTES:
            return await self._perform(join_members(members), commands, seconds, until)
        loop = sys.modules["asyncio"].get_running_loop()
        pending = _PendingTask(commands, members, seconds, until, loop)
        self._waiting.append(pending)
        if self._next_turn is None and self._has_room:
            self._next_turn = loop.call_soon(self._send_waiting)
        if self._fallback is None:
            self._fallback = loop.call_later(PATIENCE_SECONDS, self._send_overdue)
        if seconds <= PATIENCE_SECONDS:
            pending.expire_in(seconds)
        try:
            return await pending.future
        except BaseException:
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # it arrived while this task was being cancelled
            raise
        finally:
            if pending.timer is not None:
                pending.timer.cancel()

    def _send_overdue(self) -> None:
        """Send the pipelines that have waited too long."""
        loop = sys.modules["asyncio"].get_running_loop()
        self._fallback = None
        self._ignore_hanging()
        waited_since = loop.time() - PATIENCE_SECONDS
        while self._waiting and self._waiting[0].since <= waited_since:
            self._send_next()
        if self._waiting:
            wait = self._waiting[0].since - waited_since
            self._fallback = loop.call_later(wait, self._send_overdue)

    def _send_waiting(self) -> None:
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        while self._waiting and self._has_room:
            self._send_next()

    def _send_next(self) -> None:
        batch = self._next_batch()
        self._crowded = len(batch) > 1 or bool(self._waiting)
        if batch:
            loop = sys.modules["asyncio"].get_running_loop()
            task = loop.create_task(self._send(batch, self._count()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[_PendingTask], number: int) -> None:
        well_before = max(map(_until, batch)) - PATIENCE_SECONDS
        for pending in batch:
            if pending.until < well_before and pending.timer is None:
                pending.expire_in(pending.until - time.monotonic())
        remaining, repeated = batch, False
        try:
            while remaining:
                call, commands, seconds, until = _merged(remaining)
                try:
                    replies = await self._perform(
                        call, commands, seconds, until, may_repeat=not repeated
                    )
                except ConnectionLost as error:
                    remaining = _after_loss(remaining, error, repeated=repeated)
                    repeated = True
                    continue
                self._learn_size(replies, len(remaining))
                # The next call is sent before these replies are used, which takes long.
                self._end(number)
                self._deliver(remaining, replies)
                return
        except Exception as error:  # noqa: BLE001 - it belongs to those that wait
            _fail(batch, error)
        except BaseException:
            for pending in batch:
                pending.future.cancel()
            raise
        finally:
            self._end(number)

    def _end(self, number: int) -> None:
        self._discount(number)
        if self._waiting:
            self._send_waiting()


# Threads -----------------------------------------------------------------------------------------


class _Perform(Protocol):
    """Sends a call and returns the replies, within the deadline."""

    def __call__(
        self,
        call: Call,
        commands: Sequence[Command],
        seconds: float,
        until: float,
        *,
        may_repeat: bool = True,
    ) -> list[Reply]: ...


class _PendingThread(Pending):
    """A thread that waits for its replies, or until it has to send the next batch."""

    __slots__ = ("_done", "_error", "_replies", "_wakeup", "batch", "number", "taken")

    def __init__(
        self, commands: Sequence[Command], members: list[bytes], seconds: float, until: float
    ) -> None:
        super().__init__(commands, members, seconds, until)
        self._wakeup = threading.Lock()
        self._wakeup.acquire()
        self._done = False
        self._replies: list[Reply] = []
        self._error: Exception | None = None
        self.taken: bool = False
        """Whether it is part of a batch."""
        self.batch: list[_PendingThread] | None = None
        """The batch that this thread has to send."""
        self.number: int = 0

    def done(self) -> bool:
        return self._done

    def resolve(self, replies: list[Reply]) -> None:
        self._replies, self._done = replies, True
        self._wakeup.release()

    def fail(self, error: Exception) -> None:
        self._error, self._done = error, True
        self._wakeup.release()

    def lead(self, batch: list[_PendingThread], number: int) -> None:
        """Wake this thread to send a batch."""
        self.batch, self.number = batch, number
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


class ThreadBatcher(_Batcher[_PendingThread]):
    """Sends the pipelines of all threads of a process.

    It starts no thread: when a call has finished, the waiting thread with the latest deadline is
    woken, and sends the next batch for all of them.
    """

    def __init__(self, perform: _Perform, secret: str) -> None:
        super().__init__(MIN_CALLS_OF_THREADS, secret)
        self._perform = perform
        self._lock = threading.Lock()

    def execute(
        self, commands: Sequence[Command], members: list[bytes], seconds: float, until: float
    ) -> list[Reply]:
        """Perform a pipeline, whose encoded commands are ``members``, by itself or in a batch."""
        if sum(map(len, members)) > ALONE_BYTES:
            return self._perform(join_members(members), commands, seconds, until)
        pending: _PendingThread | None = None
        number = 0
        with self._lock:
            if self._has_room:
                number = self._count()
            else:
                pending = _PendingThread(commands, members, seconds, until)
                self._waiting.append(pending)
        if pending is not None:
            return self._wait(pending)
        try:
            return self._perform(join_members(members), commands, seconds, until)
        finally:
            self._end(number)

    def _wait(self, pending: _PendingThread) -> list[Reply]:
        while not pending.done():
            left = pending.until - time.monotonic()
            if not pending.wait(left if pending.taken else min(left, PATIENCE_SECONDS)):
                self._send_overdue(pending)
            elif pending.batch is not None:
                batch, number = pending.batch, pending.number
                pending.batch = None
                try:
                    self._send(batch, number)
                finally:
                    # Others still wait only if this thread was interrupted.
                    interrupted = "the thread that sent the call for others was interrupted"
                    _fail(batch, ConnectionLost(interrupted))
                    self._end(number)
        return pending.result()

    def _send_overdue(self, pending: _PendingThread) -> None:
        """Send an overdue pipeline, or raise DeadlineExceeded; nothing if it was just woken."""
        with self._lock:
            if pending.done() or pending.batch is not None:
                return
            if pending.until <= time.monotonic():
                pending.give_up()
                raise exceeded(pending.seconds)
            if not pending.taken:
                self._ignore_hanging()
                self._choose_sender()

    def _end(self, number: int) -> None:
        with self._lock:
            self._discount(number)
            while self._waiting and self._has_room:
                self._choose_sender()

    def _choose_sender(self) -> None:
        """Choose the waiting thread that sends the next batch; the caller has the lock."""
        batch = self._next_batch()
        for pending in batch:
            pending.taken = True
        if batch:
            # The call may last until the latest deadline, so that thread has to send it.
            max(batch, key=_until).lead(batch, self._count())

    def _send(self, batch: list[_PendingThread], number: int) -> None:
        remaining, repeated = batch, False
        try:
            while remaining:
                call, commands, seconds, until = _merged(remaining)
                try:
                    replies = self._perform(call, commands, seconds, until, may_repeat=not repeated)
                except ConnectionLost as error:
                    remaining = _after_loss(remaining, error, repeated=repeated)
                    repeated = True
                    continue
                self._learn_size(replies, len(remaining))
                self._end(number)  # so that the next is sent while these replies are used
                self._deliver(remaining, replies)
                return
        except Exception as error:  # noqa: BLE001 - it belongs to those that wait
            _fail(batch, error)
