"""Which pipelines share a call, and who gets what of its answer: the same for threads and loops.

No I/O, no waiting. Pipelines wait while as many calls are under way as the network can usefully
hold; those that wait travel together in the next. The longer the way, the more calls are let go
side by side, so that the wait stays near half a millisecond: what sharing saves is work on this
machine, and it must not cost a second way.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Final, TypeVar

from upstash_middleware.errors import CommandError, ConnectionLost, Refused, UpstashError
from upstash_middleware.upstash.protocol import joined, refuse
from upstash_middleware.values import value

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Generator, Sequence

    from upstash_middleware.core.effects import Command, Pipeline, Reply
    from upstash_middleware.upstash.calls import Deadline
    from upstash_middleware.upstash.protocol import Call

FEWEST_CALLS: Final = 2
"""Calls that an event loop always lets go side by side; those that hang do not count."""

FEWEST_CALLS_OF_THREADS: Final = 1
"""The same for threads, of whom each that is woken has to wait for the interpreter's lock."""

FEWEST_HALVED: Final = 4
"""As many pipelines, or more, go in two calls where none is under way."""

SECONDS_BETWEEN_CALLS: Final = 0.0005
"""How far apart calls are to end, on average: what a pipeline may wait for the next."""

FORGETTING: Final = 1.002
"""By how much each call makes the quickest of late seem longer, in case the way has become so.

So little, because a process that is busy comes late to nearly every answer: more calls side by
side would only give it more to do.
"""

PATIENCE_SECONDS: Final = 0.01
"""How long a pipeline waits for calls that do not end, before it goes all the same."""

MAX_COMMANDS: Final = 256
MAX_CHARACTERS: Final = 128 * 1024
"""Bounds of a shared call, above which the next takes the rest."""

MAX_REPLY_BYTES: Final = 256 * 1024
"""The same for what comes back, going by what the last shared calls brought."""

ALONE_CHARACTERS: Final = 16 * 1024
"""A pipeline with more than this to send shares no call."""


class Waiting(ABC):
    """A pipeline that is to share a call, and somebody who waits for its replies."""

    __slots__ = ("characters", "deadline", "members", "pipeline")

    def __init__(
        self,
        pipeline: Pipeline,
        members: list[str],
        characters: int,
        deadline: Deadline,
    ) -> None:
        self.pipeline: Pipeline = pipeline
        self.members: list[str] = members
        """Its commands, as they stand in a call."""
        self.characters: int = characters
        """How many they have together."""
        self.deadline: Deadline = deadline

    @abstractmethod
    def done(self) -> bool:
        """Whether nobody waits any more: answered, out of time, or cancelled."""

    @abstractmethod
    def resolve(self, replies: list[Reply]) -> None:
        """Give the replies to who waits."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Raise an error where somebody waits."""


ends_at: Final = attrgetter("deadline.at")
"""When the time of one who waits is up, by the monotonic clock."""
_members: Final = attrgetter("members")
_commands: Final = attrgetter("pipeline.commands")

W = TypeVar("W", bound=Waiting)


class Way:
    """One call on its way, and since when by the monotonic clock."""

    __slots__ = ("begun", "ended")

    def __init__(self) -> None:
        self.begun: float = time.monotonic()
        self.ended: bool = False


class Traffic:
    """The calls that are under way, and what was learned of their like."""

    __slots__ = (
        "_fewest_calls",
        "_most_calls",
        "_quickest",
        "_under_way",
        "_usual_reply_bytes",
        "has_room",
    )

    def __init__(self, fewest_calls: int) -> None:
        self._fewest_calls = fewest_calls
        self._under_way: set[Way] = set()
        """Those that have not lasted beyond anybody's patience."""
        self._most_calls = fewest_calls
        self._quickest = 0.0
        self._usual_reply_bytes = 0.0
        self.has_room: bool = True
        """Whether one more call may go."""

    def begin(self) -> Way:
        """Count a call."""
        way = Way()
        self._under_way.add(way)
        self._see_room()
        return way

    def end(self, way: Way) -> None:
        """Count it no more, and learn how long the way is; nothing where that has been done."""
        if way.ended:
            return
        way.ended = True
        took = time.monotonic() - way.begun
        self._quickest = min(took, self._quickest * FORGETTING or took)
        self._most_calls = max(self._fewest_calls, int(self._quickest / SECONDS_BETWEEN_CALLS))
        self._under_way.discard(way)
        self._see_room()

    def lose_patience(self) -> None:
        """Count no more on the calls that hang."""
        late = time.monotonic() - PATIENCE_SECONDS
        self._under_way = {way for way in self._under_way if way.begun > late}
        self._see_room()

    def _see_room(self) -> None:
        self.has_room = len(self._under_way) < self._most_calls

    def next_batch(self, waiting: deque[W]) -> list[W]:
        """Take from those who wait what the next call holds."""
        batch: list[W] = []
        commands = characters = 0
        # With nothing under way half of them go, so that one half is asked about while what the
        # other was answered is used; else all would always wait at the same time.
        most = len(waiting)
        if not self._under_way and most >= FEWEST_HALVED and self._most_calls > 1:
            most = (most + 1) // 2
        if most * self._usual_reply_bytes > MAX_REPLY_BYTES:
            most = max(1, int(MAX_REPLY_BYTES / self._usual_reply_bytes))
        while waiting and len(batch) < most:
            one = waiting.popleft()
            if one.done():
                continue
            commands += len(one.members)
            characters += one.characters
            if batch and (commands > MAX_COMMANDS or characters > MAX_CHARACTERS):
                waiting.appendleft(one)
                break
            batch.append(one)
        return batch

    def learn_size(self, replies: Sequence[Reply], pipelines: int) -> None:
        """Learn how much a pipeline brings back: of stored values, for all else is small."""
        size = 0
        for reply in replies:
            if type(reply) is list:
                if reply and type(reply[0]) is not int:  # as limits answer
                    size += sum([len(each) for each in reply if type(each) is bytes])
            elif type(reply) is bytes:
                size += len(reply)
        self._usual_reply_bytes = (self._usual_reply_bytes + size / pipelines) / 2


@value(frozen=True, slots=True)
class SharedCall:
    """A call to be performed for a batch."""

    call: Call
    commands: list[Command]
    pipelines: int
    """How many the commands are of."""
    deadline: Deadline
    repeat: bool
    """Whether it may be sent once more where it was lost on the way."""


def carried(batch: Sequence[Waiting], secret: str) -> Generator[SharedCall, list[Reply], None]:
    """Yield the calls that a batch takes, and give each pipeline its replies, or its error.

    What failed is thrown in. Where a call was lost on the way, those who only read go once more.
    """
    once_more = True
    while True:
        repeat = once_more and all(one.pipeline.reads_only for one in batch)
        try:
            replies = yield _shared_call(batch, repeat=repeat)
        except ConnectionLost as error:
            readers = [one for one in batch if one.pipeline.reads_only]
            if repeat or not once_more or not readers:
                fail(batch, error)
                return
            fail([one for one in batch if not one.pipeline.reads_only], error)
            batch, once_more = readers, False
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait
            fail(batch, error)
            return
        else:
            _hand_out(batch, replies, secret)
            return


def fail(batch: Sequence[Waiting], error: Exception) -> None:
    """Raise an error in each of these, as its own: a raised one keeps where it was raised."""
    for one in batch:
        if not one.done():
            one.fail(_own(error))


def _shared_call(batch: Sequence[Waiting], *, repeat: bool) -> SharedCall:
    return SharedCall(
        joined([*chain.from_iterable(map(_members, batch))]),
        [*chain.from_iterable(map(_commands, batch))],
        len(batch),
        max(batch, key=ends_at).deadline,
        repeat,
    )


def _hand_out(batch: Sequence[Waiting], replies: list[Reply], secret: str) -> None:
    end = 0
    for one in batch:
        begin, end = end, end + len(one.members)
        own = replies[begin:end]
        if one.done():
            continue
        if len(own) == 1 and isinstance(own[0], CommandError):
            try:
                refuse(own[0], secret)
            except Refused as error:
                one.fail(error)
                continue
        one.resolve(own)


def _own(error: Exception) -> Exception:
    if not isinstance(error, UpstashError):
        return error
    own = type(error)(*error.args)
    own.__cause__ = error
    return own
