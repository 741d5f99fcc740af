"""Flows: coroutines that await nothing but the effects below, which a driver performs.

The same code then runs under threads and under any event loop, and an error of the wire is raised
where the command was awaited, so that a failure policy is written once. Nothing here performs
an effect.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from functools import cache
from hashlib import sha1
from os.path import dirname, join
from typing import Any, TypeVar, cast

from msgspec import Struct

from upstash_middleware.errors import CommandError

T = TypeVar("T")

Argument = str | bytes | int
"""One word of a command. Bytes are sent unchanged; an int as its decimal digits."""

Reply = int | bytes | CommandError | list["Reply"] | None
"""The reply to a command: strings are always bytes, a failure is a value."""


class Script(Struct, frozen=True):
    """A Lua script and the SHA-1 of its text as sent, by which a server knows it."""

    text: str
    sha: str


class Command(Struct, frozen=True):
    """One Redis command, awaited for its reply; a failed one raises its CommandError."""

    args: tuple[Argument, ...]
    reads_only: bool = False
    """Whether sending it twice is the same as sending it once, so that it may be retried."""
    script: Script | None = None
    """The script that ``args`` names by its SHA, for a server that does not know it."""

    def __await__(self) -> Generator[Effect, Any, Reply]:
        (reply,) = yield Pipeline((self,))
        if isinstance(reply, CommandError):
            raise reply
        return cast("Reply", reply)


class Pipeline(Struct, frozen=True):
    """Commands in one HTTP call, in order, not atomic; awaited for their replies in order.

    A command that failed has its CommandError as its reply. A failure of the call as a whole is
    raised as an UpstashError.
    """

    commands: tuple[Command, ...]
    deadline: float | None = None
    """Seconds for the whole call, connecting and retries included; None for the client's."""
    yields: bool = False
    """Whether the deadline is only for a separate call: if joined, those of the others apply."""
    alone: bool = False
    """Whether it shares no request with others, since it may wait at the server."""

    def __await__(self) -> Generator[Effect, list[Reply], list[Reply]]:
        return (yield self)


class Sleep(Struct, frozen=True):
    """A pause of this many seconds."""

    seconds: float

    def __await__(self) -> Generator[Effect, Any, None]:
        yield self


class Latch:
    """Opens once and stays open; flows in threads and in event loops wait for it.

    ``subscribe`` is for drivers.
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
        """Let all flows continue, now and later."""
        with self._lock:
            self.opened = True
            waiting, self._subscribers = self._subscribers, []
        for wake in waiting:
            wake()


class Wait(Struct, frozen=True):
    """Waits until a latch opens, ``timeout`` seconds at most; returns whether it did."""

    latch: Latch
    timeout: float

    def __await__(self) -> Generator[Effect, Any, bool]:
        return cast("bool", (yield self))


class Notify(Struct, frozen=True):
    """Opens a latch for those who wait for it."""

    latch: Latch

    def __await__(self) -> Generator[Effect, Any, None]:
        yield self


class Resolve(Struct, frozen=True):
    """Awaits an awaitable of the user that is not a flow, such as an async extractor's result."""

    awaitable: Awaitable[Any]

    def __await__(self) -> Generator[Effect, Any, Any]:
        return (yield self)


_BYTES = frozenset({bytes})

Effect = Pipeline | Sleep | Wait | Notify | Resolve
Flow = Coroutine[Effect, Any, T]


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the user, sync or async, and return its result."""
    result = function(*args)
    return await Resolve(result) if isinstance(result, Awaitable) else result


async def together(
    *flows: Flow[Any], enough: Callable[[Any], bool] = lambda _result: False
) -> list[Any]:
    """Run flows concurrently, and join the pipelines that they await into one at a time.

    Returns their results in order. An error of a joined call is raised in each of them, and so is
    an interruption, which propagates once all have ended. If one raises, the others are closed and
    the exception propagates. If a flow ends without awaiting anything and its result is ``enough``,
    those after it are not started: their result is None.
    """
    if len(flows) == 1:  # nothing to join
        return [await flows[0]]
    lanes = [_RunningFlow(flow) for flow in flows]
    try:
        for lane in lanes:
            if (effect := lane.step(lane.flow.send, None)) is not None:
                await lane.perform(effect)
            if lane.pipeline is None and enough(lane.result):
                break
        while waiting := [lane for lane in lanes if lane.pipeline is not None]:
            await _send_joined(waiting)
        return [lane.result for lane in lanes]
    finally:
        for lane in lanes:
            lane.flow.close()


class _RunningFlow:
    """A flow that runs together with others: the pipeline it awaits, and finally its result."""

    __slots__ = ("flow", "pipeline", "result")

    def __init__(self, flow: Flow[Any]) -> None:
        self.flow = flow
        self.pipeline: Pipeline | None = None
        self.result: Any = None

    def step(self, resume: Callable[[Any], Effect], value: Any) -> Effect | None:
        """Resume the flow; return the effect that it awaits, unless that is a pipeline."""
        self.pipeline = None
        try:
            effect = resume(value)
        except StopIteration as end:
            self.result = end.value
            return None
        if isinstance(effect, Pipeline):
            self.pipeline = effect
            return None
        return effect

    async def perform(self, effect: Effect | None) -> None:
        """Perform effects at once until the flow awaits a pipeline or ends."""
        while effect is not None:
            try:
                value, resume = await effect, self.flow.send
            except BaseException as error:  # noqa: BLE001 - it belongs to the flow, cancellation too
                value, resume = error, self.flow.throw
            effect = self.step(resume, value)


async def _send_joined(lanes: list[_RunningFlow]) -> None:
    """Send the pipelines of flows in one call, and resume each with its replies."""
    alone = [lane for lane in lanes if not _is_joinable(lane.pipeline)] if len(lanes) > 1 else []
    shared = [lane for lane in lanes if lane not in alone]
    try:
        for group in filter(None, [shared, *([lane] for lane in alone)]):
            await _send(group)
    except (Exception, GeneratorExit):  # nothing drives this flow after a close
        raise
    except BaseException as error:
        # An interruption: raise it in each flow, and perform what that awaits before it ends.
        for lane in lanes:
            if lane.pipeline is not None:
                with suppress(type(error)):
                    await lane.perform(lane.step(lane.flow.throw, error))
                    while lane.pipeline is not None:
                        await _send_joined([lane])
        raise


async def _send(lanes: list[_RunningFlow]) -> None:
    pipelines = [cast("Pipeline", lane.pipeline) for lane in lanes]
    try:
        replies = await (pipelines[0] if len(pipelines) == 1 else joined(pipelines))
    except Exception as error:  # noqa: BLE001 - each flow handles the failure of its commands
        for lane in lanes:
            await lane.perform(lane.step(lane.flow.throw, error))
        return
    end = 0
    for lane, pipeline in zip(lanes, pipelines, strict=True):
        begin, end = end, end + len(pipeline.commands)
        if (effect := lane.step(lane.flow.send, replies[begin:end])) is not None:
            await lane.perform(effect)


def _is_joinable(pipeline: Pipeline | None) -> bool:
    """Whether a pipeline can share a call: bytes that are not text need a separate one."""
    for command in pipeline.commands if pipeline else ():
        if _BYTES.isdisjoint(map(type, command.args)):
            continue
        for word in command.args:
            if isinstance(word, bytes) and not is_text(word):
                return False
    return True


def is_text(word: bytes) -> bool:
    """Whether a word is text in UTF-8."""
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def joined(pipelines: list[Pipeline]) -> Pipeline:
    """Return one pipeline for several, with the longest deadline of those that do not yield."""
    leading = [pipeline for pipeline in pipelines if not pipeline.yields]
    deadlines = [pipeline.deadline for pipeline in leading or pipelines]
    return Pipeline(
        tuple([command for pipeline in pipelines for command in pipeline.commands]),
        None if None in deadlines else max(deadlines),  # type: ignore[type-var] # no None
        not leading,
    )


# ------------------------------------------------------------------------------------------------
# Lua scripts as values: their text is read from the package's files, once each.


@cache
def script(package: str, *names: str, first_line: str = "") -> Script:
    """Return the script made of a package's files ``NAME.lua``, one after the other."""
    spec: Any = sys.modules[package].__spec__
    folder = dirname(spec.origin)  # noqa: PTH120 - it may be in an archive
    parts = [spec.loader.get_data(join(folder, f"{name}.lua")) for name in names]  # noqa: PTH118
    text = first_line.encode() + b"\n".join(parts)
    # Not for secrecy: a server knows scripts by this digest.
    return Script(text.decode(), sha1(text, usedforsecurity=False).hexdigest())
