"""What a flow may ask of the world: values that a coroutine awaits and a driver performs.

A *flow* is a coroutine that awaits nothing but these. The same text then runs under threads and
under any event loop, a reply keeps its place and type, and an error of the wire is raised where
the command was awaited, so that a failure policy is written once. Nothing here performs
anything.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar, cast

from upstash_middleware.errors import CommandError
from upstash_middleware.values import dataclass, value

T = TypeVar("T")

Argument = str | bytes | int
"""One word of a command. Bytes travel untouched; an int as its decimal digits."""

Reply = int | bytes | CommandError | list["Reply"] | None
"""What a command answers: strings are bytes always, a failure is a value."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 of its text as sent, by which a server knows it."""

    text: str
    sha: str


@value(frozen=True, slots=True)
class Command:
    """One Redis command, awaited for its reply; a failed one raises its CommandError."""

    args: tuple[Argument, ...]
    reads_only: bool = False
    """Whether sending it twice is the same as sending it once: it may then be retried."""
    script: Script | None = None
    """The script that ``args`` names by its SHA, for a server that does not know it."""

    def __await__(self) -> Generator[Effect, Any, Reply]:
        (reply,) = yield Pipeline((self,))
        if isinstance(reply, CommandError):
            raise reply
        return cast("Reply", reply)


@value(frozen=True, slots=True)
class Pipeline:
    """Commands in one HTTP call, in order, not atomic; awaited for their replies in order.

    A command that failed has its CommandError as its reply. What went wrong with the call as a
    whole is raised as an UpstashError.
    """

    commands: tuple[Command, ...]
    deadline: float | None = None
    """Seconds for the whole call, connecting and retries included; None for the client's."""
    yields: bool = False
    """Whether that is for a call of its own: joined with others, their deadlines count alone."""

    def __await__(self) -> Generator[Effect, list[Reply], list[Reply]]:
        return (yield self)

    @property
    def reads_only(self) -> bool:
        """Whether the whole may be sent again after it was lost on the way."""
        return all(command.reads_only for command in self.commands)


@dataclass(frozen=True, slots=True)
class Sleep:
    """A pause of so many seconds."""

    seconds: float

    def __await__(self) -> Generator[Effect, Any, None]:
        yield self


class Latch:
    """A thing that several flows of this process wait for, in threads and in event loops.

    It opens once and stays open, so nobody can miss it. ``subscribe`` is for drivers.
    """

    __slots__ = ("_lock", "_subscribers", "opened")

    def __init__(self) -> None:
        self.opened: bool = False
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called when the latch opens, or now if it is open."""
        with self._lock:
            if not self.opened:
                self._subscribers.append(wake)
                return
        wake()

    def open(self) -> None:
        """Let everybody through, now and later."""
        with self._lock:
            self.opened = True
            waiting, self._subscribers = self._subscribers, []
        for wake in waiting:
            wake()


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until a latch opens, ``timeout`` seconds at most; answers whether it did."""

    latch: Latch
    timeout: float

    def __await__(self) -> Generator[Effect, Any, bool]:
        return cast("bool", (yield self))


@dataclass(frozen=True, slots=True)
class Notify:
    """Open a latch for those who wait for it."""

    latch: Latch

    def __await__(self) -> Generator[Effect, Any, None]:
        yield self


@dataclass(frozen=True, slots=True)
class Resolve:
    """Await something of the user's that is not a flow: what an async extractor returned."""

    awaitable: Awaitable[Any]

    def __await__(self) -> Generator[Effect, Any, Any]:
        return (yield self)


_BYTES = frozenset({bytes})

Effect = Pipeline | Sleep | Wait | Notify | Resolve
Flow = Coroutine[Effect, Any, T]


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function of the user's, sync or async, answers."""
    result = function(*args)
    return await Resolve(result) if isinstance(result, Awaitable) else result


async def together(
    *flows: Flow[Any], enough: Callable[[Any], bool] = lambda _result: False
) -> list[Any]:
    """Run flows side by side and join what they ask of the wire into one pipeline each turn.

    Answers their results in order. An error of a joined call is raised in each of them, and so is
    an interruption, which passes on when each has ended. If one raises, the others are closed and
    the exception passes on. Where a flow ends without asking
    for anything and its result is ``enough``, those after it are not begun: theirs is None.
    """
    if len(flows) == 1:  # nothing to join
        return [await flows[0]]
    lanes = [_Lane(flow) for flow in flows]
    try:
        for lane in lanes:
            if (effect := lane.advance(lane.flow.send, None)) is not None:
                await lane.go_on(effect)
            if lane.asks is None and enough(lane.result):
                break
        while waiting := [lane for lane in lanes if lane.asks is not None]:
            await _perform_joined(waiting)
        return [lane.result for lane in lanes]
    finally:
        for lane in lanes:
            lane.flow.close()


async def _perform_joined(lanes: list[_Lane]) -> None:
    alone = [lane for lane in lanes if not _joinable(lane.asks)] if len(lanes) > 1 else []
    joined = [lane for lane in lanes if lane not in alone] if alone else lanes
    for group in filter(None, [joined, *([lane] for lane in alone)]):
        try:
            await _perform_as_one(group)
        except (Exception, GeneratorExit):  # else nobody drives this any more
            raise
        except BaseException as error:
            await _interrupt([lane for lane in lanes if lane.asks is not None], error)
            raise


def _joinable(pipeline: Pipeline | None) -> bool:
    """Whether a pipeline can share a call: bytes that are no text travel by themselves only."""
    for command in pipeline.commands if pipeline else ():
        if _BYTES.isdisjoint(map(type, command.args)):
            continue
        for word in command.args:
            if isinstance(word, bytes) and not _is_text(word):
                return False
    return True


def _is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _perform_as_one(lanes: list[_Lane]) -> None:
    asked: list[Pipeline] = [*map(_asks, lanes)]
    try:
        replies = await (asked[0] if len(asked) == 1 else _joined(asked))
    except Exception as error:  # noqa: BLE001 - each flow settles what befalls its commands
        for lane in lanes:
            await lane.resume(lane.flow.throw, error)
        return
    position = 0
    for lane, pipeline in zip(lanes, asked, strict=True):
        end = position + len(pipeline.commands)
        if (effect := lane.advance(lane.flow.send, replies[position:end])) is not None:
            await lane.go_on(effect)
        position = end


async def _interrupt(lanes: list[_Lane], error: BaseException) -> None:
    """Raise an interruption in each flow, and perform what it asks for before it ends."""
    for lane in lanes:
        with suppress(type(error)):
            await lane.resume(lane.flow.throw, error)
            while lane.asks is not None:
                await _perform_joined([lane])


def _joined(pipelines: list[Pipeline]) -> Pipeline:
    leading = [pipeline for pipeline in pipelines if not pipeline.yields]
    deadlines = [pipeline.deadline for pipeline in leading or pipelines]
    return Pipeline(
        tuple(chain.from_iterable(map(_commands, pipelines))),
        None if None in deadlines else max(deadlines),  # type: ignore[type-var] # no None
        not leading,
    )


_asks = attrgetter("asks")
_commands = attrgetter("commands")


class _Lane:
    """One of the flows that run together: what it waits for, and at last its result."""

    __slots__ = ("asks", "flow", "result")

    def __init__(self, flow: Flow[Any]) -> None:
        self.flow = flow
        self.asks: Pipeline | None = None
        self.result: Any = None

    async def resume(self, step: Callable[[Any], Effect], value: Any) -> None:
        """Go on until the flow asks for the wire or ends; all else is passed up at once."""
        effect = self.advance(step, value)
        if effect is not None:
            await self.go_on(effect)

    async def go_on(self, effect: Effect) -> None:
        """Do the same from an effect that is not the wire."""
        pending: Effect | None = effect
        step: Callable[[Any], Effect]
        while pending is not None:
            try:
                value, step = await pending, self.flow.send
            except BaseException as error:  # noqa: BLE001 - it belongs to the flow, cancellation too
                value, step = error, self.flow.throw
            pending = self.advance(step, value)

    def advance(self, step: Callable[[Any], Effect], value: Any) -> Effect | None:
        """Go on to the flow's next effect, and return it unless that is the wire or the end."""
        self.asks = None
        try:
            effect = step(value)
        except StopIteration as end:
            self.result = end.value
            return None
        if isinstance(effect, Pipeline):
            self.asks = effect
            return None
        return effect
