"""The only code that performs effects: ``run`` for threads, ``arun`` for event loops.

Each is a loop: it gets the flow's next effect, performs it, and returns the result to the flow or
raises the error in it. Errors that a flow does not handle are raised in the caller.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, assert_never

from upstash_middleware.core.flow import Notify, Pipeline, Resolve, Sleep, Wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from upstash_middleware.core.flow import Effect, Flow, Latch, Reply

T = TypeVar("T")


class Executor(Protocol):
    """The methods of a client that a thread's driver uses."""

    def execute(self, pipeline: Pipeline) -> list[Reply]:
        """Perform the pipeline in one HTTP call and return its replies in order."""
        ...


class AsyncExecutor(Protocol):
    """The methods of a client that an event loop's driver uses."""

    async def execute(self, pipeline: Pipeline) -> list[Reply]:
        """Perform the pipeline in one HTTP call and return its replies in order."""
        ...


def run(flow: Flow[T], client: Executor) -> T:
    """Run a flow to its end in this thread and return its result."""
    step, value = flow.send, None
    while True:
        try:
            effect = step(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            step, value = flow.send, _perform(effect, client)
        except BaseException as error:  # noqa: BLE001 - raised in the flow, interrupts too
            step, value = flow.throw, error


async def arun(flow: Flow[T], client: AsyncExecutor) -> T:
    """Run a flow to its end in this task and return its result.

    A cancellation is raised in the flow where it waits. Effects that the flow then awaits for
    cleaning up are still performed.
    """
    step: Callable[[Any], Effect] = flow.send
    value: Any = None
    interrupted = False
    while True:
        try:
            effect = step(value)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            if interrupted:
                step, value = flow.send, await _perform_shielded(effect, client)
            elif isinstance(effect, Pipeline):  # most effects; this saves a coroutine
                step, value = flow.send, await client.execute(effect)
            else:
                step, value = flow.send, await _aperform(effect)
        except BaseException as error:  # noqa: BLE001 - raised in the flow, cancellation too
            step, value = flow.throw, error
            interrupted = interrupted or not isinstance(error, Exception)


def _perform(effect: Effect, client: Executor) -> Any:
    match effect:
        case Pipeline():
            return client.execute(effect)
        case Sleep(seconds):
            return time.sleep(seconds)
        case Wait(latch, timeout):
            opened = threading.Event()
            latch.subscribe(opened.set)
            return opened.wait(timeout)
        case Notify(latch):
            return latch.open()
        case Resolve(awaitable):
            import asyncio  # noqa: PLC0415 - slow to import, and rarely needed in threads

            # Not anyio.run, which raises in a thread with the context of an event loop.
            return asyncio.run(_result(awaitable))
    assert_never(effect)


async def _aperform(effect: Sleep | Wait | Notify | Resolve) -> Any:
    match effect:
        case Sleep(seconds):
            import anyio  # noqa: PLC0415

            return await anyio.sleep(seconds)
        case Wait(latch, timeout):
            return await _wait_for_latch(latch, timeout)
        case Notify(latch):
            return latch.open()
        case Resolve(awaitable):
            return await awaitable
    assert_never(effect)


async def _perform_shielded(effect: Effect, client: AsyncExecutor) -> Any:
    import anyio  # noqa: PLC0415

    with anyio.CancelScope(shield=True):
        if isinstance(effect, Pipeline):
            return await client.execute(effect)
        return await _aperform(effect)


async def _wait_for_latch(latch: Latch, seconds: float) -> bool:
    import anyio  # noqa: PLC0415

    opened = anyio.Event()
    wake = _from_any_thread(opened.set)
    latch.subscribe(wake)
    with anyio.move_on_after(seconds):
        await opened.wait()
    return latch.opened


def _from_any_thread(callback: Callable[[], None]) -> Callable[[], None]:
    """Return a function that schedules ``callback`` on this event loop from any thread."""
    import anyio.lowlevel  # noqa: PLC0415

    loop: Any = anyio.lowlevel.current_token().native_token
    schedule = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon  # asyncio, trio

    def wake() -> None:
        with suppress(RuntimeError):  # the loop has ended, so nothing waits
            schedule(callback)

    return wake


async def _result(awaitable: Awaitable[T]) -> T:
    return await awaitable
