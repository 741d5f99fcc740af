"""Flows: coroutines that await only the effects below. A driver, sync or async, performs them.

The same code thus runs in threads and on any event loop. Errors of a call are raised where the
command was awaited, so failure policies are written only once. This module performs
no I/O.
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
"""One word of a command. Bytes are sent unchanged, an int as decimal digits."""

Reply = int | bytes | CommandError | list["Reply"] | None
"""The reply to a command. Strings are always bytes, and a failure is a CommandError."""


class Script(Struct, frozen=True):
    """A Lua script, and the SHA-1 of its text by which servers identify it."""

    text: str
    sha: str


class Command(Struct, frozen=True):
    """A Redis command. Awaiting it returns the reply, or raises its CommandError."""

    args: tuple[Argument, ...]
    reads_only: bool = False
    """Whether the command can be sent twice with the same result, so that it may be retried."""
    script: Script | None = None
    """The script whose SHA is in ``args``, to be sent if the server does not know it."""

    def __await__(self) -> Generator[Effect, Any, Reply]:
        (reply,) = yield Pipeline((self,))
        if isinstance(reply, CommandError):
            raise reply
        return cast("Reply", reply)


class Pipeline(Struct, frozen=True):
    """Commands in one HTTP call, in order and not atomic. Awaiting it returns the list of replies.

    The reply to a failed command is its CommandError. If the call fails, an UpstashError is raised.
    """

    commands: tuple[Command, ...]
    deadline: float | None = None
    """Seconds for the whole call, with connecting and retries; None for the client's default."""
    yields: bool = False
    """Whether the deadlines of other pipelines take precedence when pipelines are joined."""
    alone: bool = False
    """Whether the pipeline needs a call of its own, because a command may block at the server."""

    def __await__(self) -> Generator[Effect, list[Reply], list[Reply]]:
        return (yield self)


class Sleep(Struct, frozen=True):
    """A pause, in seconds."""

    seconds: float

    def __await__(self) -> Generator[Effect, Any, None]:
        yield self


class Latch:
    """Opens once and stays open. Flows in threads and on event loops can wait for it.

    ``subscribe`` is called by drivers.
    """

    __slots__ = ("_lock", "_subscribers", "opened")

    def __init__(self) -> None:
        self.opened: bool = False
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` when the latch opens, or now if it is already open."""
        with self._lock:
            if not self.opened:
                self._subscribers.append(wake)
                return
        wake()

    def open(self) -> None:
        """Open the latch: all waiting flows continue, and later ones do not wait."""
        with self._lock:
            self.opened = True
            waiting, self._subscribers = self._subscribers, []
        for wake in waiting:
            wake()


class Wait(Struct, frozen=True):
    """Waits for a latch to open, at most ``timeout`` seconds. Returns whether it opened."""

    latch: Latch
    timeout: float

    def __await__(self) -> Generator[Effect, Any, bool]:
        return cast("bool", (yield self))


class Notify(Struct, frozen=True):
    """Opens a latch."""

    latch: Latch

    def __await__(self) -> Generator[Effect, Any, None]:
        yield self


class Resolve(Struct, frozen=True):
    """Awaits an awaitable of the application, such as the result of an async extractor."""

    awaitable: Awaitable[Any]

    def __await__(self) -> Generator[Effect, Any, Any]:
        return (yield self)


_BYTES = frozenset({bytes})

Effect = Pipeline | Sleep | Wait | Notify | Resolve
Flow = Coroutine[Effect, Any, T]


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the application, sync or async, and return its result."""
    result = function(*args)
    return await Resolve(result) if isinstance(result, Awaitable) else result


async def together(
    *flows: Flow[Any], enough: Callable[[Any], bool] = lambda _result: False
) -> list[Any]:
    """Run flows concurrently; pipelines that they await at the same time share a call.

    Returns the results in order. An error of a shared call, or an interruption, is raised in each
    of its flows; an interruption is raised again when all flows have ended. If a flow raises, the
    others are closed, and the exception is raised. If a flow ends without awaiting and its result
    is ``enough``, the flows after it are not started, and their results are None.
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
            await _send_together(waiting)
        return [lane.result for lane in lanes]
    finally:
        for lane in lanes:
            lane.flow.close()


class _RunningFlow:
    """A flow that runs with others: the pipeline that it awaits, or its result."""

    __slots__ = ("flow", "pipeline", "result")

    def __init__(self, flow: Flow[Any]) -> None:
        self.flow = flow
        self.pipeline: Pipeline | None = None
        self.result: Any = None

    def step(self, resume: Callable[[Any], Effect], value: Any) -> Effect | None:
        """Resume the flow. Return the awaited effect; None for a pipeline or after the end."""
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
        """Perform effects until the flow awaits a pipeline or ends."""
        while effect is not None:
            try:
                value, resume = await effect, self.flow.send
            except BaseException as error:  # noqa: BLE001 - raised in the flow, even a cancellation
                value, resume = error, self.flow.throw
            effect = self.step(resume, value)


async def _send_together(lanes: list[_RunningFlow]) -> None:
    """Send the pipelines of flows in one call, and resume each flow with its replies."""
    alone = [lane for lane in lanes if not _is_joinable(lane.pipeline)] if len(lanes) > 1 else []
    shared = [lane for lane in lanes if lane not in alone]
    try:
        for group in filter(None, [shared, *([lane] for lane in alone)]):
            await _send(group)
    except (Exception, GeneratorExit):  # a closed flow cannot be resumed
        raise
    except BaseException as error:
        # An interruption: raise it in each flow, and perform the effects of its cleanup.
        for lane in lanes:
            if lane.pipeline is not None:
                with suppress(type(error)):
                    await lane.perform(lane.step(lane.flow.throw, error))
                    while lane.pipeline is not None:
                        await _send_together([lane])
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
    """Whether a pipeline can share a call. Bytes that are not UTF-8 need a separate call."""
    for command in pipeline.commands if pipeline else ():
        if _BYTES.isdisjoint(map(type, command.args)):
            continue
        for word in command.args:
            if isinstance(word, bytes) and not is_text(word):
                return False
    return True


def is_text(word: bytes) -> bool:
    """Whether bytes are valid UTF-8."""
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def joined(pipelines: list[Pipeline]) -> Pipeline:
    """Join pipelines. The deadline is the longest of those without ``yields``."""
    leading = [pipeline for pipeline in pipelines if not pipeline.yields]
    deadlines = [pipeline.deadline for pipeline in leading or pipelines]
    return Pipeline(
        tuple([command for pipeline in pipelines for command in pipeline.commands]),
        None if None in deadlines else max(deadlines),  # type: ignore[type-var] # no None
        not leading,
    )


# ------------------------------------------------------------------------------------------------
# Lua scripts, which are read once from the files of the package.


@cache
def script(package: str, *names: str, first_line: str = "") -> Script:
    """Return the script that concatenates the files ``NAME.lua`` of a package."""
    spec: Any = sys.modules[package].__spec__
    folder = dirname(spec.origin)  # noqa: PTH120 - it may be in an archive
    parts = [spec.loader.get_data(join(folder, f"{name}.lua")) for name in names]  # noqa: PTH118
    text = first_line.encode() + b"\n".join(parts)
    # SHA-1 is not used for security: servers identify scripts by it.
    return Script(text.decode(), sha1(text, usedforsecurity=False).hexdigest())
