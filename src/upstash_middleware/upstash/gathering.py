"""Coalescing: pipelines that meet while calls are under way on an event loop share the next call.

For asyncio. A pipeline that meets fewer calls than the network can usefully hold goes at once;
others wait for one of those calls to end, not for a timer, and then travel together. The longer
the way, the more calls are let go side by side, so that the wait stays near half a millisecond:
what sharing saves is work on this machine, and it must not cost a second way.

The commands are billed alike, and a pipeline keeps what is its own: its deadline, its
cancellation, its error, and whether it may be sent again. One with much to send goes by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakKeyDictionary

from upstash_middleware.errors import ConnectionLost, Refused, UpstashError
from upstash_middleware.upstash.protocol import joined, refuse
from upstash_middleware.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.effects import Command, Pipeline, Reply
    from upstash_middleware.upstash.calls import Deadline
    from upstash_middleware.upstash.protocol import Call

FEWEST_CALLS: Final = 1
"""Calls that are always let go side by side; those that hang are not counted among them."""

SECONDS_BETWEEN_CALLS: Final = 0.0005
"""How far apart calls are to end, on average: what a pipeline may wait for the next."""

FORGETTING: Final = 1.002
"""By how much each call makes the quickest of late seem longer, in case the way has become so.

So little, because a loop that is busy comes late to nearly every answer: more calls side by side
would only give it more to do.
"""

PATIENCE_SECONDS: Final = 0.01
"""How long a pipeline waits for calls that do not end, before it goes all the same."""

MAX_COMMANDS: Final = 256
MAX_CHARACTERS: Final = 128 * 1024
"""Bounds of a gathered call, above which the next takes the rest."""

MAX_REPLY_BYTES: Final = 256 * 1024
"""The same for what comes back, going by what the last gathered calls brought."""

ALONE_CHARACTERS: Final = 16 * 1024
"""A pipeline with more than this to send shares no call."""


class Perform(Protocol):
    """What sends a call and reads its answer."""

    async def __call__(
        self, call: Call, commands: Sequence[Command], deadline: Deadline, *, repeat: bool
    ) -> list[Reply]:
        """See ``calls.calls_for``."""
        ...


@dataclass(slots=True, eq=False)
class Waiting:
    """A pipeline that is to share a call."""

    pipeline: Pipeline
    members: list[str]
    characters: int
    deadline: Deadline
    replies: asyncio.Future[list[Reply]]
    since: float
    """When it began to wait, by the event loop's clock."""
    timer: asyncio.TimerHandle | None = None
    """Ends its wait where its own time is up before the call's is."""


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One call on its way, and since when by the monotonic clock."""

    begun: float


class Gathering:
    """The pipelines of one event loop."""

    def __init__(self, perform: Perform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._under_way: set[Way] = set()
        """The calls that have not lasted beyond anybody's patience."""
        self._most_calls = FEWEST_CALLS
        self._quickest = 0.0
        self._usual_reply_bytes = 0.0
        self._waiting: deque[Waiting] = deque()
        self._watch: asyncio.TimerHandle | None = None
        """Looks after the first of those who wait."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(
        self, pipeline: Pipeline, members: list[str], deadline: Deadline
    ) -> list[Reply]:
        """Perform a pipeline, whose commands ``members`` are, in a call of its own or a shared one.

        Raises what ``calls.calls_for`` raises.
        """
        characters = sum(map(len, members))
        if characters > ALONE_CHARACTERS:
            return await self._by_itself(pipeline, members, deadline)
        if len(self._under_way) < self._most_calls:
            way = self._begin_call()
            try:
                return await self._by_itself(pipeline, members, deadline)
            finally:
                self._end_call(way)
        loop = asyncio.get_running_loop()
        one = Waiting(pipeline, members, characters, deadline, loop.create_future(), loop.time())
        return await self._shared(one, loop)

    async def _by_itself(
        self, pipeline: Pipeline, members: list[str], deadline: Deadline
    ) -> list[Reply]:
        repeat = pipeline.reads_only
        return await self._perform(joined(members), pipeline.commands, deadline, repeat=repeat)

    async def _shared(self, one: Waiting, loop: asyncio.AbstractEventLoop) -> list[Reply]:
        left = one.deadline.left()
        self._waiting.append(one)
        if self._watch is None:
            self._watch = loop.call_later(PATIENCE_SECONDS, self._lose_patience, loop)
        if left <= PATIENCE_SECONDS:
            one.timer = loop.call_later(left, _expire, one)
        try:
            return await one.replies
        finally:
            if one.timer is not None:
                one.timer.cancel()
            if one.replies.done() and not one.replies.cancelled():
                one.replies.exception()  # it may have come when this task was being cancelled

    def _lose_patience(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send what has waited long enough, and count no more on the calls that hang."""
        self._watch = None
        late = time.monotonic() - PATIENCE_SECONDS
        self._under_way = {way for way in self._under_way if way.begun > late}
        patient_since = loop.time() - PATIENCE_SECONDS
        while self._waiting and self._waiting[0].since <= patient_since:
            self._share_next_call()
        if self._waiting:
            wait = self._waiting[0].since - patient_since
            self._watch = loop.call_later(wait, self._lose_patience, loop)

    def _begin_call(self) -> Way:
        way = Way(time.monotonic())
        self._under_way.add(way)
        return way

    def _end_call(self, way: Way) -> None:
        """Learn how long the way is, and let those who wait go on."""
        took = time.monotonic() - way.begun
        self._quickest = min(took, self._quickest * FORGETTING or took)
        self._most_calls = max(FEWEST_CALLS, int(self._quickest / SECONDS_BETWEEN_CALLS))
        self._under_way.discard(way)
        while self._waiting and len(self._under_way) < self._most_calls:
            self._share_next_call()

    def _share_next_call(self) -> None:
        batch = self._next_batch()
        if batch:
            way = self._begin_call()
            task = asyncio.get_running_loop().create_task(self._carry(batch, way))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        commands = characters = 0
        while self._waiting:
            one = self._waiting[0]
            if not one.replies.done():
                commands += len(one.members)
                characters += one.characters
                reply_bytes = self._usual_reply_bytes * (len(batch) + 1)
                if batch and (
                    commands > MAX_COMMANDS
                    or characters > MAX_CHARACTERS
                    or reply_bytes > MAX_REPLY_BYTES
                ):
                    break
                batch.append(one)
            self._waiting.popleft()
        return batch

    async def _carry(self, batch: list[Waiting], way: Way) -> None:
        try:
            await self._together(batch, once_more=True)
        except asyncio.CancelledError:
            for one in batch:
                one.replies.cancel()
            raise
        finally:
            self._end_call(way)

    async def _together(self, batch: list[Waiting], *, once_more: bool) -> None:
        """Perform the batch in one call and give each pipeline its replies, or its error."""
        repeat = once_more and all(one.pipeline.reads_only for one in batch)
        try:
            replies = await self._perform(
                joined([member for one in batch for member in one.members]),
                [command for one in batch for command in one.pipeline.commands],
                _last_deadline(batch),
                repeat=repeat,
            )
        except ConnectionLost as error:
            readers = [one for one in batch if one.pipeline.reads_only]
            if repeat or not once_more or not readers:
                _fail(batch, error)
                return
            _fail([one for one in batch if not one.pipeline.reads_only], error)
            await self._together(readers, once_more=False)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            _fail(batch, error)
        else:
            usual = sum(map(_size, replies)) / len(batch)
            self._usual_reply_bytes = (self._usual_reply_bytes + usual) / 2
            self._hand_out(batch, replies)

    def _hand_out(self, batch: list[Waiting], replies: list[Reply]) -> None:
        end = 0
        for one in batch:
            begin, end = end, end + len(one.members)
            own = replies[begin:end]
            if one.replies.done():
                continue
            try:
                if len(own) == 1:
                    refuse(own[0], self._secret)
                one.replies.set_result(own)
            except Refused as error:
                one.replies.set_exception(error)


class Gatherings:
    """Those of each event loop that uses a client."""

    def __init__(self, perform: Perform, secret: str) -> None:
        self._perform = perform
        self._secret = secret
        self._of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Gathering] = (
            WeakKeyDictionary()
        )

    def here(self) -> Gathering:
        """Return this event loop's."""
        loop = asyncio.get_running_loop()
        gathering = self._of_loops.get(loop)
        if gathering is None:
            gathering = self._of_loops[loop] = Gathering(self._perform, self._secret)
        return gathering


def _size(reply: Reply) -> int:
    """Return the bytes of a reply, as far as they matter: of stored values."""
    if isinstance(reply, list):
        return sum([len(each) for each in reply if isinstance(each, bytes)])
    return len(reply) if isinstance(reply, bytes) else 0


def _last_deadline(batch: list[Waiting]) -> Deadline:
    """Return the deadline of a call for all of these, and watch those that end well before it."""
    last = batch[0].deadline
    for one in batch:
        if one.deadline.at > last.at:
            last = one.deadline
    for one in batch:
        if one.timer is None and one.deadline.at < last.at - PATIENCE_SECONDS:
            left = max(one.deadline.at - one.deadline.clock(), 0.0)
            one.timer = one.replies.get_loop().call_later(left, _expire, one)
    return last


def _expire(one: Waiting) -> None:
    if not one.replies.done():
        one.replies.set_exception(one.deadline.exceeded())


def _fail(batch: list[Waiting], error: Exception) -> None:
    for one in batch:
        if not one.replies.done():
            one.replies.set_exception(_own(error))


def _own(error: Exception) -> Exception:
    """Return the error as one task's own: a raised exception keeps where it was raised."""
    if not isinstance(error, UpstashError):
        return error
    own = type(error)(*error.args)
    own.__cause__ = error
    return own
